// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills the configuration maps from a [`World`]. Written apart from the control plane on purpose: what tests
//! expect of the data path should not depend on what the control plane happens to write.

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use bytemuck::Zeroable as _;
use nat_common::abi::{
    ABI_VERSION,
    config::{
        CLAIMED_BYTES, CLASS_OTHER, CLASS_UDP, Control, FEATURE_INSTANCE, FEATURE_POLICY, FEATURE_RULE_FIRST,
        FRONTEND_LOCAL, Frontend, FrontendKey, META_MAGIC, MIN_BACKENDS, Meta, PortConfig, PortTag, VlanTag,
        banked, padded,
    },
    flow::FLOW_CLAMP,
    grant::{
        BackendInfo, BackendKey, BackendRef, Grant, PortSet, RULE_FLOW_SHIFT, RULE_LIMITED, Rule,
        SET_ORDERED, Segment, grant_slot,
    },
    policy::{Instance, InstanceKey, PREFIX_BANK_BITS, PolicyMasks, PolicyPrefix, policy_port_index},
};

use super::{
    maps::Maps,
    world::{Act, World},
};
use crate::ns::Namespace;

/// Writes everything but `CONTROL`, into bank 0.
pub(super) fn fill(world: &World, namespace: &Namespace, maps: &mut Maps, now: u32) -> Result<()> {
    let meta = Meta {
        magic: META_MAGIC,
        abi_version: ABI_VERSION,
        max_flows: world.max_flows,
        created: now,
        max_backends: MIN_BACKENDS,
        reserved: 0,
    };
    maps.meta.set(0, meta, 0)?;
    for (slot, port) in (0u32..).zip(&world.ports) {
        let ifindex = namespace.index(&port.name())?;
        let lower = namespace.index(port.lower)?;
        let mut tags = [VlanTag::default(); 2];
        let mut vlan = [0; 2];
        for (at, (protocol, number)) in port.tags.iter().enumerate() {
            tags[at] = VlanTag { protocol: protocol.to_be_bytes(), control: number.to_be_bytes() };
            vlan[at] = *number;
        }
        let config = PortConfig {
            ifindex,
            lower,
            tags,
            tag_count: u8::try_from(port.tags.len())?,
            role: port.role,
            mtu: port.mtu,
            mac: port.mac(),
            reserved: [0; 2],
            address: port.address.0,
            name: padded(&port.name()),
        };
        maps.ports.set(slot, config, 0)?;
        maps.port_by_tag.insert(PortTag { lower, vlan }, slot, 0)?;
        maps.port_by_ifindex.insert(ifindex, slot, 0)?;
        maps.tx_ports.set(slot, lower, None, 0)?;
    }
    let rule = Rule {
        timeouts: world.timeouts,
        status: 1,
        on_refusal: world.on_refusal,
        flags: world.rule_flags
            | if world.limits.is_some() { RULE_LIMITED } else { 0 }
            | if world.segment_size.is_some() { u32::from(FLOW_CLAMP) << RULE_FLOW_SHIFT } else { 0 },
        rests: world.rests,
        udp_ports: world.udp_ports,
        segment_size: world.segment_size.unwrap_or_default(),
        protocols: world.protocols,
        limits: world.limits.unwrap_or_default(),
        name: padded("out"),
        ..Rule::zeroed()
    };
    maps.rules.set(banked(0, 0), rule, 0)?;
    backends(world, maps)?;
    policies(world, maps)?;
    frontends(world, maps)
}

/// What `CONTROL` has to say about the world.
pub(super) fn control(world: &World, control: &mut Control) {
    control.features = if world.policies.is_empty() { 0 } else { FEATURE_POLICY }
        | if world.instances.is_empty() { 0 } else { FEATURE_INSTANCE }
        | if world.rule_first { FEATURE_RULE_FIRST } else { 0 };
    let by_port = world.udp_ports.iter().map(|timer| timer.timeout);
    let timers = world.timeouts.iter().copied().chain(by_port);
    control.shortest = timers.filter(|ticks| *ticks != 0).min().unwrap_or(1);
    control.on_refusal = world.on_refusal;
    control.backend_slots = world.backends.len() as u32;
}

