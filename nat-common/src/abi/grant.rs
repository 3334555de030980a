// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends, their ports, their rules and limits, and the state of these.

use super::{config::CLASSES, layout};
use crate::{Tick, net::timers::TIMER_CLASSES};
use bytemuck::{Pod, Zeroable};

/// Pieces that a port set may be in.
pub const MAX_SEGMENTS: usize = 16;
/// Port sets per instance: as many as 4,096 backends with blocks of their own in three protocol classes need.
pub const MAX_SETS: u32 = 16_384;
/// Destinations per rule with limits of their own.
pub const MAX_DESTINATIONS: usize = 8;

/// Key of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct BackendKey {
    /// Private address, network byte order.
    pub address: [u8; 4],
    /// Bank.
    pub bank: u32,
}
layout!(BackendKey, 8);

/// Value of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendRef {
    /// Backend slot.
    pub slot: u32,
    /// Instance IP, network byte order; zero: none.
    pub instance: [u8; 4],
    /// Policies that are about this backend: bit `n` is policy slot `n`.
    pub policies: u64,
}
layout!(BackendRef, 16);

/// Who a backend slot is. Not read by the data path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendInfo {
    /// Private address, network byte order; zero: slot free.
    pub address: [u8; 4],
    /// 1: in the configuration; 2: no longer, but flows of it are still alive.
    pub status: u32,
    /// Configured name, NUL-padded; empty: known by its address.
    pub name: [u8; 32],
    /// Pool, NUL-padded.
    pub pool: [u8; 32],
}
layout!(BackendInfo, 72);

/// Index of a backend's grant for a protocol class, the same in every bank.
#[inline(always)]
#[must_use]
pub const fn grant_slot(backend: u32, class: u32) -> u32 {
    backend * CLASSES + class
}

/// The ports of one backend for one protocol class. Zero throughout: no rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Grant {
    /// Index of the port set that only this backend uses, plus one; 0: none. Tried first.
    pub own: u32,
    /// Index of the port set that it shares with the other backends of its rule, plus one; 0: none.
    pub shared: u32,
    /// Rule slot.
    pub rule: u32,
    /// Flows that the backend's rules, all of them, have reserved for destinations.
    pub reserved: u32,
}
layout!(Grant, 16);

impl Grant {
    /// Whether there are no ports: no rule covers this backend and class.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.own == 0 && self.shared == 0
    }
}

/// A run of ports on one frontend address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Segment {
    /// Frontend address, network byte order.
    pub address: [u8; 4],
    /// First port.
    pub first: u16,
    /// Number of ports; 0: segment not in use.
    pub count: u16,
}
layout!(Segment, 8);

/// Ports that new flows may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortSet {
    /// Ports in all segments together; 0: slot free.
    pub ports: u32,
    /// Names exactly these segments: another list of segments has another number, in every plan of this instance.
    pub id: u32,
    /// Segments in use.
    pub segment_count: u32,
    /// [`SET_ORDERED`].
    pub flags: u32,
    /// The segments, in the order of port numbers.
    pub segments: [Segment; MAX_SEGMENTS],
}
layout!(PortSet, 16 + 8 * MAX_SEGMENTS);

/// [`PortSet::flags`]: a segment is used only when those before it are full towards the destination.
pub const SET_ORDERED: u32 = 1;

/// Running state of a grant, kept across reloads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GrantState {
    /// Flows alive (expired ones count until they are reclaimed).
    pub flows: u64,
    /// Flows opened so far.
    pub opened: u64,
    /// New flows refused because no port was free.
    pub refused: u64,
    /// New flows refused because of the table (full, or the backend's share used up).
    pub refused_table: u64,
    /// New flows refused by a limit of the rule.
    pub refused_limit: u64,
    /// Tick of the last refusal that was reported as an event.
    pub reported: Tick,
    /// Tick in which refusals were last answered.
    pub answered: Tick,
    /// Answers in that tick.
    pub answers: u64,
}
layout!(GrantState, 56);

/// Running state of a backend, kept across reloads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendState {
    /// Flows alive within the guaranteed share, all classes; those above it are in [`super::config::Table::burst`].
    pub flows: u64,
    /// Packets refused because no outbound rule covers the backend and protocol.
    pub refused_rule: u64,
    /// Packets refused by a policy.
    pub refused_policy: u64,
}
layout!(BackendState, 24);

/// Index into `QUOTA`: a backend's flows under one rule. A backend has at most two rules with limits: one with TCP, and
/// one for UDP.
#[inline(always)]
#[must_use]
pub const fn quota_index(backend: u32, without_tcp: bool) -> u32 {
    backend * 2 + without_tcp as u32
}

