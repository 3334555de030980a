// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the file as typed to a [`Gateway`]: interfaces, frontends and pools. Rules are in [`super::rules`].

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::Range,
};

use nat_common::abi::config::{MAX_BACKENDS, MAX_FRONTENDS, MAX_PORTS};
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Backend, Frontend, Gateway, Pool, Precedence, Refusal, XdpMode},
    names::{did_you_mean, instance_name_fault, interface_name_fault, object_name_fault},
    schema::{BackendEntry, File, FrontendSection, GatewaySection, PoolSection, Strings},
    values::{addresses, grouped},
};

/// Bytes of a frontend's, pool's or backend's name in the data path's tables.
const NAME_BYTES: usize = 32;
/// Flows that a table may be made for. Fewer make no gateway; more would take over 4 GiB.
const MAX_FLOWS: std::ops::RangeInclusive<i64> = 1024..=16_777_216;
const DEFAULT_MAX_FLOWS: u32 = 1_048_576;

/// Where each address stands in the file.
pub(super) type Places = HashMap<Ipv4Addr, Range<usize>>;

/// What rules refer to. The lists have one entry for each section of the file, faulty ones too, so that a fault in
/// a pool does not make every rule of it faulty.
pub(super) struct Objects {
    pub(super) frontends: Vec<Frontend>,
    pub(super) frontend_names: Vec<Range<usize>>,
    pub(super) pools: Vec<Pool>,
    pub(super) pool_names: Vec<Range<usize>>,
    /// By pool.
    pub(super) backend_places: Vec<Places>,
}

/// Checks everything but rules.
pub(super) fn objects(file: &File, report: &mut Report) -> Objects {
    let names = file.frontends.iter().map(|section| section.name.as_ref());
    let frontend_names = unique_names("frontend", names, NAME_BYTES, report);
    let names = file.pools.iter().map(|section| section.name.as_ref());
    let pool_names = unique_names("pool", names, NAME_BYTES, report);
    let (frontends, frontend_places) = frontends(&file.frontends, report);
    let (pools, backend_places) = pools(&file.pools, &frontend_places, report);
    Objects { frontends, frontend_names, pools, pool_names, backend_places }
}

/// The `[gateway]` section; what rules and objects fill in is left empty.
pub(super) fn gateway(section: &GatewaySection, report: &mut Report) -> Gateway {
    let name = section.name.as_ref().map_or("default", |name| name.get_ref());
    if let (Some(fault), Some(name)) = (instance_name_fault(name), &section.name) {
        report
            .error(name.span(), fault)
            .help("it names the socket and the pin directory: for example `default` or `edge-1`");
    }
    let inside = interfaces("inside", section.inside.as_ref(), report);
    let outside = interfaces("outside", section.outside.as_ref(), report);
    let distinct: HashSet<&String> = inside.iter().chain(&outside).collect();
    if let Some(list) = section.outside.as_ref().filter(|_| distinct.len() > MAX_PORTS as usize) {
        report
            .error(list.span(), format!("{} interfaces, at most {MAX_PORTS} are possible", distinct.len()))
            .help("start another instance for the rest: `gateway.name` tells them apart");
    }
    Gateway {
        name: name.to_owned(),
        inside,
        outside,
        xdp_mode: choice(
            "xdp_mode",
            section.xdp_mode.as_ref(),
            &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)],
            &[],
            report,
        ),
        max_flows: max_flows(section.max_flows.as_ref(), report),
        assign_frontends: section.assign_frontends.unwrap_or(true),
        frontends: Vec::new(),
        pools: Vec::new(),
        rules: Vec::new(),
        max_backends: None,
        precedence: Precedence::default(),
        on_refusal: Refusal::default(),
        policies: Vec::new(),
        instance_ips: Vec::new(),
    }
}

