// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[[instance_ip]]`: addresses of backends' own.

use std::net::Ipv4Addr;

use nat_common::abi::policy::MAX_INSTANCES;
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Backend, InstanceIp},
    references::{Among, members},
    schema::{File, InstanceIpSection},
    validate::{Objects, Places},
    values::{address, grouped},
};

/// All instance IPs, in the order of the file.
pub(super) fn instance_ips(file: &File, objects: &Objects, report: &mut Report) -> Vec<InstanceIp> {
    let sections = &file.instance_ips;
    if let Some(beyond) = sections.get(MAX_INSTANCES as usize) {
        report
            .error(beyond.span.clone(), format!("{} instance IPs", grouped(sections.len() as u64)))
            .help(format!("at most {} are possible", grouped(MAX_INSTANCES)));
    }
    let backends: Vec<Backend> =
        objects.pools.iter().flat_map(|pool| pool.backends.iter().cloned()).collect();
    let among = Among { backends: &backends, places: &objects.backend_places, what: "any pool" };
    let mut backend_places = Places::new();
    let mut address_places = Places::new();
    let mut instance_ips = Vec::new();
    for section in sections {
        let backend = backend(section, &among, &mut backend_places, report);
        let address = public(section, objects, &mut address_places, report);
        if let (Some(backend), Some(address)) = (backend, address) {
            instance_ips.push(InstanceIp { backend, address });
        }
    }
    instance_ips
}

fn backend(
    section: &InstanceIpSection,
    among: &Among<'_>,
    places: &mut Places,
    report: &mut Report,
) -> Option<Ipv4Addr> {
    let wanted = section.backend.as_ref()?;
    if wanted.get_ref().contains('/') {
        report
            .error(wanted.span(), format!("`{}` is not one backend", wanted.get_ref()))
            .help("an instance IP belongs to one backend: give its address or name");
        return None;
    }
    let backend = *members(wanted, among, report).first()?;
    once(backend, "backend", "a backend has one instance IP", wanted, places, report)
}

fn public(
    section: &InstanceIpSection,
    objects: &Objects,
    places: &mut Places,
    report: &mut Report,
) -> Option<Ipv4Addr> {
    let wanted = section.address.as_ref()?;
    let found = match address(wanted.get_ref()) {
        Ok(found) => found,
        Err(fault) => {
            report.error(wanted.span(), fault.message).help(fault.help);
            return None;
        }
    };
    if let Some(frontend) = objects.frontend_places.get(&found) {
        report
            .error(wanted.span(), format!("instance IP {found} is also a frontend address"))
            .also(frontend.clone(), "frontend address here")
            .help("an instance IP has all its ports for one backend: take it out of the frontend, or use another");
        return None;
    }
    if let Some(backend) = objects.backend_places.iter().find_map(|places| places.get(&found)) {
        report
            .error(wanted.span(), format!("instance IP {found} is also a backend"))
            .also(backend.clone(), "backend here")
            .help("a backend has a private address, an instance IP is a public one: remove one of the two");
        return None;
    }
    once(found, "instance IP", "it belongs to one backend", wanted, places, report)
}

/// `found`, unless it was there before.
fn once(
    found: Ipv4Addr,
    what: &str,
    rule: &str,
    wanted: &Spanned<String>,
    places: &mut Places,
    report: &mut Report,
) -> Option<Ipv4Addr> {
    let Some(first) = places.insert(found, wanted.span()) else { return Some(found) };
    report
        .error(wanted.span(), format!("{what} {found} is given twice"))
        .also(first, "first here")
        .help(format!("{rule}: remove one"));
    None
}
