// SPDX-License-Identifier: MIT OR Apache-2.0
//! From halves to flows.

use std::{cmp::Reverse, collections::HashMap, net::Ipv4Addr};

use nat_common::{
    Tick,
    abi::{
        config::CLASSES,
        flow::{FlowEntry, FlowKey, HALF_INSTANCE, HALF_OUTBOUND, ZONE_MAPPING, inbound_key},
    },
    net::{
        state,
        timers::{self, GRACE, TimerClass},
    },
    tick,
};

use super::{
    instance::{Endpoint, Instance},
    life::{self, Life},
};

/// Which flows are wanted. An absent criterion admits everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Private address.
    pub backend: Option<[u8; 4]>,
    /// Where the flow goes.
    pub destination: Option<Destination>,
    /// Protocol class: `CLASS_TCP`, …
    pub class: Option<u32>,
    /// State.
    pub state: Option<State>,
    /// Also flows that have expired and are not yet reclaimed.
    pub expired: bool,
}

/// Destination criterion: addresses and, if given, the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Addresses.
    pub network: ipnet::Ipv4Net,
    /// Port, host byte order.
    pub port: Option<u16>,
}

/// State of a flow as shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Alive.
    Live(TimerClass),
    /// Idle for too long; its entries are about to be reclaimed.
    Expired,
}

impl State {
    /// Every state.
    pub fn all() -> impl Iterator<Item = Self> {
        TimerClass::ALL.into_iter().map(Self::Live).chain([Self::Expired])
    }

    /// Name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live(class) => class.name(),
            Self::Expired => "expired",
        }
    }
}

/// A flow: both halves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// [`nat_common::abi::config::grant_slot`].
    pub grant: u32,
    /// Rule slot.
    pub rule: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// State.
    pub state: State,
    /// What its port is held for.
    pub life: Life,
    /// Opened from outside, on the backend's instance IP: [`Self::frontend`] is that, and not of any grant.
    pub instance: bool,
    /// Address and port of the backend.
    pub source: Endpoint,
    /// What they are translated to.
    pub frontend: Endpoint,
    /// Where the flow goes.
    pub destination: Endpoint,
    /// Ticks since the last packet of either direction.
    pub idle: Tick,
    /// Ticks until it expires, if nothing more comes.
    pub expires: Tick,
    /// Ticks until its port is free for this destination again, if nothing more comes; 0: at any moment.
    pub releases: Tick,
    /// Ticks since it was opened.
    pub age: Tick,
    /// Packets and bytes from the backend (IP total length).
    pub out: Traffic,
    /// Packets and bytes to the backend.
    pub r#in: Traffic,
}

/// What a half has translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP total length.
    pub bytes: u64,
}

impl Flow {
    /// Protocol class.
    #[must_use]
    pub const fn class(&self) -> u32 {
        self.grant % CLASSES
    }
}

/// Order of a list of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Least idle first.
    #[default]
    Idle,
    /// Most bytes first, both directions.
    Bytes,
    /// Most packets first, both directions.
    Packets,
    /// Youngest first.
    Created,
}

/// A half that had no counterpart when the table was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpaired {
    /// Key of the half.
    pub key: FlowKey,
    /// Its entry.
    pub entry: FlowEntry,
}

/// Result of a join.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Flows that the filter admits, in no order.
    pub flows: Vec<Flow>,
    /// Halves without counterpart. A flow that was opened or removed while the table was read is among them.
    pub unpaired: Vec<Unpaired>,
}

struct Inbound {
    state: u32,
    entry: FlowEntry,
}

/// Puts halves together, in whatever order they come.
pub struct Join<'a> {
    instance: &'a Instance,
    filter: &'a Filter,
    outbound: Vec<(FlowKey, FlowEntry)>,
    inbound: HashMap<FlowKey, Inbound>,
}

impl<'a> Join<'a> {
    /// Starts with no halves.
    #[must_use]
    pub fn new(instance: &'a Instance, filter: &'a Filter) -> Self {
        Self { instance, filter, outbound: Vec::new(), inbound: HashMap::new() }
    }

