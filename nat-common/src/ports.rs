// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port numbers within a set, leaves, and the search in bitmaps.
//!
//! A set's ports are numbered 0 … `ports - 1` through its segments in order; random choice is made over numbers, and
//! [`locate`] turns one into an address and a port. What is taken is recorded by leaf: 1,024 ports of an address,
//! whichever set they belong to.

use crate::abi::{
    grant::{MAX_SEGMENTS, PortSet, Segment},
    record::{LEAF_PORTS, LEAF_SHIFT, LEAF_WORDS},
};

/// Scales a random 32-bit number to `0..bound` without a division (Lemire's multiply-shift; the bias is below
/// `bound / 2^32`).
#[inline(always)]
#[must_use]
pub const fn scale(random: u32, bound: u32) -> u32 {
    ((random as u64 * bound as u64) >> 32) as u32
}

/// Address and port that number `number` of a set stands for; `None` beyond its ports.
#[inline(always)]
#[must_use]
pub fn locate(set: &PortSet, number: u32) -> Option<([u8; 4], [u8; 2])> {
    let mut number = number;
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, first, count } = set.segments[index];
        if number < count as u32 {
            return Some((address, (first + number as u16).to_be_bytes()));
        }
        number -= count as u32;
        index += 1;
    }
    None
}

/// Index of the segment that `address:port` is in; `None` if the port is not among the set's (any more).
#[inline(always)]
#[must_use]
pub fn segment_of(set: &PortSet, address: [u8; 4], port: [u8; 2]) -> Option<u32> {
    let wanted = u32::from_ne_bytes(address);
    let port = u16::from_be_bytes(port);
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, first, count } = set.segments[index];
        if u32::from_ne_bytes(address) == wanted && port >= first && port - first < count {
            return Some(index as u32);
        }
        index += 1;
    }
    None
}

/// Whether a set has ports on an address.
#[inline(always)]
#[must_use]
pub fn has_address(set: &PortSet, address: [u8; 4]) -> bool {
    let wanted = u32::from_ne_bytes(address);
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, count, .. } = set.segments[index];
        if count != 0 && u32::from_ne_bytes(address) == wanted {
            return true;
        }
        index += 1;
    }
    false
}

/// Number of `address:port` in a set; `None` if the port is not among its ports (any more).
#[inline(always)]
#[must_use]
pub fn number_of(set: &PortSet, address: [u8; 4], port: [u8; 2]) -> Option<u32> {
    let wanted = u32::from_ne_bytes(address);
    let port = u16::from_be_bytes(port);
    let mut base = 0;
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, first, count } = set.segments[index];
        if u32::from_ne_bytes(address) == wanted && port >= first && port - first < count {
            return Some(base + (port - first) as u32);
        }
        base += count as u32;
        index += 1;
    }
    None
}

/// Leaf that a port is in.
#[inline(always)]
#[must_use]
pub const fn leaf_of(port: [u8; 2]) -> u32 {
    u16::from_be_bytes(port) as u32 >> LEAF_SHIFT
}

/// Leaves that a segment has ports in: bit `n` is leaf `n`.
#[inline(always)]
#[must_use]
pub const fn leaves(segment: Segment) -> u64 {
    if segment.count == 0 {
        return 0;
    }
    let first = segment.first as u32;
    let last = first + segment.count as u32 - 1;
    (u64::MAX << (first >> LEAF_SHIFT)) & (u64::MAX >> (63 - (last >> LEAF_SHIFT & 63)))
}

/// The ports of leaf `leaf` that a segment has, as numbers within the leaf: first, and one beyond the last.
#[inline(always)]
#[must_use]
pub const fn within_leaf(segment: Segment, leaf: u32) -> (u32, u32) {
    let base = leaf << LEAF_SHIFT;
    let first = segment.first as u32;
    let end = first + segment.count as u32;
    let from = first.saturating_sub(base);
    let to = end.saturating_sub(base);
    (if from < LEAF_PORTS { from } else { LEAF_PORTS }, if to < LEAF_PORTS { to } else { LEAF_PORTS })
}

/// The bits of word `word` of a leaf that stand for ports from `from` to before `to`.
#[inline(always)]
#[must_use]
pub const fn valid_bits(word: u32, from: u32, to: u32) -> u64 {
    below(to.saturating_sub(word * 64)) & !below(from.saturating_sub(word * 64))
}

