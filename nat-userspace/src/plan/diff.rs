// SPDX-License-Identifier: MIT OR Apache-2.0
//! What changes from one plan to the next, and how many live flows each change concerns. Pure.
//!
//! Flows are never cut by a change: those on ports that go away *drain*, which means that they finish where they are
//! while no new flow gets these ports. Field names are those of the JSON.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::Ipv4Addr,
};

use nat_common::{
    abi::{
        config::{CLASS_NAMES, CLASSES},
        grant::grant_slot,
    },
    net::timers::TimerClass,
    tick,
};
use serde::Serialize;

use super::{
    model::{BackendSlot, PortPlan, RuleSlot, Status},
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
    /// Outbound rules by name.
    pub rules: Rules,
    /// Backends by address.
    pub backends: Members,
    /// Frontend addresses.
    pub frontends: Members,
    /// Every backend and protocol that has ports before or after, unchanged ones included.
    pub blocks: Vec<Block>,
    /// Sums.
    pub totals: Totals,
}

/// Outbound rules that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// New ones.
    pub added: Vec<Rule>,
    /// Those that leave; their flows keep the timeouts they had.
    pub removed: Vec<Rule>,
    /// Those whose timeouts change, for their live flows too.
    pub changed: Vec<Rule>,
}

/// An outbound rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Name.
    pub rule: String,
    /// Live flows that it has opened.
    pub flows: u64,
    /// Timeouts that change; empty unless the rule is in both plans.
    pub timeouts: Vec<Timeout>,
}

/// An idle timeout that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeout {
    /// State of the flows it is for, as `natgw flows` names it.
    pub state: &'static str,
    /// Seconds before.
    pub before_seconds: u64,
    /// Seconds after.
    pub after_seconds: u64,
}

/// Backends or frontend addresses that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Members {
    /// New ones.
    pub added: Vec<Member>,
    /// Those that leave; their flows finish.
    pub removed: Vec<Member>,
    /// Those that have another name now.
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
        rules: rules(before, after, &flows.by(|place| place.rule)),
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
        added.is_empty()
            && removed.is_empty()
            && changed.is_empty()
            && none(&self.backends)
            && none(&self.frontends)
            && !self.blocks.iter().any(Block::is_change)
    }
}

fn configured(plan: &PortPlan) -> BTreeMap<&str, (u32, &RuleSlot)> {
    let rules = (0..).zip(&plan.rules).filter_map(|(slot, rule)| Some((slot, rule.as_ref()?)));
    let rules = rules.filter(|(_, rule)| rule.status == Status::Configured);
    rules.map(|(slot, rule)| (rule.name.as_str(), (slot, rule))).collect()
}

fn rules(before: &PortPlan, after: &PortPlan, flows: &HashMap<u32, u64>) -> Rules {
    let (old, new) = (configured(before), configured(after));
    let row = |name: &str, timeouts| {
        let flows = before.rule_slot(name).and_then(|slot| flows.get(&slot).copied()).unwrap_or(0);
        Rule { rule: name.to_owned(), flows, timeouts }
    };
    let absent = |from: &BTreeMap<&str, _>, to: &BTreeMap<&str, _>| -> Vec<Rule> {
        let names = from.keys().filter(|name| !to.contains_key(*name));
        names.map(|name| row(name, Vec::new())).collect()
    };
    let both = old.iter().filter_map(|(name, (_, old))| Some((name, timeouts(old, new.get(name)?.1))));
    Rules {
        added: absent(&new, &old),
        removed: absent(&old, &new),
        changed: both.filter(|(_, found)| !found.is_empty()).map(|(name, found)| row(name, found)).collect(),
    }
}

fn timeouts(before: &RuleSlot, after: &RuleSlot) -> Vec<Timeout> {
    let differ = |class: &TimerClass| before.timeouts[*class as usize] != after.timeouts[*class as usize];
    let row = |class: TimerClass| Timeout {
        state: class.name(),
        before_seconds: tick::to_seconds(before.timeouts[class as usize]),
        after_seconds: tick::to_seconds(after.timeouts[class as usize]),
    };
    TimerClass::ALL.into_iter().filter(differ).map(row).collect()
}

type Names<'a> = BTreeMap<Ipv4Addr, &'a str>;

fn backends(plan: &PortPlan) -> Names<'_> {
    let there = |backend: &&BackendSlot| backend.status == Status::Configured;
    plan.backends.iter().flatten().filter(there).map(|backend| (backend.address, &*backend.name)).collect()
}

fn frontends(plan: &PortPlan) -> Names<'_> {
    let there = plan.frontends.iter().flatten().filter(|frontend| frontend.status == Status::Configured);
    there.map(|frontend| (frontend.address, &*frontend.name)).collect()
}

fn named(name: &&str) -> Option<String> {
    (!name.is_empty()).then(|| (*name).to_owned())
}

fn members(before: &Names<'_>, after: &Names<'_>, flows: impl Fn(Ipv4Addr) -> Option<u64>) -> Members {
    let row = |address: Ipv4Addr| Member {
        address,
        name_before: before.get(&address).and_then(named),
        name_after: after.get(&address).and_then(named),
        flows: flows(address).unwrap_or(0),
    };
    let only = |from: &Names<'_>, to: &Names<'_>| {
        from.keys().filter(|address| !to.contains_key(address)).map(|address| row(*address)).collect()
    };
    let renamed =
        |(address, name): &(&Ipv4Addr, &&str)| after.get(address).is_some_and(|other| other != *name);
    Members {
        added: only(after, before),
        removed: only(before, after),
        renamed: before.iter().filter(renamed).map(|(address, _)| row(*address)).collect(),
    }
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
        for (class, protocol) in (0..).zip(CLASS_NAMES) {
            let (was, becomes) = (ports(before, old, class), ports(after, new, class));
            let of_grant = old.and_then(|slot| by_grant.get(&grant_slot(slot, class)));
            let count = |wanted: &dyn Fn(Ipv4Addr, u16) -> bool| -> u64 {
                let flows = of_grant.into_iter().flatten();
                flows.filter(|(frontend, port, _)| wanted(*frontend, *port)).map(|flow| flow.2).sum()
            };
            let draining =
                count(&|frontend, port| was.contains(frontend, port) && !becomes.contains(frontend, port));
            result.totals.flows_draining += draining;
            result.totals.flows_draining_already +=
                count(&|frontend, port| !was.contains(frontend, port) && !becomes.contains(frontend, port));
            if was.runs.is_empty() && becomes.runs.is_empty() {
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

fn name_of(plan: &PortPlan, slot: Option<u32>) -> Option<String> {
    named(&plan.backends.get(slot? as usize)?.as_ref()?.name.as_str())
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
