// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shapes of the pinned maps: those that the object defines, with the sizes that are chosen when they are made.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapInfo, MapType};
use aya_obj::generated::bpf_map_type;
use nat_common::abi::{
    config::{BANKS, CLASSES, Meta},
    flow::table_entries,
    names,
};

/// Kernels that let devmap values name a program make them this many bytes; older ones four.
const DEVMAP_VALUE_SIZES: [u32; 2] = [4, 8];
/// `BPF_F_RDONLY_PROG`: the kernel adds it to every devmap (`dev_map_init_map`, kernel/bpf/devmap.c, Linux 6.18).
const RDONLY_PROG: u32 = 1 << 7;
/// Flags that say how memory is placed, not what the map means.
const PLACEMENT_FLAGS: u32 = (1 << 2) | RDONLY_PROG;

/// The shape of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of the map type (`enum bpf_map_type`).
    pub kind: u32,
    /// Key in bytes.
    pub key: u32,
    /// Value in bytes.
    pub value: u32,
    /// Most entries.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// What the maps whose size is chosen are, or are to be, made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Flows.
    pub flows: u32,
    /// Backends.
    pub backends: u32,
}

impl From<Meta> for Room {
    fn from(meta: Meta) -> Self {
        Self { flows: meta.max_flows, backends: meta.max_backends }
    }
}

/// Shapes of the pinned maps as the object defines them, with room for `room`.
///
/// # Errors
///
/// When the object cannot be parsed or a map is missing in it.
pub fn shapes(object: &[u8], room: Room) -> Result<BTreeMap<&'static str, Shape>> {
    let object = aya_obj::Object::parse(object).context("parsing the embedded BPF object")?;
    names::PINNED_MAPS
        .iter()
        .map(|name| {
            let map =
                object.maps.get(*name).with_context(|| format!("the BPF object has no map `{name}`"))?;
            let entries = sized(name, room).unwrap_or(map.max_entries());
            let shape = Shape {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries,
                flags: map.map_flags(),
            };
            Ok((*name, shape))
        })
        .collect()
}

/// Entries of a map whose size is chosen when it is made.
#[must_use]
pub fn sized(map: &str, room: Room) -> Option<u32> {
    let Room { flows, backends } = room;
    match map {
        names::FLOWS => Some(table_entries(flows)),
        names::RECORDS => Some((flows / 64).max(4096)),
        names::ROOTS => Some((flows / 256).max(1024)),
        names::TOWARDS | names::PEERS => Some(flows),
        names::BACKENDS | names::BACKEND_INFO => Some(backends.saturating_mul(BANKS)),
        names::GRANTS => Some(backends.saturating_mul(BANKS * CLASSES)),
        names::GRANT_STATE => Some(backends.saturating_mul(CLASSES)),
        names::BACKEND_STATE => Some(backends),
        // With TCP, and without.
        names::QUOTA => Some(backends.saturating_mul(2)),
        _ => None,
    }
}

/// Whether a pinned map has the wanted shape.
pub(super) fn compare(name: &str, wanted: &Shape, info: &MapInfo) -> Result<()> {
    let kind = bpf_map_type::try_from(wanted.kind)
        .ok()
        .and_then(|kind| MapType::try_from(kind).ok())
        .with_context(|| format!("map `{name}` has unknown type {} in the BPF object", wanted.kind))?;
    let found = info.map_type()?;
    let devmap = kind == MapType::DevMap;
    if found != kind {
        bail!("map `{name}` is pinned as {found:?}, expected {kind:?}");
    }
    let value_fits = info.value_size() == wanted.value
        || kind == MapType::RingBuf
        || devmap && DEVMAP_VALUE_SIZES.contains(&info.value_size());
    // The loader rounds a ring buffer up to a power-of-two number of pages.
    let entries_fit = info.max_entries() == wanted.entries
        || kind == MapType::RingBuf && info.max_entries() >= wanted.entries;
    let checks = [
        ("key size in bytes", info.key_size(), wanted.key, info.key_size() == wanted.key),
        ("value size in bytes", info.value_size(), wanted.value, value_fits),
        ("number of entries", info.max_entries(), wanted.entries, entries_fit),
        ("flags", info.map_flags(), wanted.flags, (info.map_flags() ^ wanted.flags) & !PLACEMENT_FLAGS == 0),
    ];
    for (what, found, expected, fits) in checks {
        ensure!(fits, "map `{name}` is pinned with another {what}: found {found}, expected {expected}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_maps_follow_the_number_of_flows_or_backends() {
        let entries = |map, flows, backends| sized(map, Room { flows, backends });
        assert_eq!(entries(names::FLOWS, 1 << 20, 4096), Some((1 << 21) + 2));
        assert_eq!(entries(names::RECORDS, 1 << 20, 4096), Some(1 << 14));
        assert_eq!(entries(names::RECORDS, 1024, 4096), Some(4096));
        assert_eq!(entries(names::ROOTS, 1024, 4096), Some(1024));
        assert_eq!(entries(names::GRANTS, 1 << 20, 65_536), Some(1 << 19));
        assert_eq!(entries(names::RULES, 1 << 20, 65_536), None);
    }
}
