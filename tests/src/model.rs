// SPDX-License-Identifier: MIT OR Apache-2.0
//! A NAT in plain Rust on plain collections: what the data path has to do, written a second time and simply, so that
//! the two can be compared. It shares no code with the data path but the names of verdicts.

use std::collections::{BTreeMap, BTreeSet};

use nat_common::abi::counters::Reason;

use crate::packet::{ACK, End, FIN, RST, SYN};

/// Transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo; the destination's port is zero.
    Ping,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the backend.
    Out,
    /// To the backend.
    In,
}

/// Inner end, destination.
pub type Key = (Transport, End, End);

/// One flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// SNAT port.
    pub port: u16,
    /// Time of the packet that its idle time counts from.
    pub last: u32,
    /// Whether it took from the common budget.
    pub burst: bool,
    syn: [bool; 2],
    syn_ack: [bool; 2],
    fin: [bool; 2],
    established: bool,
    reset: bool,
}

/// Sizes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Flows in the table.
    pub max_flows: usize,
    /// Flows each backend may always have.
    pub guaranteed: usize,
    /// Flows above that, all together.
    pub burst: usize,
    /// Ports of each backend: first and number, the same for every transport.
    pub blocks: Vec<([u8; 4], u16, u16)>,
    /// Seconds as ticks.
    pub ticks: fn(u32) -> u32,
}

/// Ticks between a flow's end and its removal.
const GRACE: u32 = 4;
/// Ticks for which a search through all ports may be put off after one that found nothing.
const PAUSE: u32 = 4;

/// The reference.
#[derive(Clone, Debug)]
pub struct Model {
    limits: Limits,
    /// Every flow in the table, over or not.
    pub flows: BTreeMap<Key, Flow>,
    /// When a new flow was last refused a port, by backend, transport and destination.
    refused: BTreeMap<(usize, Transport, End), u32>,
    /// The time.
    pub now: u32,
}

/// What the reference allows to become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// This verdict, and nothing is sent.
    Verdict(Reason),
    /// Sent with this verdict and this end rewritten to `port` (out) or to the end itself (in).
    Sent(Reason, End),
    /// A new flow from any of these ports; or, if the flag is set, no free port.
    Opened(BTreeSet<u16>, bool),
}

impl Flow {
    fn timeout(&self, transport: Transport, ticks: fn(u32) -> u32) -> u32 {
        ticks(match transport {
            Transport::Udp => 240,
            Transport::Ping => 60,
            Transport::Tcp if self.reset => 15,
            Transport::Tcp if self.fin != [false; 2] => 240,
            Transport::Tcp if self.established => 240,
            Transport::Tcp => 30,
        })
    }

    fn over(&self, transport: Transport, ticks: fn(u32) -> u32, now: u32, grace: u32) -> bool {
        now > self.last + self.timeout(transport, ticks) + grace
    }

    fn rests(&self) -> bool {
        self.reset || self.fin == [true; 2]
    }

    /// A packet of the living flow.
    fn packet(&mut self, transport: Transport, way: Way, flags: u8, now: u32) {
        if !self.rests() {
            self.last = now;
        }
        if transport == Transport::Tcp {
            self.segment(way, flags);
        }
    }

    fn segment(&mut self, way: Way, flags: u8) {
        let side = usize::from(way == Way::In);
        if flags & RST != 0 {
            self.reset = true;
            return;
        }
        if flags & SYN != 0 {
            self.syn[side] = true;
            self.syn_ack[side] |= flags & ACK != 0;
            self.established |= self.syn_ack == [true; 2];
        } else if flags & ACK != 0 && self.syn == [true; 2] {
            self.established = true;
        }
        if flags & FIN != 0 && self.established {
            self.fin[side] = true;
        }
    }
}

fn opens(transport: Transport, flags: u8) -> bool {
    transport != Transport::Tcp || flags & (SYN | ACK | FIN | RST) == SYN
}

