// SPDX-License-Identifier: MIT OR Apache-2.0
//! What changes from one plan to the next, and how many live flows each change concerns. Pure.
//!
//! Flows are never cut by a change: those on ports that go away *drain*, which means that they finish where they are
//! while no new flow gets these ports. Field names are those of the JSON.

mod options;
pub mod policies;
pub mod rules;
pub mod settings;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::Ipv4Addr,
};

use nat_common::abi::{
    config::{CLASS_NAMES, CLASSES},
    grant::grant_slot,
};
use serde::Serialize;

use self::{
    policies::{InstanceIps, Policies},
    rules::Rules,
    settings::Setting,
};
use super::{
    model::{BackendSlot, PortPlan, Status},
    runs::{Change, Run, ports},
};

/// Where a live flow is, in terms of the plan that it lives under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowPlace {
    /// [`grant_slot`]: backend slot and protocol class.
    pub grant: u32,
    /// Slot of the rule that it was opened by.
    pub rule: u32,
    /// Frontend address that it leaves from.
    pub frontend: Ipv4Addr,
    /// SNAT port, host byte order.
    pub port: u16,
}

/// Live flows, counted by where they are: a port may serve several destinations.
#[derive(Clone, Debug, Default)]
pub struct FlowCounts(HashMap<FlowPlace, u64>);

impl FlowCounts {
    /// Counts one more.
    pub fn add(&mut self, place: FlowPlace) {
        *self.0.entry(place).or_default() += 1;
    }

    fn by<K: Eq + Hash>(&self, key: impl Fn(&FlowPlace) -> K) -> HashMap<K, u64> {
        let mut sums = HashMap::new();
        for (place, flows) in &self.0 {
            *sums.entry(key(place)).or_default() += flows;
        }
        sums
    }
}

impl FromIterator<FlowPlace> for FlowCounts {
    fn from_iter<I: IntoIterator<Item = FlowPlace>>(places: I) -> Self {
        let mut counts = Self::default();
        places.into_iter().for_each(|place| counts.add(place));
        counts
    }
}

/// The difference of two plans. Everything is in order of name or address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlanDiff {
    /// Settings of the gateway.
    pub gateway: Vec<Setting>,
    /// Outbound rules by name.
    pub rules: Rules,
    /// Policies by name.
    pub policies: Policies,
    /// Instance IPs by backend.
    pub instance_ips: InstanceIps,
    /// Backends by address.
    pub backends: Members,
    /// Frontend addresses.
    pub frontends: Members,
    /// Every backend and protocol that has ports before or after, unchanged ones included.
    pub blocks: Vec<Block>,
    /// Sums.
    pub totals: Totals,
}

/// Backends or frontend addresses that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Members {
    /// New ones.
    pub added: Vec<Member>,
    /// Those that leave; their flows finish.
    pub removed: Vec<Member>,
    /// Those that have another name now, or are in another pool.
    pub renamed: Vec<Member>,
}

/// A backend or a frontend address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Address.
    pub address: Ipv4Addr,
    /// Name before; `None`: it had none, or was not there.
    pub name_before: Option<String>,
    /// Name after; likewise.
    pub name_after: Option<String>,
    /// Pool of a backend before; `None`: it was not there.
    pub pool_before: Option<String>,
    /// Likewise after.
    pub pool_after: Option<String>,
    /// Live flows of the backend, or from the frontend address.
    pub flows: u64,
}

/// The ports of a backend and protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Block {
    /// Backend.
    pub backend: Ipv4Addr,
    /// Its name in the later plan that it is in.
    pub name: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// What becomes of them.
    pub change: Change,
    /// Rule that they come from; `None`: it has none.
    pub rule_before: Option<String>,
    /// Likewise.
    pub rule_after: Option<String>,
    /// Ports, in order, adjacent runs joined.
    pub before: Vec<Run>,
    /// Likewise.
    pub after: Vec<Run>,
    /// Live flows, wherever their ports are.
    pub flows: u64,
    /// Of these, on ports that this change takes away: they finish, nothing is cut.
    pub flows_draining: u64,
}

impl Block {
    /// Whether anything changes: ports, or the rule that they come from.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.change != Change::Kept || self.rule_before != self.rule_after
    }
}

/// Sums over the whole difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Blocks by what becomes of them; those of which there are none are left out.
    pub blocks: BTreeMap<Change, u64>,
    /// Backends that come, go, or whose ports or rule change.
    pub backends_changed: u64,
    /// Live flows.
    pub flows: u64,
    /// Of these, on ports that this change takes away.
    pub flows_draining: u64,
    /// Of these, on ports that were taken away by earlier changes and do not come back by this one.
    pub flows_draining_already: u64,
}

/// Compares `before` with `after`. `flows` live under `before`.
#[must_use]
pub fn diff(before: &PortPlan, after: &PortPlan, flows: &FlowCounts) -> PlanDiff {
    let by_backend = flows.by(|place| place.grant / CLASSES);
    let of_backend = |address| before.backend_slot(address).and_then(|slot| by_backend.get(&slot).copied());
    let by_frontend = flows.by(|place| place.frontend);
    let mut result = PlanDiff {
        gateway: settings::of_gateway(before, after),
        policies: policies::policies(before, after),
        instance_ips: policies::instance_ips(before, after, &on_frontends(before, flows)),
        rules: rules::rules(before, after, &flows.by(|place| place.rule)),
        backends: members(&backends(before), &backends(after), of_backend),
        frontends: members(&frontends(before), &frontends(after), |address| {
            by_frontend.get(&address).copied()
        }),
        ..PlanDiff::default()
    };
    blocks(before, after, flows, &mut result);
    let mut changed: BTreeSet<Ipv4Addr> =
        result.blocks.iter().filter(|block| block.is_change()).map(|block| block.backend).collect();
    for member in result.backends.added.iter().chain(&result.backends.removed) {
        changed.insert(member.address);
    }
    result.totals.backends_changed = changed.len() as u64;
    result.totals.flows = flows.0.values().sum();
    result
}

