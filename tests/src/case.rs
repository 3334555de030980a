// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets and what must become of them, as data, with one runner.
//!
//! Which SNAT port a flow gets is random. A case writes [`P1`], [`P2`], … for it: the first frame that leaves with
//! such a source port fixes what it stands for, in everything that follows. Likewise [`I1`], … for the IP identifications
//! that fragments get.

use nat_common::abi::{
    config::{ROLE_INSIDE, ROLE_OUTSIDE},
    counters::Reason,
};

use crate::{
    harness::{World, world},
    packet::{Body, Link, Packet, UNREACHABLE},
};

mod answer;
mod run;

pub use run::run_all;

/// Stands for the SNAT port of the first flow.
pub const P1: u16 = 65_521;
/// Stands for the SNAT port of the second flow.
pub const P2: u16 = 65_522;
/// Stands for the SNAT port of the third flow.
pub const P3: u16 = 65_523;

/// Stands for the IP identification that the first packet with one gets.
pub const I1: u16 = 65_501;
/// Stands for another.
pub const I2: u16 = 65_502;
/// Stands for another.
pub const I3: u16 = 65_503;

/// What must become of a packet.
#[derive(Clone, Debug)]
pub enum Expect {
    /// Sent by this port, exactly so.
    Sent(usize, Box<Packet>),
    /// Dropped, not a byte changed.
    Dropped,
    /// Given to the stack, not a byte changed.
    Passed,
    /// Given to the stack, exactly so.
    PassedAs(Box<Packet>),
    /// Answered with this ICMP type, code, bytes 4 to 7 and source.
    Answered(u8, u8, [u8; 4], [u8; 4]),
    /// Answered with the RST that a host without a listener would send.
    Reset,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// A packet; the Ethernet part is filled in unless it has one.
    Packet(Box<Packet>),
    /// The packet with these bytes of its frame overwritten.
    Patched(Box<Packet>, Vec<(usize, Vec<u8>)>),
    /// A whole frame.
    Frame(Vec<u8>),
}

/// One packet and what must become of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Port slot it arrives at.
    pub slot: usize,
    /// What comes in.
    pub input: Input,
    /// What must become of it.
    pub expect: Expect,
    /// Why.
    pub reason: Reason,
    /// Ticks that pass before it.
    pub wait: u32,
    /// Changes of the ledger besides the packet's own verdict.
    pub changes: Vec<(String, i64)>,
}

/// A world, packets, and what must become of them.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name, unique among cases.
    pub name: &'static str,
    /// The gateway.
    pub world: World,
    /// In order.
    pub steps: Vec<Step>,
    wait: u32,
}

impl Case {
    /// A case without packets.
    #[must_use]
    pub fn new(name: &'static str, world: World) -> Self {
        Self { name, world, steps: Vec::new(), wait: 0 }
    }

    /// Lets `ticks` pass before the next packet.
    #[must_use]
    pub fn ticks(mut self, ticks: u32) -> Self {
        self.wait += ticks;
        self
    }

    /// A packet arrives at port `slot`.
    #[must_use]
    pub fn at(mut self, slot: usize, input: Input) -> Self {
        let wait = std::mem::take(&mut self.wait);
        // Replaced by the call that says what must become of it; `NotConfigured` on its own is no expectation.
        let (expect, reason) = (Expect::Dropped, Reason::NotConfigured);
        self.steps.push(Step { slot, input, expect, reason, wait, changes: Vec::new() });
        self
    }

    /// A packet arrives inside.
    #[must_use]
    pub fn inside(self, packet: Packet) -> Self {
        let slot = slot_of(&self.world, ROLE_INSIDE);
        self.at(slot, Input::Packet(Box::new(packet)))
    }

    /// A packet arrives outside.
    #[must_use]
    pub fn outside(self, packet: Packet) -> Self {
        let slot = slot_of(&self.world, ROLE_OUTSIDE);
        self.at(slot, Input::Packet(Box::new(packet)))
    }

    /// A packet arrives inside, with bytes of its frame overwritten.
    #[must_use]
    pub fn inside_patched(self, packet: Packet, patches: &[(usize, &[u8])]) -> Self {
        let patches = patches.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
        let slot = slot_of(&self.world, ROLE_INSIDE);
        self.at(slot, Input::Patched(Box::new(packet), patches))
    }

    /// A packet arrives outside, with bytes of its frame overwritten.
    #[must_use]
    pub fn outside_patched(self, packet: Packet, patches: &[(usize, &[u8])]) -> Self {
        let patches = patches.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
        let slot = slot_of(&self.world, ROLE_OUTSIDE);
        self.at(slot, Input::Patched(Box::new(packet), patches))
    }

