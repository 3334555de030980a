// SPDX-License-Identifier: MIT OR Apache-2.0
//! Incremental update of the Internet checksum (RFC 1071, RFC 1624 equation 3).
//!
//! The checksum is the complement of the ones' complement sum of 16-bit words. That sum does not depend on byte
//! order (RFC 1071 §2 (B)): words loaded in host order give a sum in host order, which stored in host order is
//! right on the wire. Nothing here ever swaps bytes; callers load and store with native order.
//!
//! A [`Delta`] is the running sum of `~old + new` for every word that changes; [`Delta::apply`] is the only place
//! where a complement is taken, so that it cannot be taken twice.

/// Ones' complement difference between the words that go and the words that come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Nothing changes.
    pub const ZERO: Self = Self(0);

    /// A 16-bit word changes, both in the byte order they have on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        let old = u16::from_ne_bytes(old);
        let new = u16::from_ne_bytes(new);
        Self(self.0 + !old as u32 + new as u32)
    }

    /// A 16-bit word changes, both as loaded from memory (native order).
    #[inline(always)]
    #[must_use]
    pub const fn native(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u32 + new as u32)
    }

    /// A 32-bit address changes.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.word([old[0], old[1]], [new[0], new[1]]).word([old[2], old[3]], [new[2], new[3]])
    }

    /// Both changes together.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum after the change. `stored` is as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, stored: [u8; 2]) -> [u8; 2] {
        let sum = (!u16::from_ne_bytes(stored)) as u32 + self.0;
        (!fold(sum)).to_ne_bytes()
    }

    /// [`Self::apply`] to a checksum as loaded from memory (native order).
    #[inline(always)]
    #[must_use]
    pub const fn apply_native(self, stored: u16) -> u16 {
        !fold((!stored) as u32 + self.0)
    }

    /// The checksum of a UDP datagram after the change (RFC 768): zero means "none" and stays; a computed zero is
    /// sent as all ones.
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, stored: [u8; 2]) -> [u8; 2] {
        self.apply_udp_native(u16::from_ne_bytes(stored)).to_ne_bytes()
    }

    /// [`Self::apply_udp`] to a checksum as loaded from memory (native order).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp_native(self, stored: u16) -> u16 {
        if stored == 0 {
            return 0;
        }
        let new = self.apply_native(stored);
        if new == 0 { u16::MAX } else { new }
    }
}

/// Folds the carries of a sum of up to 65,537 words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn incremental_equals_full(
            mut data in proptest::collection::vec(any::<u8>(), 12..200),
            address in any::<[u8; 4]>(), port in any::<[u8; 2]>(),
        ) {
            data[0] |= 1; // RFC 1624 §3: the all-zero message is the one case with two representations of zero
            let before = full(&data);
            let old_address: [u8; 4] = data[4..8].try_into().expect("four bytes");
            let old_port: [u8; 2] = data[8..10].try_into().expect("two bytes");
            let delta = Delta::ZERO.address(old_address, address).word(old_port, port);
            data[4..8].copy_from_slice(&address);
            data[8..10].copy_from_slice(&port);
            prop_assert_eq!(delta.apply(before), full(&data));
            prop_assert_eq!(delta.apply_native(u16::from_ne_bytes(before)).to_ne_bytes(), full(&data));
        }

        #[test]
        fn there_and_back_is_identity(stored in 1u16..0xffff, old in any::<[u8; 4]>(), new in any::<[u8; 4]>()) {
            let stored = stored.to_ne_bytes();
            let there = Delta::ZERO.address(old, new).apply(stored);
            prop_assert_eq!(Delta::ZERO.address(new, old).apply(there), stored);
        }

        #[test]
        fn udp_never_gains_or_loses_its_checksum(stored in any::<[u8; 2]>(), old in any::<[u8; 4]>(), new in any::<[u8; 4]>()) {
            let after = Delta::ZERO.address(old, new).apply_udp(stored);
            prop_assert_eq!(stored == [0, 0], after == [0, 0]);
        }
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 §4: checksum 0xdd2f, word 0x5555 becomes 0x3285, result 0x0000.
        let delta = Delta::ZERO.word(0x5555u16.to_be_bytes(), 0x3285u16.to_be_bytes());
        assert_eq!(delta.apply(0xdd2fu16.to_be_bytes()), [0, 0]);
    }
}