impl Model {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits, now: u32) -> Self {
        Self { limits, flows: BTreeMap::new(), refused: BTreeMap::new(), now }
    }

    fn backend(&self, address: [u8; 4]) -> usize {
        self.limits.blocks.iter().position(|(known, ..)| *known == address).expect("a backend of the model")
    }

    /// Who holds the port for this destination.
    fn holder(&self, transport: Transport, port: u16, destination: End) -> Option<Key> {
        let mut flows = self.flows.iter();
        flows
            .find(|(key, flow)| key.0 == transport && key.2 == destination && flow.port == port)
            .map(|f| *f.0)
    }

    fn over(&self, key: &Key, grace: u32) -> bool {
        self.flows[key].over(key.0, self.limits.ticks, self.now, grace)
    }

    /// A packet from a backend. A flow that exists is brought up to date; a new one only by [`Model::opened`].
    pub fn out(&mut self, key: Key, flags: u8) -> Allowed {
        let now = self.now;
        let (transport, ticks) = (key.0, self.limits.ticks);
        if let Some(flow) = self.flows.get_mut(&key) {
            let over = flow.over(transport, ticks, now, 0);
            if over && !opens(transport, flags) {
                return Allowed::Verdict(Reason::FlowExpired);
            }
            let again = transport == Transport::Tcp && flow.rests() && opens(transport, flags);
            if over || again {
                *flow = Flow { port: flow.port, burst: flow.burst, ..Flow::default() };
            }
            flow.packet(transport, Way::Out, flags, now);
            return Allowed::Sent(Reason::TranslatedOut, (key.1.0, flow.port));
        }
        if !opens(transport, flags) {
            return Allowed::Verdict(Reason::TcpNoFlow);
        }
        self.room(key)
    }

    /// How many of its guaranteed places a backend has taken.
    fn guaranteed(&self, backend: [u8; 4]) -> usize {
        self.flows.iter().filter(|(key, flow)| key.1.0 == backend && !flow.burst).count()
    }

    /// What a new flow may get.
    fn room(&mut self, key: Key) -> Allowed {
        let backend = self.backend(key.1.0);
        let mine = self.guaranteed(key.1.0);
        let burst = self.flows.values().filter(|flow| flow.burst).count();
        if mine >= self.limits.guaranteed && burst >= self.limits.burst {
            return Allowed::Verdict(Reason::TableShare);
        }
        let (_, first, count) = self.limits.blocks[backend];
        let (taken, free): (BTreeSet<u16>, BTreeSet<u16>) =
            (first..first + count).partition(|port| self.holder(key.0, *port, key.2).is_some());
        if !free.is_empty() {
            if self.flows.len() >= self.limits.max_flows {
                return Allowed::Verdict(Reason::TableFull);
            }
            return Allowed::Opened(free, false);
        }
        let place = (backend, key.0, key.2);
        let recently = self.refused.get(&place).is_some_and(|when| self.now - when < PAUSE);
        let vacant: BTreeSet<u16> = taken
            .into_iter()
            .filter(|port| self.holder(key.0, *port, key.2).is_some_and(|holder| self.over(&holder, GRACE)))
            .collect();
        if vacant.is_empty() {
            self.refused.insert(place, self.now);
            return Allowed::Verdict(Reason::NoFreePort);
        }
        Allowed::Opened(vacant, recently)
    }

    /// The data path has opened a flow with this port, which the model had allowed.
    pub fn opened(&mut self, key: Key, port: u16, flags: u8) {
        if let Some(holder) = self.holder(key.0, port, key.2) {
            self.flows.remove(&holder);
        }
        let mine = self.guaranteed(key.1.0);
        let mut flow = Flow { port, burst: mine >= self.limits.guaranteed, ..Flow::default() };
        flow.packet(key.0, Way::Out, flags, self.now);
        self.flows.insert(key, flow);
    }

    /// A packet from outside to a SNAT port.
    pub fn inward(&mut self, transport: Transport, destination: End, port: u16, flags: u8) -> Allowed {
        let Some(key) = self.holder(transport, port, destination) else {
            return Allowed::Verdict(Reason::NoMapping);
        };
        if self.over(&key, 0) {
            return Allowed::Verdict(Reason::FlowExpired);
        }
        let now = self.now;
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.packet(transport, Way::In, flags, now);
        }
        Allowed::Sent(Reason::TranslatedIn, key.1)
    }

    /// An ICMP error from outside about a packet that left from a SNAT port.
    #[must_use]
    pub fn error_in(&self, transport: Transport, destination: End, port: u16) -> Allowed {
        match self.holder(transport, port, destination) {
            Some(key) if !self.over(&key, 0) => Allowed::Sent(Reason::IcmpErrorIn, key.1),
            _ => Allowed::Verdict(Reason::IcmpErrorNoFlow),
        }
    }

    /// An ICMP error from a backend about a packet that it got.
    #[must_use]
    pub fn error_out(&self, key: &Key) -> Allowed {
        match self.flows.get(key) {
            Some(flow) if !self.over(key, 0) => Allowed::Sent(Reason::IcmpErrorOut, (key.1.0, flow.port)),
            _ => Allowed::Verdict(Reason::IcmpErrorNoFlow),
        }
    }

    /// The sweep; returns how many flows it takes.
    pub fn sweep(&mut self) -> usize {
        let before = self.flows.len();
        let over: Vec<Key> = self.flows.keys().filter(|key| self.over(key, GRACE)).copied().collect();
        for key in over {
            self.flows.remove(&key);
        }
        before - self.flows.len()
    }
}
