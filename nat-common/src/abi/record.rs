// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port records: what is known to be taken towards one destination.
//!
//! A record is a hint. The inbound halves in the flow table are the only authority on who holds a port; a record
//! lives in an LRU map and may vanish at any time. See ARCHITECTURE.md, "Ports".

use super::layout;
use crate::Tick;
use bytemuck::{Pod, Zeroable};

/// Ports in one record (a *leaf* of a block).
pub const LEAF_PORTS: u32 = 1024;
/// 64-bit words in a record.
pub const LEAF_WORDS: usize = 16;

/// Which leaf of which grant, towards which destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RecordKey {
    /// [`super::config::grant_slot`].
    pub grant: u32,
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// Leaf number within the grant's ports.
    pub leaf: u16,
    /// [`super::config::Grant::version`]: the ports that bit numbers stand for.
    pub version: u32,
}
layout!(RecordKey, 16);

impl RecordKey {
    /// The key as one number, kept in the record to recognise a recycled element.
    #[inline(always)]
    #[must_use]
    pub fn tag(&self) -> u64 {
        let [a, b] = self.destination_port;
        let [c, d] = self.leaf.to_ne_bytes();
        let low = u64::from(self.grant) | (u64::from(u32::from_ne_bytes(self.destination)) << 32);
        let high = u64::from(u32::from_ne_bytes([a, b, c, d])) | (u64::from(self.version) << 32);
        low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.rotate_left(23)
    }
}

/// Bit set: the port is known to be taken.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortRecord {
    /// [`RecordKey::tag`] of the key the element was made for.
    pub tag: u64,
    /// Releases so far: a refusal is valid only if this did not move while it was decided.
    pub epoch: u64,
    /// Tick in which a look at every port found none that has expired.
    pub searched: Tick,
    /// Zero.
    pub reserved: u32,
    /// The bitmap; bit `n` of word `w` is port number `64 w + n` of the leaf.
    pub words: [u64; LEAF_WORDS],
}
layout!(PortRecord, 24 + 8 * LEAF_WORDS);
