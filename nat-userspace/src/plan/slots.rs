// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots that keep their meaning.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::Ipv4Addr,
};

use nat_common::abi::config::{MAX_FRONTENDS, MAX_RULES};

use super::{
    PlanError,
    model::{BackendSlot, FrontendSlot, LiveSlots, PortPlan, RuleSlot, Status, table_size},
    rules,
};
use crate::config::{Gateway, Pool};

/// Gives backends, frontends and rules their slots; there are no grants yet.
pub(super) fn assign(
    gateway: &Gateway,
    previous: &PortPlan,
    live: &dyn LiveSlots,
) -> Result<PortPlan, PlanError> {
    let max_backends = match previous.max_backends {
        0 => table_size(gateway),
        made_for => made_for,
    };
    let backends = Table {
        kind: "backends",
        limit: max_backends as usize,
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
        drained: |_, frontend: &FrontendSlot| {
            let instance = gateway.instance_ips.iter().any(|instance| instance.address == frontend.address);
            (!instance && live.frontend_has_flows(frontend.address))
                .then(|| FrontendSlot { status: Status::Draining, ..frontend.clone() })
        },
    };
    let rules = Table {
        kind: "rules",
        limit: MAX_RULES as usize,
        key: |rule: &RuleSlot| rule.name.clone(),
        drained: |slot, rule: &RuleSlot| {
            live.rule_slot_has_flows(slot).then(|| RuleSlot { status: Status::Draining, ..rule.clone() })
        },
    };
    let configured = configured_backends(gateway);
    if configured.len() > backends.limit {
        return Err(PlanError::TooManyBackends { wanted: configured.len(), limit: backends.limit });
    }
    Ok(PortPlan {
        generation: previous.generation.wrapping_add(1),
        max_backends,
        backends: backends.assign(&previous.backends, configured)?,
        frontends: frontends.assign(&previous.frontends, configured_frontends(gateway))?,
        rules: rules.assign(&previous.rules, gateway.rules.iter().map(rules::slot).collect())?,
        ..PortPlan::default()
    })
}

pub(super) struct Table<K, D> {
    pub(super) kind: &'static str,
    pub(super) limit: usize,
    pub(super) key: K,
    /// What remains of an entry that is no longer configured.
    pub(super) drained: D,
}

impl<K, D> Table<K, D> {
    /// `wanted` in the slots they had, else in the lowest free ones.
    pub(super) fn assign<T, Q: Eq + Hash>(
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
    let by_rules = gateway.rules.iter().filter(|rule| rule.default_for.is_none()).map(|rule| rule.pool);
    let mut backends = Vec::new();
    let of_pools = by_rules.chain(0..gateway.pools.len()).map(|pool| {
        let Pool { name, backends } = &gateway.pools[pool];
        (name.as_str(), backends)
    });
    let defaults = gateway.rules.iter().filter_map(|rule| Some(("", rule.default_for.as_ref()?)));
    for (pool, of_pool) in of_pools.chain(defaults) {
        for backend in of_pool {
            if seen.insert(backend.address) {
                backends.push(BackendSlot {
                    address: backend.address,
                    name: backend.name.clone().unwrap_or_default(),
                    pool: pool.to_owned(),
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
        frontend.addresses.clone().into_iter().map(move |address| FrontendSlot {
            address,
            name: name.clone(),
            status: Status::Configured,
        })
    };
    gateway.frontends.iter().flat_map(of_frontend).collect()
}
