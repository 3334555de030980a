// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills the bank of configuration that is not in use, and reads back the one that is.

use std::{cell::OnceCell, collections::HashSet, hash::Hash, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use bytemuck::{Pod, Zeroable as _};
use nat_common::abi::{
    config::{
        BANKS, CLASSES, Control, FRONTEND_DRAINING, FRONTEND_LOCAL, Frontend, FrontendKey, MAX_FRONTENDS,
        MAX_RULES, banked, padded,
    },
    flow::HALF_OUTBOUND,
    grant::{BackendInfo, BackendKey, BackendRef, Grant, PortSet, Rule, grant_slot},
    names,
};

use super::{pin::Instance, policy, tables::Tables};
use crate::{
    plan::{
        BackendSlot, FrontendSlot, GRANT_CLASSES, LiveSlots, PolicyPlan, PolicySlot, PortPlan, RuleSlot,
        Status,
    },
    view,
};

/// The one writer of `CONTROL`. The data path only reads it, so a whole-value write loses nothing.
pub struct ControlCell {
    map: Array<MapData, Control>,
    value: Control,
}

impl ControlCell {
    /// Opens it, keeping what it holds.
    ///
    /// # Errors
    ///
    /// When the map is not pinned or not readable.
    pub fn open(instance: &Instance) -> Result<Self> {
        let map: Array<MapData, Control> = instance.array(names::CONTROL)?;
        let value = map.get(&0, 0).context("reading map `CONTROL`")?;
        Ok(Self { map, value })
    }

    /// What is in force.
    #[must_use]
    pub const fn value(&self) -> &Control {
        &self.value
    }

    /// Changes it with one write; on failure nothing has changed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the write.
    pub fn update(&mut self, change: impl FnOnce(&mut Control)) -> Result<()> {
        let mut value = self.value;
        change(&mut value);
        self.map.set(0, value, 0).context("writing map `CONTROL`")?;
        self.value = value;
        Ok(())
    }

    /// Has every flow look up its next hop and timeouts again.
    ///
    /// # Errors
    ///
    /// As [`Self::update`].
    pub fn next_epoch(&mut self) -> Result<()> {
        self.update(|control| control.epoch = epoch_after(control.epoch))
    }
}

/// The epoch after `epoch`: never 0, which flows start with.
#[must_use]
pub const fn epoch_after(epoch: u32) -> u32 {
    match epoch.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

/// How many slots of each bank may hold something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Backend slots.
    pub backends: u32,
    /// Set slots.
    pub sets: u32,
}

impl Filled {
    /// What `plan` fills.
    #[must_use]
    pub fn by(plan: &PortPlan) -> Self {
        let count = |length| u32::try_from(length).unwrap_or(u32::MAX);
        Self { backends: plan.backend_slots(), sets: count(plan.sets.len()) }
    }

    /// As many slots as either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        const fn max(a: u32, b: u32) -> u32 {
            if a > b { a } else { b }
        }
        Self { backends: max(self.backends, other.backends), sets: max(self.sets, other.sets) }
    }
}

/// Writes `plan` into the bank that is not in force, which held at most `before`. `owned` are the host's own addresses.
///
/// # Errors
///
/// When the kernel refuses a write. The bank in force is untouched.
pub fn fill(
    instance: &Instance,
    bank: u32,
    plan: &PortPlan,
    owned: &HashSet<Ipv4Addr>,
    before: Filled,
) -> Result<()> {
    let slots = Filled::by(plan).or(before);
    fill_backends(instance, bank, plan, slots.backends)?;
    let sets = |slot: u32| plan.sets.get(slot as usize).copied().unwrap_or_default();
    fill_array::<PortSet>(instance, names::SETS, bank, slots.sets, sets)?;
    let rule = |slot| at(&plan.rules, slot).map_or_else(Rule::zeroed, RuleSlot::to_abi);
    fill_array::<Rule>(instance, names::RULES, bank, MAX_RULES, rule)?;
    fill_frontends(instance, bank, plan, owned)?;
    policy::fill(instance, bank, plan)
}

fn at<T>(slots: &[Option<T>], slot: u32) -> Option<&T> {
    slots.get(slot as usize).and_then(Option::as_ref)
}

/// Writes the first `count` slots of one bank of an array.
pub(super) fn fill_array<V: Pod>(
    instance: &Instance,
    map: &'static str,
    bank: u32,
    count: u32,
    value: impl Fn(u32) -> V,
) -> Result<()> {
    let array = instance.typed::<u32, V>(map)?;
    let count = count.min(array.max_entries() / BANKS);
    let entries: Vec<(u32, V)> = (0..count).map(|slot| (banked(bank, slot), value(slot))).collect();
    array.write(&entries).with_context(|| format!("writing map `{map}`"))
}

