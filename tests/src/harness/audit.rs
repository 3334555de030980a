// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does the flow table agree with itself and with what is counted about it?

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use nat_common::{
    abi::{
        config::CLASSES,
        flow::{
            DESTINATION_ASIDE, FLOW_MAPPED, FLOW_MAPPING, FLOW_PEER, FlowEntry, FlowKey, HALF_BURST,
            HALF_CAPPED, HALF_INBOUND, HALF_INSTANCE, HALF_LIMITED, HALF_OUTBOUND, HALF_RESERVED,
            ZONE_MAPPING,
        },
        grant::{PeerKey, grant_slot, quota_index},
    },
    net::state,
};

use super::Lab;

impl Lab {
    /// Checks the whole table; returns the number of flows.
    ///
    /// * Every half has its other half, which points back, with the same nonce, grant and rule.
    /// * Every entry carries the identity of its key.
    /// * Every port is one that the backend was granted.
    /// * The counts of flows by grant, backend and table are right, and so is the common budget.
    ///
    /// Nothing may be running.
    ///
    /// # Errors
    ///
    /// With the first thing that is wrong.
    pub fn audit(&self) -> Result<usize> {
        let flows: HashMap<FlowKey, FlowEntry> = self.maps.all_flows()?.into_iter().collect();
        let mut by_grant: HashMap<u32, u64> = HashMap::new();
        let mut guaranteed: HashMap<u32, u64> = HashMap::new();
        let mut burst = 0;
        let mut limited: HashMap<u32, (u64, u64)> = HashMap::new();
        let mut capped = 0;
        let mut mappings = 0;
        for (key, entry) in &flows {
            self.half(&flows, key, entry).with_context(|| format!("{key:?}\n  {entry:?}"))?;
            if entry.half & HALF_OUTBOUND != 0 {
                if key.zone[0] == ZONE_MAPPING {
                    mappings += 1;
                } else {
                    *by_grant.entry(entry.grant).or_default() += 1;
                }
                let quota = limited.entry(entry.grant / CLASSES).or_default();
                let handshake = entry.grant % CLASSES == 0
                    && entry.state & (state::ESTABLISHED | state::FIN_OUT | state::FIN_IN | state::RST) == 0;
                if entry.half & HALF_LIMITED != 0 {
                    quota.0 += u64::from(entry.half & HALF_RESERVED == 0);
                    quota.1 += u64::from(handshake);
                }
                capped += u64::from(entry.half & HALF_CAPPED != 0);
                if entry.half & HALF_BURST != 0 {
                    burst += 1;
                } else if entry.destination & DESTINATION_ASIDE == 0 {
                    *guaranteed.entry(entry.grant / CLASSES).or_default() += 1;
                }
            }
        }
        for slot in 0..u32::try_from(self.world.backends.len())? {
            for class in 0..CLASSES {
                let grant = grant_slot(slot, class);
                let counted = self.maps.grant_state.get(&grant, 0)?.flows;
                let there = by_grant.get(&grant).copied().unwrap_or(0);
                ensure!(counted == there, "grant {grant}: {counted} flows counted, {there} in the table");
            }
            let counted = self.maps.backend_state.get(&slot, 0)?.flows;
            let there = guaranteed.get(&slot).copied().unwrap_or(0);
            ensure!(
                counted == there,
                "backend {slot}: {counted} guaranteed flows counted, {there} in the table"
            );
        }
        for slot in 0..u32::try_from(self.world.backends.len())? {
            let quota = self.maps.quota.get(&quota_index(slot, false), 0)?;
            let there = limited.get(&slot).copied().unwrap_or_default();
            ensure!(
                (quota.flows, quota.half_open) == there,
                "backend {slot}: {} flows and {} handshakes counted against its limits, {there:?} in the table",
                quota.flows,
                quota.half_open
            );
        }
        let towards = self.maps.towards.iter().map(|item| Ok(item?.1.flows)).sum::<Result<u64>>()?;
        ensure!(towards == capped, "{towards} flows counted towards destinations, {capped} in the table");
        let table = self.maps.table.get(&0, 0)?;
        self.sessions(&flows)?;
        let there = by_grant.values().sum::<u64>() + mappings;
        ensure!(table.flows == there, "{} flows counted, {there} in the table", table.flows);
        ensure!(table.burst == burst, "{} of the common budget counted, {burst} in the table", table.burst);
        ensure!(flows.len() as u64 == 2 * there, "{} entries for {there} flows", flows.len());
        Ok(flows.len() / 2)
    }

