// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who uses which ports, and what binds.
//!
//! A port serves any number of destinations at once, so that two numbers matter: how many different ports of a
//! block are in use at all, and how many are in use *towards one destination*. Only the second can exhaust.

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

use nat_common::{
    Tick,
    abi::config::{CLASS_NAMES, CLASSES, Grant, MAX_SEGMENTS, Segment, name_of},
    ports, tick,
};
use serde::Serialize;

use super::{
    flows::{Flow, State, class_name},
    instance::{Endpoint, Instance, address},
};

/// One run of ports of a backend. Field names are those of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortRow {
    /// Rule.
    pub rule: String,
    /// Private address.
    pub backend: Ipv4Addr,
    /// Configured name.
    pub name: Option<String>,
    /// Public address.
    pub frontend: Ipv4Addr,
    /// Name of the frontend; `null`: not configured any more.
    pub frontend_name: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// First and last port.
    pub range: [u16; 2],
    /// Ports in the range that the backend may use for new flows; 0 when draining.
    pub allocated: u32,
    /// Different ports in the range that live or cooling flows hold.
    pub used: u32,
    /// Flows on them.
    pub flows: u64,
    /// New flows refused because no port was free; of the backend and protocol, the same in all its rows, but 0 in
    /// draining ones, which get no new flows.
    pub refused: u64,
    /// New flows refused for want of room in the flow table; likewise.
    pub refused_table: u64,
    /// Whether the range no longer belongs to the backend and only finishes its flows.
    pub draining: bool,
    /// The destination that most ports of the backend and protocol are in use for; likewise.
    pub worst_destination: Option<Endpoint>,
    /// How many.
    pub worst_used: u32,
    /// Out of how many: all ports of the backend and protocol.
    pub allocated_total: u32,
}

/// Ports of a backend in use towards one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationRow {
    /// Rule.
    pub rule: String,
    /// Private address.
    pub backend: Ipv4Addr,
    /// Configured name.
    pub name: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// Where the flows go.
    pub destination: Endpoint,
    /// Ports of the backend for this protocol.
    pub allocated: u32,
    /// Of these, held by flows to this destination.
    pub used: u32,
    /// No port is left for this destination.
    pub binding: bool,
    /// Seconds until the next of them is free again, if the flow that holds it stays idle.
    pub next_release_seconds: u64,
}

/// Port use, collected flow by flow.
pub struct PortUse<'a> {
    instance: &'a Instance,
    /// Ports held, a bit each, by grant.
    bits: HashMap<u32, Vec<u64>>,
    /// Flows by grant and segment.
    flows: HashMap<(u32, usize), u64>,
    destinations: HashMap<(u32, Endpoint), Towards>,
    /// Ports held that no longer belong to the grant.
    draining: HashMap<(u32, [u8; 4]), Draining>,
}

#[derive(Clone, Copy, Default)]
struct Towards {
    used: u32,
    next: Tick,
}

#[derive(Clone, Default)]
struct Draining {
    rule: u32,
    flows: u64,
    ports: std::collections::BTreeSet<u16>,
}

impl<'a> PortUse<'a> {
    /// Nothing in use.
    #[must_use]
    pub fn new(instance: &'a Instance) -> Self {
        Self {
            instance,
            bits: HashMap::new(),
            flows: HashMap::new(),
            destinations: HashMap::new(),
            draining: HashMap::new(),
        }
    }

    /// Port use of `flows`, which have to include expired ones: until it is reclaimed, a flow holds its port.
    #[must_use]
    pub fn of(instance: &'a Instance, flows: &[Flow]) -> Self {
        let mut ports = Self::new(instance);
        flows.iter().for_each(|flow| ports.add(flow));
        ports
    }

    /// Takes a flow.
    pub fn add(&mut self, flow: &Flow) {
        if flow.state == State::Expired && flow.releases == 0 {
            return;
        }
        let grant = self.instance.grants.get(flow.grant as usize);
        let place = grant.and_then(|grant| {
            let number = ports::number_of(grant, flow.frontend.address, flow.frontend.port)?;
            Some((number, segment_of(grant, number)?, grant.ports))
        });
        let Some((number, segment, ports)) = place else {
            let draining = self.draining.entry((flow.grant, flow.frontend.address)).or_default();
            draining.rule = flow.rule;
            draining.flows += 1;
            draining.ports.insert(u16::from_be_bytes(flow.frontend.port));
            return;
        };
        let words = self.bits.entry(flow.grant).or_insert_with(|| vec![0; ports.div_ceil(64) as usize]);
        if let Some(word) = words.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
        *self.flows.entry((flow.grant, segment)).or_default() += 1;
        let towards = self
            .destinations
            .entry((flow.grant, flow.destination))
            .or_insert(Towards { used: 0, next: Tick::MAX });
        towards.used += 1;
        towards.next = towards.next.min(flow.releases);
    }