/// A set of these runs. The same runs have the same number, others another.
pub(super) fn set_of(runs: &[([u8; 4], u16, u16)], ordered: bool) -> Result<PortSet> {
    let mut set = PortSet { segment_count: u32::try_from(runs.len())?, ..PortSet::default() };
    let mut id = 0x811c_9dc5u32 ^ u32::from(ordered);
    for (segment, (address, first, count)) in set.segments.iter_mut().zip(runs) {
        *segment = Segment { address: *address, first: *first, count: *count };
        set.ports += u32::from(*count);
        for byte in bytemuck::bytes_of(segment) {
            id = (id ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
    set.id = id | 1;
    set.flags = if ordered { SET_ORDERED } else { 0 };
    Ok(set)
}

/// Writes backends, grants and sets of bank 0. Grants that are not described are cleared.
pub(super) fn backends(world: &World, maps: &mut Maps) -> Result<()> {
    let mut next = 0;
    let mut add = |maps: &mut Maps, set: PortSet| -> Result<u32> {
        maps.sets.set(banked(0, next), set, 0)?;
        next += 1;
        Ok(next)
    };
    let mut shared = Vec::new();
    for pool in &world.pools {
        shared.push(add(maps, set_of(&pool.runs, pool.ordered)?)?);
    }
    for (slot, backend) in (0u32..).zip(&world.backends) {
        let instance = world.instances.iter().find(|(of, _)| *of == backend.address);
        let reference = BackendRef {
            slot,
            instance: instance.map_or([0; 4], |(_, public)| *public),
            policies: policies_of(world, backend.address),
        };
        maps.backends.insert(BackendKey { address: backend.address, bank: 0 }, reference, 0)?;
        let info = BackendInfo { address: backend.address, status: 1, name: [0; 32], pool: padded("pool") };
        maps.backend_info.set(banked(0, slot), info, 0)?;
        let pool = world.pools.iter().position(|pool| pool.backends.contains(&backend.address));
        for (class, runs) in (0u32..).zip(&backend.ports) {
            let own = if runs.is_empty() { 0 } else { add(maps, set_of(runs, false)?)? };
            let reserved = world.limits.map_or(0, |limits| limits.reserved);
            let shared = pool.map_or(0, |pool| shared[pool]);
            let grant = Grant { own, shared, reserved, ..Grant::default() };
            maps.grants.set(banked(0, grant_slot(slot, class)), grant, 0)?;
            if class == CLASS_UDP {
                let other = if world.protocols == 0 { Grant::default() } else { grant };
                maps.grants.set(banked(0, grant_slot(slot, CLASS_OTHER)), other, 0)?;
            }
        }
    }
    for (backend, address) in &world.instances {
        let slot = world.backends.iter().position(|known| known.address == *backend);
        let instance = Instance {
            backend: *backend,
            slot: u32::try_from(slot.unwrap_or_default())?,
            policies: policies_of(world, *backend),
        };
        maps.instances.insert(InstanceKey { address: *address, bank: 0 }, instance, 0)?;
    }
    Ok(())
}

fn policies_of(world: &World, backend: [u8; 4]) -> u64 {
    bits(world, |policy| policy.backends.is_empty() || policy.backends.contains(&backend))
}

fn bits(world: &World, holds: impl Fn(&super::world::Policy) -> bool) -> u64 {
    let of_policy = |(slot, policy)| if holds(policy) { 1u64 << slot } else { 0 };
    world.policies.iter().enumerate().map(of_policy).fold(0, |all, one| all | one)
}

/// The classifier's tables, by asking every policy about everything.
pub(super) fn policies(world: &World, maps: &mut Maps) -> Result<()> {
    let act = |act: Act| bits(world, |policy| policy.act == act);
    let masks = PolicyMasks {
        classes: std::array::from_fn(|class| bits(world, |policy| policy.classes >> class & 1 == 1)),
        portless: bits(world, |policy| policy.ports.is_empty()),
        deny_outbound: act(Act::DenyOutbound),
        deny_inbound: act(Act::DenyInbound),
        bypass: act(Act::Bypass),
        any_backend: bits(world, |policy| policy.backends.is_empty()),
    };
    maps.policy_masks.set(0, masks, 0)?;
    for port in 0..=u16::MAX {
        let mask = bits(world, |policy| policy.ports.is_empty() || policy.ports.contains(&port));
        for class in 0..2 {
            if mask != 0 {
                maps.policy_ports.set(policy_port_index(0, class, port), mask, 0)?;
            }
        }
    }
    let covers = |(outer, long): ([u8; 4], u8), (inner, length): ([u8; 4], u8)| {
        let shift = |address| u64::from(u32::from_be_bytes(address)) >> (32 - long);
        long <= length && shift(outer) == shift(inner)
    };
    for prefix in world.policies.iter().flat_map(|policy| policy.remotes.clone()) {
        let mask = bits(world, |policy| policy.remotes.iter().any(|remote| covers(*remote, prefix)));
        let data = PolicyPrefix { bank: [0; 4], address: prefix.0 };
        let key = Key::new(PREFIX_BANK_BITS + u32::from(prefix.1), data);
        maps.policy_prefixes.insert(&key, mask, 0)?;
    }
    Ok(())
}

fn frontends(world: &World, maps: &mut Maps) -> Result<()> {
    for (slot, (address, local)) in (0u32..).zip(&world.frontends) {
        let mut claimed = [[0; CLAIMED_BYTES]; 3];
        let own = world.backends.iter().flat_map(|backend| backend.ports.iter().enumerate());
        let shared = world.pools.iter().flat_map(|pool| (0..3).map(|class| (class, &pool.runs)));
        for (class, runs) in own.chain(shared) {
            for (_, first, count) in runs.iter().filter(|(on, _, _)| on == address) {
                for block in first / 8..(first + (count - 1)) / 8 + 1 {
                    claimed[class][usize::from(block / 8)] |= 1 << (block % 8);
                }
            }
        }
        let flags = if *local { FRONTEND_LOCAL } else { 0 };
        let frontend = Frontend { address: *address, flags, name: padded("fe"), claimed };
        maps.frontends.insert(FrontendKey { address: *address, bank: 0 }, slot, 0)?;
        maps.frontend_info.set(banked(0, slot), frontend, 0)?;
    }
    Ok(())
}
