// SPDX-License-Identifier: MIT OR Apache-2.0
//! RST segments that are made from nothing but addresses and numbers.

use super::{checksum::fold, state::tcp_flag};

/// Bytes of an IPv4 header and a TCP header without options.
pub const LENGTH: usize = 40;
const IPV4: usize = 20;
const TCP: u8 = 6;

/// An end of a connection as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Address, network byte order.
    pub address: [u8; 4],
    /// Port, network byte order.
    pub port: [u8; 2],
}

/// The IPv4 packet with which the end `from` resets the connection towards `to` (RFC 9293 §3.10.5, RFC 5961 §3.2: a receiver
/// believes the number that it expects next). It acknowledges what it has received, for receivers that look at that, too.
/// No timestamp: a RST is believed without (RFC 7323 §3.2).
#[must_use]
pub fn packet(from: End, to: End, sequence: u32, acknowledged: u32) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    let (ip, tcp) = packet.split_at_mut(IPV4);
    // Not to be fragmented, so that the identification is free (RFC 6864 §4.1); TTL 64.
    ip[..12].copy_from_slice(&[0x45, 0, 0, LENGTH as u8, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
    ip[12..16].copy_from_slice(&from.address);
    ip[16..20].copy_from_slice(&to.address);
    let checksum = !sum(ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    tcp[..2].copy_from_slice(&from.port);
    tcp[2..4].copy_from_slice(&to.port);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = tcp_flag::RST | tcp_flag::ACK;
    let pseudo = sum(&ip[12..20], u32::from(TCP) + (LENGTH - IPV4) as u32);
    let checksum = !sum(tcp, u32::from(pseudo));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Ones' complement sum of big-endian words, an even number of bytes.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    fold(words.fold(start, |sum, word| sum + word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `packet_tcp::a_made_reset_is_as_another_library_makes_it` compares every byte.
    #[test]
    fn checksums_add_up() {
        let from = End { address: [203, 0, 113, 10], port: 1031u16.to_be_bytes() };
        let to = End { address: [198, 51, 100, 1], port: 80u16.to_be_bytes() };
        let found = packet(from, to, 0x0102_0304, 0xfffe_fdfc);
        assert_eq!(sum(&found[..20], 0), 0xffff);
        let pseudo = sum(&found[12..20], 6 + 20);
        assert_eq!(sum(&found[20..], u32::from(pseudo)), 0xffff);
    }
}
