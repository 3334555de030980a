// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules: what they refer to, how many ports they give, and that no two give the same backend ports for one
//! protocol.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::Range,
};

use nat_common::abi::{
    config::{CLASS_NAMES, MAX_RULES},
    grant::MAX_SEGMENTS,
};
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{OutboundRule, Protocol},
    names::did_you_mean,
    schema::RuleSection,
    validate::{Objects, choice, unique_names},
    values::{LARGEST_DEFAULT_POOL, default_ports, grouped, seconds},
};
use crate::plan::STATIC_PORTS;

/// Bytes of a rule's name in the data path's tables.
const NAME_BYTES: usize = 48;
/// Most ports a backend can have: each piece is on one address.
const MAX_PORTS_PER_BACKEND: i64 = STATIC_PORTS as i64 * MAX_SEGMENTS as i64;
/// Idle timeouts that Azure accepts for outbound rules, in seconds ("Outbound rules").
const AZURE_IDLE: std::ops::RangeInclusive<u32> = 240..=7200;
const DEFAULT_IDLE: u32 = 240;

/// Values of a rule that this version knows only one word for.
#[derive(Clone, Copy, Default)]
struct Only;

/// A rule and where its port count is decided.
pub(super) struct PlacedRule {
    pub(super) rule: OutboundRule,
    pub(super) ports_place: Range<usize>,
}

/// The rules that refer to existing pools and frontends.
pub(super) fn rules(sections: &[RuleSection], objects: &Objects, report: &mut Report) -> Vec<PlacedRule> {
    let names = sections.iter().map(|section| section.name.as_ref());
    unique_names("rule", names, NAME_BYTES, report);
    if let Some(beyond) = sections.get(MAX_RULES as usize) {
        report
            .error(beyond.span.clone(), format!("{} outbound rules", sections.len()))
            .help(format!("at most {MAX_RULES} are possible"));
    }
    let mut claims = Claims::default();
    let mut used_frontends = HashSet::new();
    let mut used_pools = HashSet::new();
    let mut rules = Vec::new();
    for section in sections {
        let protocol = words(section, report);
        let pool = pool(section, objects, report);
        let frontends = frontends(section, objects, report);
        used_pools.extend(pool);
        used_frontends.extend(frontends.iter().copied());
        let idle_timeout = idle_timeout(section, protocol, report);
        let explicit = explicit_ports(section, report);
        let Some(pool) = pool.filter(|_| !frontends.is_empty()) else { continue };
        let mut rule = OutboundRule {
            name: section.name.as_ref().map(|name| name.get_ref().clone()).unwrap_or_default(),
            pool,
            frontends,
            protocol,
            idle_timeout,
            ..OutboundRule::default()
        };
        claims.add(&rule, section, objects, report);
        let Some(explicit) = explicit else { continue };
        rule.ports_explicit = explicit != 0;
        let tier = || tier_ports(&rule, section, objects, report);
        let Some(ports) = Some(explicit).filter(|ports| *ports != 0).or_else(tier) else { continue };
        rule.ports_per_backend = ports;
        let ports_place = section.ports_per_backend.as_ref().map_or(section.span.clone(), Spanned::span);
        rules.push(PlacedRule { rule, ports_place });
    }
    warn_unused(sections, objects, &used_frontends, &used_pools, report);
    rules
}

