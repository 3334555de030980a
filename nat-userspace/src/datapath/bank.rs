// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills the bank of configuration that is not in use, and reads back the one that is.

use std::{cell::OnceCell, collections::HashSet, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, MapData},
};
use bytemuck::Zeroable as _;
use nat_common::abi::{
    config::{
        BANKS, BackendInfo, BackendKey, CLASSES, Control, FRONTEND_LOCAL, Frontend, FrontendKey, Grant,
        MAX_BACKENDS, MAX_FRONTENDS, MAX_RULES, Rule, backend_index, frontend_index, grant_index, grant_slot,
        name_of, rule_index,
    },
    names,
};

use super::{pin::Instance, tables::Tables};
use crate::{
    plan::{BackendSlot, CLASS_COUNT, FrontendSlot, LiveSlots, PortPlan, RuleSlot, Status},
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

/// Shares of the flow table: what each of `backends` may always have, and what all share above that. Half of the
/// table is guaranteed, so that no backend can fill it, and the other half is for whoever needs more.
#[must_use]
pub fn shares(max_flows: u32, backends: u32) -> (u32, u32) {
    let backends = backends.max(1);
    let guaranteed = (max_flows / 2 / backends).max(1);
    (guaranteed, max_flows.saturating_sub(guaranteed.saturating_mul(backends)))
}

/// Writes `plan` into the bank that is not in force. `owned` are the host's own addresses.
///
/// # Errors
///
/// When the kernel refuses a write. The bank in force is untouched.
pub fn fill(instance: &Instance, bank: u32, plan: &PortPlan, owned: &HashSet<Ipv4Addr>) -> Result<()> {
    fill_backends(instance, bank, plan)?;
    fill_grants(instance, bank, plan)?;
    let mut rules: Array<MapData, Rule> = instance.array(names::RULES)?;
    for slot in 0..MAX_RULES {
        let rule = at(&plan.rules, slot).map_or_else(Rule::zeroed, RuleSlot::to_abi);
        set(&mut rules, names::RULES, rule_index(bank, slot), rule)?;
    }
    fill_frontends(instance, bank, plan, owned)
}

fn at<T>(slots: &[Option<T>], slot: u32) -> Option<&T> {
    slots.get(slot as usize).and_then(Option::as_ref)
}

fn set<V: Pod>(map: &mut Array<MapData, V>, name: &str, index: u32, value: V) -> Result<()> {
    map.set(index, value, 0).with_context(|| format!("writing map `{name}` at {index}"))
}

fn fill_backends(instance: &Instance, bank: u32, plan: &PortPlan) -> Result<()> {
    let mut keys: HashMap<MapData, BackendKey, u32> = instance.hash(names::BACKENDS)?;
    let stale: Vec<BackendKey> = keys.keys().filter_map(Result::ok).filter(|key| key.bank == bank).collect();
    for key in stale {
        keys.remove(&key).context("removing an old key of map `BACKENDS`")?;
    }
    let mut infos: Array<MapData, BackendInfo> = instance.array(names::BACKEND_INFO)?;
    for slot in 0..MAX_BACKENDS {
        let backend = at(&plan.backends, slot);
        let info = backend.map_or_else(BackendInfo::zeroed, BackendSlot::to_abi);
        set(&mut infos, names::BACKEND_INFO, backend_index(bank, slot), info)?;
        if let Some(backend) = backend.filter(|backend| backend.status == Status::Configured) {
            let key = BackendKey { address: backend.address.octets(), bank };
            keys.insert(key, slot, 0)
                .with_context(|| format!("writing backend {} to map `BACKENDS`", backend.address))?;
        }
    }
    Ok(())
}

fn fill_grants(instance: &Instance, bank: u32, plan: &PortPlan) -> Result<()> {
    let mut grants: Array<MapData, Grant> = instance.array(names::GRANTS)?;
    for backend in 0..MAX_BACKENDS {
        let of_backend = plan.grants.get(backend as usize).copied().unwrap_or_default();
        for (class, grant) in (0..).zip(of_backend) {
            let index = grant_index(bank, grant_slot(backend, class));
            set(&mut grants, names::GRANTS, index, grant)?;
        }
    }
    Ok(())
}

fn fill_frontends(instance: &Instance, bank: u32, plan: &PortPlan, owned: &HashSet<Ipv4Addr>) -> Result<()> {
    let mut keys: HashMap<MapData, FrontendKey, u32> = instance.hash(names::FRONTENDS)?;
    let stale: Vec<FrontendKey> = keys.keys().filter_map(Result::ok).filter(|key| key.bank == bank).collect();
    for key in stale {
        keys.remove(&key).context("removing an old key of map `FRONTENDS`")?;
    }
    let mut infos: Array<MapData, Frontend> = instance.array(names::FRONTEND_INFO)?;
    let claimed = plan.claimed();
    for slot in 0..MAX_FRONTENDS {
        let mut value = Frontend::zeroed();
        if let Some(frontend) = at(&plan.frontends, slot) {
            value.address = frontend.address.octets();
            value.flags = local_flag(owned, frontend.address);
            value.name = nat_common::abi::config::padded(&frontend.name);
            value.claimed = claimed[slot as usize];
            let key = FrontendKey { address: value.address, bank };
            keys.insert(key, slot, 0)
                .with_context(|| format!("writing frontend {} to map `FRONTENDS`", frontend.address))?;
        }
        set(&mut infos, names::FRONTEND_INFO, frontend_index(bank, slot), value)?;
    }
    Ok(())
}

fn local_flag(owned: &HashSet<Ipv4Addr>, address: Ipv4Addr) -> u32 {
    if owned.contains(&address) { FRONTEND_LOCAL } else { 0 }
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
        let index = frontend_index(bank, slot);
        let mut value = infos.get(&index, 0).context("reading map `FRONTEND_INFO`")?;
        let flags = local_flag(owned, frontend.address);
        if value.flags != flags {
            value.flags = flags;
            set(&mut infos, names::FRONTEND_INFO, index, value)?;
        }
    }
    Ok(())
}

