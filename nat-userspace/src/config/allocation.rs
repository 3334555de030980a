// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many ports a rule gives each backend: blocks of its own, or a share of all.

use nat_common::abi::grant::MAX_SEGMENTS;
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Allocation, OutboundRule},
    schema::{RuleSection, Strings},
    validate::{Objects, within, word},
    values::{LARGEST_DEFAULT_POOL, default_ports, grouped},
};
use crate::plan::{DYNAMIC_PORTS, STATIC_PORTS};

/// Most ports a backend can have as blocks: each piece is on one address.
const MAX_PORTS_PER_BACKEND: i64 = STATIC_PORTS as i64 * MAX_SEGMENTS as i64;
/// Addresses that a dynamic rule can have, as Azure's NAT Gateway.
const DYNAMIC_ADDRESSES: u32 = 16;

/// What the keys of a rule say about its ports.
pub(super) struct Share {
    pub(super) allocation: Allocation,
    /// `ports_per_backend` or `min_ports`; 0: not given.
    pub(super) ports: u32,
    /// 0: no cap.
    pub(super) max_ports: u32,
}

/// How `section` gives out ports; `None` if it cannot be.
pub(super) fn share(section: &RuleSection, report: &mut Report) -> Option<Share> {
    let words = [("static", Allocation::Static), ("dynamic", Allocation::Dynamic)];
    let allocation = match &section.allocation {
        None => Allocation::Static,
        Some(value) => word("allocation", value, &words, &[], report)?,
    };
    match allocation {
        Allocation::Static => {
            let mut right = true;
            for (key, value) in [("min_ports", &section.min_ports), ("max_ports", &section.max_ports)] {
                let Some(value) = value else { continue };
                right = false;
                let error = report.error(value.span(), format!("`{key}` needs `allocation = \"dynamic\"`"));
                if let Some(allocation) = &section.allocation {
                    error.also(allocation.span(), "static here");
                }
                error.help("set `allocation = \"dynamic\"`; a static rule gives `ports_per_backend`, no more and no less");
            }
            let ports = explicit_ports(section, report)?;
            right.then_some(Share { allocation, ports, max_ports: 0 })
        }
        Allocation::Dynamic => {
            if let (Some(value), Some(allocation)) = (&section.ports_per_backend, &section.allocation) {
                report
                    .error(value.span(), "`ports_per_backend` has no meaning in a dynamic rule")
                    .also(allocation.span(), "dynamic here")
                    .help("use `min_ports` for what each backend always has and `max_ports` for what it has at most, or `allocation = \"static\"`");
                return None;
            }
            let (ports, max_ports) = dynamic_ports(section, report)?;
            Some(Share { allocation, ports, max_ports })
        }
    }
}

/// `min_ports` and `max_ports`; `None` if they cannot be.
fn dynamic_ports(section: &RuleSection, report: &mut Report) -> Option<(u32, u32)> {
    let least = match &section.min_ports {
        None => Some(0),
        Some(value) => {
            let number = within("min_ports", Some(value), 0..=DYNAMIC_PORTS, ", a multiple of 8", report);
            match number {
                Some(ports) if !ports.is_multiple_of(8) => {
                    not_a_multiple("min_ports", ports, value, report);
                    None
                }
                other => other,
            }
        }
    };
    let bounds = 1..=DYNAMIC_PORTS * DYNAMIC_ADDRESSES;
    let most = match &section.max_ports {
        None => Some(0),
        value => within("max_ports", value.as_ref(), bounds, "; left out, there is no cap", report),
    };
    let (least, most) = (least?, most?);
    if let (Some(min), Some(max)) = (&section.min_ports, section.max_ports.as_ref().filter(|_| most < least))
    {
        report
            .error(max.span(), format!("`max_ports = {most}` is less than `min_ports = {least}`"))
            .also(min.span(), "`min_ports`")
            .help("a backend can always have its `min_ports`: raise `max_ports`, or leave it out");
        return None;
    }
    Some((least, most))
}

/// Reports a dynamic rule with more addresses than a backend can draw on.
pub(super) fn few_addresses(
    rule: &OutboundRule,
    list: Option<&Strings>,
    objects: &Objects,
    report: &mut Report,
) {
    let addresses: usize = rule.frontends.iter().map(|index| objects.frontends[*index].addresses.len()).sum();
    if let Some(list) = list.filter(|_| addresses > DYNAMIC_ADDRESSES as usize) {
        report.error(list.span(), format!("{addresses} frontend addresses in one dynamic rule")).help(
            format!("at most {DYNAMIC_ADDRESSES} are possible; divide the pool, with a rule for each part"),
        );
    }
}

fn not_a_multiple(key: &str, ports: u32, value: &Spanned<i64>, report: &mut Report) {
    let (below, above) = (ports / 8 * 8, ports.next_multiple_of(8));
    let help = if below == 0 { format!("use {above}") } else { format!("use {below} or {above}") };
    report.error(value.span(), format!("`{key} = {ports}` is not a multiple of 8")).help(help);
}

/// `ports_per_backend`, 0 if the default tiers apply; `None` if it cannot be.
fn explicit_ports(section: &RuleSection, report: &mut Report) -> Option<u32> {
    let Some(value) = &section.ports_per_backend else { return Some(0) };
    let number = *value.get_ref();
    match u32::try_from(number) {
        Ok(ports) if number <= MAX_PORTS_PER_BACKEND && ports.is_multiple_of(8) => Some(ports),
        Ok(ports) if number <= MAX_PORTS_PER_BACKEND => {
            not_a_multiple("ports_per_backend", ports, value, report);
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
pub(super) fn tier_ports(
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
