// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends that were refused something, and why.

use std::net::Ipv4Addr;

use nat_common::abi::{
    config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP, CLASSES, name_of},
    grant::{BackendInfo, Grant, GrantState},
};
use serde::Serialize;

use super::instance::{Instance, address};

/// Backends named in one line, at most.
const NAMED: usize = 5;

/// What a backend was refused since the instance was made, or the backend came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// Private address.
    pub backend: Ipv4Addr,
    /// Configured name.
    pub name: Option<String>,
    /// Packets: no outbound rule covers the backend and protocol.
    pub no_outbound_rule: u64,
    /// Packets: a policy is against it.
    pub policy: u64,
    /// New flows: a limit of the rule.
    pub limit: u64,
    /// New flows: no port was free.
    pub no_port: u64,
    /// New flows: the flow table was full, or the backend's share of it used up.
    pub table: u64,
}

impl Refusals {
    fn of(instance: &Instance, slot: usize, backend: &BackendInfo) -> Self {
        let state = instance.backend_states.get(slot).copied().unwrap_or_default();
        let first = slot * CLASSES as usize;
        let grants = instance.grant_states.get(first..first + CLASSES as usize).unwrap_or_default();
        let sum = |count: fn(&GrantState) -> u64| grants.iter().map(count).sum();
        let name = name_of(&backend.name);
        Self {
            backend: address(backend.address),
            name: (!name.is_empty()).then(|| name.to_owned()),
            no_outbound_rule: state.refused_rule,
            policy: state.refused_policy,
            limit: sum(|grant| grant.refused_limit),
            no_port: sum(|grant| grant.refused),
            table: sum(|grant| grant.refused_table),
        }
    }

    /// Packets and flows together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.no_outbound_rule + self.policy + self.limit + self.no_port + self.table
    }
}

/// Configured backends with their slots.
fn backends(instance: &Instance) -> impl Iterator<Item = (usize, &BackendInfo)> {
    instance.backends.iter().enumerate().filter(|(_, backend)| backend.status == 1)
}

/// Configured backends that were refused anything, by address.
#[must_use]
pub fn rows(instance: &Instance) -> Vec<Refusals> {
    let all = backends(instance).map(|(slot, backend)| Refusals::of(instance, slot, backend));
    let mut rows: Vec<_> = all.filter(|row| row.total() > 0).collect();
    rows.sort_by_key(|row| row.backend);
    rows
}

/// A sentence if backends were refused for want of an outbound rule, and still lack one for some protocol. What policies
/// and limits refuse is as configured, so no problem.
#[must_use]
pub fn problem(instance: &Instance) -> Option<String> {
    let mut refused: Vec<Refusals> = backends(instance)
        .filter(|(slot, _)| lacks_rule(instance, *slot))
        .map(|(slot, backend)| Refusals::of(instance, slot, backend))
        .filter(|row| row.no_outbound_rule > 0)
        .collect();
    refused.sort_by_key(|row| (std::cmp::Reverse(row.no_outbound_rule), row.backend));
    let total: u64 = refused.iter().map(|row| row.no_outbound_rule).sum();
    let mut names: Vec<String> = refused.iter().take(NAMED).map(named).collect();
    let backends = if refused.len() == 1 { "backend" } else { "backends" };
    if refused.len() > NAMED {
        names.push(format!("{} more", refused.len() - NAMED));
    }
    let names = names.join(", ");
    (total > 0).then(|| format!("{total} packets of {backends} {names} refused: no outbound rule covers it"))
}

/// Whether the backend in `slot` gets no ports for some protocol.
fn lacks_rule(instance: &Instance, slot: usize) -> bool {
    let grant = |class| instance.grants.get(slot * CLASSES as usize + class as usize);
    [CLASS_TCP, CLASS_UDP, CLASS_ICMP].into_iter().any(|class| grant(class).is_none_or(Grant::is_none))
}

fn named(row: &Refusals) -> String {
    match &row.name {
        None => row.backend.to_string(),
        Some(name) => format!("{name} ({})", row.backend),
    }
}
