// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the ports asked for exist, and the arithmetic when they do not.

use std::collections::HashSet;

use nat_common::abi::config::CLASS_NAMES;

use super::{
    PlanError,
    space::{DYNAMIC_PORTS, STATIC_PORTS, Space},
};
use crate::config::{Allocation, Gateway, OutboundRule, Selection, grouped};

/// Rules that ask for more ports than all their addresses have, each for itself.
#[must_use]
pub fn over_committed(gateway: &Gateway) -> Vec<PlanError> {
    let space = Space::new(gateway);
    (0..gateway.rules.len()).filter_map(|rule| over_committed_alone(gateway, &space, rule)).collect()
}

fn over_committed_alone(gateway: &Gateway, space: &Space, index: usize) -> Option<PlanError> {
    let rule = &gateway.rules[index];
    let backends = gateway.backends_of(rule).len() as u64;
    let addresses = gateway.addresses_of(rule).count() as u64;
    let supply = rule.protocol.classes().iter().map(|class| space.supply(index, *class)).min().unwrap_or(0);
    let wanted = demand(gateway, rule);
    if wanted <= supply {
        return None;
    }
    let at_most = u32::try_from(supply / backends / 8 * 8).unwrap_or(0);
    let usual = if rule.allocation == Allocation::Dynamic { DYNAMIC_PORTS } else { STATIC_PORTS };
    let lacking = if supply < addresses * u64::from(usual) { " (reserved ports not counted)" } else { "" };
    let arithmetic = format!(
        "{} × {} ports = {} > {}{lacking}; at most {} per backend",
        counted(backends, "backend"),
        grouped(rule.ports_per_backend),
        grouped(wanted),
        supply_of(gateway, "", supply, addresses, rule.frontends.iter().copied()),
        grouped(at_most)
    );
    Some(PlanError::OverCommitted { rules: vec![index], arithmetic, at_most: Some(at_most) })
}

/// Ports of one class that `rule` asks for.
pub(super) fn demand(gateway: &Gateway, rule: &OutboundRule) -> u64 {
    gateway.backends_of(rule).len() as u64 * u64::from(rule.ports_per_backend)
}

fn counted(count: u64, noun: &str) -> String {
    let plural = match (count, noun) {
        (1, _) => "",
        (_, "address") => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", grouped(count))
}

/// `64,000 ports of 1 address (fe1)`.
fn supply_of(
    gateway: &Gateway,
    class: &str,
    supply: u64,
    addresses: u64,
    frontends: impl Iterator<Item = usize>,
) -> String {
    let mut names: Vec<&str> = frontends.map(|index| gateway.frontends[index].name.as_str()).collect();
    if names.len() > 4 {
        names.truncate(4);
        names.push("…");
    }
    format!("{} {class}ports of {} ({})", grouped(supply), counted(addresses, "address"), names.join(", "))
}

/// That `rules` ask together for more ports of `class` than the `supply` that is left on their addresses.
pub(super) fn over_committed_together(
    gateway: &Gateway,
    class: usize,
    rules: Vec<usize>,
    supply: u64,
) -> PlanError {
    let class = CLASS_NAMES[class];
    let parts: Vec<String> = rules
        .iter()
        .map(|index| {
            let rule = &gateway.rules[*index];
            let backends = gateway.backends_of(rule).len() as u64;
            format!("`{}`: {} × {}", rule.name, grouped(backends), grouped(rule.ports_per_backend))
        })
        .collect();
    let wanted: u64 = rules.iter().map(|index| demand(gateway, &gateway.rules[*index])).sum();
    let mut seen = HashSet::new();
    let mut frontends: Vec<usize> =
        rules.iter().flat_map(|index| gateway.rules[*index].frontends.clone()).collect();
    frontends.retain(|frontend| seen.insert(*frontend));
    let addresses: u64 = frontends.iter().map(|index| gateway.frontends[*index].addresses.len() as u64).sum();
    let lacking = if supply < addresses * u64::from(STATIC_PORTS) {
        " (less what is reserved, or taken by rules with a `frontend_selection`)"
    } else {
        ""
    };
    let arithmetic = format!(
        "rules ask together for {} ports ({}) > {}{lacking}",
        grouped(wanted),
        parts.join(", "),
        supply_of(gateway, &format!("{class} "), supply, addresses, frontends.into_iter()),
    );
    PlanError::OverCommitted { rules, arithmetic, at_most: None }
}

/// That the selection of `index` cannot be kept to, with what `space` has left for it.
pub(super) fn not_there(gateway: &Gateway, space: &Space, index: usize) -> PlanError {
    let rule = &gateway.rules[index];
    let backends = gateway.backends_of(rule).len() as u64;
    let asked = format!("{} × {} ports", counted(backends, "backend"), grouped(rule.ports_per_backend));
    let free = |address: &usize| {
        let classes = rule.protocol.classes().iter();
        classes.map(|class| space.free(index, *address, &[*class]).total()).min().unwrap_or(0)
    };
    let addresses = &space.by_rule[index];
    let rooms: Vec<String> = addresses
        .iter()
        .take(4)
        .map(|address| format!("{} of {}", grouped(free(address)), space.addresses[*address]))
        .collect();
    let more = if addresses.len() > rooms.len() { ", …" } else { "" };
    let rooms = format!("free are {}{more}", rooms.join(", "));
    let arithmetic = match rule.selection {
        Some(Selection::Paired) => {
            let each = rule.ports_per_backend.max(8);
            let room: u64 = addresses.iter().map(|address| u64::from(free(address) / each)).sum();
            format!("{asked}, each backend on one address: there is room for {}; {rooms}", grouped(room))
        }
        Some(Selection::Pinned) => format!("{asked}, each on the address that it is pinned to: {rooms}"),
        Some(Selection::Spread) => {
            format!("{asked}, spread over {}: {rooms}", counted(addresses.len() as u64, "address"))
        }
        _ => format!("{asked}: {rooms}"),
    };
    PlanError::NotThere { rule: [index], name: rule.name.clone(), arithmetic }
}
