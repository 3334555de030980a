// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port plan is made of.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use nat_common::{
    Tick,
    abi::{
        config::{
            CLAIMED_BYTES, CLASS_ICMP, CLASS_NAMES, CLASSES, FRONTEND_DRAINING, Frontend, MIN_BACKENDS,
            name_of, padded,
        },
        grant::{
            BackendInfo, Grant, Limits, MAX_PORT_TIMERS, MAX_SEGMENTS, PortSet, PortTimer, RULE_WITHOUT_TCP,
            Rule, Segment,
        },
    },
    net::timers::{TIMER_CLASSES, TimerClass},
};

use super::policy::PolicyPlan;
use crate::config::Gateway;

/// Protocol classes that have ports of their own.
pub const CLASS_COUNT: usize = CLASS_NAMES.len();
const _: () = assert!(CLASS_COUNT == CLASS_ICMP as usize + 1, "classes with ports come first");

/// Protocol classes that grants are for: those, and the other protocols, which use the ports of UDP.
pub const GRANT_CLASSES: usize = CLASSES as usize;

/// Bitmaps of one address by class, as [`nat_common::abi::config::Frontend::claimed`].
pub type Claimed = [[u8; CLAIMED_BYTES]; CLASS_COUNT];

/// Who has which slot, and which ports each backend may use. Everything the data path's tables are filled from.
///
/// `None` is a free slot. A slot keeps its meaning from plan to plan as long as it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// How many plans came before in this instance; [`nat_common::abi::config::Control::generation`] when in force.
    pub generation: u32,
    /// Backends that the tables are made for; 0: not made yet.
    pub max_backends: u32,
    /// By backend slot.
    pub backends: Vec<Option<BackendSlot>>,
    /// By frontend slot.
    pub frontends: Vec<Option<FrontendSlot>>,
    /// By rule slot.
    pub rules: Vec<Option<RuleSlot>>,
    /// By backend slot, then class.
    pub grants: Vec<[Grant; GRANT_CLASSES]>,
    /// By set slot; without ports: slot free.
    pub sets: Vec<PortSet>,
    /// Policies and instance IPs.
    pub policy: PolicyPlan,
    /// What the sender of a packet hears that no rule covers: [`nat_common::abi::config::Control::on_refusal`].
    pub on_refusal: u32,
    /// [`nat_common::abi::config::Control::features`].
    pub features: u32,
}

/// Backends that tables for `gateway` are made for.
#[must_use]
pub fn table_size(gateway: &Gateway) -> u32 {
    let configured: HashSet<Ipv4Addr> =
        gateway.pools.iter().flat_map(|pool| &pool.backends).map(|backend| backend.address).collect();
    let needed = u32::try_from(configured.len()).unwrap_or(u32::MAX).checked_next_power_of_two();
    gateway.max_backends.unwrap_or(needed.unwrap_or(u32::MAX).max(MIN_BACKENDS))
}

/// Shares of the flow table: what each of `backends` may always have, and what all share above that. Half of the
/// table is guaranteed, so that no backend can fill it, and the other half is for whoever needs more.
#[must_use]
pub fn table_shares(max_flows: u32, backends: u32) -> (u32, u32) {
    let backends = backends.max(1);
    let guaranteed = (max_flows / 2 / backends).max(1);
    (guaranteed, max_flows.saturating_sub(guaranteed.saturating_mul(backends)))
}

/// Whether what has a slot is still configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// In the configuration.
    Configured = 1,
    /// No longer in the configuration, but flows of it are still alive.
    Draining = 2,
}

impl Status {
    /// The status that a table holds; `None`: slot free.
    #[must_use]
    pub const fn from_abi(status: u32) -> Option<Self> {
        match status {
            1 => Some(Self::Configured),
            2 => Some(Self::Draining),
            _ => None,
        }
    }
}

/// A backend with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSlot {
    /// Private address: what the slot is remembered by.
    pub address: Ipv4Addr,
    /// Configured name; empty: known by its address.
    pub name: String,
    /// The pool of the first rule that gives it ports, else the first pool it is in.
    pub pool: String,
    /// Whether it is still configured.
    pub status: Status,
}

