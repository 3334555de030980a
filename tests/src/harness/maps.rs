// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data path's maps, open and typed.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, DevMap, HashMap, Map, MapData, PerCpuArray, lpm_trie::LpmTrie},
};
use nat_common::abi::{
    config::{Control, Frontend, FrontendKey, Meta, PortConfig, PortTag, SweepPass, Table},
    counters::Counters,
    flow::{FlowEntry, FlowKey},
    fragment::{FragmentEntry, FragmentKey, FragmentShare, HELD_SLOTS, HeldFragment},
    grant::{
        BackendInfo, BackendKey, BackendRef, BackendState, Grant, GrantState, Peer, PeerKey, PortSet, Quota,
        Rule, Towards, TowardsKey,
    },
    names,
    policy::{Instance, InstanceKey, PolicyMasks, PolicyPrefix, PolicyState},
    record::{PortRecord, RecordKey, RootKey, RootRecord},
};

/// Every map that a test reads or writes.
#[expect(missing_docs, reason = "each field is the map of that name in `nat_common::abi::names`")]
pub struct Maps {
    pub flows: HashMap<MapData, FlowKey, FlowEntry>,
    pub records: HashMap<MapData, RecordKey, PortRecord>,
    pub roots: HashMap<MapData, RootKey, RootRecord>,
    pub pressed: Array<MapData, u64>,
    pub meta: Array<MapData, Meta>,
    pub control: Array<MapData, Control>,
    pub ports: Array<MapData, PortConfig>,
    pub port_by_tag: HashMap<MapData, PortTag, u32>,
    pub port_by_ifindex: HashMap<MapData, u32, u32>,
    pub tx_ports: DevMap<MapData>,
    pub backends: HashMap<MapData, BackendKey, BackendRef>,
    pub backend_info: Array<MapData, BackendInfo>,
    pub grants: Array<MapData, Grant>,
    pub sets: Array<MapData, PortSet>,
    pub quota: Array<MapData, Quota>,
    pub towards: HashMap<MapData, TowardsKey, Towards>,
    pub peers: HashMap<MapData, PeerKey, Peer>,
    pub policy_prefixes: LpmTrie<MapData, PolicyPrefix, u64>,
    pub policy_ports: Array<MapData, u64>,
    pub policy_masks: Array<MapData, PolicyMasks>,
    pub policy_state: Array<MapData, PolicyState>,
    pub instances: HashMap<MapData, InstanceKey, Instance>,
    pub grant_state: Array<MapData, GrantState>,
    pub backend_state: Array<MapData, BackendState>,
    pub rules: Array<MapData, Rule>,
    pub frontends: HashMap<MapData, FrontendKey, u32>,
    pub frontend_info: Array<MapData, Frontend>,
    pub counters: PerCpuArray<MapData, Counters>,
    pub table: Array<MapData, Table>,
    pub sweep: Array<MapData, SweepPass>,
    pub fragments: HashMap<MapData, FragmentKey, FragmentEntry>,
    pub fragment_shares: Array<MapData, FragmentShare>,
    pub held: Array<MapData, HeldFragment>,
    pub idents: Array<MapData, u64>,
}

