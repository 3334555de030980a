// SPDX-License-Identifier: MIT OR Apache-2.0
//! One reading of everything but flows and counters.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use nat_common::{
    Tick,
    abi::{
        config::{
            CLASSES, Control, Frontend, HEARTBEAT_TICKS, Meta, PortConfig, ROLE_INSIDE, ROLE_OUTSIDE,
            SweepPass, Table, name_of,
        },
        event::ResetCounts,
        fragment::{HELD_READY, HELD_TICKS, HeldFragment},
        grant::{BackendInfo, BackendState, Grant, GrantState, PortSet, Quota, Rule},
        policy::{self, PolicyInfo, PolicyState},
    },
    ports, tick,
};
use serde::{Serialize, Serializer};

/// The tables of an instance, of the bank in force.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Name, as in `[gateway] name`.
    pub name: String,
    /// When the tables were read.
    pub now: Tick,
    /// What the maps are.
    pub meta: Meta,
    /// What the data path reads at every decision.
    pub control: Control,
    /// Table budget.
    pub table: Table,
    /// What the daemon sent for connections that ended idle.
    pub resets: ResetCounts,
    /// Arguments and result of the last sweep.
    pub sweep: SweepPass,
    /// Interfaces by slot; role 0: slot free.
    pub interfaces: Vec<PortConfig>,
    /// Backends by slot; status 0: slot free.
    pub backends: Vec<BackendInfo>,
    /// Rules by slot; status 0: slot free.
    pub rules: Vec<Rule>,
    /// Frontend addresses by slot; address zero: slot free.
    pub frontends: Vec<Frontend>,
    /// Running state of backends, by the same slot.
    pub backend_states: Vec<BackendState>,
    /// Which port sets are whose, by [`nat_common::abi::grant::grant_slot`].
    pub grants: Vec<Grant>,
    /// Their running state, by the same slot.
    pub grant_states: Vec<GrantState>,
    /// Port sets by slot; without ports: slot free.
    pub sets: Vec<PortSet>,
    /// What backends use up under rules with limits, by [`nat_common::abi::grant::quota_index`].
    pub quotas: Vec<Quota>,
    /// Policies by slot; kind 0: slot free.
    pub policies: Vec<PolicyInfo>,
    /// Their running state, by the same slot.
    pub policy_states: Vec<PolicyState>,
    /// Instance IPs, network byte order, ascending, and whose they are.
    pub instances: Vec<([u8; 4], policy::Instance)>,
    /// Fragments that wait for the first one of their datagram, and those that waited in vain and are still in place.
    pub held: (u64, u64),
}

/// Fragments that are held: those that may still be sent, and those whose time is over.
#[must_use]
pub fn waiting(held: &[HeldFragment], now: Tick) -> (u64, u64) {
    let age = |held: &HeldFragment| {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
        let (state, since) = (held.word as u32, (held.word >> 32) as u32);
        (state == HELD_READY).then_some(now.wrapping_sub(since))
    };
    let (waiting, late): (Vec<Tick>, Vec<Tick>) =
        held.iter().filter_map(age).partition(|age| *age <= HELD_TICKS);
    (waiting.len() as u64, late.len() as u64)
}

impl Instance {
    /// The backend in a slot, if it is taken.
    #[must_use]
    pub fn backend(&self, slot: u32) -> Option<&BackendInfo> {
        self.backends.get(slot as usize).filter(|backend| backend.status != 0)
    }

    /// The backend that a grant belongs to.
    #[must_use]
    pub fn backend_of_grant(&self, grant: u32) -> Option<&BackendInfo> {
        self.backend(grant / CLASSES)
    }

    /// The rule in a slot, if it is taken.
    #[must_use]
    pub fn rule(&self, slot: u32) -> Option<&Rule> {
        self.rules.get(slot as usize).filter(|rule| rule.status != 0)
    }

    /// Name of the rule in a slot; empty when it is free.
    #[must_use]
    pub fn rule_name(&self, slot: u32) -> &str {
        self.rule(slot).map_or("", |rule| name_of(&rule.name))
    }

    /// Configured name of the frontend that an address belongs to; empty when it is none any more.
    #[must_use]
    pub fn frontend_name(&self, address: [u8; 4]) -> &str {
        let found = self.frontends.iter().find(|frontend| frontend.address == address && address != [0; 4]);
        let found = found.filter(|frontend| frontend.flags & nat_common::abi::config::FRONTEND_DRAINING == 0);
        found.map_or("", |frontend| name_of(&frontend.name))
    }

    /// Grants with ports, with their slots.
    pub fn granted(&self) -> impl Iterator<Item = (u32, &Grant)> {
        (0..).zip(&self.grants).filter(|(_, grant)| !grant.is_none())
    }

    /// The ports that only the grant's backend uses.
    #[must_use]
    pub fn own(&self, grant: &Grant) -> Option<&PortSet> {
        self.set(grant.own)
    }

    /// The ports that it shares with the other backends of its rule.
    #[must_use]
    pub fn shared(&self, grant: &Grant) -> Option<&PortSet> {
        self.set(grant.shared)
    }

    fn set(&self, number: u32) -> Option<&PortSet> {
        self.sets.get((number as usize).checked_sub(1)?).filter(|set| set.ports != 0)
    }

    /// Ports that the grant's backend may use, own and shared ones.
    #[must_use]
    pub fn ports(&self, grant: &Grant) -> u32 {
        [self.own(grant), self.shared(grant)].into_iter().flatten().map(|set| set.ports).sum()
    }

    /// Whether new flows of the grant may use this port.
    #[must_use]
    pub fn has_port(&self, grant: &Grant, place: Endpoint) -> bool {
        let mut sets = [self.own(grant), self.shared(grant)].into_iter().flatten();
        sets.any(|set| ports::segment_of(set, place.address, place.port).is_some())
    }

    /// Seconds since the daemon's last sign of life.
    #[must_use]
    pub fn heartbeat_age(&self) -> u64 {
        tick::to_seconds(self.now.saturating_sub(self.control.heartbeat))
    }

    /// Whether the daemon has been silent for too long to be alive.
    #[must_use]
    pub fn daemon_silent(&self) -> bool {
        self.now.saturating_sub(self.control.heartbeat) > HEARTBEAT_TICKS
    }
}

/// An address and port as JSON and tables have them: `"addr:port"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Network byte order.
    pub address: [u8; 4],
    /// Network byte order; the identifier of an ICMP query.
    pub port: [u8; 2],
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.address;
        write!(f, "{a}.{b}.{c}.{d}:{}", u16::from_be_bytes(self.port))
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address in network byte order as text.
#[must_use]
pub fn address(bytes: [u8; 4]) -> Ipv4Addr {
    Ipv4Addr::from(bytes)
}

/// `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn mac(bytes: [u8; 6]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let separator = if text.is_empty() { "" } else { ":" };
        // Writing to a string does not fail.
        let _infallible = write!(text, "{separator}{byte:02x}");
    }
    text
}

/// Name of a port's role in tables and JSON.
#[must_use]
pub const fn role_name(role: u8) -> &'static str {
    match (role & ROLE_INSIDE != 0, role & ROLE_OUTSIDE != 0) {
        (true, true) => "both",
        (true, false) => "inside",
        _ => "outside",
    }
}