/// Makes a hash map hold exactly `wanted` of the keys that `ours` tells to be of the bank; what is right is not written.
pub(super) fn fill_hash<K: Pod + Eq + Hash, V: Pod + PartialEq>(
    instance: &Instance,
    name: &'static str,
    ours: impl Fn(&K) -> bool,
    wanted: &[(K, V)],
) -> Result<()> {
    let map = instance.typed::<K, V>(name)?;
    let mut known: std::collections::HashMap<K, V> = std::collections::HashMap::new();
    let mut visit = |key: &K, value: &V| {
        if ours(key) {
            known.insert(*key, *value);
        }
    };
    map.for_each(&mut visit).with_context(|| format!("reading map `{name}`"))?;
    let keys: HashSet<K> = wanted.iter().map(|(key, _)| *key).collect();
    let stale: Vec<K> = known.keys().filter(|key| !keys.contains(*key)).copied().collect();
    map.remove(&stale).with_context(|| format!("removing old keys of map `{name}`"))?;
    let changed: Vec<(K, V)> =
        wanted.iter().filter(|(key, value)| known.get(key) != Some(value)).copied().collect();
    map.write(&changed).with_context(|| format!("writing map `{name}`"))
}

fn fill_backends(instance: &Instance, bank: u32, plan: &PortPlan, slots: u32) -> Result<()> {
    let info = |slot| at(&plan.backends, slot).map_or_else(BackendInfo::zeroed, BackendSlot::to_abi);
    fill_array::<BackendInfo>(instance, names::BACKEND_INFO, bank, slots, info)?;
    let grant = |index: u32| {
        let of_backend = plan.grants.get((index / CLASSES) as usize);
        of_backend.and_then(|grants| grants.get((index % CLASSES) as usize)).copied().unwrap_or_default()
    };
    fill_array::<Grant>(instance, names::GRANTS, bank, grant_slot(slots, 0), grant)?;
    let instances: std::collections::HashMap<u32, Ipv4Addr> =
        plan.policy.instances.iter().map(|(address, slot)| (*slot, *address)).collect();
    let entry = |(slot, backend): (u32, &Option<BackendSlot>)| {
        let backend = backend.as_ref().filter(|backend| backend.status == Status::Configured)?;
        let value = BackendRef {
            slot,
            instance: instances.get(&slot).map_or([0; 4], Ipv4Addr::octets),
            policies: plan.policy.of_backend(slot),
        };
        Some((BackendKey { address: backend.address.octets(), bank }, value))
    };
    let wanted: Vec<(BackendKey, BackendRef)> = (0..).zip(&plan.backends).filter_map(entry).collect();
    fill_hash(instance, names::BACKENDS, |key: &BackendKey| key.bank == bank, &wanted)
}

fn fill_frontends(instance: &Instance, bank: u32, plan: &PortPlan, owned: &HashSet<Ipv4Addr>) -> Result<()> {
    let claimed = plan.claimed();
    let value = |slot| {
        at(&plan.frontends, slot).map_or_else(Frontend::zeroed, |frontend| Frontend {
            address: frontend.address.octets(),
            flags: flags(owned, frontend),
            name: padded(&frontend.name),
            claimed: claimed[slot as usize],
        })
    };
    fill_array::<Frontend>(instance, names::FRONTEND_INFO, bank, MAX_FRONTENDS, value)?;
    let entry = |(slot, frontend): (u32, &Option<FrontendSlot>)| {
        Some((FrontendKey { address: frontend.as_ref()?.address.octets(), bank }, slot))
    };
    let wanted: Vec<(FrontendKey, u32)> = (0..).zip(&plan.frontends).filter_map(entry).collect();
    fill_hash(instance, names::FRONTENDS, |key: &FrontendKey| key.bank == bank, &wanted)
}

fn flags(owned: &HashSet<Ipv4Addr>, frontend: &FrontendSlot) -> u32 {
    let local = if owned.contains(&frontend.address) { FRONTEND_LOCAL } else { 0 };
    local | if frontend.status == Status::Draining { FRONTEND_DRAINING } else { 0 }
}

