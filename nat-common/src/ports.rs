// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port numbers within a grant, and the search in a record's bitmap.
//!
//! A grant's ports are numbered 0 … `ports - 1` through its segments in order. Numbers are what records keep bits
//! for and what random choice is made over; [`locate`] turns one into an address and a port.

use crate::abi::{
    config::{Grant, MAX_SEGMENTS, Segment},
    record::{LEAF_PORTS, LEAF_WORDS},
};

/// Scales a random 32-bit number to `0..bound` without a division (Lemire's multiply-shift; the bias is below
/// `bound / 2^32`).
#[inline(always)]
#[must_use]
pub const fn scale(random: u32, bound: u32) -> u32 {
    ((random as u64 * bound as u64) >> 32) as u32
}

/// Address and port that number `number` of a grant stands for; `None` beyond its ports.
#[inline(always)]
#[must_use]
pub fn locate(grant: &Grant, number: u32) -> Option<([u8; 4], [u8; 2])> {
    let mut number = number;
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, first, count } = grant.segments[index];
        if number < count as u32 {
            return Some((address, (first + number as u16).to_be_bytes()));
        }
        number -= count as u32;
        index += 1;
    }
    None
}

/// Number of `address:port` in a grant; `None` if the port is not among its ports (any more).
#[inline(always)]
#[must_use]
pub fn number_of(grant: &Grant, address: [u8; 4], port: [u8; 2]) -> Option<u32> {
    let wanted = u32::from_ne_bytes(address);
    let port = u16::from_be_bytes(port);
    let mut base = 0;
    let mut index = 0;
    while index < MAX_SEGMENTS {
        let Segment { address, first, count } = grant.segments[index];
        if u32::from_ne_bytes(address) == wanted && port >= first && port - first < count {
            return Some(base + (port - first) as u32);
        }
        base += count as u32;
        index += 1;
    }
    None
}

/// Leaves that `ports` are kept in.
#[inline(always)]
#[must_use]
pub const fn leaves(ports: u32) -> u32 {
    ports.div_ceil(LEAF_PORTS)
}

/// Ports in leaf `leaf` of a grant with `ports` ports.
#[inline(always)]
#[must_use]
pub const fn leaf_ports(ports: u32, leaf: u32) -> u32 {
    let rest = ports.saturating_sub(leaf * LEAF_PORTS);
    if rest < LEAF_PORTS { rest } else { LEAF_PORTS }
}

/// The bits of word `word` that stand for ports, in a leaf of `ports` ports.
#[inline(always)]
#[must_use]
pub const fn valid_bits(word: u32, ports: u32) -> u64 {
    let below = ports.saturating_sub(word * 64);
    if below >= 64 { u64::MAX } else { (1u64 << below) - 1 }
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
const fn lowest_bit(word: u64) -> u32 {
    let below = (word & word.wrapping_neg()).wrapping_sub(1);
    let pairs = below - ((below >> 1) & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let bytes = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Words of a leaf, for masking a word index.
pub const WORD_MASK: u32 = LEAF_WORDS as u32 - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grant(segments: &[(u8, u16, u16)]) -> Grant {
        let mut grant = Grant { segment_count: segments.len() as u32, ..Grant::default() };
        for (slot, (host, first, count)) in grant.segments.iter_mut().zip(segments) {
            *slot = Segment { address: [203, 0, 113, *host], first: *first, count: *count };
            grant.ports += u32::from(*count);
        }
        grant
    }

    #[test]
    fn numbers_and_ports_are_one_to_one() {
        let grant = grant(&[(10, 1024, 16), (11, 65_528, 8), (10, 2048, 1024)]);
        let mut seen = std::collections::HashSet::new();
        for number in 0..grant.ports {
            let (address, port) = locate(&grant, number).expect("within the grant");
            assert!(seen.insert((address, port)));
            assert_eq!(number_of(&grant, address, port), Some(number));
        }
        assert_eq!(locate(&grant, grant.ports), None);
        assert_eq!(number_of(&grant, [203, 0, 113, 11], 1024u16.to_be_bytes()), None);
        assert_eq!(number_of(&grant, [203, 0, 113, 10], 1040u16.to_be_bytes()), None);
    }

    #[test]
    fn leaves_cover_the_ports_exactly() {
        for ports in [8, 1016, 1024, 1032, 64_000, 64_512] {
            let sum: u32 = (0..leaves(ports)).map(|leaf| leaf_ports(ports, leaf)).sum();
            assert_eq!(sum, ports);
            assert_eq!(leaf_ports(ports, leaves(ports)), 0);
        }
    }

    proptest! {
        #[test]
        fn a_free_bit_is_found_iff_there_is_one(taken in any::<u64>(), ports in 1u32..=64, start in 0u32..64) {
            let valid = valid_bits(0, ports);
            match free_bit(taken, valid, start) {
                Some(bit) => prop_assert!(bit < ports && taken & (1 << bit) == 0),
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
