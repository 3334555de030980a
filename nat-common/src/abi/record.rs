// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port records: what is known to be taken towards one destination.
//!
//! Records are hints. The inbound halves in the flow table are the only authority on who holds a port; a record
//! lives in an LRU map and may vanish at any time. See ARCHITECTURE.md, "Ports".

use super::{grant::MAX_SEGMENTS, layout};
use crate::Tick;
use bytemuck::{Pod, Zeroable};

/// Ports in one leaf: those of an address whose numbers agree in the upper six bits.
pub const LEAF_PORTS: u32 = 1024;
/// `log2` of [`LEAF_PORTS`].
pub const LEAF_SHIFT: u32 = 10;
/// 64-bit words in a leaf.
pub const LEAF_WORDS: usize = 16;

/// Which 1,024 ports of which address, towards which destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RecordKey {
    /// Frontend address, network byte order.
    pub address: [u8; 4],
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol: bits of one mean nothing to another.
    pub protocol: u8,
    /// Leaf: port >> [`LEAF_SHIFT`].
    pub leaf: u8,
}
layout!(RecordKey, 12);

/// Which port set, towards which destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RootKey {
    /// [`super::grant::PortSet::id`].
    pub set: u32,
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}
layout!(RootKey, 12);

/// Three words as one number, kept in a record to recognise a recycled element.
#[inline(always)]
const fn mix(first: u32, second: u32, third: u32) -> u64 {
    let low = first as u64 | ((second as u64) << 32);
    low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (third as u64 | 1 << 33).rotate_left(23)
}

impl RecordKey {
    /// The key as one number.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let [a, b] = self.destination_port;
        let third = u32::from_ne_bytes([a, b, self.protocol, self.leaf]);
        mix(u32::from_ne_bytes(self.address), u32::from_ne_bytes(self.destination), third)
    }
}

impl RootKey {
    /// The key as one number.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let [a, b] = self.destination_port;
        let third = u32::from_ne_bytes([a, b, self.protocol, 0xff]);
        mix(self.set, u32::from_ne_bytes(self.destination), third)
    }
}

/// What is taken in a leaf.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortRecord {
    /// [`RecordKey::tag`] of the key the element was made for.
    pub tag: u64,
    /// Releases so far: what was seen to be full still is if this did not move.
    pub epoch: u64,
    /// The bitmap; bit `n` of word `w` is port number `64 w + n` of the leaf. Set: the port is known to be taken.
    pub words: [u64; LEAF_WORDS],
}
layout!(PortRecord, 16 + 8 * LEAF_WORDS);

/// Which leaves of a port set are full: what makes a refusal as cheap as a lookup, however large the set is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RootRecord {
    /// [`RootKey::tag`] of the key the element was made for.
    pub tag: u64,
    /// Releases so far: a refusal is valid only if this did not move while it was decided.
    pub epoch: u64,
    /// CPUs that have set a bit below and not yet looked at the leaf again: meanwhile no refusal.
    pub pending: u64,
    /// [`super::config::Table::drained`] when the bits were set.
    pub drained: u64,
    /// Tick before which no port of the set can come free by expiry; 0: not known.
    pub due: Tick,
    /// [`super::config::Control::generation`] for which `due` holds.
    pub generation: u32,
    /// Port number at which the search for expired flows goes on.
    pub cursor: u32,
    /// What `due` will be when the search has come to the end.
    pub next_due: Tick,
    /// By segment: bit `n` set when every port that the segment has in leaf `n` of its address is taken.
    pub full: [u64; MAX_SEGMENTS],
}
layout!(RootRecord, 48 + 8 * MAX_SEGMENTS);

/// Elements of `PRESSED`.
pub const PRESSED_SLOTS: u32 = 65_536;

/// Index into `PRESSED`, by destination: the tick of the last collision towards one of those that share the slot.
#[inline(always)]
#[must_use]
pub const fn pressed_slot(destination: [u8; 4], port: [u8; 2], protocol: u8) -> u32 {
    let [a, b] = port;
    let low = u32::from_ne_bytes(destination).wrapping_mul(0x9e37_79b1);
    let high = u32::from_ne_bytes([a, b, protocol, 0]).wrapping_mul(0x85eb_ca6b);
    (low ^ high.rotate_left(15)) >> 16
}
