// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules at a glance.

use std::collections::{BTreeMap, HashSet};

use nat_common::{
    abi::config::{CLASS_OTHER, CLASSES, name_of},
    net::timers::TimerClass,
    tick,
};
use serde::Serialize;

use super::{
    flows::{Flow, State, class_name},
    instance::Instance,
};

/// An outbound rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleSummary {
    /// Name.
    pub name: String,
    /// No longer configured, finishes its flows.
    pub draining: bool,
    /// Backends that it gives ports to.
    pub backends: u64,
    /// Ports in all, by protocol.
    pub ports: BTreeMap<&'static str, u64>,
    /// Flows alive.
    pub flows: u64,
    /// Idle timeouts in seconds by state.
    pub timeouts_seconds: BTreeMap<&'static str, u64>,
}

/// Every rule that has a slot.
#[must_use]
pub fn summaries(instance: &Instance, flows: &[Flow]) -> Vec<RuleSummary> {
    let mut alive: BTreeMap<u32, u64> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.state != State::Expired) {
        *alive.entry(flow.rule).or_default() += 1;
    }
    let summary = |slot: u32| {
        let rule = instance.rule(slot)?;
        let grants: Vec<_> = instance.granted().filter(|(_, grant)| grant.rule == slot).collect();
        let mut ports = BTreeMap::new();
        let mut counted = HashSet::new();
        for (place, grant) in &grants {
            let class = place % CLASSES;
            if class == CLASS_OTHER {
                continue;
            }
            let own = instance.own(grant);
            // What is shared counts once.
            let shared = instance.shared(grant).filter(|_| counted.insert((class, grant.shared)));
            let more: u64 = [own, shared].into_iter().flatten().map(|set| u64::from(set.ports)).sum();
            *ports.entry(class_name(class)).or_default() += more;
        }
        let mut backends: Vec<_> = grants.iter().map(|(grant, _)| grant / CLASSES).collect();
        backends.dedup();
        let timeout = |class: TimerClass| (class.name(), tick::to_seconds(rule.timeouts[class as usize]));
        Some(RuleSummary {
            name: name_of(&rule.name).to_owned(),
            draining: rule.status == 2,
            backends: backends.len() as u64,
            ports,
            flows: alive.get(&slot).copied().unwrap_or(0),
            timeouts_seconds: TimerClass::ALL.into_iter().map(timeout).collect(),
        })
    };
    (0..).zip(&instance.rules).filter_map(|(slot, _)| summary(slot)).collect()
}
