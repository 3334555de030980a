// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the interfaces into the tables that the data path finds them by.

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, MapData, xdp::DevMap},
};
use bytemuck::Zeroable as _;
use nat_common::abi::{
    config::{MAX_PORTS, PortConfig, PortTag, padded},
    names,
};

use super::{layout::Layout, pin::Instance};

/// Brings the tables in line with `layout`. What is right already is not written: packets read it meanwhile. A slot
/// whose interface is gone keeps its name, so that it is found again under it, and loses its role.
///
/// # Errors
///
/// When the kernel refuses a write; the tables may then be half-way between two layouts.
pub fn write(instance: &Instance, layout: &Layout) -> Result<()> {
    let mut ports: Array<MapData, PortConfig> = instance.array(names::PORTS)?;
    let mut transmit: DevMap<MapData> =
        DevMap::try_from(instance.open(names::TX_PORTS)?).context("opening map `TX_PORTS`")?;
    let mut by_slot = vec![PortConfig::zeroed(); MAX_PORTS as usize];
    for (name, slot) in &layout.slots {
        by_slot[*slot as usize].name = padded(name);
    }
    for (slot, port) in &layout.ports {
        by_slot[*slot as usize] = *port;
    }
    for (slot, port) in (0..).zip(by_slot) {
        // Index 0 takes the entry out of the devmap.
        let wired = transmit.get(slot, 0).map_or(0, |value| value.if_index);
        if wired != port.lower {
            transmit.set(slot, port.lower, None, 0).context("writing map `TX_PORTS`")?;
        }
        if ports.get(&slot, 0).context("reading map `PORTS`")? != port {
            ports.set(slot, port, 0).context("writing map `PORTS`")?;
        }
    }
    let tags: Vec<(PortTag, u32)> = layout.tags().collect();
    keep(&mut instance.hash(names::PORT_BY_TAG)?, names::PORT_BY_TAG, &tags)?;
    let indices: Vec<(u32, u32)> = layout.ports.iter().map(|(slot, port)| (port.ifindex, *slot)).collect();
    keep(&mut instance.hash(names::PORT_BY_IFINDEX)?, names::PORT_BY_IFINDEX, &indices)
}

/// Makes `map` hold exactly `wanted`, adding before removing.
fn keep<K: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u32>,
    name: &str,
    wanted: &[(K, u32)],
) -> Result<()> {
    for (key, value) in wanted {
        if map.get(key, 0).ok() != Some(*value) {
            map.insert(key, value, 0).with_context(|| format!("writing map `{name}`"))?;
        }
    }
    let known: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in known {
        if !wanted.iter().any(|(wanted, _)| *wanted == key) {
            map.remove(&key).with_context(|| format!("removing an old key of map `{name}`"))?;
        }
    }
    Ok(())
}