impl BackendSlot {
    /// As the table holds it.
    #[must_use]
    pub fn to_abi(&self) -> BackendInfo {
        BackendInfo {
            address: self.address.octets(),
            status: self.status as u32,
            name: padded(&self.name),
            pool: padded(&self.pool),
        }
    }

    /// From the table; `None`: slot free.
    #[must_use]
    pub fn from_abi(info: &BackendInfo) -> Option<Self> {
        Some(Self {
            address: info.address.into(),
            name: name_of(&info.name).to_owned(),
            pool: name_of(&info.pool).to_owned(),
            status: Status::from_abi(info.status)?,
        })
    }
}

/// A frontend address with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSlot {
    /// Public address: what the slot is remembered by.
    pub address: Ipv4Addr,
    /// Name of the frontend it belongs to.
    pub name: String,
    /// Whether it is still configured.
    pub status: Status,
}

impl FrontendSlot {
    /// From the table; `None`: slot free.
    #[must_use]
    pub fn from_abi(value: &Frontend) -> Option<Self> {
        let address = Ipv4Addr::from(value.address);
        let draining = value.flags & FRONTEND_DRAINING != 0;
        (!address.is_unspecified()).then(|| Self {
            address,
            name: name_of(&value.name).to_owned(),
            status: if draining { Status::Draining } else { Status::Configured },
        })
    }
}

/// An outbound rule with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSlot {
    /// Name: what the slot is remembered by.
    pub name: String,
    /// Idle timeouts in ticks, by `nat_common::net::timers::TimerClass`.
    pub timeouts: [Tick; TIMER_CLASSES],
    /// Whether it is still configured.
    pub status: Status,
    /// What the sender of a refused packet hears: `REFUSAL_*` of `nat_common::abi::grant`.
    pub on_refusal: u32,
    /// `RULE_*` of `nat_common::abi::grant`.
    pub flags: u32,
    /// Limits for each backend.
    pub limits: Limits,
    /// Ticks that a port rests, by the class in which its flow ended.
    pub rests: [Tick; TIMER_CLASSES],
    /// Idle timeouts of UDP flows by destination port.
    pub udp_ports: [PortTimer; MAX_PORT_TIMERS],
    /// Largest TCP segment in bytes of a rule that clamps; 0: by MTU.
    pub segment_size: u32,
    /// Other protocols: bits of `nat_common::abi::grant::protocol`.
    pub protocols: u32,
}

impl RuleSlot {
    /// As the table holds it.
    #[must_use]
    pub fn to_abi(&self) -> Rule {
        Rule {
            timeouts: self.timeouts,
            status: self.status as u32,
            on_refusal: self.on_refusal,
            flags: self.flags,
            limits: self.limits,
            rests: self.rests,
            udp_ports: self.udp_ports,
            segment_size: self.segment_size,
            protocols: self.protocols,
            reserved: 0,
            name: padded(&self.name),
        }
    }

    /// From the table; `None`: slot free.
    #[must_use]
    pub fn from_abi(rule: &Rule) -> Option<Self> {
        Some(Self {
            name: name_of(&rule.name).to_owned(),
            timeouts: rule.timeouts,
            status: Status::from_abi(rule.status)?,
            on_refusal: rule.on_refusal,
            flags: rule.flags,
            limits: rule.limits,
            rests: rule.rests,
            udp_ports: rule.udp_ports,
            segment_size: rule.segment_size,
            protocols: rule.protocols,
        })
    }

    /// The shortest time after its last packet, in ticks, in which the port of a flow of this rule can come free.
    fn shortest(&self) -> Tick {
        let without_tcp = self.flags & RULE_WITHOUT_TCP != 0;
        let used = TimerClass::ALL.into_iter().filter(|class| {
            !without_tcp || matches!(class, TimerClass::Udp | TimerClass::Icmp | TimerClass::Other)
        });
        let rest = self.rests[TimerClass::Udp as usize];
        let by_port = self.udp_ports.iter().filter(|timer| timer.last != 0).map(|timer| timer.timeout + rest);
        used.map(|class| self.timeouts[class as usize] + self.rests[class as usize])
            .chain(by_port)
            .min()
            .unwrap_or(0)
    }
}

