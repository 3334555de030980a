// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who uses which ports, and what binds.
//!
//! A port serves any number of destinations at once, so that two numbers matter: how many different ports of a
//! set are in use at all, and how many are in use *towards one destination*. Only the second can exhaust. Ports that
//! backends share are exhausted by all of them together.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
};

use nat_common::{
    Tick,
    abi::{
        config::{CLASS_NAMES, CLASS_OTHER, CLASSES, name_of},
        grant::{GrantState, PortSet},
    },
    ports,
};
use serde::Serialize;

use super::{
    flows::{Flow, State, class_name},
    instance::{Endpoint, Instance, address},
    life::Lives,
};
use crate::plan::segments;

/// One run of ports of a backend. Field names are those of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortRow {
    /// Rule.
    pub rule: String,
    /// Private address; `null`: ports to share that nobody uses.
    pub backend: Option<Ipv4Addr>,
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
    /// These, by the life of their port.
    pub lives: Lives,
    /// New flows refused because no port was free; of the backend and protocol, the same in all its rows, but 0 in
    /// draining ones, which get no new flows.
    pub refused: u64,
    /// New flows refused for want of room in the flow table; likewise.
    pub refused_table: u64,
    /// New flows refused by a limit of the rule; likewise.
    pub refused_limit: u64,
    /// Whether other backends use these ports, too.
    pub shared: bool,
    /// Whether the range no longer belongs to the backend and only finishes its flows.
    pub draining: bool,
    /// The destination that most ports of the backend and protocol are in use for, of shared ports by all backends
    /// together; likewise.
    pub worst_destination: Option<Endpoint>,
    /// How many.
    pub worst_used: u32,
    /// Out of how many: all ports that the backend has of its own for the protocol, or all that are shared.
    pub allocated_total: u32,
}

/// Ports that backends of a rule share for one class: number of the set ([`nat_common::abi::grant::Grant::shared`]), class.
pub(super) type Pool = (u32, u32);

/// Port use, collected flow by flow.
pub struct PortUse<'a> {
    pub(super) instance: &'a Instance,
    /// Ports held: grant, whether shared, number in the set.
    held: HashSet<(u32, bool, u32)>,
    /// By grant, whether shared, segment.
    uses: HashMap<(u32, bool, u32), Use>,
    /// Of ports of their own, by grant.
    pub(super) own: HashMap<(u32, Endpoint), Towards>,
    /// Of shared ports, by all backends together.
    pub(super) shared: HashMap<(Pool, Endpoint), Towards>,
    /// Of shared ports, by each.
    pub(super) shares: HashMap<(Pool, Endpoint, u32), u32>,
    /// Ports held that no longer belong to the grant.
    draining: HashMap<(u32, [u8; 4]), Draining>,
}

#[derive(Clone, Copy, Default)]
struct Use {
    ports: u32,
    flows: u64,
    lives: Lives,
}

/// Ports in use towards one destination.
#[derive(Clone, Copy)]
pub(super) struct Towards {
    pub(super) used: u32,
    /// Ticks until the next of them is free.
    pub(super) next: Tick,
}

impl Default for Towards {
    fn default() -> Self {
        Self { used: 0, next: Tick::MAX }
    }
}

impl Towards {
    fn add(&mut self, flow: &Flow) {
        self.used += 1;
        self.next = self.next.min(flow.releases);
    }
}

#[derive(Clone, Default)]
struct Draining {
    rule: u32,
    flows: u64,
    lives: Lives,
    ports: BTreeSet<u16>,
}

/// The destination that most ports are in use for.
type Worst = (u32, Reverse<Endpoint>);