/// Brings [`FRONTEND_LOCAL`] of the bank in force up to date with the host's addresses.
///
/// # Errors
///
/// When the kernel refuses a read or write.
pub fn refresh_owned(
    instance: &Instance,
    bank: u32,
    plan: &PortPlan,
    owned: &HashSet<Ipv4Addr>,
) -> Result<()> {
    let mut infos: Array<MapData, Frontend> = instance.array(names::FRONTEND_INFO)?;
    for (slot, frontend) in (0..).zip(&plan.frontends) {
        let Some(frontend) = frontend else { continue };
        let index = banked(bank, slot);
        let mut value = infos.get(&index, 0).context("reading map `FRONTEND_INFO`")?;
        let flags = flags(owned, frontend);
        if value.flags != flags {
            value.flags = flags;
            infos.set(index, value, 0).context("writing map `FRONTEND_INFO`")?;
        }
    }
    Ok(())
}

/// The plan that the bank in force was filled from, as far as the next one needs it.
#[must_use]
pub fn plan_of(tables: &view::instance::Instance) -> PortPlan {
    let grants = tables.grants.chunks(CLASSES as usize).map(|of_backend| {
        let mut known = [Grant::default(); GRANT_CLASSES];
        known.copy_from_slice(of_backend);
        known
    });
    let instance = |(address, instance): &([u8; 4], nat_common::abi::policy::Instance)| {
        (Ipv4Addr::from(*address), instance.slot)
    };
    let mut plan = PortPlan {
        generation: tables.control.generation,
        max_backends: tables.meta.max_backends,
        backends: tables.backends.iter().map(BackendSlot::from_abi).collect(),
        frontends: tables.frontends.iter().map(FrontendSlot::from_abi).collect(),
        rules: tables.rules.iter().map(RuleSlot::from_abi).collect(),
        grants: grants.collect(),
        sets: tables.sets.clone(),
        policy: PolicyPlan {
            slots: tables.policies.iter().map(PolicySlot::from_abi).collect(),
            instances: tables.instances.iter().map(instance).collect(),
            ..PolicyPlan::default()
        },
        on_refusal: tables.control.on_refusal,
        features: tables.control.features,
    };
    trim(&mut plan.backends, Option::is_none);
    plan.grants.truncate(plan.backends.len());
    trim(&mut plan.frontends, Option::is_none);
    trim(&mut plan.rules, Option::is_none);
    trim(&mut plan.sets, |set| set.ports == 0);
    trim(&mut plan.policy.slots, Option::is_none);
    plan
}

fn trim<T>(slots: &mut Vec<T>, free: impl Fn(&T) -> bool) {
    let used = slots.iter().rposition(|slot| !free(slot)).map_or(0, |last| last + 1);
    slots.truncate(used);
}

/// Which slots and addresses flows refer to, as the tables say. The walk through all flows that rules and frontends need
/// happens only when one is asked for, which is when it has left the configuration.
pub struct LiveFlows<'a> {
    tables: &'a Tables,
    backends: HashSet<u32>,
    walked: OnceCell<Walked>,
}

struct Walked {
    rules: HashSet<u32>,
    frontends: HashSet<[u8; 4]>,
    /// Everything was seen. A slot given away too early would change the timeouts of flows; one kept too long costs
    /// nothing.
    whole: bool,
}

impl<'a> LiveFlows<'a> {
    /// From a reading of the tables of `tables`.
    #[must_use]
    pub fn new(tables: &'a Tables, reading: &view::instance::Instance) -> Self {
        let alive = (0..).zip(&reading.grant_states).filter(|(_, state)| state.flows > 0);
        let backends = alive.map(|(grant, _): (u32, _)| grant / CLASSES).collect();
        Self { tables, backends, walked: OnceCell::new() }
    }

    fn walked(&self) -> &Walked {
        self.walked.get_or_init(|| {
            let (mut rules, mut frontends) = (HashSet::new(), HashSet::new());
            let result = self.tables.for_each_half(&mut |_, entry| {
                rules.insert(u32::from(entry.rule));
                if entry.half & HALF_OUTBOUND != 0 {
                    frontends.insert(entry.address);
                }
            });
            Walked { rules, frontends, whole: result.is_ok() }
        })
    }
}

impl LiveSlots for LiveFlows<'_> {
    fn backend_slot_has_flows(&self, slot: u32) -> bool {
        self.backends.contains(&slot)
    }

    fn rule_slot_has_flows(&self, slot: u32) -> bool {
        let walked = self.walked();
        !walked.whole || walked.rules.contains(&slot)
    }

    fn frontend_has_flows(&self, address: Ipv4Addr) -> bool {
        let walked = self.walked();
        !walked.whole || walked.frontends.contains(&address.octets())
    }
}

/// The bank that is not in force.
#[must_use]
pub const fn other(bank: u32) -> u32 {
    (bank + 1) % BANKS
}

#[cfg(test)]
#[path = "bank_tests.rs"]
mod tests;