    /// Takes a half.
    pub fn add(&mut self, key: &FlowKey, entry: &FlowEntry) {
        let outbound = entry.half & HALF_OUTBOUND != 0;
        let (source, destination) = if outbound {
            (key.source, Endpoint { address: key.destination, port: key.destination_port })
        } else {
            (entry.address, Endpoint { address: key.source, port: key.source_port })
        };
        if !self.filter.admits(entry.grant % CLASSES, source, destination) {
            return;
        }
        if outbound {
            self.outbound.push((*key, *entry));
        } else {
            self.inbound.insert(*key, Inbound { state: entry.state, entry: *entry });
        }
    }

    /// The flows.
    #[must_use]
    pub fn finish(mut self) -> Flows {
        let mut result = Flows { flows: Vec::with_capacity(self.outbound.len()), unpaired: Vec::new() };
        for (key, entry) in std::mem::take(&mut self.outbound) {
            let peer = inbound_key(&key, entry.address, entry.port);
            // Equal nonces: the inbound half was made for this flow, not for an earlier one on the same tuple.
            let same_flow = |inbound: &Inbound| (inbound.state ^ entry.state) & !state::MASK == 0;
            match self.inbound.remove(&peer).filter(same_flow) {
                // A mapping is no connection: its port is that of its sessions.
                Some(_) if key.zone[0] == ZONE_MAPPING => {}
                Some(inbound) => {
                    let flow = flow_of(self.instance, &key, &entry, &inbound.entry);
                    if self.filter.admits_state(flow.state) {
                        result.flows.push(flow);
                    }
                }
                None => result.unpaired.push(Unpaired { key, entry }),
            }
        }
        let rest = self.inbound.into_iter().map(|(key, inbound)| Unpaired { key, entry: inbound.entry });
        result.unpaired.extend(rest);
        result
    }
}

impl Filter {
    fn admits(&self, class: u32, source: [u8; 4], destination: Endpoint) -> bool {
        self.backend.is_none_or(|backend| backend == source)
            && self.class.is_none_or(|wanted| wanted == class)
            && self.destination.is_none_or(|wanted| {
                wanted.network.contains(&Ipv4Addr::from(destination.address))
                    && wanted.port.is_none_or(|port| port.to_be_bytes() == destination.port)
            })
    }

    fn admits_state(&self, state: State) -> bool {
        match self.state {
            Some(wanted) => wanted == state,
            None => self.expired || state != State::Expired,
        }
    }
}

fn flow_of(instance: &Instance, key: &FlowKey, out: &FlowEntry, inbound: &FlowEntry) -> Flow {
    let now = instance.now;
    let bits = (out.state | inbound.state) & state::MASK;
    let class = timers::class_of(out.grant % CLASSES, bits);
    let rule = u32::from(out.rule);
    let remaining = life::remaining(instance.rule(rule), class, key, (out, inbound), now);
    let dead = bits & state::DEAD != 0;
    // Both ends have been told that it is over: nothing brings it back, whatever its timer is by now.
    let over = dead || bits & state::TOLD != 0 || remaining.over;
    Flow {
        grant: out.grant,
        rule,
        protocol: key.protocol,
        state: if over { State::Expired } else { State::Live(class) },
        life: Life::of(class, over),
        instance: out.half & HALF_INSTANCE != 0,
        source: Endpoint { address: key.source, port: key.source_port },
        frontend: Endpoint { address: out.address, port: out.port },
        destination: Endpoint { address: key.destination, port: key.destination_port },
        // The table is read after the clock: a packet in between is not from the future.
        idle: now.saturating_sub(out.touched.max(inbound.touched)),
        expires: if over { 0 } else { remaining.expires },
        releases: if dead { 0 } else { remaining.releases },
        age: now.saturating_sub(out.created),
        out: Traffic { packets: out.packets, bytes: out.bytes },
        r#in: Traffic { packets: inbound.packets, bytes: inbound.bytes },
    }
}