impl<'a> PortUse<'a> {
    /// Nothing in use.
    #[must_use]
    pub fn new(instance: &'a Instance) -> Self {
        Self {
            instance,
            held: HashSet::new(),
            uses: HashMap::new(),
            own: HashMap::new(),
            shared: HashMap::new(),
            shares: HashMap::new(),
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
        if flow.state == State::Expired && flow.releases == 0 || flow.instance {
            return;
        }
        let grant = self.instance.grants.get(flow.grant as usize).copied().unwrap_or_default();
        let place = |set: Option<&PortSet>| {
            let (address, port) = (flow.frontend.address, flow.frontend.port);
            Some((ports::number_of(set?, address, port)?, ports::segment_of(set?, address, port)?))
        };
        let own = place(self.instance.own(&grant)).map(|place| (false, place));
        let found = own.or_else(|| Some((true, place(self.instance.shared(&grant))?)));
        let Some((shared, (number, segment))) = found else {
            let draining = self.draining.entry((flow.grant, flow.frontend.address)).or_default();
            draining.rule = flow.rule;
            draining.flows += 1;
            draining.lives.add(flow.life);
            draining.ports.insert(u16::from_be_bytes(flow.frontend.port));
            return;
        };
        // Each of the other protocols has all ports of the sets to itself: there is no block that they fill.
        if flow.class() == CLASS_OTHER {
            return;
        }
        let uses = self.uses.entry((flow.grant, shared, segment)).or_default();
        uses.flows += 1;
        uses.lives.add(flow.life);
        uses.ports += u32::from(self.held.insert((flow.grant, shared, number)));
        if shared {
            let pool = (grant.shared, flow.class());
            self.shared.entry((pool, flow.destination)).or_default().add(flow);
            *self.shares.entry((pool, flow.destination, flow.grant)).or_default() += 1;
        } else {
            self.own.entry((flow.grant, flow.destination)).or_default().add(flow);
        }
    }

    /// One row for every run of ports, by rule, backend, protocol and range. Of shared ports a backend has rows for the
    /// runs that it uses, or one if it was only refused; a rule whose shared ports nobody uses has rows without backend.
    #[must_use]
    pub fn rows(&self) -> Vec<PortRow> {
        let own = worst(self.own.iter().map(|((grant, to), towards)| (*grant, *to, towards.used)));
        let shared = worst(self.shared.iter().map(|((pool, to), towards)| (*pool, *to, towards.used)));
        let mut rows = Vec::new();
        let mut unused: HashMap<Pool, u32> = HashMap::new();
        let mut used: HashSet<Pool> = HashSet::new();
        for (slot, grant) in self.instance.granted().filter(|(slot, _)| slot % CLASSES != CLASS_OTHER) {
            if let Some(set) = self.instance.own(grant) {
                let all = 0..set.segment_count;
                rows.extend(self.set_rows(slot, false, set, all, own.get(&slot)));
            }
            let Some(set) = self.instance.shared(grant) else { continue };
            let pool = (grant.shared, slot % CLASSES);
            unused.entry(pool).or_insert(slot);
            let mut here: Vec<u32> = (0..set.segment_count)
                .filter(|segment| self.uses.contains_key(&(slot, true, *segment)))
                .collect();
            let state = self.state(slot);
            if here.is_empty() && state.refused + state.refused_table + state.refused_limit > 0 {
                here.push(0);
            }
            if !here.is_empty() {
                used.insert(pool);
                rows.extend(self.set_rows(slot, true, set, here.into_iter(), shared.get(&pool)));
            }
        }
        for (pool, slot) in unused.into_iter().filter(|(pool, _)| !used.contains(pool)) {
            let grant = self.instance.grants.get(slot as usize).copied().unwrap_or_default();
            let Some(set) = self.instance.shared(&grant) else { continue };
            let of_nobody = self.set_rows(slot, true, set, 0..set.segment_count, shared.get(&pool));
            rows.extend(of_nobody.map(|row| PortRow { backend: None, name: None, ..row }));
        }
        self.draining_rows(&mut rows);
        rows.sort_by_cached_key(|row| {
            let PortRow { rule, backend, protocol, draining, shared, frontend, range, .. } = row;
            (rule.clone(), *backend, class_order(protocol), *draining, *shared, *frontend, *range)
        });
        rows
    }

    fn set_rows(
        &self,
        slot: u32,
        shared: bool,
        set: &PortSet,
        which: impl Iterator<Item = u32>,
        worst: Option<&Worst>,
    ) -> impl Iterator<Item = PortRow> {
        let rule = self.instance.grants.get(slot as usize).map_or(0, |grant| grant.rule);
        which.filter_map(move |index| {
            let segment = segments(set).get(index as usize)?;
            let uses = self.uses.get(&(slot, shared, index)).copied().unwrap_or_default();
            Some(PortRow {
                range: [segment.first, segment.first + (segment.count.max(1) - 1)],
                allocated: u32::from(segment.count),
                used: uses.ports,
                flows: uses.flows,
                lives: uses.lives,
                shared,
                worst_destination: worst.map(|(_, destination)| destination.0),
                worst_used: worst.map_or(0, |(used, _)| *used),
                allocated_total: set.ports,
                ..self.row(slot, rule, segment.address)
            })
        })
    }

    fn draining_rows(&self, rows: &mut Vec<PortRow>) {
        for ((slot, public), draining) in &self.draining {
            let (first, last) = (draining.ports.first(), draining.ports.last());
            let grant = self.instance.grants.get(*slot as usize).copied().unwrap_or_default();
            rows.push(PortRow {
                range: [first.copied().unwrap_or(0), last.copied().unwrap_or(0)],
                used: u32::try_from(draining.ports.len()).unwrap_or(u32::MAX),
                flows: draining.flows,
                lives: draining.lives,
                refused: 0,
                refused_table: 0,
                refused_limit: 0,
                draining: true,
                allocated_total: self.instance.ports(&grant),
                ..self.row(*slot, draining.rule, *public)
            });
        }
    }

    fn state(&self, slot: u32) -> GrantState {
        self.instance.grant_states.get(slot as usize).copied().unwrap_or_default()
    }

    /// What the rows of a grant have in common.
    pub(super) fn row(&self, slot: u32, rule: u32, public: [u8; 4]) -> PortRow {
        let backend = self.instance.backend_of_grant(slot);
        let state = self.state(slot);
        PortRow {
            rule: self.instance.rule_name(rule).to_owned(),
            backend: Some(address(backend.map_or([0; 4], |backend| backend.address))),
            name: backend.map(|backend| name_of(&backend.name)).and_then(named),
            frontend: address(public),
            frontend_name: named(self.instance.frontend_name(public)),
            protocol: class_name(slot % CLASSES),
            range: [0, 0],
            allocated: 0,
            used: 0,
            flows: 0,
            lives: Lives::default(),
            refused: state.refused,
            refused_table: state.refused_table,
            refused_limit: state.refused_limit,
            shared: false,
            draining: false,
            worst_destination: None,
            worst_used: 0,
            allocated_total: 0,
        }
    }
}

fn worst<K: std::hash::Hash + Eq>(uses: impl Iterator<Item = (K, Endpoint, u32)>) -> HashMap<K, Worst> {
    let mut worst: HashMap<K, Worst> = HashMap::new();
    for (key, destination, used) in uses {
        let candidate = (used, Reverse(destination));
        worst.entry(key).and_modify(|best| *best = candidate.max(*best)).or_insert(candidate);
    }
    worst
}

pub(super) fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

/// Place of a protocol in lists: TCP first.
pub(super) fn class_order(protocol: &str) -> Option<usize> {
    CLASS_NAMES.iter().position(|name| *name == protocol)
}
