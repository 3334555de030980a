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

/// A new flow was refused; at most one a tick and grant.
pub const EVENT_REFUSED: u32 = 1;
/// A next hop has no MAC address yet; the daemon resolves it.
pub const EVENT_NEIGHBOUR: u32 = 2;
