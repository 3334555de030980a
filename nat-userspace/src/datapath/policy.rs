// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies and instance IPs in the bank that is not in force.

use anyhow::{Context as _, Result};
use bytemuck::{Pod, Zeroable};
use ipnet::Ipv4Net;
use nat_common::abi::{
    grant::{BackendKey, BackendRef},
    names,
    policy::{
        Instance as InstanceIp, InstanceKey, MAX_POLICIES, POLICY_PORTS, PREFIX_BANK_BITS, PolicyInfo,
        PolicyMasks, PolicyPrefix, PolicyState, policy_port_index,
    },
};

use super::{
    bank::{fill_array, fill_hash},
    pin::Instance,
};
use crate::plan::{PolicySlot, PortPlan};

/// A key of `POLICY_PREFIXES` as the kernel has it (`struct bpf_lpm_trie_key`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
struct PrefixKey {
    /// Bits that count, those of the bank included.
    length: u32,
    data: PolicyPrefix,
}

/// Writes what `plan` has of policies and instance IPs into `bank`.
pub(super) fn fill(instance: &Instance, bank: u32, plan: &PortPlan) -> Result<()> {
    let policy = &plan.policy;
    let instances: Vec<(InstanceKey, InstanceIp)> = policy
        .instances
        .iter()
        .filter_map(|(address, slot)| {
            let backend = plan.backends.get(*slot as usize)?.as_ref()?.address.octets();
            let value = InstanceIp { backend, slot: *slot, policies: policy.of_backend(*slot) };
            Some((InstanceKey { address: address.octets(), bank }, value))
        })
        .collect();
    fill_hash(instance, names::INSTANCES, |key: &InstanceKey| key.bank == bank, &instances)?;
    let prefixes: Vec<(PrefixKey, u64)> = policy
        .prefixes
        .iter()
        .map(|(net, mask)| {
            let data = PolicyPrefix { bank: bank.to_be_bytes(), address: net.network().octets() };
            (PrefixKey { length: PREFIX_BANK_BITS + u32::from(net.prefix_len()), data }, *mask)
        })
        .collect();
    let ours = |key: &PrefixKey| key.data.bank == bank.to_be_bytes();
    fill_hash(instance, names::POLICY_PREFIXES, ours, &prefixes)?;
    fill_ports(instance, bank, plan)?;
    let masks = instance.typed(names::POLICY_MASKS)?;
    masks.write(&[(bank, policy.masks)]).context("writing map `POLICY_MASKS`")?;
    let info = |slot: u32| {
        let slot = policy.slots.get(slot as usize).and_then(Option::as_ref);
        slot.map_or_else(PolicyInfo::zeroed, PolicySlot::to_abi)
    };
    fill_array::<PolicyInfo>(instance, names::POLICY_INFO, bank, MAX_POLICIES, info)
}

/// Writes the ports whose policies differ: nearly all of the table stays as it is.
fn fill_ports(instance: &Instance, bank: u32, plan: &PortPlan) -> Result<()> {
    let map = instance.typed::<u32, u64>(names::POLICY_PORTS)?;
    let mut known = vec![0u64; POLICY_PORTS as usize];
    let mut visit = |index: &u32, mask: &u64| {
        if let Some(place) = known.get_mut(*index as usize) {
            *place = *mask;
        }
    };
    map.for_each(&mut visit).context("reading map `POLICY_PORTS`")?;
    let mut changed = Vec::new();
    for (class, changes) in (0..).zip(&plan.policy.ports) {
        let mut mask = 0;
        for port in 0..=u16::MAX {
            mask = changes.get(&port).copied().unwrap_or(mask);
            let index = policy_port_index(bank, class, port);
            if known.get(index as usize) != Some(&mask) {
                changed.push((index, mask));
            }
        }
    }
    map.write(&changed).context("writing map `POLICY_PORTS`")
}

/// Reads what [`fill`] has written into `bank`, as far as policies go, into `plan`, which has its slots.
///
/// # Errors
///
/// When the kernel refuses a read.
pub fn read(instance: &Instance, bank: u32, plan: &mut PortPlan) -> Result<()> {
    if plan.policy.slots.iter().all(Option::is_none) {
        return Ok(());
    }
    let policy = &mut plan.policy;
    policy.prefixes.clear();
    let mut visit = |key: &PrefixKey, mask: &u64| {
        let length = key.length.checked_sub(PREFIX_BANK_BITS).and_then(|bits| u8::try_from(bits).ok());
        let net = length.and_then(|length| Ipv4Net::new(key.data.address.into(), length).ok());
        if let Some(net) = net.filter(|_| key.data.bank == bank.to_be_bytes()) {
            policy.prefixes.insert(net, *mask);
        }
    };
    let prefixes = instance.typed(names::POLICY_PREFIXES)?;
    prefixes.for_each(&mut visit).context("reading map `POLICY_PREFIXES`")?;
    let mut known = vec![0u64; POLICY_PORTS as usize];
    let mut visit = |index: &u32, mask: &u64| {
        if let Some(place) = known.get_mut(*index as usize) {
            *place = *mask;
        }
    };
    instance.typed(names::POLICY_PORTS)?.for_each(&mut visit).context("reading map `POLICY_PORTS`")?;
    for (class, changes) in (0..).zip(&mut policy.ports) {
        let at = |port: u16| known[policy_port_index(bank, class, port) as usize];
        let changed = |port: &u16| *port == 0 || at(*port) != at(*port - 1);
        *changes = (0..=u16::MAX).filter(changed).map(|port| (port, at(port))).collect();
    }
    let masks = instance.typed::<u32, PolicyMasks>(names::POLICY_MASKS)?;
    policy.masks = masks.get(&bank).context("reading map `POLICY_MASKS`")?.unwrap_or_default();
    policy.backends = vec![policy.masks.any_backend; plan.backends.len()];
    let mut visit = |key: &BackendKey, backend: &BackendRef| {
        if key.bank == bank
            && let Some(mask) = policy.backends.get_mut(backend.slot as usize)
        {
            *mask = backend.policies;
        }
    };
    instance.typed(names::BACKENDS)?.for_each(&mut visit).context("reading map `BACKENDS`")
}

/// Has the counts of policies that `plan` has and `before` had not begin at 0.
///
/// # Errors
///
/// When the kernel refuses a write.
pub fn reset_counts(instance: &Instance, before: &PortPlan, plan: &PortPlan) -> Result<()> {
    let name = |plan: &PortPlan, slot: usize| {
        plan.policy.slots.get(slot).and_then(Option::as_ref).map(|policy| policy.name.clone())
    };
    let new = (0..plan.policy.slots.len()).filter(|slot| name(plan, *slot) != name(before, *slot));
    let zeros: Vec<(u32, PolicyState)> = new.map(|slot| (slot as u32, PolicyState::zeroed())).collect();
    instance.typed(names::POLICY_STATE)?.write(&zeros).context("writing map `POLICY_STATE`")
}
