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

/// Random tries at a port before the records are asked, while nothing has collided lately.
pub const PROBES: u32 = 2;
/// Ticks for which a collision, or a crowded leaf, is remembered (about 8 s).
pub const PRESSURE_TICKS: Tick = 16;

/// What is known of how full the ports towards a destination are: a word of `PRESSED`. A hint, shared by destinations that meet
/// in a slot. Low half: tick of the last time that all tries collided. Then one bit that stays set for ever: from then on,
/// releases keep the records true. Then 31 bits of the tick in which a leaf was last found crowded: many
/// ports in a row taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure(pub u64);

impl Pressure {
    const EVER: u64 = 1 << 32;
    const CROWDED_SHIFT: u32 = 33;
    const CROWDED_MASK: u32 = u32::MAX >> 1;

    /// How many random tries are worth while: even where some collide, one that does not costs less than a look at the
    /// records; where hardly any port is free it is wasted.
    #[inline(always)]
    #[must_use]
    pub const fn probes(self, now: Tick) -> u32 {
        if self.0 & Self::EVER == 0 {
            return PROBES;
        }
        let crowded = (self.0 >> Self::CROWDED_SHIFT) as u32;
        if crowded != 0 && now.wrapping_add(1).wrapping_sub(crowded) & Self::CROWDED_MASK <= PRESSURE_TICKS {
            return 0;
        }
        if now.wrapping_sub(self.0 as Tick) <= PRESSURE_TICKS { 1 } else { PROBES }
    }

    /// After tries that have all collided.
    #[inline(always)]
    #[must_use]
    pub const fn collided(self, now: Tick) -> Self {
        Self(self.0 & !(u32::MAX as u64) | Self::EVER | now as u64)
    }

    /// After a leaf was found crowded, or all full.
    #[inline(always)]
    #[must_use]
    pub const fn crowded(self, now: Tick) -> Self {
        let kept = self.0 & (u32::MAX as u64) | Self::EVER;
        // 0 stands for never, so that every second tick stands for the next one.
        let tick = now & Self::CROWDED_MASK | 1;
        Self(kept | (tick as u64) << Self::CROWDED_SHIFT)
    }
}

/// Index into `PRESSED`, by destination.
#[inline(always)]
#[must_use]
pub const fn pressed_slot(destination: [u8; 4], port: [u8; 2], protocol: u8) -> u32 {
    let [a, b] = port;
    let low = u32::from_ne_bytes(destination).wrapping_mul(0x9e37_79b1);
    let high = u32::from_ne_bytes([a, b, protocol, 0]).wrapping_mul(0x85eb_ca6b);
    (low ^ high.rotate_left(15)) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_tries_the_fuller_the_ports_are() {
        const NOW: Tick = 1_000;
        let never = Pressure(0);
        assert_eq!(never.probes(NOW), PROBES);
        let collided = never.collided(NOW);
        assert_eq!(collided.probes(NOW), 1);
        assert_eq!(collided.probes(NOW + PRESSURE_TICKS), 1);
        assert_eq!(collided.probes(NOW + PRESSURE_TICKS + 1), PROBES);
        let crowded = collided.crowded(NOW);
        assert_eq!(crowded.probes(NOW), 0);
        assert_eq!(crowded.collided(NOW + 5).probes(NOW + 5), 0, "a collision does not forget the crowd");
        assert_eq!(crowded.collided(NOW + 9).probes(NOW + PRESSURE_TICKS + 1), 1);
        assert_eq!(crowded.probes(NOW + PRESSURE_TICKS + 1), PROBES);
    }

    #[test]
    fn a_word_that_has_known_pressure_is_never_zero_again() {
        for now in [0, 1, u32::MAX >> 1, 1 << 31, u32::MAX] {
            assert_ne!(Pressure(0).collided(now).0, 0);
            let crowded = Pressure(0).crowded(now);
            assert_ne!(crowded.0, 0);
            assert_eq!(crowded.probes(now), 0, "tick {now}");
            assert_eq!(crowded.probes(now.wrapping_add(2)), 0, "tick {now}");
        }
    }
}