/// Which slots flows still refer to.
pub trait LiveSlots {
    /// Whether a live flow belongs to backend slot `slot`.
    fn backend_slot_has_flows(&self, slot: u32) -> bool;
    /// Whether a live flow was made by rule slot `slot`.
    fn rule_slot_has_flows(&self, slot: u32) -> bool;
    /// Whether a live flow is on frontend address `address`.
    fn frontend_has_flows(&self, address: Ipv4Addr) -> bool;
}

/// No flow is alive: for a first plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFlows;

impl LiveSlots for NoFlows {
    fn backend_slot_has_flows(&self, _slot: u32) -> bool {
        false
    }

    fn rule_slot_has_flows(&self, _slot: u32) -> bool {
        false
    }

    fn frontend_has_flows(&self, _address: Ipv4Addr) -> bool {
        false
    }
}

/// The segments of a set that are in use.
#[must_use]
pub fn segments(set: &PortSet) -> &[Segment] {
    &set.segments[..(set.segment_count as usize).min(MAX_SEGMENTS)]
}

impl PortPlan {
    /// Slot of the backend with `address`.
    #[must_use]
    pub fn backend_slot(&self, address: Ipv4Addr) -> Option<u32> {
        slot_where(&self.backends, |backend| backend.address == address)
    }

    /// Slot of the frontend address `address`.
    #[must_use]
    pub fn frontend_slot(&self, address: Ipv4Addr) -> Option<u32> {
        slot_where(&self.frontends, |frontend| frontend.address == address)
    }

    /// Slot of the rule named `name`.
    #[must_use]
    pub fn rule_slot(&self, name: &str) -> Option<u32> {
        slot_where(&self.rules, |rule| rule.name == name)
    }

    /// The set of its own that backend slot `slot` has for `class`.
    #[must_use]
    pub fn own(&self, slot: usize, class: usize) -> Option<&PortSet> {
        self.set(self.grants.get(slot)?.get(class)?.own)
    }

    /// The set that backend slot `slot` shares with others for `class`.
    #[must_use]
    pub fn shared(&self, slot: usize, class: usize) -> Option<&PortSet> {
        self.set(self.grants.get(slot)?.get(class)?.shared)
    }

    /// The set that a [`Grant`] refers to.
    #[must_use]
    pub fn set(&self, number: u32) -> Option<&PortSet> {
        self.sets.get((number as usize).checked_sub(1)?).filter(|set| set.ports > 0)
    }

    /// [`nat_common::abi::config::Control::backend_slots`].
    #[must_use]
    pub fn backend_slots(&self) -> u32 {
        u32::try_from(self.backends.len()).unwrap_or(u32::MAX)
    }

    /// [`nat_common::abi::config::Control::shortest`]; 0 without rules.
    #[must_use]
    pub fn shortest(&self) -> Tick {
        self.rules.iter().flatten().map(RuleSlot::shortest).min().unwrap_or(0)
    }

    /// By frontend slot, which 8-port blocks are granted to backends. Follows from the grants.
    #[must_use]
    pub fn claimed(&self) -> Vec<Claimed> {
        let mut claimed = vec![[[0; CLAIMED_BYTES]; CLASS_COUNT]; self.frontends.len()];
        let slots: HashMap<[u8; 4], usize> = self
            .frontends
            .iter()
            .enumerate()
            .filter_map(|(slot, frontend)| Some((frontend.as_ref()?.address.octets(), slot)))
            .collect();
        let by_class = |grants: &[Grant; GRANT_CLASSES]| {
            let numbers = |class: usize| [(class, grants[class].own), (class, grants[class].shared)];
            (0..CLASS_COUNT).flat_map(numbers).collect::<Vec<_>>()
        };
        let sets: HashSet<(usize, u32)> = self.grants.iter().flat_map(by_class).collect();
        for (class, set) in sets {
            for segment in self.set(set).map(segments).unwrap_or_default() {
                let Some(slot) = slots.get(&segment.address) else { continue };
                let first = usize::from(segment.first) / 8;
                for block in first..first + usize::from(segment.count) / 8 {
                    claimed[*slot][class][block / 8] |= 1 << (block % 8);
                }
            }
        }
        claimed
    }
}

fn slot_where<T>(slots: &[Option<T>], wanted: impl Fn(&T) -> bool) -> Option<u32> {
    let slot = slots.iter().position(|taken| taken.as_ref().is_some_and(&wanted))?;
    u32::try_from(slot).ok()
}
