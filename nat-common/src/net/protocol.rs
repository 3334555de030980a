// SPDX-License-Identifier: MIT OR Apache-2.0
//! IP protocols beside TCP, UDP and ICMP: which are translated, and how. Why so: docs/protocols.md.

use crate::abi::grant::protocol;

/// Datagram Congestion Control Protocol (RFC 4340).
pub const DCCP: u8 = 33;
/// Generic Routing Encapsulation (RFC 2784).
pub const GRE: u8 = 47;
/// IP Encapsulating Security Payload (RFC 4303).
pub const ESP: u8 = 50;
/// Stream Control Transmission Protocol (RFC 9260).
pub const SCTP: u8 = 132;
/// UDP-Lite (RFC 3828).
pub const UDP_LITE: u8 = 136;

/// The bit of [`crate::abi::grant::Rule::protocols`] that allows a protocol; 0: it is never translated by a flow.
#[inline(always)]
#[must_use]
pub const fn rule_bit(number: u8) -> u32 {
    match number {
        SCTP => protocol::SCTP,
        UDP_LITE => protocol::UDP_LITE,
        DCCP => protocol::DCCP,
        GRE => protocol::GRE,
        ESP => protocol::ESP,
        _ => 0,
    }
}

/// Whether the first four bytes are source and destination port.
#[inline(always)]
#[must_use]
pub const fn has_ports(number: u8) -> bool {
    matches!(number, SCTP | UDP_LITE | DCCP)
}

/// Whether a flow keeps its source port, if it has one: SCTP's CRC32c covers ports and everything behind them (RFC 9260
/// §6.8), GRE and ESP have none.
#[inline(always)]
#[must_use]
pub const fn keeps_port(number: u8) -> bool {
    matches!(number, SCTP | GRE | ESP)
}

/// Bytes after the IP header that a packet has at least: the fixed header of RFC 9260 §3.1, RFC 3828 §3.1, RFC 4340 §5.1
/// (the short form), RFC 2784 §2.1, RFC 4303 §2.
#[inline(always)]
#[must_use]
pub const fn shortest(number: u8) -> usize {
    match number {
        SCTP | DCCP => 12,
        GRE => 4,
        _ => 8,
    }
}

/// Whether a checksum in bytes 6 and 7 covers the addresses: UDP-Lite (RFC 3828 §3.1), DCCP (RFC 4340 §9.1).
#[inline(always)]
#[must_use]
pub const fn is_covered(number: u8) -> bool {
    matches!(number, UDP_LITE | DCCP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_agree_with_each_other() {
        let mut bits = 0;
        for number in 0..=u8::MAX {
            let bit = rule_bit(number);
            assert_eq!(bits & bit, 0, "two protocols have the bit of {number}");
            bits |= bit;
            assert!(bit != 0 || !(has_ports(number) || keeps_port(number) || is_covered(number)), "{number}");
            assert!(!has_ports(number) || shortest(number) >= 8, "{number}");
            // A port that changes is in a checksum that can be told so.
            assert!(bit == 0 || keeps_port(number) != is_covered(number), "{number}");
        }
        assert_eq!(bits, 0b1_1111);
        assert_eq!(rule_bit(51), 0, "AH covers the addresses");
    }
}
