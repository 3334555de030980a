// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments: what the first one of a datagram said, and those that came before it.
//!
//! Fragments of one datagram agree in source, destination, protocol and identification (RFC 791 §3.2); only the first
//! has ports. Everything here is a hint with a short life: nothing of it is needed for packets that are whole.

use super::layout;
use crate::Tick;
use bytemuck::{Pod, Zeroable};

/// Key of `FRAGMENTS`: a datagram as it stands in its fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address, network byte order.
    pub source: [u8; 4],
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// IP identification, network byte order.
    pub id: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Roles (`ROLE_*`) of the port it came by, or [`SIDE_SENT`].
    pub side: u8,
}
layout!(FragmentKey, 12);

impl FragmentKey {
    /// Folds the key into 32 bits for [`FragmentEntry::identity`]; like [`super::flow::FlowKey::fold`], no hash against
    /// adversaries.
    #[inline(always)]
    #[must_use]
    pub const fn fold(&self) -> u32 {
        let [a, b] = self.id;
        let rest = u32::from_ne_bytes([a, b, self.protocol, self.side]);
        (u32::from_ne_bytes(self.source) ^ u32::from_ne_bytes(self.destination).rotate_left(11))
            .wrapping_mul(0x9e37_79b1)
            ^ rest.wrapping_mul(0x85eb_ca6b)
    }
}

/// [`FragmentKey::side`]: as it was sent, translated. ICMP errors quote it so.
pub const SIDE_SENT: u8 = 4;

/// Value of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentEntry {
    /// [`FragmentKey::fold`] of its key: elements are recycled at once, so a reader compares it after it has copied the
    /// rest.
    pub identity: u32,
    /// Source port or identifier, as in the first fragment; [`SIDE_SENT`]: as it was sent.
    pub source_port: [u8; 2],
    /// Destination port or identifier, likewise.
    pub destination_port: [u8; 2],
    /// Identification to write; [`SIDE_SENT`]: what it was before.
    pub id: [u8; 2],
    /// `FRAGMENT_*`.
    pub state: u8,
    /// ICMP type of the first fragment.
    pub icmp_type: u8,
    /// When the entry was made.
    pub made: Tick,
}
layout!(FragmentEntry, 16);

/// [`FragmentEntry::state`]: there is none.
pub const FRAGMENT_NONE: u8 = 0;
/// [`FragmentEntry::state`]: later fragments are held, the first has not come.
pub const FRAGMENT_AWAITED: u8 = 1;
/// [`FragmentEntry::state`]: the first fragment had a flow, and ports are known.
pub const FRAGMENT_KNOWN: u8 = 2;
/// [`FragmentEntry::state`]: the first fragment was left to the host's stack as it was.
pub const FRAGMENT_STACK: u8 = 3;
/// [`FragmentEntry::state`]: the first fragment was dropped, and so is the rest.
pub const FRAGMENT_REFUSED: u8 = 4;
/// Flag in [`FragmentEntry::state`]: some were held when the first fragment came.
pub const FRAGMENT_WAITING: u8 = 0x80;

/// Entries of `FRAGMENTS`: two a datagram that is translated.
pub const FRAGMENT_ENTRIES: u32 = 65_536;
/// Ticks for which an entry is believed: 30 s, Linux' `ipfrag_time` (RFC 791 §3.2 names 15 s, RFC 1122 §3.3.2 60 s to
/// 120 s).
pub const FRAGMENT_TICKS: Tick = 56;
/// Ticks in which another first fragment of the same datagram counts as a duplicate, and is sent with the same
/// identification.
pub const DUPLICATE_TICKS: Tick = 2;
/// Fragmented datagrams that each backend, and each frontend, may begin in a tick, whatever others do.
pub const DATAGRAMS_PER_TICK: u32 = 256;
/// Beyond that, all together.
pub const DATAGRAMS_IN_ALL: u32 = FRAGMENT_ENTRIES / 8;
/// Datagrams in a tick that begin with another fragment than the first, or are not translated: all together.
pub const UNTRANSLATED_IN_ALL: u32 = FRAGMENT_ENTRIES / 16;

/// Datagrams begun by one backend or frontend (or several that share an element of `FRAGMENT_SHARES`) in a tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentShare {
    /// In the high half the tick, in the low half how many.
    pub known: u64,
    /// Likewise, of those that are not translated (yet).
    pub unknown: u64,
}
layout!(FragmentShare, 16);

/// Elements of `FRAGMENT_SHARES`; a power of two. The last one counts all together.
pub const FRAGMENT_SHARES: u32 = 1024;

/// Fragments that can be held.
pub const HELD_SLOTS: u32 = 2048;
/// Of these, for one backend or frontend; a power of two. The largest datagram has 45 fragments of 1,500 bytes.
pub const HELD_WINDOW: u32 = 128;
/// Largest fragment that is held, IP header included, in bytes.
pub const HELD_BYTES: usize = 2048;
/// Ticks for which a fragment is held (about 4 s).
pub const HELD_TICKS: Tick = 8;

/// A fragment that is held; its bytes are in `HELD_DATA` at the same index.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldFragment {
    /// In the high half the tick since when, in the low half `HELD_*`. Changed only by compare-and-swap.
    pub word: u64,
    /// Whose it is.
    pub key: FragmentKey,
    /// IP total length in bytes.
    pub length: u32,
}
layout!(HeldFragment, 24);

/// [`HeldFragment::word`]: nothing is here.
pub const HELD_NOTHING: u32 = 0;
/// [`HeldFragment::word`]: one CPU writes it.
pub const HELD_FILLING: u32 = 1;
/// [`HeldFragment::word`]: whoever swaps this away sends it.
pub const HELD_READY: u32 = 2;
/// [`HeldFragment::word`]: one CPU sends it.
pub const HELD_LEAVING: u32 = 3;

/// Counters of new identifications, each for the destinations that meet in it; a power of two.
pub const IDENT_BUCKETS: u32 = 8192;

/// Where the window of a backend or frontend in `HELD` begins, and its element of `FRAGMENT_SHARES`, come from.
#[inline(always)]
#[must_use]
pub const fn spread(address: [u8; 4]) -> u32 {
    // The best bits of a multiplicative hash are its highest; callers mask the lowest.
    u32::from_be_bytes(address).wrapping_mul(0x9e37_79b1).rotate_left(11)
}

/// Slot number `step` of a datagram's window.
#[inline(always)]
#[must_use]
pub const fn held_slot(party: [u8; 4], start: u32, step: u32) -> u32 {
    spread(party).wrapping_add(start.wrapping_add(step) & (HELD_WINDOW - 1)) & (HELD_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_its_size_wherever_the_search_begins() {
        for party in [[10, 0, 0, 4], [203, 0, 113, 10], [255; 4]] {
            let window = |start| (0..HELD_WINDOW).map(move |step| held_slot(party, start, step));
            let mut slots: Vec<u32> = window(0).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), HELD_WINDOW as usize);
            assert!(window(77).all(|slot| slots.contains(&slot)));
        }
    }

    #[test]
    fn neighbouring_backends_do_not_share_a_window() {
        let bases: std::collections::HashSet<u32> =
            (0..16).map(|host| held_slot([10, 0, 0, host], 0, 0) / HELD_WINDOW).collect();
        assert!(bases.len() >= 8, "{bases:?}");
    }
}