/// One of a few words. `planned` are words of the format that this version does not have.
pub(super) fn choice<T: Copy + Default>(
    key: &str,
    value: Option<&Spanned<String>>,
    words: &[(&str, T)],
    planned: &[&str],
    report: &mut Report,
) -> T {
    let Some(value) = value else { return T::default() };
    let text = value.get_ref().as_str();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return *meaning;
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let all = all.join(", ");
    if planned.contains(&text) {
        report
            .error(value.span(), format!("`{key} = \"{text}\"` is not supported by this version of natgw"))
            .help(format!("use {all}, the default"));
    } else {
        let help = did_you_mean(text, words.iter().map(|(word, _)| *word));
        report
            .error(value.span(), format!("`{key}` cannot be `{text}`"))
            .help(help.unwrap_or_else(|| format!("possible: {all}")));
    }
    T::default()
}

fn max_flows(value: Option<&Spanned<i64>>, report: &mut Report) -> u32 {
    let Some(value) = value else { return DEFAULT_MAX_FLOWS };
    let number = *value.get_ref();
    match u32::try_from(number) {
        Ok(flows) if MAX_FLOWS.contains(&number) => flows,
        _ => {
            report
                .error(value.span(), format!("`max_flows` cannot be {number}"))
                .help("from 1,024 to 16,777,216; a flow takes at most 384 bytes of kernel memory");
            DEFAULT_MAX_FLOWS
        }
    }
}

fn interfaces(key: &str, list: Option<&Strings>, report: &mut Report) -> Vec<String> {
    let Some(list) = list else { return Vec::new() };
    if list.get_ref().is_empty() {
        report
            .error(list.span(), format!("`{key}` is empty"))
            .help("name at least one interface, as in `ip link`");
    }
    let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
    for name in list.get_ref() {
        if let Some(fault) = interface_name_fault(name.get_ref()) {
            report.error(name.span(), fault).help("use the name that `ip link` shows");
        }
        if let Some(first) = seen.insert(name.get_ref(), name.span()) {
            report
                .error(name.span(), format!("interface `{}` is in `{key}` twice", name.get_ref()))
                .also(first, "first here")
                .help("remove one");
        }
    }
    list.get_ref().iter().map(|name| name.get_ref().clone()).collect()
}

/// Reports unusable and repeated names; gives where each name is, empty for a missing one.
pub(super) fn unique_names<'a>(
    kind: &str,
    names: impl Iterator<Item = Option<&'a Spanned<String>>>,
    limit: usize,
    report: &mut Report,
) -> Vec<Range<usize>> {
    let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
    let mut places = Vec::new();
    for name in names {
        let Some(name) = name else {
            places.push(0..0);
            continue;
        };
        places.push(name.span());
        if let Some(fault) = object_name_fault(name.get_ref(), limit) {
            report.error(name.span(), fault).help(format!("for example `{kind}-1`"));
        }
        if let Some(first) = seen.get(name.get_ref().as_str()) {
            report
                .error(name.span(), format!("{kind} `{}` is defined twice", name.get_ref()))
                .also(first.clone(), "first defined here")
                .help("give each its own name");
        } else {
            seen.insert(name.get_ref(), name.span());
        }
    }
    places
}

fn frontends(sections: &[FrontendSection], report: &mut Report) -> (Vec<Frontend>, Places) {
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
        frontends.push(Frontend {
            name: text_of(section.name.as_ref()),
            addresses: all,
            ..Frontend::default()
        });
    }
    (frontends, places)
}

fn text_of(name: Option<&Spanned<String>>) -> String {
    name.map(|name| name.get_ref().clone()).unwrap_or_default()
}

fn first_known(list: &[Ipv4Addr], places: &Places) -> Option<(Ipv4Addr, Range<usize>)> {
    list.iter().find_map(|address| Some((*address, places.get(address)?.clone())))
}

/// Names of backends in all pools: one backend has one name, and one name one backend.
#[derive(Default)]
struct BackendNames<'a> {
    by_name: HashMap<&'a str, (Ipv4Addr, Range<usize>)>,
    by_address: HashMap<Ipv4Addr, (&'a str, Range<usize>)>,
}

fn pools(
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
