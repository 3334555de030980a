// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the file as typed to a [`Gateway`]: the `[gateway]` section, and what all objects have in common.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::{Range, RangeInclusive},
};

use nat_common::abi::config::{MAX_BACKENDS, MAX_PORTS};
use toml::Spanned;

use super::{
    decode::Report,
    frontends::frontends,
    gateway::{Frontend, Gateway, Pool, Precedence, Refusal, XdpMode},
    names::{did_you_mean, instance_name_fault, interface_name_fault, object_name_fault},
    pools::pools,
    schema::{File, GatewaySection, Strings},
    values::grouped,
};

/// Bytes of a frontend's, pool's or backend's name in the data path's tables.
pub(super) const NAME_BYTES: usize = 32;
/// Most flows that a table may be made for; more would take over 4 GiB.
pub(super) const MOST_FLOWS: u32 = 16_777_216;
/// Flows that a table may be made for. Fewer make no gateway.
const MAX_FLOWS: RangeInclusive<u32> = 1024..=MOST_FLOWS;
const DEFAULT_MAX_FLOWS: u32 = 1_048_576;

/// Where each address stands in the file.
pub(super) type Places = HashMap<Ipv4Addr, Range<usize>>;

/// What rules refer to. The lists have one entry for each section of the file, faulty ones too, so that a fault in
/// a pool does not make every rule of it faulty.
pub(super) struct Objects {
    pub(super) frontends: Vec<Frontend>,
    pub(super) frontend_names: Vec<Range<usize>>,
    pub(super) frontend_places: Places,
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
    Objects { frontends, frontend_names, frontend_places, pools, pool_names, backend_places }
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
        max_flows: within(
            "max_flows",
            section.max_flows.as_ref(),
            MAX_FLOWS,
            "; a flow takes at most 384 bytes of kernel memory",
            report,
        )
        .unwrap_or(DEFAULT_MAX_FLOWS),
        assign_frontends: section.assign_frontends.as_ref().is_none_or(|value| *value.get_ref()),
        frontends: Vec::new(),
        pools: Vec::new(),
        rules: Vec::new(),
        max_backends: within(
            "max_backends",
            section.max_backends.as_ref(),
            1..=MAX_BACKENDS,
            "; left out, it follows the pools",
            report,
        ),
        precedence: precedence(section.precedence.as_ref(), report),
        on_refusal: refusal(section.on_refusal.as_ref(), report).unwrap_or_default(),
        policies: Vec::new(),
        instance_ips: Vec::new(),
    }
}

/// Ways out in the words of `precedence`.
const WAYS: [&str; 3] = ["instance-ip", "outbound-rule", "default-outbound"];

fn precedence(list: Option<&Strings>, report: &mut Report) -> Precedence {
    let Some(list) = list else { return Precedence::default() };
    let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
    for word in list.get_ref() {
        let text = word.get_ref().as_str();
        if !WAYS.contains(&text) {
            let help = did_you_mean(text, WAYS.into_iter());
            report.error(word.span(), format!("`{text}` is no way out")).help(help.unwrap_or_else(|| {
                "possible: `instance-ip`, `outbound-rule`, `default-outbound`".to_owned()
            }));
            return Precedence::default();
        }
        if let Some(first) = seen.insert(text, word.span()) {
            report
                .error(word.span(), format!("`{text}` is in `precedence` twice"))
                .also(first, "first here")
                .help("remove one");
            return Precedence::default();
        }
    }
    let words: Vec<&str> = list.get_ref().iter().map(|word| word.get_ref().as_str()).collect();
    match words.as_slice() {
        ["instance-ip", "outbound-rule"] | ["instance-ip", "outbound-rule", "default-outbound"] => {
            Precedence::InstanceFirst
        }
        ["outbound-rule", "instance-ip"] | ["outbound-rule", "instance-ip", "default-outbound"] => {
            Precedence::RuleFirst
        }
        _ => {
            let default = list.get_ref().iter().find(|word| word.get_ref() == "default-outbound");
            let (place, message) = match default.filter(|_| seen.len() == WAYS.len()) {
                Some(default) => (default.span(), "`default-outbound` can only be the last way out"),
                None => (list.span(), "`precedence` must name both `instance-ip` and `outbound-rule`"),
            };
            report
                .error(place, message)
                .help("write `[\"instance-ip\", \"outbound-rule\"]`, or the other way round");
            Precedence::default()
        }
    }
}

/// `on_refusal`, if it is given.
pub(super) fn refusal(value: Option<&Spanned<String>>, report: &mut Report) -> Option<Refusal> {
    value.and_then(|value| word("on_refusal", value, &Refusal::ALL, &[], report))
}

/// Checks `max_backends` against what the pools have.
pub(super) fn room_for_backends(section: &GatewaySection, objects: &Objects, report: &mut Report) {
    let backends: HashSet<&Ipv4Addr> = objects.backend_places.iter().flat_map(HashMap::keys).collect();
    let Some(value) = &section.max_backends else { return };
    let found = backends.len() as u64;
    if u64::try_from(*value.get_ref()).is_ok_and(|room| room > 0 && room < found) {
        report
            .error(
                value.span(),
                format!(
                    "`max_backends = {}` is less than the {} backends of the pools",
                    value.get_ref(),
                    grouped(found)
                ),
            )
            .help(format!("set {found} or more, or leave it out"));
    }
}

/// One of a few words, the default if there is none or another.
pub(super) fn choice<T: Copy + Default>(
    key: &str,
    value: Option<&Spanned<String>>,
    words: &[(&str, T)],
    planned: &[&str],
    report: &mut Report,
) -> T {
    value.and_then(|value| word(key, value, words, planned, report)).unwrap_or_default()
}

/// One of a few words. `planned` are words of the format that this version does not have.
pub(super) fn word<T: Copy>(
    key: &str,
    value: &Spanned<String>,
    words: &[(&str, T)],
    planned: &[&str],
    report: &mut Report,
) -> Option<T> {
    let text = value.get_ref().as_str();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Some(*meaning);
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
    None
}

/// A whole number within `bounds`; `None` if it is absent or not.
pub(super) fn within(
    key: &str,
    value: Option<&Spanned<i64>>,
    bounds: RangeInclusive<u32>,
    help: &str,
    report: &mut Report,
) -> Option<u32> {
    let value = value?;
    let number = *value.get_ref();
    let found = u32::try_from(number).ok().filter(|number| bounds.contains(number));
    if found.is_none() {
        let (least, most) = (grouped(*bounds.start()), grouped(*bounds.end()));
        report
            .error(value.span(), format!("`{key}` cannot be {number}"))
            .help(format!("from {least} to {most}{help}"));
    }
    found
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

pub(super) fn text_of(name: Option<&Spanned<String>>) -> String {
    name.map(|name| name.get_ref().clone()).unwrap_or_default()
}

pub(super) fn first_known(list: &[Ipv4Addr], places: &Places) -> Option<(Ipv4Addr, Range<usize>)> {
    list.iter().find_map(|address| Some((*address, places.get(address)?.clone())))
}
