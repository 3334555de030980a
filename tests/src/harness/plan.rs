// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fills the configuration maps from a [`World`]. Written apart from the control plane on purpose: what tests
//! expect of the data path should not depend on what the control plane happens to write.

use anyhow::Result;
use nat_common::abi::{
    ABI_VERSION,
    config::{
        BackendInfo, BackendKey, CLAIMED_BYTES, FRONTEND_LOCAL, Frontend, FrontendKey, Grant, META_MAGIC,
        Meta, PortConfig, PortTag, Rule, Segment, VlanTag, backend_index, frontend_index, grant_index,
        grant_slot, padded, rule_index,
    },
};

use super::{maps::Maps, world::World};
use crate::ns::Namespace;

/// Writes everything but `CONTROL`, into bank 0.
pub(super) fn fill(world: &World, namespace: &Namespace, maps: &mut Maps, now: u32) -> Result<()> {
    let meta = Meta { magic: META_MAGIC, abi_version: ABI_VERSION, max_flows: world.max_flows, created: now };
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
    let rule = Rule { timeouts: world.timeouts, status: 1, reserved: 0, name: padded("out") };
    maps.rules.set(rule_index(0, 0), rule, 0)?;
    backends(world, maps)?;
    frontends(world, maps)
}

/// Writes backends and grants of bank 0. Grants that are not described are cleared.
pub(super) fn backends(world: &World, maps: &mut Maps) -> Result<()> {
    for (slot, backend) in (0u32..).zip(&world.backends) {
        maps.backends.insert(BackendKey { address: backend.address, bank: 0 }, slot, 0)?;
        let info = BackendInfo { address: backend.address, status: 1, name: [0; 32], pool: padded("pool") };
        maps.backend_info.set(backend_index(0, slot), info, 0)?;
        for (class, runs) in (0u32..).zip(&backend.ports) {
            let mut grant =
                Grant { segment_count: u32::try_from(runs.len())?, version: 1, ..Grant::default() };
            for (segment, (address, first, count)) in grant.segments.iter_mut().zip(runs) {
                *segment = Segment { address: *address, first: *first, count: *count };
                grant.ports += u32::from(*count);
            }
            maps.grants.set(grant_index(0, grant_slot(slot, class)), grant, 0)?;
        }
    }
    Ok(())
}

fn frontends(world: &World, maps: &mut Maps) -> Result<()> {
    for (slot, (address, local)) in (0u32..).zip(&world.frontends) {
        let mut claimed = [[0; CLAIMED_BYTES]; 3];
        for backend in &world.backends {
            for (class, runs) in backend.ports.iter().enumerate() {
                for (_, first, count) in runs.iter().filter(|(on, _, _)| on == address) {
                    for block in first / 8..(first + (count - 1)) / 8 + 1 {
                        claimed[class][usize::from(block / 8)] |= 1 << (block % 8);
                    }
                }
            }
        }
        let flags = if *local { FRONTEND_LOCAL } else { 0 };
        let frontend = Frontend { address: *address, flags, name: padded("fe"), claimed };
        maps.frontends.insert(FrontendKey { address: *address, bank: 0 }, slot, 0)?;
        maps.frontend_info.set(frontend_index(0, slot), frontend, 0)?;
    }
    Ok(())
}