/// What a backend uses up under a rule with limits, kept across reloads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Quota {
    /// Flows alive that count against [`Limits::max_flows`]: all but those on reservations.
    pub flows: u64,
    /// TCP handshakes that are not finished.
    pub half_open: u64,
    /// When the next new flow is due, in ns of the monotonic clock: the theoretical arrival time of the generic cell rate
    /// algorithm (ITU-T I.371).
    pub due: u64,
    /// Flows alive by destination of the rule.
    pub destinations: [u64; MAX_DESTINATIONS],
}
layout!(Quota, 24 + 8 * MAX_DESTINATIONS);

/// A destination with limits of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Destination {
    /// Network address, network byte order.
    pub address: [u8; 4],
    /// Mask, network byte order.
    pub mask: [u8; 4],
    /// Port, network byte order; zero: every port.
    pub port: [u8; 2],
    /// Protocol classes: bit `n` is class `n`; 0: entry not in use.
    pub classes: u16,
    /// Flows that the backend can always have to it.
    pub reserved: u32,
    /// Most flows; 0: no limit.
    pub max_flows: u32,
}
layout!(Destination, 20);

/// Limits of a rule, for each backend; 0: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limits {
    /// ns between two new flows at the allowed rate.
    pub interval: u64,
    /// ns by which a new flow may be early: burst × interval.
    pub tolerance: u64,
    /// Flows at the same time; what destinations have reserved is not in it.
    pub max_flows: u32,
    /// TCP handshakes that are not finished.
    pub max_half_open: u32,
    /// Flows to one destination (address and port).
    pub max_ports: u32,
    /// Sum of [`Destination::reserved`].
    pub reserved: u32,
    /// Destinations, the first that matches counts.
    pub destinations: [Destination; MAX_DESTINATIONS],
}
layout!(Limits, 32 + 20 * MAX_DESTINATIONS);

/// Key of `TOWARDS`: a backend and class, and one destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct TowardsKey {
    /// [`grant_slot`].
    pub grant: u32,
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}
layout!(TowardsKey, 12);

impl TowardsKey {
    /// The key as one number.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let [a, b] = self.destination_port;
        let high = u32::from_ne_bytes(self.destination).rotate_left(13) ^ u32::from_ne_bytes([a, b, 0, 1]);
        self.grant as u64 | (high as u64) << 32
    }
}

/// Flows of a backend and class to one destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Towards {
    /// Flows alive; [`TOWARDS_GONE`] while the element is being removed.
    pub flows: u64,
    /// [`TowardsKey::tag`], to recognise a recycled element.
    pub tag: u64,
}
layout!(Towards, 16);

/// [`Towards::flows`]: being removed.
pub const TOWARDS_GONE: u64 = 1 << 63;

/// Key of `PEERS`: an inner end, and an address outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PeerKey {
    /// [`grant_slot`] of the backend.
    pub grant: u32,
    /// Address outside, network byte order.
    pub remote: [u8; 4],
    /// The backend's port, network byte order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}
layout!(PeerKey, 12);

impl PeerKey {
    /// The key as one number.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let [a, b] = self.port;
        let high = u32::from_ne_bytes(self.remote).rotate_left(13) ^ u32::from_ne_bytes([a, b, 0, 1]);
        self.grant as u64 | (high as u64) << 32
    }
}

/// Sessions of an inner end with an address outside: what address-dependent filtering asks for (RFC 4787 §5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Peer {
    /// Sessions in the table; [`TOWARDS_GONE`] while the element is being removed.
    pub sessions: u64,
    /// [`PeerKey::tag`], to recognise a recycled element.
    pub tag: u64,
    /// Tick until which any of them may live.
    pub until: u64,
}
layout!(Peer, 24);

/// IP protocols without a class of their own that a rule can name, as bits of [`Rule::protocols`].
pub mod protocol {
    /// SCTP (132), its port kept: its checksum (RFC 9260 §6.8) covers ports, not addresses.
    pub const SCTP: u32 = 1;
    /// UDP-Lite (136).
    pub const UDP_LITE: u32 = 1 << 1;
    /// DCCP (33).
    pub const DCCP: u32 = 1 << 2;
    /// GRE (47): one flow for each destination.
    pub const GRE: u32 = 1 << 3;
    /// ESP (50): one flow for each destination.
    pub const ESP: u32 = 1 << 4;
}