    /// It leaves outside as this packet.
    #[must_use]
    pub fn out(self, packet: Packet) -> Self {
        let slot = slot_of(&self.world, ROLE_OUTSIDE);
        self.then(Expect::Sent(slot, Box::new(packet)), Reason::TranslatedOut)
    }

    /// It is refused, and its sender hears so by ICMP unreachable with this code.
    #[must_use]
    pub fn told(self, code: u8, reason: Reason) -> Self {
        let message = Expect::Answered(UNREACHABLE, code, [0; 4], world::GATEWAY_INSIDE);
        self.then(message, reason).change("refusals_icmp", 1)
    }

    /// It is refused, and its sender hears so by RST.
    #[must_use]
    pub fn reset(self, reason: Reason) -> Self {
        self.then(Expect::Reset, reason).change("refusals_reset", 1)
    }

    /// It comes too late, and its sender hears so by RST.
    #[must_use]
    pub fn reset_late(self, reason: Reason) -> Self {
        self.then(Expect::Reset, reason).change("resets_on_packet", 1)
    }

    /// It leaves inside as this packet.
    #[must_use]
    pub fn back(self, packet: Packet) -> Self {
        let slot = slot_of(&self.world, ROLE_INSIDE);
        self.then(Expect::Sent(slot, Box::new(packet)), Reason::TranslatedIn)
    }

    /// The last verdict has this reason instead.
    #[must_use]
    pub fn because(mut self, reason: Reason) -> Self {
        self.last().reason = reason;
        self
    }

    /// It is dropped.
    #[must_use]
    pub fn drops(self, reason: Reason) -> Self {
        self.then(Expect::Dropped, reason)
    }

    /// It is left to the stack as it is.
    #[must_use]
    pub fn passes(self, reason: Reason) -> Self {
        self.then(Expect::Passed, reason)
    }

    /// What must become of the last packet.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn then(mut self, expect: Expect, reason: Reason) -> Self {
        let step = self.last();
        (step.expect, step.reason) = (expect, reason);
        self
    }

    /// The last packet opens a flow of the backend in the class (`tcp`, `udp`, `icmp`).
    #[must_use]
    pub fn opens(self, backend: usize, class: &str) -> Self {
        self.change(&format!("grant.{backend}.{class}.opened"), 1).alive(backend, class, 1)
    }

    /// The last packet changes the number of flows of the backend.
    #[must_use]
    pub fn alive(self, backend: usize, class: &str, flows: i64) -> Self {
        self.change(&format!("grant.{backend}.{class}.flows"), flows)
            .change(&format!("backend.{backend}.flows"), flows)
            .change("table.flows", flows)
            .change("entries", 2 * flows)
    }

    /// The last packet changes this row of the ledger.
    #[must_use]
    pub fn change(mut self, row: &str, change: i64) -> Self {
        self.last().changes.push((row.to_owned(), change));
        self
    }

    fn last(&mut self) -> &mut Step {
        self.steps.last_mut().expect("a packet arrives before anything becomes of it")
    }
}

/// First port of the world with this role.
fn slot_of(world: &World, role: u8) -> usize {
    world.ports.iter().position(|port| port.role & role != 0).expect("the world has such a port")
}

/// Ethernet part of a packet on its way into port `slot`.
#[must_use]
pub fn arriving(world: &World, slot: usize, packet: &Packet) -> Link {
    Link {
        source: neighbour(packet.source.0),
        destination: world.ports[slot].mac(),
        tags: world.ports[slot].tags.clone(),
    }
}

/// Ethernet part of a packet that leaves by port `slot`.
#[must_use]
pub fn leaving(world: &World, slot: usize, packet: &Packet) -> Link {
    Link {
        source: world.ports[slot].mac(),
        destination: neighbour(packet.destination.0),
        tags: world.ports[slot].tags.clone(),
    }
}

/// MAC address of the host itself, or of the router in front of it.
fn neighbour(address: [u8; 4]) -> [u8; 6] {
    let on_link = matches!(address, [10, ..] | [198, 51, 100, _]);
    world::mac_of(if on_link { address } else { world::ROUTER })
}

/// The packet with a source rewritten and one hop later.
#[must_use]
pub fn rewritten(packet: &Packet, source: [u8; 4], port: u16) -> Packet {
    packet.clone().from((source, port)).hop()
}

/// The packet with a destination rewritten and one hop later.
#[must_use]
pub fn returned(packet: &Packet, destination: [u8; 4], port: u16) -> Packet {
    packet.clone().to((destination, port)).hop()
}

/// The packet that an ICMP error quotes, as the host that sent the error saw it.
#[must_use]
pub fn with_quote(error: &Packet, quoted: &Packet) -> Packet {
    let mut error = error.clone();
    if let Body::Error { quote, .. } = &mut error.body {
        **quote = quoted.clone();
    }
    error
}
