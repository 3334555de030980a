// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port use by destination: the number that can run out.

use std::{cmp::Reverse, collections::HashMap, hash::Hash, net::Ipv4Addr};

use nat_common::tick;
use serde::Serialize;

use super::{
    flows::class_name,
    instance::{Endpoint, address},
    ports::{Pool, PortUse, Towards, class_order},
};

/// Ports in use towards one destination: of a backend, or of all that share them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationRow {
    /// Rule.
    pub rule: String,
    /// Private address; `null`: all backends that share these ports.
    pub backend: Option<Ipv4Addr>,
    /// Configured name.
    pub name: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// Where the flows go.
    pub destination: Endpoint,
    /// Ports that the backend has of its own for this protocol, or that are shared.
    pub allocated: u32,
    /// Of these, held by flows to this destination.
    pub used: u32,
    /// No port is left for this destination. Never for a backend's own ports if there are shared ones, too.
    pub binding: bool,
    /// Seconds until the next of them is free again, if the flow that holds it stays idle.
    pub next_release_seconds: u64,
    /// Whether backends share the ports.
    pub shared: bool,
    /// Which of them holds most; `null`: the ports are not shared.
    pub top_backend: Option<Ipv4Addr>,
    /// How many.
    pub top_used: u32,
}

impl PortUse<'_> {
    /// The `limit` destinations that take the largest part of the ports, for each backend and protocol; of shared ports for
    /// each set and protocol. With `backend` only those that it has flows to, and by which it is concerned.
    #[must_use]
    pub fn by_destination(&self, limit: usize, backend: Option<[u8; 4]>) -> Vec<DestinationRow> {
        let concerns = |grant: u32| {
            let who = self.instance.backend_of_grant(grant).map(|who| who.address);
            backend.is_none_or(|wanted| who == Some(wanted))
        };
        let own = self.own.iter().filter(|((grant, _), _)| concerns(*grant));
        let mut rows: Vec<DestinationRow> = most(own, limit)
            .into_iter()
            .map(|(grant, to, towards)| self.own_row(grant, to, towards))
            .collect();
        let mut holds: HashMap<(Pool, Endpoint), (u32, Reverse<u32>)> = HashMap::new();
        let mut concerned: HashMap<(Pool, Endpoint), bool> = HashMap::new();
        for ((pool, to, grant), used) in &self.shares {
            let candidate = (*used, Reverse(*grant));
            let top = holds.entry((*pool, *to)).or_insert(candidate);
            *top = candidate.max(*top);
            *concerned.entry((*pool, *to)).or_default() |= concerns(*grant);
        }
        let shared = self.shared.iter().filter(|(key, _)| concerned.get(*key) == Some(&true));
        rows.extend(most(shared, limit).into_iter().map(|(pool, to, towards)| {
            let (used, grant) = holds.get(&(pool, to)).copied().unwrap_or((0, Reverse(u32::MAX)));
            self.shared_row(pool, to, towards, grant.0, used)
        }));
        rows.sort_by_cached_key(|row| {
            (row.rule.clone(), row.backend, class_order(row.protocol), Reverse(row.used), row.destination)
        });
        rows
    }

    /// The backend, or backends that share, and the destination that are nearest to exhaustion.
    #[must_use]
    pub fn worst(&self) -> Option<DestinationRow> {
        let share = |used: u32, ports: u32| u64::from(used) * 1_000_000 / u64::from(ports.max(1));
        // Own ports beside shared ones do not run out: the flows go on to the others.
        let own = self.own.iter().filter(|((grant, _), _)| !self.has_shared(*grant));
        let own = own.map(|((grant, to), towards)| {
            (
                (share(towards.used, self.own_ports(*grant)), towards.used, Reverse(*grant), Reverse(*to)),
                *towards,
            )
        });
        let own = own.max_by_key(|(rank, _)| *rank);
        let shared = self.shared.iter().map(|((pool, to), towards)| {
            (
                (share(towards.used, self.shared_ports(*pool)), towards.used, Reverse(*pool), Reverse(*to)),
                *towards,
            )
        });
        let shared = shared.max_by_key(|(rank, _)| *rank);
        match (own, shared) {
            (Some(((part, _, grant, to), towards)), other)
                if other.as_ref().is_none_or(|((theirs, ..), _)| *theirs <= part) =>
            {
                Some(self.own_row(grant.0, to.0, towards))
            }
            (_, Some(((_, _, pool, to), towards))) => {
                let of_it = self.shares.iter().filter(|((at, there, _), _)| (*at, *there) == (pool.0, to.0));
                let top = of_it.map(|((_, _, grant), used)| (*used, Reverse(*grant))).max();
                let (used, grant) = top.unwrap_or((0, Reverse(u32::MAX)));
                Some(self.shared_row(pool.0, to.0, towards, grant.0, used))
            }
            (_, None) => None,
        }
    }

    fn has_shared(&self, grant: u32) -> bool {
        self.instance.grants.get(grant as usize).is_some_and(|grant| grant.shared != 0)
    }

    fn own_ports(&self, grant: u32) -> u32 {
        let grant = self.instance.grants.get(grant as usize).copied().unwrap_or_default();
        self.instance.own(&grant).map_or(0, |set| set.ports)
    }

    fn shared_ports(&self, (number, _): Pool) -> u32 {
        self.instance.sets.get((number as usize).wrapping_sub(1)).map_or(0, |set| set.ports)
    }

    fn own_row(&self, slot: u32, destination: Endpoint, towards: Towards) -> DestinationRow {
        let rule = self.instance.grants.get(slot as usize).map_or(0, |grant| grant.rule);
        let common = self.row(slot, rule, [0; 4]);
        let allocated = self.own_ports(slot);
        DestinationRow {
            rule: common.rule,
            backend: common.backend,
            name: common.name,
            protocol: common.protocol,
            destination,
            allocated,
            used: towards.used,
            binding: towards.used >= allocated && !self.has_shared(slot),
            next_release_seconds: tick::to_seconds(towards.next),
            shared: false,
            top_backend: None,
            top_used: 0,
        }
    }

    fn shared_row(
        &self,
        pool: Pool,
        destination: Endpoint,
        towards: Towards,
        top: u32,
        top_used: u32,
    ) -> DestinationRow {
        let rule = self.instance.grants.get(top as usize).map_or(u32::MAX, |grant| grant.rule);
        let allocated = self.shared_ports(pool);
        DestinationRow {
            rule: self.instance.rule_name(rule).to_owned(),
            backend: None,
            name: None,
            protocol: class_name(pool.1),
            destination,
            allocated,
            used: towards.used,
            binding: towards.used >= allocated,
            next_release_seconds: tick::to_seconds(towards.next),
            shared: true,
            top_backend: self.instance.backend_of_grant(top).map(|backend| address(backend.address)),
            top_used,
        }
    }
}

/// For each key, the `limit` destinations with most ports.
fn most<'a, K: Copy + Eq + Hash + 'a>(
    uses: impl Iterator<Item = (&'a (K, Endpoint), &'a Towards)>,
    limit: usize,
) -> Vec<(K, Endpoint, Towards)> {
    let mut by_key: HashMap<K, Vec<(Endpoint, Towards)>> = HashMap::new();
    for ((key, destination), towards) in uses {
        by_key.entry(*key).or_default().push((*destination, *towards));
    }
    let mut found = Vec::new();
    for (key, mut destinations) in by_key {
        destinations.sort_unstable_by_key(|(destination, towards)| (Reverse(towards.used), *destination));
        found.extend(destinations.into_iter().take(limit).map(|(to, towards)| (key, to, towards)));
    }
    found
}
