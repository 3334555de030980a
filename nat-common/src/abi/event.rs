// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ring-buffer records from the data path to the daemon. They inform; nothing waits for them.

use super::{flow::FlowKey, layout};
use crate::Tick;
use bytemuck::{Pod, Zeroable};

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// One of the `EVENT_*` numbers.
    pub kind: u32,
    /// [`super::counters::Reason`] of the packet that caused it, as its number.
    pub reason: u32,
    /// When.
    pub tick: Tick,
    /// [`super::config::grant_slot`] concerned, or `u32::MAX`.
    pub grant: u32,
    /// The packet's tuple as it arrived.
    pub key: FlowKey,
    /// Interface concerned.
    pub ifindex: u32,
    /// Address concerned, network byte order: the neighbour that is missing.
    pub address: [u8; 4],
}
layout!(Event, 40);

/// A TCP flow that has been idle for too long: what the daemon needs to tell both ends by RST. Handed over once
/// ([`crate::net::state::TOLD`]). Pairs are of the outbound and the inbound half.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct IdleReset {
    /// Key of the outbound half.
    pub key: FlowKey,
    /// Frontend address, network byte order.
    pub address: [u8; 4],
    /// SNAT port, network byte order.
    pub port: [u8; 2],
    /// [`super::flow::FlowEntry::slot`].
    pub slots: [u8; 2],
    /// [`super::flow::FlowEntry::sequence`]: the backend's next number, and the destination's.
    pub sequences: [u32; 2],
    /// [`super::flow::FlowEntry::epoch`].
    pub epochs: [u32; 2],
    /// [`super::flow::FlowEntry::next_hop`].
    pub next_hops: [[u8; 6]; 2],
    /// When.
    pub tick: Tick,
}
layout!(IdleReset, 56);

/// Bytes of the ring buffer [`super::names::RESETS`]: 8,192 records of 56 + 8 bytes.
pub const RESETS_BYTES: u32 = 512 * 1024;

/// What became of [`IdleReset`]s, counted by the daemon: two segments each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ResetCounts {
    /// Sent as translated packets leave, to the next hop that the flow had.
    pub framed: u64,
    /// Left to the host's stack, because the next hop was not known or may have changed.
    pub routed: u64,
    /// Not sent: the kernel refused both.
    pub failed: u64,
}
layout!(ResetCounts, 24);

/// A new flow was refused; at most one a tick and grant.
pub const EVENT_REFUSED: u32 = 1;
/// A next hop has no MAC address yet; the daemon resolves it.
pub const EVENT_NEIGHBOUR: u32 = 2;