/// The lowest `count` bits.
#[inline(always)]
const fn below(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1u64 << count) - 1 }
}

/// A zero bit of `taken` among `valid`, at or after bit `start`, else the first one before it.
#[inline(always)]
#[must_use]
pub const fn free_bit(taken: u64, valid: u64, start: u32) -> Option<u32> {
    let free = !taken & valid;
    if free == 0 {
        return None;
    }
    let after = free & (u64::MAX << (start & 63));
    Some(lowest_bit(if after != 0 { after } else { free }))
}

/// Number of the lowest set bit: the number of bits below it. Counted with arithmetic alone: BPF has no such
/// instruction before version 4, and a branch for every bit would double the verifier's states.
#[inline(always)]
#[must_use]
pub const fn lowest_bit(word: u64) -> u32 {
    let below = (word & word.wrapping_neg()).wrapping_sub(1);
    let pairs = below - ((below >> 1) & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let bytes = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Words of a leaf, for masking a word index.
pub const WORD_MASK: u32 = LEAF_WORDS as u32 - 1;
/// Segments of a set, for masking a segment index.
pub const SEGMENT_MASK: u32 = MAX_SEGMENTS as u32 - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(segments: &[(u8, u16, u16)]) -> PortSet {
        let mut set = PortSet { segment_count: segments.len() as u32, ..PortSet::default() };
        for (slot, (host, first, count)) in set.segments.iter_mut().zip(segments) {
            *slot = Segment { address: [203, 0, 113, *host], first: *first, count: *count };
            set.ports += u32::from(*count);
        }
        set
    }

    #[test]
    fn numbers_and_ports_are_one_to_one() {
        let set = set(&[(10, 1024, 16), (11, 65_528, 8), (10, 2048, 1024)]);
        let mut seen = std::collections::HashSet::new();
        for number in 0..set.ports {
            let (address, port) = locate(&set, number).expect("within the set");
            assert!(seen.insert((address, port)));
            assert_eq!(number_of(&set, address, port), Some(number));
            let segment = segment_of(&set, address, port).expect("within the set");
            assert_eq!(set.segments[segment as usize].address, address);
        }
        assert_eq!(locate(&set, set.ports), None);
        assert_eq!(number_of(&set, [203, 0, 113, 11], 1024u16.to_be_bytes()), None);
        assert_eq!(number_of(&set, [203, 0, 113, 10], 1040u16.to_be_bytes()), None);
        assert_eq!(segment_of(&set, [203, 0, 113, 10], 1040u16.to_be_bytes()), None);
    }

    #[test]
    fn leaves_cover_a_segment_exactly() {
        for (first, count) in [(1024, 8), (1024, 64_512), (1016, 16), (5000, 3000), (65_528, 8), (2048, 1024)]
        {
            let segment = Segment { address: [0; 4], first, count };
            let mut covered = Vec::new();
            for leaf in 0..64u32 {
                let (from, to) = within_leaf(segment, leaf);
                assert_eq!(leaves(segment) >> leaf & 1 == 1, from < to, "{first} {count} {leaf}");
                let bits: u32 = (0..16).map(|word| valid_bits(word, from, to).count_ones()).sum();
                assert_eq!(bits, to.saturating_sub(from));
                covered.extend((from..to).map(|port| (leaf << LEAF_SHIFT) + port));
            }
            let all: Vec<u32> = (u32::from(first)..u32::from(first) + u32::from(count)).collect();
            assert_eq!(covered, all);
        }
        assert_eq!(leaves(Segment::default()), 0);
    }

    proptest! {
        #[test]
        fn a_free_bit_is_found_iff_there_is_one(
            taken in any::<u64>(), from in 0u32..=64, to in 0u32..=64, start in 0u32..64
        ) {
            let valid = valid_bits(0, from, to);
            match free_bit(taken, valid, start) {
                Some(bit) => prop_assert!(bit >= from && bit < to && taken & (1 << bit) == 0),
                None => prop_assert_eq!(!taken & valid, 0),
            }
        }

        #[test]
        fn scaling_stays_below_the_bound(random in any::<u32>(), bound in 1u32..=1_032_192) {
            prop_assert!(scale(random, bound) < bound);
        }
    }

    #[test]
    fn every_bit_is_found() {
        for bit in 0..64 {
            assert_eq!(lowest_bit(1 << bit), bit);
            assert_eq!(free_bit(!(1 << bit), u64::MAX, 17), Some(bit));
        }
    }
}
