// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontends: their addresses, and the ports on them that no backend gets.

use nat_common::abi::config::MAX_FRONTENDS;
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Frontend, HostPorts},
    host::reserve,
    names::did_you_mean,
    ports::{GIVEN_OUT, given_ports, range},
    schema::FrontendSection,
    validate::{Places, first_known, text_of},
    values::{addresses, grouped},
};

pub(super) fn frontends(sections: &[FrontendSection], report: &mut Report) -> (Vec<Frontend>, Places) {
    let mut places = Places::new();
    let mut frontends = Vec::new();
    let mut full = false;
    for section in sections {
        let mut all = Vec::new();
        let entries = section.addresses.as_ref();
        if let Some(list) = entries.filter(|list| list.get_ref().is_empty()) {
            report
                .error(list.span(), "`addresses` is empty")
                .help("give at least one public address, for example `\"203.0.113.10\"`");
        }
        for entry in entries.map(Spanned::get_ref).into_iter().flatten() {
            let expanded = match addresses(entry.get_ref(), MAX_FRONTENDS) {
                Ok(expanded) => expanded,
                Err(fault) => {
                    report.error(entry.span(), fault.message).help(fault.help);
                    continue;
                }
            };
            if let Some((address, first)) = first_known(&expanded, &places) {
                report
                    .error(entry.span(), format!("frontend address {address} is given twice"))
                    .also(first, "also here")
                    .help("a rule may use several frontends, and several rules one: give each address once");
                continue;
            }
            places.extend(expanded.iter().map(|address| (*address, entry.span())));
            all.extend(expanded);
            if places.len() > MAX_FRONTENDS as usize && !full {
                full = true;
                report
                    .error(
                        entry.span(),
                        format!("{} frontend addresses up to here", grouped(places.len() as u64)),
                    )
                    .help(format!("at most {MAX_FRONTENDS} are possible, all frontends together"));
            }
        }
        let mut frontend = Frontend {
            name: text_of(section.name.as_ref()),
            addresses: all,
            reserved: section
                .reserved_ports
                .as_ref()
                .map(|list| given_ports(list, report))
                .unwrap_or_default(),
            reserved_on: Vec::new(),
            host_ports: host_ports(section.host_ports.as_ref(), report),
        };
        if let HostPorts::Range(range) = frontend.host_ports {
            reserve(&mut frontend, range);
        }
        frontends.push(frontend);
    }
    (frontends, places)
}

fn host_ports(value: Option<&Spanned<String>>, report: &mut Report) -> HostPorts {
    let Some(value) = value else { return HostPorts::default() };
    let fault = match value.get_ref().as_str() {
        "auto" => return HostPorts::Auto,
        "none" => return HostPorts::None,
        text => match range(text, &GIVEN_OUT) {
            Ok(range) => return HostPorts::Range(range),
            Err(fault) => fault,
        },
    };
    let text = value.get_ref();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        report.error(value.span(), fault.message).help(fault.help);
    } else {
        let help = did_you_mean(text, ["auto", "none"].into_iter());
        report.error(value.span(), format!("`host_ports` cannot be `{text}`")).help(
            help.unwrap_or_else(|| "possible: `auto`, `none`, or a range, as `32768-60999`".to_owned()),
        );
    }
    HostPorts::default()
}