    /// One row for every run of ports, by rule, backend, protocol and range.
    #[must_use]
    pub fn rows(&self) -> Vec<PortRow> {
        let mut worst: HashMap<u32, (u32, Reverse<Endpoint>)> = HashMap::new();
        for ((grant, destination), towards) in &self.destinations {
            let candidate = (towards.used, Reverse(*destination));
            worst.entry(*grant).and_modify(|best| *best = candidate.max(*best)).or_insert(candidate);
        }
        let mut rows = Vec::new();
        for (slot, grant) in self.instance.granted() {
            let worst = worst.get(&slot);
            let mut first = 0;
            for (index, segment) in segments(grant).iter().enumerate() {
                let used =
                    self.bits.get(&slot).map_or(0, |words| held(words, first, u32::from(segment.count)));
                first += u32::from(segment.count);
                let last = segment.first + (segment.count.max(1) - 1);
                rows.push(PortRow {
                    range: [segment.first, last],
                    allocated: u32::from(segment.count),
                    used,
                    flows: self.flows.get(&(slot, index)).copied().unwrap_or(0),
                    worst_destination: worst.map(|(_, destination)| destination.0),
                    worst_used: worst.map_or(0, |(used, _)| *used),
                    ..self.row(slot, grant.rule, segment.address)
                });
            }
        }
        for ((slot, public), draining) in &self.draining {
            let (first, last) = (draining.ports.first(), draining.ports.last());
            rows.push(PortRow {
                range: [first.copied().unwrap_or(0), last.copied().unwrap_or(0)],
                used: u32::try_from(draining.ports.len()).unwrap_or(u32::MAX),
                flows: draining.flows,
                refused: 0,
                refused_table: 0,
                draining: true,
                ..self.row(*slot, draining.rule, *public)
            });
        }
        rows.sort_by_cached_key(|row| {
            let PortRow { rule, backend, protocol, draining, frontend, range, .. } = row;
            (rule.clone(), *backend, class_order(protocol), *draining, *frontend, *range)
        });
        rows
    }

    /// What the rows of a grant have in common.
    fn row(&self, slot: u32, rule: u32, public: [u8; 4]) -> PortRow {
        let backend = self.instance.backend_of_grant(slot);
        let state = self.instance.grant_states.get(slot as usize).copied().unwrap_or_default();
        PortRow {
            rule: self.instance.rule_name(rule).to_owned(),
            backend: address(backend.map_or([0; 4], |backend| backend.address)),
            name: backend.map(|backend| name_of(&backend.name)).and_then(named),
            frontend: address(public),
            frontend_name: named(self.instance.frontend_name(public)),
            protocol: class_name(slot % CLASSES),
            range: [0, 0],
            allocated: 0,
            used: 0,
            flows: 0,
            refused: state.refused,
            refused_table: state.refused_table,
            draining: false,
            worst_destination: None,
            worst_used: 0,
            allocated_total: self.instance.grants.get(slot as usize).map_or(0, |grant| grant.ports),
        }
    }

    /// The `limit` destinations that take the largest part of a backend's ports, for each backend and protocol.
    #[must_use]
    pub fn by_destination(&self, limit: usize) -> Vec<DestinationRow> {
        let mut by_grant: HashMap<u32, Vec<(Endpoint, Towards)>> = HashMap::new();
        for ((grant, destination), towards) in &self.destinations {
            by_grant.entry(*grant).or_default().push((*destination, *towards));
        }
        let mut rows = Vec::new();
        for (slot, mut destinations) in by_grant {
            destinations.sort_unstable_by_key(|(destination, towards)| (Reverse(towards.used), *destination));
            rows.extend(
                destinations.iter().take(limit).map(|(to, towards)| self.destination(slot, *to, *towards)),
            );
        }
        rows.sort_by_cached_key(|row| {
            (row.rule.clone(), row.backend, class_order(row.protocol), Reverse(row.used), row.destination)
        });
        rows
    }

    /// The backend and destination that are nearest to exhaustion.
    #[must_use]
    pub fn worst(&self) -> Option<DestinationRow> {
        let share = |slot: u32, used: u32| {
            let ports = self.instance.grants.get(slot as usize).map_or(1, |grant| grant.ports.max(1));
            u64::from(used) * 1_000_000 / u64::from(ports)
        };
        let rank = |(slot, destination): &(u32, Endpoint), towards: &Towards| {
            (share(*slot, towards.used), towards.used, Reverse(*slot), Reverse(*destination))
        };
        let ((slot, destination), towards) =
            self.destinations.iter().max_by_key(|(place, towards)| rank(place, towards))?;
        Some(self.destination(*slot, *destination, *towards))
    }

    fn destination(&self, slot: u32, destination: Endpoint, towards: Towards) -> DestinationRow {
        let grant = self.instance.grants.get(slot as usize).copied().unwrap_or_default();
        let common = self.row(slot, grant.rule, [0; 4]);
        DestinationRow {
            rule: common.rule,
            backend: common.backend,
            name: common.name,
            protocol: common.protocol,
            destination,
            allocated: grant.ports,
            used: towards.used,
            binding: towards.used >= grant.ports,
            next_release_seconds: tick::to_seconds(towards.next),
        }
    }
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

/// Place of a protocol in lists: TCP first.
fn class_order(protocol: &str) -> Option<usize> {
    CLASS_NAMES.iter().position(|name| *name == protocol)
}

fn segments(grant: &Grant) -> &[Segment] {
    &grant.segments[..(grant.segment_count as usize).min(MAX_SEGMENTS)]
}

/// Which segment a port number of the grant is in.
fn segment_of(grant: &Grant, number: u32) -> Option<usize> {
    let mut end = 0;
    segments(grant).iter().position(|segment| {
        end += u32::from(segment.count);
        number < end
    })
}

/// Bits set among `count` from `first` on.
fn held(words: &[u64], first: u32, count: u32) -> u32 {
    let bit =
        |number: u32| words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1);
    let set = (first..first + count).filter(|number| bit(*number)).count();
    u32::try_from(set).unwrap_or(u32::MAX)
}
