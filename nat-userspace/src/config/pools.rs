// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pools and their backends.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::Range,
};

use nat_common::abi::config::MAX_BACKENDS;
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Backend, Pool},
    names::object_name_fault,
    schema::{BackendEntry, PoolSection},
    validate::{NAME_BYTES, Places, first_known, text_of},
    values::{addresses, grouped},
};

/// Names of backends in all pools: one backend has one name, and one name one backend.
#[derive(Default)]
struct BackendNames<'a> {
    by_name: HashMap<&'a str, (Ipv4Addr, Range<usize>)>,
    by_address: HashMap<Ipv4Addr, (&'a str, Range<usize>)>,
}

pub(super) fn pools(
    sections: &[PoolSection],
    frontend_places: &Places,
    report: &mut Report,
) -> (Vec<Pool>, Vec<Places>) {
    let mut names = BackendNames::default();
    let mut distinct = HashSet::new();
    let mut full = false;
    let mut pools = Vec::new();
    let mut all_places = Vec::new();
    for section in sections {
        let mut pool = Pool { name: text_of(section.name.as_ref()), backends: Vec::new() };
        let mut places = Places::new();
        if let Some(list) = section.backends.as_ref().filter(|list| list.get_ref().is_empty()) {
            report.error(list.span(), "`backends` is empty").help("give at least one address or prefix");
        }
        for entry in section.backends.as_ref().map(Spanned::get_ref).into_iter().flatten() {
            for backend in backends(entry, &places, frontend_places, &mut names, report) {
                distinct.insert(backend.address);
                places.insert(backend.address, entry.address.span());
                pool.backends.push(backend);
            }
            if distinct.len() > MAX_BACKENDS as usize && !full {
                full = true;
                let found = grouped(distinct.len() as u64);
                report
                    .error(entry.address.span(), format!("{found} backends up to here"))
                    .help(format!("at most {} are possible, all pools together", grouped(MAX_BACKENDS)));
            }
        }
        pools.push(pool);
        all_places.push(places);
    }
    // A backend that is named in one pool and listed by address in another has its name everywhere.
    for backend in pools.iter_mut().flat_map(|pool| &mut pool.backends) {
        backend.name = names.by_address.get(&backend.address).map(|(name, _)| (*name).to_owned());
    }
    (pools, all_places)
}

/// The backends of one entry; none if anything is wrong with it.
fn backends<'a>(
    entry: &'a BackendEntry,
    places: &Places,
    frontend_places: &Places,
    names: &mut BackendNames<'a>,
    report: &mut Report,
) -> Vec<Backend> {
    let span = entry.address.span();
    let expanded = match addresses(entry.address.get_ref(), MAX_BACKENDS) {
        Ok(expanded) => expanded,
        Err(fault) => {
            report.error(span, fault.message).help(fault.help);
            return Vec::new();
        }
    };
    if let Some((address, first)) = first_known(&expanded, places) {
        report
            .error(span, format!("backend {address} is in the pool twice"))
            .also(first, "first here")
            .help("remove one");
        return Vec::new();
    }
    if let Some((address, frontend)) = first_known(&expanded, frontend_places) {
        report
            .error(span, format!("backend {address} is also a frontend address"))
            .also(frontend, "frontend address here")
            .help("a backend has a private address, a frontend a public one: remove one of the two");
        return Vec::new();
    }
    if let Some(name) = &entry.name {
        backend_name(name, &expanded, &span, names, report);
    }
    expanded.into_iter().map(|address| Backend { name: None, address }).collect()
}

fn backend_name<'a>(
    name: &'a Spanned<String>,
    expanded: &[Ipv4Addr],
    address_span: &Range<usize>,
    names: &mut BackendNames<'a>,
    report: &mut Report,
) {
    let text = name.get_ref().as_str();
    let [address] = expanded else {
        report
            .error(address_span.clone(), format!("backend `{text}` has {} addresses", expanded.len()))
            .help("a named backend has one address; list a prefix without a name");
        return;
    };
    if let Some(fault) = object_name_fault(text, NAME_BYTES) {
        report.error(name.span(), fault).help("for example `db1`");
    } else if text.parse::<Ipv4Addr>().is_ok() {
        report
            .error(name.span(), format!("backend name `{text}` is an address"))
            .help("commands take a name or an address: choose a name that is not one");
    }
    if let Some((other, place)) = names.by_name.get(text).filter(|(other, _)| other != address) {
        report
            .error(name.span(), format!("backend `{text}` is {address} here and {other} elsewhere"))
            .also(place.clone(), "elsewhere")
            .help("give each backend its own name");
        return;
    }
    if let Some((other, place)) = names.by_address.get(address).filter(|(other, _)| *other != text) {
        report
            .error(name.span(), format!("backend {address} is named `{text}` here and `{other}` elsewhere"))
            .also(place.clone(), "elsewhere")
            .help("give it the same name in every pool");
        return;
    }
    names.by_name.insert(text, (*address, name.span()));
    names.by_address.insert(*address, (text, name.span()));
}