/// The plan that the bank in force was filled from.
#[must_use]
pub fn plan_of(tables: &view::instance::Instance) -> PortPlan {
    let mut grants: Vec<[Grant; CLASS_COUNT]> = tables
        .grants
        .chunks(CLASSES as usize)
        .map(|of_backend| {
            let mut known = [Grant::default(); CLASS_COUNT];
            known.copy_from_slice(&of_backend[..CLASS_COUNT]);
            known
        })
        .collect();
    // A grant without ports still counts: its version has to be exceeded by the next one.
    trim(&mut grants, |of_backend| of_backend.iter().all(|grant| *grant == Grant::default()));
    let mut plan = PortPlan {
        backends: tables.backends.iter().map(BackendSlot::from_abi).collect(),
        frontends: tables.frontends.iter().map(frontend_of).collect(),
        rules: tables.rules.iter().map(RuleSlot::from_abi).collect(),
        grants,
    };
    trim(&mut plan.backends, Option::is_none);
    trim(&mut plan.frontends, Option::is_none);
    trim(&mut plan.rules, Option::is_none);
    plan
}

fn frontend_of(value: &Frontend) -> Option<FrontendSlot> {
    let address = Ipv4Addr::from(value.address);
    (!address.is_unspecified()).then(|| FrontendSlot { address, name: name_of(&value.name).to_owned() })
}

fn trim<T>(slots: &mut Vec<T>, free: impl Fn(&T) -> bool) {
    let used = slots.iter().rposition(|slot| !free(slot)).map_or(0, |last| last + 1);
    slots.truncate(used);
}

/// Which slots flows refer to, as the tables say. The walk through all flows that rules need happens only when a
/// rule is asked for, which is when one has left the configuration.
pub struct LiveFlows<'a> {
    tables: &'a Tables,
    backends: HashSet<u32>,
    rules: OnceCell<HashSet<u32>>,
}

impl<'a> LiveFlows<'a> {
    /// From a reading of the tables of `tables`.
    #[must_use]
    pub fn new(tables: &'a Tables, reading: &view::instance::Instance) -> Self {
        let alive = (0..).zip(&reading.grant_states).filter(|(_, state)| state.flows > 0);
        let backends = alive.map(|(grant, _): (u32, _)| grant / CLASSES).collect();
        Self { tables, backends, rules: OnceCell::new() }
    }
}

impl LiveSlots for LiveFlows<'_> {
    fn backend_slot_has_flows(&self, slot: u32) -> bool {
        self.backends.contains(&slot)
    }

    fn rule_slot_has_flows(&self, slot: u32) -> bool {
        let rules = self.rules.get_or_init(|| {
            let mut rules = HashSet::new();
            let walked = self.tables.for_each_half(&mut |_, entry| {
                rules.insert(u32::from(entry.rule));
            });
            // A slot given away too early would change the timeouts of flows; one kept too long costs nothing.
            if walked.is_ok() { rules } else { (0..MAX_RULES).collect() }
        });
        rules.contains(&slot)
    }
}

/// The bank that is not in force.
#[must_use]
pub const fn other(bank: u32) -> u32 {
    (bank + 1) % BANKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_never_zero() {
        assert_eq!(epoch_after(0), 1);
        assert_eq!(epoch_after(u32::MAX), 1);
    }

    #[test]
    fn shares_add_up_to_the_table() {
        for (flows, backends) in [(1 << 20, 3), (1024, 1000), (65_536, 0), (100, 4096)] {
            let (guaranteed, burst) = shares(flows, backends);
            assert!(guaranteed >= 1);
            if backends > 0 && flows >= 2 * backends {
                assert_eq!(guaranteed * backends + burst, flows);
                assert!(burst >= flows / 2);
            }
        }
    }

    #[test]
    fn free_slots_at_the_end_are_forgotten() {
        let mut slots = vec![None, Some(1), None, None];
        trim(&mut slots, Option::is_none);
        assert_eq!(slots, [None, Some(1)]);
    }
}