impl PlanDiff {
    /// Whether the plans are alike.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let none = |members: &Members| {
            members.added.is_empty() && members.removed.is_empty() && members.renamed.is_empty()
        };
        let Rules { added, removed, changed } = &self.rules;
        self.gateway.is_empty()
            && added.is_empty()
            && removed.is_empty()
            && changed.is_empty()
            && self.policies.is_empty()
            && self.instance_ips.is_empty()
            && none(&self.backends)
            && none(&self.frontends)
            && !self.blocks.iter().any(Block::is_change)
    }
}

/// What a member is called.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Called<'a> {
    name: &'a str,
    pool: Option<&'a str>,
}

type Names<'a> = BTreeMap<Ipv4Addr, Called<'a>>;

fn backends(plan: &PortPlan) -> Names<'_> {
    let there = |backend: &&BackendSlot| backend.status == Status::Configured;
    let there = plan.backends.iter().flatten().filter(there);
    there
        .map(|backend| (backend.address, Called { name: &backend.name, pool: Some(&backend.pool) }))
        .collect()
}

fn frontends(plan: &PortPlan) -> Names<'_> {
    let there = plan.frontends.iter().flatten().filter(|frontend| frontend.status == Status::Configured);
    there.map(|frontend| (frontend.address, Called { name: &frontend.name, pool: None })).collect()
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

fn members(before: &Names<'_>, after: &Names<'_>, flows: impl Fn(Ipv4Addr) -> Option<u64>) -> Members {
    let row = |address: Ipv4Addr| Member {
        address,
        name_before: before.get(&address).and_then(|called| named(called.name)),
        name_after: after.get(&address).and_then(|called| named(called.name)),
        pool_before: before.get(&address).and_then(|called| called.pool.map(str::to_owned)),
        pool_after: after.get(&address).and_then(|called| called.pool.map(str::to_owned)),
        flows: flows(address).unwrap_or(0),
    };
    let only = |from: &Names<'_>, to: &Names<'_>| {
        from.keys().filter(|address| !to.contains_key(address)).map(|address| row(*address)).collect()
    };
    let renamed =
        |(address, called): &(&Ipv4Addr, &Called<'_>)| after.get(address).is_some_and(|is| is != *called);
    Members {
        added: only(after, before),
        removed: only(before, after),
        renamed: before.iter().filter(renamed).map(|(address, _)| row(*address)).collect(),
    }
}

/// Live flows by backend slot, without those on instance IPs.
fn on_frontends(before: &PortPlan, flows: &FlowCounts) -> HashMap<u32, u64> {
    let mut sums = HashMap::new();
    for (place, number) in &flows.0 {
        if !before.policy.instances.contains_key(&place.frontend) {
            *sums.entry(place.grant / CLASSES).or_default() += number;
        }
    }
    sums
}

/// Fills in the blocks and their sums.
fn blocks(before: &PortPlan, after: &PortPlan, flows: &FlowCounts, result: &mut PlanDiff) {
    let mut by_grant: HashMap<u32, Vec<(Ipv4Addr, u16, u64)>> = HashMap::new();
    for (place, number) in &flows.0 {
        by_grant.entry(place.grant).or_default().push((place.frontend, place.port, *number));
    }
    let known = before.backends.iter().chain(&after.backends).flatten();
    let addresses: BTreeSet<Ipv4Addr> = known.map(|backend| backend.address).collect();
    for address in addresses {
        let (old, new) = (before.backend_slot(address), after.backend_slot(address));
        for (class, protocol) in (0..).zip(CLASS_NAMES.into_iter().chain([OTHER])) {
            let (was, becomes) = (ports(before, old, class), ports(after, new, class));
            let of_grant = old.and_then(|slot| by_grant.get(&grant_slot(slot, class)));
            let count = |wanted: &dyn Fn(Ipv4Addr, u16) -> bool| -> u64 {
                let flows = of_grant.into_iter().flatten();
                flows.filter(|(frontend, port, _)| wanted(*frontend, *port)).map(|flow| flow.2).sum()
            };
            let draining =
                count(&|frontend, port| was.contains(frontend, port) && !becomes.contains(frontend, port));
            result.totals.flows_draining += draining;
            // Flows on instance IPs are on no frontend's port.
            result.totals.flows_draining_already += count(&|frontend, port| {
                !was.contains(frontend, port)
                    && !becomes.contains(frontend, port)
                    && !before.policy.instances.contains_key(&frontend)
            });
            // Other protocols have no ports of their own: theirs are those of UDP.
            if was.runs.is_empty() && becomes.runs.is_empty() || protocol == OTHER {
                continue;
            }
            let change = was.compare(&becomes);
            *result.totals.blocks.entry(change).or_default() += 1;
            result.blocks.push(Block {
                backend: address,
                name: name_of(after, new).or_else(|| name_of(before, old)),
                protocol,
                change,
                rule_before: was.rule,
                rule_after: becomes.rule,
                before: was.runs,
                after: becomes.runs,
                flows: count(&|_, _| true),
                flows_draining: draining,
            });
        }
    }
}

const OTHER: &str = "other";

fn name_of(plan: &PortPlan, slot: Option<u32>) -> Option<String> {
    named(&plan.backends.get(slot? as usize)?.as_ref()?.name)
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "diff_ways_tests.rs"]
mod ways_tests;
