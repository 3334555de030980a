// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port plan is made of.

use std::net::Ipv4Addr;

use nat_common::{
    Tick,
    abi::config::{
        BackendInfo, CLAIMED_BYTES, CLASS_NAMES, Grant, MAX_SEGMENTS, Rule, Segment, name_of, padded,
    },
    net::timers::TIMER_CLASSES,
};

/// Protocol classes that have ports of their own.
pub const CLASS_COUNT: usize = CLASS_NAMES.len();

/// Bitmaps of one address by class, as [`nat_common::abi::config::Frontend::claimed`].
pub type Claimed = [[u8; CLAIMED_BYTES]; CLASS_COUNT];

/// Who has which slot, and which ports each backend may use. Everything the data path's tables are filled from.
///
/// `None` is a free slot. A slot keeps its meaning from plan to plan as long as it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// By backend slot.
    pub backends: Vec<Option<BackendSlot>>,
    /// By frontend slot.
    pub frontends: Vec<Option<FrontendSlot>>,
    /// By rule slot.
    pub rules: Vec<Option<RuleSlot>>,
    /// By backend slot, then class. As long as any slot has ever been used: a grant without ports, also one of a
    /// free slot, still carries the [`Grant::version`] that the next one has to exceed.
    pub grants: Vec<[Grant; CLASS_COUNT]>,
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
}

impl RuleSlot {
    /// As the table holds it.
    #[must_use]
    pub fn to_abi(&self) -> Rule {
        Rule { timeouts: self.timeouts, status: self.status as u32, reserved: 0, name: padded(&self.name) }
    }

    /// From the table; `None`: slot free.
    #[must_use]
    pub fn from_abi(rule: &Rule) -> Option<Self> {
        Some(Self {
            name: name_of(&rule.name).to_owned(),
            timeouts: rule.timeouts,
            status: Status::from_abi(rule.status)?,
        })
    }
}

/// Which slots flows still refer to.
pub trait LiveSlots {
    /// Whether a live flow belongs to backend slot `slot`.
    fn backend_slot_has_flows(&self, slot: u32) -> bool;
    /// Whether a live flow was made by rule slot `slot`.
    fn rule_slot_has_flows(&self, slot: u32) -> bool;
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
}

/// The segments of a grant that are in use.
#[must_use]
pub fn segments(grant: &Grant) -> &[Segment] {
    &grant.segments[..(grant.segment_count as usize).min(MAX_SEGMENTS)]
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

    /// By frontend slot, which 8-port blocks are granted to backends. Follows from the grants.
    #[must_use]
    pub fn claimed(&self) -> Vec<Claimed> {
        let mut claimed = vec![[[0; CLAIMED_BYTES]; CLASS_COUNT]; self.frontends.len()];
        let slots: std::collections::HashMap<[u8; 4], usize> = self
            .frontends
            .iter()
            .enumerate()
            .filter_map(|(slot, frontend)| Some((frontend.as_ref()?.address.octets(), slot)))
            .collect();
        for grants in &self.grants {
            for (class, grant) in grants.iter().enumerate() {
                for segment in segments(grant) {
                    let Some(slot) = slots.get(&segment.address) else { continue };
                    let first = usize::from(segment.first) / 8;
                    for block in first..first + usize::from(segment.count) / 8 {
                        claimed[*slot][class][block / 8] |= 1 << (block % 8);
                    }
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