impl Flows {
    /// Puts the flows in order and keeps the first `limit`; ties are broken by the outer tuple, so that the same
    /// flows always come in the same order.
    pub fn arrange(&mut self, sort: Sort, limit: Option<usize>) {
        let rank = |flow: &Flow| {
            let first = match sort {
                Sort::Idle => u64::from(flow.idle),
                Sort::Bytes => !(flow.out.bytes + flow.r#in.bytes),
                Sort::Packets => !(flow.out.packets + flow.r#in.packets),
                Sort::Created => u64::from(flow.age),
            };
            (first, flow.frontend, flow.destination, Reverse(flow.grant))
        };
        if let Some(limit) = limit
            && limit < self.flows.len()
        {
            if limit > 0 {
                self.flows.select_nth_unstable_by_key(limit - 1, rank);
            }
            self.flows.truncate(limit);
        }
        self.flows.sort_unstable_by_key(rank);
    }
}

impl Unpaired {
    /// Whether the half has been there for long enough not to be just being opened.
    #[must_use]
    pub fn is_settled(&self, now: Tick) -> bool {
        self.entry.state & state::DEAD == 0 && now.saturating_sub(self.entry.created) > GRACE
    }

    /// Whether this half is still there, as the flow that it was, while its counterpart is missing.
    #[must_use]
    pub fn is_confirmed(&self, half: Option<&FlowEntry>, peer: Option<&FlowEntry>) -> bool {
        let same_flow = |entry: &&FlowEntry| (entry.state ^ self.entry.state) & !state::MASK == 0;
        half.filter(same_flow).is_some_and(|half| half.state & state::DEAD == 0)
            && peer.filter(same_flow).is_none()
    }
}

/// JSON form of a flow.
#[derive(Debug, serde::Serialize)]
pub struct FlowRow<'a> {
    protocol: &'static str,
    state: &'static str,
    life: &'static str,
    rule: &'a str,
    instance: bool,
    backend: Ipv4Addr,
    source: Endpoint,
    frontend: Endpoint,
    destination: Endpoint,
    age_seconds: u64,
    idle_seconds: u64,
    expires_seconds: u64,
    free_seconds: u64,
    packets_out: u64,
    packets_in: u64,
    bytes_out: u64,
    bytes_in: u64,
}

impl<'a> FlowRow<'a> {
    /// The documented form of `flow`.
    #[must_use]
    pub fn new(instance: &'a Instance, flow: &Flow) -> Self {
        Self {
            protocol: protocol_name(flow),
            state: flow.state.name(),
            life: flow.life.name(),
            rule: instance.rule_name(flow.rule),
            instance: flow.instance,
            backend: flow.source.address.into(),
            source: flow.source,
            frontend: flow.frontend,
            destination: flow.destination,
            age_seconds: tick::to_seconds(flow.age),
            idle_seconds: tick::to_seconds(flow.idle),
            expires_seconds: tick::to_seconds(flow.expires),
            free_seconds: tick::to_seconds(flow.releases),
            packets_out: flow.out.packets,
            packets_in: flow.r#in.packets,
            bytes_out: flow.out.bytes,
            bytes_in: flow.r#in.bytes,
        }
    }
}

/// The class's name, of other protocols their own.
#[must_use]
pub fn protocol_name(flow: &Flow) -> &'static str {
    // Protocol numbers: IANA, "Assigned Internet Protocol Numbers".
    match flow.protocol {
        33 => "dccp",
        47 => "gre",
        50 => "esp",
        132 => "sctp",
        136 => "udp-lite",
        _ => class_name(flow.class()),
    }
}

/// `tcp`, `udp`, `icmp` or `other`.
#[must_use]
pub fn class_name(class: u32) -> &'static str {
    nat_common::abi::config::CLASS_NAMES.get(class as usize).copied().unwrap_or("other")
}
