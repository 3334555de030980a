// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots that keep their meaning, and grants whose version says whether they are the same.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::Ipv4Addr,
};

use nat_common::abi::config::{Grant, MAX_BACKENDS, MAX_FRONTENDS, MAX_RULES, MAX_SEGMENTS, Segment};

use super::{
    PlanError,
    layout::Pieces,
    model::{BackendSlot, CLASS_COUNT, FrontendSlot, LiveSlots, PortPlan, RuleSlot, Status, segments},
    space::Space,
};
use crate::config::Gateway;

/// Gives everything its slot; grants are still those of the previous plan.
pub(super) fn assign(
    gateway: &Gateway,
    previous: &PortPlan,
    live: &dyn LiveSlots,
) -> Result<PortPlan, PlanError> {
    let backends = Table {
        kind: "backends",
        limit: MAX_BACKENDS as usize,
        key: |backend: &BackendSlot| backend.address,
        drained: |slot, backend: &BackendSlot| {
            live.backend_slot_has_flows(slot)
                .then(|| BackendSlot { status: Status::Draining, ..backend.clone() })
        },
    };
    let frontends = Table {
        kind: "frontend addresses",
        limit: MAX_FRONTENDS as usize,
        key: |frontend: &FrontendSlot| frontend.address,
        // Flows know their address themselves.
        drained: |_, _: &FrontendSlot| None,
    };
    let rules = Table {
        kind: "rules",
        limit: MAX_RULES as usize,
        key: |rule: &RuleSlot| rule.name.clone(),
        drained: |slot, rule: &RuleSlot| {
            live.rule_slot_has_flows(slot).then(|| RuleSlot { status: Status::Draining, ..rule.clone() })
        },
    };
    Ok(PortPlan {
        backends: backends.assign(&previous.backends, configured_backends(gateway))?,
        frontends: frontends.assign(&previous.frontends, configured_frontends(gateway))?,
        rules: rules.assign(&previous.rules, configured_rules(gateway))?,
        grants: previous.grants.clone(),
    })
}

struct Table<K, D> {
    kind: &'static str,
    limit: usize,
    key: K,
    /// What remains of an entry that is no longer configured.
    drained: D,
}

impl<K, D> Table<K, D> {
    /// `wanted` in the slots they had, else in the lowest free ones.
    fn assign<T, Q: Eq + Hash>(
        &self,
        previous: &[Option<T>],
        wanted: Vec<T>,
    ) -> Result<Vec<Option<T>>, PlanError>
    where
        K: Fn(&T) -> Q,
        D: Fn(u32, &T) -> Option<T>,
    {
        let count = wanted.len();
        let mut wanted: Vec<Option<T>> = wanted.into_iter().map(Some).collect();
        let mut index: HashMap<Q, usize> = HashMap::new();
        for (position, entry) in wanted.iter().enumerate() {
            index.extend(entry.as_ref().map(|entry| ((self.key)(entry), position)));
        }
        let mut slots = Vec::new();
        let mut draining = 0;
        for (slot, before) in (0..).zip(previous) {
            let mut now = None;
            if let Some(before) = before {
                // Removing it from the index makes a second slot with the same key, which a plan never has, drain.
                now = index.remove(&(self.key)(before)).and_then(|position| wanted[position].take());
                if now.is_none() {
                    now = (self.drained)(slot, before);
                    draining += usize::from(now.is_some());
                }
            }
            slots.push(now);
        }
        let mut new = wanted.into_iter().flatten().peekable();
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = new.next();
        }
        slots.extend(new.map(Some));
        if slots.len() > self.limit {
            return Err(PlanError::NoSlot { kind: self.kind, wanted: count, draining, limit: self.limit });
        }
        while slots.last().is_some_and(Option::is_none) {
            slots.pop();
        }
        Ok(slots)
    }
}

/// Backends of all pools, those of rules first, in the order of the file.
fn configured_backends(gateway: &Gateway) -> Vec<BackendSlot> {
    let mut seen: HashSet<Ipv4Addr> = HashSet::new();
    let by_rules = gateway.rules.iter().map(|rule| rule.pool);
    let mut backends = Vec::new();
    for pool in by_rules.chain(0..gateway.pools.len()) {
        let pool = &gateway.pools[pool];
        for backend in &pool.backends {
            if seen.insert(backend.address) {
                backends.push(BackendSlot {
                    address: backend.address,
                    name: backend.name.clone().unwrap_or_default(),
                    pool: pool.name.clone(),
                    status: Status::Configured,
                });
            }
        }
    }
    backends
}

fn configured_frontends(gateway: &Gateway) -> Vec<FrontendSlot> {
    let of_frontend = |frontend: &crate::config::Frontend| {
        let name = frontend.name.clone();
        frontend
            .addresses
            .clone()
            .into_iter()
            .map(move |address| FrontendSlot { address, name: name.clone() })
    };
    gateway.frontends.iter().flat_map(of_frontend).collect()
}

fn configured_rules(gateway: &Gateway) -> Vec<RuleSlot> {
    let slot = |rule: &crate::config::OutboundRule| RuleSlot {
        name: rule.name.clone(),
        timeouts: rule.timeouts(),
        status: Status::Configured,
    };
    gateway.rules.iter().map(slot).collect()
}

/// Fills in the grants of `plan`, which has its slots.
pub(super) fn fill_grants(gateway: &Gateway, previous: &PortPlan, pieces: &Pieces, plan: &mut PortPlan) {
    let space = Space::new(gateway);
    let length = previous.grants.len().max(plan.backends.len());
    plan.grants = vec![[Grant::default(); CLASS_COUNT]; length];
    let slots: HashMap<Ipv4Addr, usize> = plan
        .backends
        .iter()
        .enumerate()
        .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
        .collect();
    for (rule, of_rule) in gateway.rules.iter().zip(pieces) {
        let rule_slot = plan.rule_slot(&rule.name).unwrap_or_default();
        for (backend, of_backend) in gateway.backends_of(rule).iter().zip(of_rule) {
            for class in rule.protocol.classes() {
                let class = *class as usize;
                let grant = &mut plan.grants[slots[&backend.address]][class];
                grant.rule = rule_slot;
                grant.ports = rule.ports_per_backend;
                grant.segment_count = of_backend[class].len().min(MAX_SEGMENTS) as u32;
                for (segment, piece) in grant.segments.iter_mut().zip(&of_backend[class]) {
                    // Ports are below 65,024.
                    *segment = Segment {
                        address: space.addresses[piece.address].octets(),
                        first: piece.first as u16,
                        count: piece.count as u16,
                    };
                }
            }
        }
    }
    for (slot, grants) in plan.grants.iter_mut().enumerate() {
        for (class, grant) in grants.iter_mut().enumerate() {
            let before = previous.grants.get(slot).map(|grants| grants[class]).unwrap_or_default();
            let same = segments(&before) == segments(grant);
            grant.version = if same { before.version } else { before.version.wrapping_add(1) };
        }
    }
}