/// An outbound rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// Idle timeouts in ticks, by [`crate::net::timers::TimerClass`].
    pub timeouts: [Tick; TIMER_CLASSES],
    /// Ticks that a port rests after its flow is over, by the class in which it ended: until then no other flow gets it
    /// for the same destination.
    pub rests: [Tick; TIMER_CLASSES],
    /// Idle timeouts of UDP flows by destination port; the first that matches counts.
    pub udp_ports: [PortTimer; MAX_PORT_TIMERS],
    /// 1: in the configuration; 2: no longer, but flows made by it are still alive; 0: slot free.
    pub status: u32,
    /// `REFUSAL_*`: what the sender of a refused packet hears.
    pub on_refusal: u32,
    /// `RULE_*`; the highest byte is [`super::flow::FlowEntry::flags`] of new flows ([`RULE_FLOW_SHIFT`]).
    pub flags: u32,
    /// Largest TCP segment in bytes that SYN segments of [`super::flow::FLOW_CLAMP`] flows may announce (RFC 9293
    /// §3.7.1); 0: what fits the smaller of both links.
    pub segment_size: u32,
    /// Other protocols that are translated: bits of [`protocol`].
    pub protocols: u32,
    /// Zero.
    pub reserved: u32,
    /// Limits for each backend.
    pub limits: Limits,
    /// Name, NUL-padded.
    pub name: [u8; 48],
}
layout!(Rule, TIMER_CLASSES * 8 + 8 * MAX_PORT_TIMERS + 24 + 32 + 20 * MAX_DESTINATIONS + 48);

/// Entries of [`Rule::udp_ports`].
pub const MAX_PORT_TIMERS: usize = 8;

/// The idle timeout of UDP flows to some destination ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortTimer {
    /// First port, host byte order.
    pub first: u16,
    /// Last port; 0: entry not in use.
    pub last: u16,
    /// In ticks.
    pub timeout: Tick,
}
layout!(PortTimer, 8);

/// [`Rule::flags`]: there are limits.
pub const RULE_LIMITED: u32 = 1;
/// [`Rule::flags`]: the rule is not for TCP: see [`quota_index`].
pub const RULE_WITHOUT_TCP: u32 = 1 << 1;
/// [`Rule::flags`]: a TCP flow that ends idle is reset at both ends.
pub const RULE_RESET_IDLE: u32 = 1 << 2;
/// [`Rule::flags`]: who sends a TCP segment on a flow that is over hears a RST.
pub const RULE_RESET_PACKET: u32 = 1 << 3;
/// [`Rule::flags`]: a RST ends a flow only if its sequence number is in the window.
pub const RULE_RESET_CHECK: u32 = 1 << 4;
/// [`Rule::flags`]: a UDP flow lives only as long as packets go in both directions.
pub const RULE_UDP_BOTH: u32 = 1 << 5;
/// [`Rule::flags`]: only packets from inside prolong a UDP flow.
pub const RULE_UDP_OUTBOUND: u32 = 1 << 6;
/// [`Rule::flags`]: endpoint-independent mapping (RFC 4787 REQ-1). Nothing from outside opens a flow unless one of the
/// two below is set, too.
pub const RULE_MAPPED: u32 = 1 << 7;
/// [`Rule::flags`]: address-dependent filtering (RFC 4787 §5).
pub const RULE_FILTER_ADDRESS: u32 = 1 << 8;
/// [`Rule::flags`]: endpoint-independent filtering: from anywhere.
pub const RULE_FILTER_NONE: u32 = 1 << 9;
/// [`Rule::flags`]: a mapping's port is even if the inner one is, if it can be (RFC 4787 REQ-4).
pub const RULE_PARITY: u32 = 1 << 10;
/// [`Rule::flags`]: fragments keep their IP identification.
pub const RULE_KEEP_ID: u32 = 1 << 12;
/// Where [`super::flow::FlowEntry::flags`] are in [`Rule::flags`].
pub const RULE_FLOW_SHIFT: u32 = 24;

/// Nothing is said about a refusal.
pub const REFUSAL_SILENT: u32 = 0;
/// ICMP unreachable, communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const REFUSAL_ADMIN_PROHIBITED: u32 = 1;
/// ICMP host unreachable.
pub const REFUSAL_HOST_UNREACHABLE: u32 = 2;
/// RST to TCP, else as [`REFUSAL_ADMIN_PROHIBITED`].
pub const REFUSAL_TCP_RESET: u32 = 3;

/// Answers to refused packets of one grant in one tick: about 60 a second, so that one backend's storm does not use up
/// what the others may hear.
pub const REFUSALS_PER_TICK: u64 = 32;