impl Maps {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    ///
    /// Names the map that is not there or of another type.
    pub fn open(directory: &Path) -> Result<Self> {
        let map = |name: &str| -> Result<Map> {
            let data = MapData::from_pin(directory.join(name)).with_context(|| format!("map {name}"))?;
            Map::from_map_data(data).with_context(|| format!("map {name}"))
        };
        Ok(Self {
            flows: hash(map(names::FLOWS)?, names::FLOWS)?,
            records: hash(map(names::RECORDS)?, names::RECORDS)?,
            roots: hash(map(names::ROOTS)?, names::ROOTS)?,
            pressed: array(map(names::PRESSED)?, names::PRESSED)?,
            meta: array(map(names::META)?, names::META)?,
            control: array(map(names::CONTROL)?, names::CONTROL)?,
            ports: array(map(names::PORTS)?, names::PORTS)?,
            port_by_tag: hash(map(names::PORT_BY_TAG)?, names::PORT_BY_TAG)?,
            port_by_ifindex: hash(map(names::PORT_BY_IFINDEX)?, names::PORT_BY_IFINDEX)?,
            tx_ports: map(names::TX_PORTS)?.try_into().context(names::TX_PORTS)?,
            backends: hash(map(names::BACKENDS)?, names::BACKENDS)?,
            backend_info: array(map(names::BACKEND_INFO)?, names::BACKEND_INFO)?,
            grants: array(map(names::GRANTS)?, names::GRANTS)?,
            sets: array(map(names::SETS)?, names::SETS)?,
            quota: array(map(names::QUOTA)?, names::QUOTA)?,
            towards: hash(map(names::TOWARDS)?, names::TOWARDS)?,
            peers: hash(map(names::PEERS)?, names::PEERS)?,
            policy_prefixes: map(names::POLICY_PREFIXES)?.try_into().context(names::POLICY_PREFIXES)?,
            policy_ports: array(map(names::POLICY_PORTS)?, names::POLICY_PORTS)?,
            policy_masks: array(map(names::POLICY_MASKS)?, names::POLICY_MASKS)?,
            policy_state: array(map(names::POLICY_STATE)?, names::POLICY_STATE)?,
            instances: hash(map(names::INSTANCES)?, names::INSTANCES)?,
            grant_state: array(map(names::GRANT_STATE)?, names::GRANT_STATE)?,
            backend_state: array(map(names::BACKEND_STATE)?, names::BACKEND_STATE)?,
            rules: array(map(names::RULES)?, names::RULES)?,
            frontends: hash(map(names::FRONTENDS)?, names::FRONTENDS)?,
            frontend_info: array(map(names::FRONTEND_INFO)?, names::FRONTEND_INFO)?,
            counters: map(names::COUNTERS)?.try_into().context(names::COUNTERS)?,
            table: array(map(names::TABLE)?, names::TABLE)?,
            sweep: array(map(names::SWEEP)?, names::SWEEP)?,
            fragments: hash(map(names::FRAGMENTS)?, names::FRAGMENTS)?,
            fragment_shares: array(map(names::FRAGMENT_SHARES)?, names::FRAGMENT_SHARES)?,
            held: array(map(names::HELD)?, names::HELD)?,
            idents: array(map(names::IDENTS)?, names::IDENTS)?,
        })
    }

    /// Every entry of the flow table.
    ///
    /// # Errors
    ///
    /// Those of reading the map.
    pub fn all_flows(&self) -> Result<Vec<(FlowKey, FlowEntry)>> {
        self.flows.iter().map(|item| item.context(names::FLOWS)).collect()
    }

    /// Counters of all CPUs together.
    ///
    /// # Errors
    ///
    /// Those of reading the map.
    pub fn sum_counters(&self) -> Result<Counters> {
        let mut sum: Counters = bytemuck::Zeroable::zeroed();
        for one in self.counters.get(&0, 0)?.iter() {
            let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(one));
            let total: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut sum));
            for (total, word) in total.iter_mut().zip(words) {
                *total += word;
            }
        }
        Ok(sum)
    }

    /// Forgets every flow and everything counted.
    ///
    /// # Errors
    ///
    /// Those of writing the maps.
    pub fn clear(&mut self) -> Result<()> {
        empty(&mut self.flows)?;
        empty(&mut self.records)?;
        empty(&mut self.roots)?;
        empty(&mut self.towards)?;
        empty(&mut self.peers)?;
        empty(&mut self.fragments)?;
        for slot in 0..HELD_SLOTS {
            if self.held.get(&slot, 0)?.word != 0 {
                self.held.set(slot, HeldFragment::default(), 0)?;
            }
        }
        for index in 0..self.grant_state.len().min(256) {
            self.grant_state.set(index, GrantState::default(), 0)?;
        }
        for index in 0..self.backend_state.len().min(64) {
            self.backend_state.set(index, BackendState::default(), 0)?;
        }
        for index in 0..self.quota.len().min(128) {
            self.quota.set(index, Quota::default(), 0)?;
        }
        self.table.set(0, Table::default(), 0)?;
        Ok(())
    }
}

fn empty<K: Pod + Copy, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn array<V: Pod>(map: Map, name: &str) -> Result<Array<MapData, V>> {
    map.try_into().with_context(|| format!("map {name}"))
}

fn hash<K: Pod, V: Pod>(map: Map, name: &str) -> Result<HashMap<MapData, K, V>> {
    map.try_into().with_context(|| format!("map {name}"))
}