/// Checks the keys that take one of a few words; the only one with a choice is the protocol.
fn words(section: &RuleSection, report: &mut Report) -> Protocol {
    let static_only = [("static", Only)];
    choice("allocation", section.allocation.as_ref(), &static_only, &["dynamic"], report);
    choice("tcp_reset", section.tcp_reset.as_ref(), &[("off", Only)], &["on-idle", "on-packet"], report);
    choice(
        "mapping",
        section.mapping.as_ref(),
        &[("address-and-port-dependent", Only)],
        &["endpoint-independent"],
        report,
    );
    let protocols = [("all", Protocol::All), ("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    choice("protocol", section.protocol.as_ref(), &protocols, &[], report)
}

fn pool(section: &RuleSection, objects: &Objects, report: &mut Report) -> Option<usize> {
    let wanted = section.pool.as_ref()?;
    let found = objects.pools.iter().position(|pool| pool.name == *wanted.get_ref());
    if found.is_none() {
        let known = objects.pools.iter().map(|pool| pool.name.as_str());
        undefined("pool", wanted, known, report);
    }
    found
}

fn frontends(section: &RuleSection, objects: &Objects, report: &mut Report) -> Vec<usize> {
    let Some(list) = &section.frontends else { return Vec::new() };
    if list.get_ref().is_empty() {
        report.error(list.span(), "`frontends` is empty").help("name at least one `[[frontend]]`");
    }
    let mut frontends = Vec::new();
    let mut places: HashMap<usize, Range<usize>> = HashMap::new();
    for wanted in list.get_ref() {
        let found = objects.frontends.iter().position(|frontend| frontend.name == *wanted.get_ref());
        let Some(found) = found else {
            let known = objects.frontends.iter().map(|frontend| frontend.name.as_str());
            undefined("frontend", wanted, known, report);
            continue;
        };
        if let Some(first) = places.get(&found) {
            report
                .error(wanted.span(), format!("frontend `{}` is given twice", wanted.get_ref()))
                .also(first.clone(), "first here")
                .help("remove one");
            continue;
        }
        places.insert(found, wanted.span());
        frontends.push(found);
    }
    frontends
}

fn undefined<'a>(
    kind: &str,
    wanted: &Spanned<String>,
    known: impl Iterator<Item = &'a str> + Clone,
    report: &mut Report,
) {
    let help = did_you_mean(wanted.get_ref(), known.clone()).unwrap_or_else(|| {
        let all: Vec<String> =
            known.filter(|name| !name.is_empty()).take(8).map(|name| format!("`{name}`")).collect();
        if all.is_empty() {
            format!("define it: `[[{kind}]]` with `name = \"{}\"`", wanted.get_ref())
        } else {
            format!("defined: {}", all.join(", "))
        }
    });
    report.error(wanted.span(), format!("{kind} `{}` is not defined", wanted.get_ref())).help(help);
}

fn idle_timeout(section: &RuleSection, protocol: Protocol, report: &mut Report) -> u32 {
    let Some(value) = &section.idle_timeout else { return DEFAULT_IDLE };
    let text = value.get_ref();
    match seconds(text) {
        Err(fault) => {
            report.error(value.span(), fault.message).help(fault.help);
            DEFAULT_IDLE
        }
        Ok(seconds) => {
            if protocol == Protocol::Udp {
                report
                    .warning(value.span(), "`idle_timeout` has no effect on a rule for udp")
                    .help("it is the timer of established TCP connections");
            } else if !AZURE_IDLE.contains(&seconds) {
                report
                    .warning(
                        value.span(),
                        format!("idle timeout `{text}` is outside the 4m to 120m that Azure accepts"),
                    )
                    .help("natgw keeps to it; for Azure's behaviour choose from `4m` to `120m`");
            }
            seconds
        }
    }
}

/// `ports_per_backend`, 0 if the default tiers apply; `None` if it cannot be.
fn explicit_ports(section: &RuleSection, report: &mut Report) -> Option<u32> {
    let Some(value) = &section.ports_per_backend else { return Some(0) };
    let number = *value.get_ref();
    match u32::try_from(number) {
        Ok(ports) if number <= MAX_PORTS_PER_BACKEND && ports.is_multiple_of(8) => Some(ports),
        Ok(ports) if number <= MAX_PORTS_PER_BACKEND => {
            let (below, above) = (ports / 8 * 8, ports.next_multiple_of(8));
            let help = if below == 0 { format!("use {above}") } else { format!("use {below} or {above}") };
            report
                .error(value.span(), format!("`ports_per_backend = {ports}` is not a multiple of 8"))
                .help(help);
            None
        }
        _ => {
            report.error(value.span(), format!("`ports_per_backend` cannot be {number}")).help(format!(
                "a multiple of 8 from 8 to {}, or 0 for the default tiers",
                grouped(MAX_PORTS_PER_BACKEND.unsigned_abs())
            ));
            None
        }
    }
}

/// Ports that the default tiers give each backend of `rule`.
fn tier_ports(
    rule: &OutboundRule,
    section: &RuleSection,
    objects: &Objects,
    report: &mut Report,
) -> Option<u32> {
    let backends = objects.pools[rule.pool].backends.len();
    let addresses = rule.frontends.iter().map(|index| objects.frontends[*index].addresses.len()).sum();
    let ports = default_ports(backends, addresses);
    if ports.is_none() {
        let written = section.ports_per_backend.as_ref().map(Spanned::span);
        let place = written.or(section.pool.as_ref().map(Spanned::span));
        let message = format!(
            "pool `{}` has {} backends, the default tiers end at {}",
            objects.pools[rule.pool].name,
            grouped(backends as u64),
            grouped(LARGEST_DEFAULT_POOL as u64)
        );
        report
            .error(place.unwrap_or_else(|| section.span.clone()), message)
            .also(objects.pool_names[rule.pool].clone(), "defined here")
            .help("say how many ports each gets, for example `ports_per_backend = 32`, or divide the pool");
    }
    ports
}

/// Which rule gives each backend its ports of each class.
#[derive(Default)]
struct Claims {
    /// Index into `rules`.
    by_backend: HashMap<(Ipv4Addr, u32), usize>,
    rules: Vec<(String, usize, Range<usize>)>,
}

impl Claims {
    /// Reports, once for each earlier rule, the first backend that both claim.
    fn add(&mut self, rule: &OutboundRule, section: &RuleSection, objects: &Objects, report: &mut Report) {
        let place = section.pool.as_ref().map_or(section.span.clone(), Spanned::span);
        let this = self.rules.len();
        self.rules.push((rule.name.clone(), rule.pool, place.clone()));
        let mut reported = HashSet::new();
        for backend in &objects.pools[rule.pool].backends {
            for class in rule.protocol.classes() {
                let other = *self.by_backend.entry((backend.address, *class)).or_insert(this);
                if other == this || !reported.insert(other) {
                    continue;
                }
                let (other_name, other_pool, other_place) = &self.rules[other];
                let message = format!(
                    "backend {} has {} ports from rule `{other_name}` already",
                    backend.address, CLASS_NAMES[*class as usize]
                );
                let entries = [*other_pool, rule.pool]
                    .map(|pool| objects.backend_places[pool].get(&backend.address).cloned());
                let error = report.error(place.clone(), message);
                error
                    .also(other_place.clone(), format!("rule `{other_name}`"))
                    .help("for each protocol one rule only may give a backend ports: take it out of one pool, or set `protocol`");
                if let ([Some(there), Some(here)], true) = (entries, *other_pool != rule.pool) {
                    error
                        .also(there, format!("in pool `{}`", objects.pools[*other_pool].name))
                        .also(here, format!("in pool `{}`", objects.pools[rule.pool].name));
                }
            }
        }
    }
}

fn warn_unused(
    sections: &[RuleSection],
    objects: &Objects,
    used_frontends: &HashSet<usize>,
    used_pools: &HashSet<usize>,
    report: &mut Report,
) {
    if sections.is_empty() {
        report
            .warning(0..0, "no outbound rule: nothing is translated")
            .help("add an `[[outbound_rule]]` with a pool and frontends");
        return;
    }
    for (index, frontend) in objects.frontends.iter().enumerate() {
        if !used_frontends.contains(&index) && !frontend.name.is_empty() {
            let message = format!("frontend `{}` is not used by any outbound rule", frontend.name);
            report
                .warning(objects.frontend_names[index].clone(), message)
                .help("name it in `frontends`, or remove it");
        }
    }
    for (index, pool) in objects.pools.iter().enumerate() {
        if !used_pools.contains(&index) && !pool.name.is_empty() {
            let message = format!("pool `{}` is not used by any outbound rule", pool.name);
            report
                .warning(objects.pool_names[index].clone(), message)
                .help("its backends get no ports from it: name it in an `[[outbound_rule]]`, or remove it");
        }
    }
}