    /// Every mapping's sessions are counted, and so is whom they are with; a session is on its mapping's port.
    fn sessions(&self, flows: &HashMap<FlowKey, FlowEntry>) -> Result<()> {
        let mut peers: HashMap<PeerKey, u64> = HashMap::new();
        let mut sessions: HashMap<FlowKey, u64> = HashMap::new();
        let outbound = || flows.iter().filter(|(_, entry)| entry.half & HALF_OUTBOUND != 0);
        for (key, entry) in outbound().filter(|(_, entry)| entry.flags & FLOW_MAPPED != 0) {
            if entry.flags & FLOW_PEER != 0 {
                let (grant, remote, port) = (entry.grant, key.destination, key.source_port);
                *peers.entry(PeerKey { grant, remote, port, reserved: [0; 2] }).or_default() += 1;
            }
            let mapping =
                FlowKey { destination: [0; 4], destination_port: [0; 2], zone: [ZONE_MAPPING, 0, 0], ..*key };
            // One that has outlived its mapping is over, and no session of the next.
            let Some(owner) = flows.get(&mapping).filter(|owner| owner.created <= entry.created) else {
                ensure!(
                    self.now.wrapping_sub(entry.touched) > self.world.timeouts[5].min(self.world.timeouts[0]),
                    "{key:?} is alive, but has no mapping"
                );
                continue;
            };
            ensure!(
                (owner.address, owner.port) == (entry.address, entry.port),
                "{key:?} is on {:?}, its mapping on {:?}",
                (entry.address, entry.port),
                (owner.address, owner.port)
            );
            *sessions.entry(mapping).or_default() += 1;
        }
        for (key, entry) in outbound().filter(|(key, _)| key.zone[0] == ZONE_MAPPING) {
            let there = sessions.get(key).copied().unwrap_or(0);
            ensure!(
                (entry.flags, u64::from(entry.sequence)) == (FLOW_MAPPING, there),
                "{key:?} counts {:#x} sessions, {there} are in the table",
                entry.sequence
            );
        }
        let counted: HashMap<PeerKey, u64> = self
            .maps
            .peers
            .iter()
            .map(|item| item.map(|(key, peer)| (key, peer.sessions)))
            .collect::<Result<_, _>>()?;
        ensure!(counted == peers, "whom sessions are with: counted {counted:?}, in the table {peers:?}");
        Ok(())
    }

    fn half(&self, flows: &HashMap<FlowKey, FlowEntry>, key: &FlowKey, entry: &FlowEntry) -> Result<()> {
        let outbound = match entry.half & 3 {
            HALF_OUTBOUND => true,
            HALF_INBOUND => false,
            other => anyhow::bail!("half {other:#x}"),
        };
        ensure!(
            entry.identity == key.fold(),
            "identity {:#x}, its key's is {:#x}",
            entry.identity,
            key.fold()
        );
        ensure!(entry.state & state::DEAD == 0, "dead, but in the table");
        // The other half's key, spelled out here and not taken from the code under test.
        let peer = if outbound {
            FlowKey {
                source: key.destination,
                source_port: key.destination_port,
                destination: entry.address,
                destination_port: entry.port,
                ..*key
            }
        } else {
            FlowKey {
                source: entry.address,
                source_port: entry.port,
                destination: key.source,
                destination_port: key.source_port,
                ..*key
            }
        };
        let other = flows.get(&peer).context("has no other half")?;
        let back =
            if outbound { (key.source, key.source_port) } else { (key.destination, key.destination_port) };
        ensure!(
            (other.address, other.port) == back,
            "the other half points to {:?}",
            (other.address, other.port)
        );
        ensure!(
            (other.state >> 16, other.grant, other.rule) == (entry.state >> 16, entry.grant, entry.rule),
            "the other half is of another flow: {other:?}"
        );
        ensure!(other.half & !3 == entry.half & !3, "the halves disagree about what the flow was counted in");
        let (inner, outer) = if outbound {
            (key.source, (entry.address, entry.port))
        } else {
            (entry.address, (key.destination, key.destination_port))
        };
        let class = match key.protocol {
            6 => 0,
            17 => 1,
            1 => 2,
            _ => 3,
        };
        let slot = self.world.backends.iter().position(|backend| backend.address == inner);
        let slot = slot.with_context(|| format!("no backend {inner:?}"))?;
        ensure!(entry.grant == grant_slot(u32::try_from(slot)?, class), "grant {} of another", entry.grant);
        if entry.half & HALF_INSTANCE != 0 {
            let own = self.world.instances.contains(&(inner, outer.0));
            ensure!(own, "{:?} is no instance IP of {inner:?}", outer.0);
            return Ok(());
        }
        let port = u16::from_be_bytes(outer.1);
        let pools = self.world.pools.iter().filter(|pool| pool.backends.contains(&inner));
        // Others use UDP's ports; SCTP keeps its own, GRE and ESP have none.
        let runs = if class == 3 { 1 } else { class as usize };
        let kept = matches!(key.protocol, 47 | 50 | 132);
        ensure!(!kept || port == u16::from_be_bytes(if outbound { key.source_port } else { entry.port }));
        let granted = self.world.backends[slot].ports[runs]
            .iter()
            .chain(pools.flat_map(|pool| &pool.runs))
            .any(|(address, first, count)| {
                *address == outer.0 && (kept || port >= *first && port - first < *count)
            });
        ensure!(granted, "port {port} was not granted to {inner:?}");
        Ok(())
    }
}
