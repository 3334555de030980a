// SPDX-License-Identifier: MIT OR Apache-2.0
//! An independent look at a frame: every length and every checksum in it, the quoted packet's included.

use super::{End, build::crc32c};
use etherparse::{Icmpv4Slice, Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice, checksum::Sum16BitWords};

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// VLAN tags, outermost first.
    pub tags: Vec<(u16, u16)>,
    /// Sender. Port zero where there is none; the identifier of an echo request.
    pub source: End,
    /// Receiver. Port zero where there is none; the identifier of an echo reply.
    pub destination: End,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// The IP packet, without padding.
    pub packet: Vec<u8>,
    /// Type, code and bytes 4 to 7 of an ICMP message.
    pub icmp: Option<(u8, u8, [u8; 4])>,
    /// Sender and receiver in the packet that an ICMP error quotes.
    pub quoted: Option<(End, End)>,
    /// Offset in `packet` of what an ICMP error quotes.
    pub quote_at: Option<usize>,
}

/// Parses a frame and checks every length and checksum.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn verify(frame: &[u8]) -> Result<Parsed, String> {
    let mut tags = Vec::new();
    let mut at = 12;
    let packet = loop {
        let kind = word(frame, at)?;
        match kind {
            0x8100 | 0x88a8 => {
                tags.push((kind, word(frame, at + 2)?));
                at += 4;
            }
            0x0800 => break &frame[at + 2..],
            other => return Err(format!("ethertype {other:#06x}")),
        }
    };
    let parts = ip(packet, false)?;
    Ok(Parsed {
        source_mac: frame[6..12].try_into().map_err(|_| "short frame")?,
        destination_mac: frame[..6].try_into().map_err(|_| "short frame")?,
        tags,
        source: parts.source,
        destination: parts.destination,
        protocol: parts.protocol,
        ttl: parts.ttl,
        packet: packet[..parts.length].to_vec(),
        icmp: parts.icmp,
        quoted: parts.quoted,
        quote_at: parts.quote_at,
    })
}

struct Parts {
    source: End,
    destination: End,
    protocol: u8,
    ttl: u8,
    length: usize,
    icmp: Option<(u8, u8, [u8; 4])>,
    quoted: Option<(End, End)>,
    quote_at: Option<usize>,
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    let pair = bytes.get(at..at + 2).ok_or_else(|| format!("ends before byte {}", at + 2))?;
    Ok(u16::from_be_bytes([pair[0], pair[1]]))
}

/// `quoted`: the packet stands in an ICMP error and may be cut off.
fn ip(packet: &[u8], quoted: bool) -> Result<Parts, String> {
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|error| format!("IP header: {error}"))?;
    if Sum16BitWords::new().add_slice(header.slice()).ones_complement() != 0 {
        return Err(format!("IP checksum {:#06x} is wrong", header.header_checksum()));
    }
    let length = usize::from(header.total_len());
    if packet.len() < length && !quoted {
        return Err(format!("total length {length} in a frame with {} bytes of it", packet.len()));
    }
    let whole = packet.len() >= length && !header.is_fragmenting_payload();
    let end = length.min(packet.len());
    let payload = packet.get(header.slice().len()..end).ok_or("total length shorter than the header")?;
    let mut parts = Parts {
        source: (header.source(), 0),
        destination: (header.destination(), 0),
        protocol: header.protocol().0,
        ttl: header.ttl(),
        length: end,
        icmp: None,
        quoted: None,
        quote_at: None,
    };
    if header.fragments_offset().value() != 0 {
        return Ok(parts);
    }
    match header.protocol().0 {
        6 | 17 => {
            parts.source.1 = word(payload, 0)?;
            parts.destination.1 = word(payload, 2)?;
            if whole {
                transport(&header, payload)?;
            }
        }
        33 | 132 | 136 if payload.len() >= 4 => {
            parts.source.1 = word(payload, 0)?;
            parts.destination.1 = word(payload, 2)?;
            if whole {
                other(&header, payload)?;
            }
        }
        1 => icmp(payload, whole, header.slice().len(), &mut parts)?,
        _ => {}
    }
    Ok(parts)
}

fn transport(ip: &Ipv4HeaderSlice<'_>, payload: &[u8]) -> Result<(), String> {
    let checksum = if ip.protocol().0 == 6 {
        let tcp = TcpHeaderSlice::from_slice(payload).map_err(|error| format!("TCP header: {error}"))?;
        tcp.checksum()
    } else {
        let udp = UdpHeaderSlice::from_slice(payload).map_err(|error| format!("UDP header: {error}"))?;
        if usize::from(udp.length()) != payload.len() {
            return Err(format!("UDP length {} of {} bytes", udp.length(), payload.len()));
        }
        if udp.checksum() == 0 {
            return Ok(());
        }
        udp.checksum()
    };
    let length = u16::try_from(payload.len()).map_err(|_| "too long")?;
    let mut sum = Sum16BitWords::new();
    sum = sum.add_4bytes(ip.source());
    sum = sum.add_4bytes(ip.destination());
    sum = sum.add_2bytes([0, ip.protocol().0]).add_2bytes(length.to_be_bytes()).add_slice(payload);
    match sum.ones_complement() {
        0 => Ok(()),
        _ => Err(format!("checksum {checksum:#06x} of protocol {} is wrong", ip.protocol().0)),
    }
}

/// The CRC32c of SCTP, or the checksum of what covers the addresses, over everything.
fn other(ip: &Ipv4HeaderSlice<'_>, payload: &[u8]) -> Result<(), String> {
    let number = ip.protocol().0;
    if number == 132 {
        let Some(found) = payload.get(8..12) else { return Ok(()) };
        let zeroed = [&payload[..8], &[0; 4], &payload[12..]].concat();
        return if crc32c(&zeroed).to_le_bytes() == found { Ok(()) } else { Err("wrong CRC32c".to_owned()) };
    }
    let length = u16::try_from(payload.len()).map_err(|_| "too long")?;
    let sum = Sum16BitWords::new()
        .add_4bytes(ip.source())
        .add_4bytes(ip.destination())
        .add_2bytes([0, number])
        .add_2bytes(length.to_be_bytes())
        .add_slice(payload);
    if sum.ones_complement() == 0 { Ok(()) } else { Err(format!("wrong checksum of protocol {number}")) }
}

fn icmp(payload: &[u8], whole: bool, header_length: usize, parts: &mut Parts) -> Result<(), String> {
    let message = Icmpv4Slice::from_slice(payload).map_err(|error| format!("ICMP header: {error}"))?;
    if whole && Sum16BitWords::new().add_slice(payload).ones_complement() != 0 {
        return Err(format!("ICMP checksum {:#06x} is wrong", message.checksum()));
    }
    let rest = message.bytes5to8();
    let id = u16::from_be_bytes([rest[0], rest[1]]);
    parts.icmp = Some((message.type_u8(), message.code_u8(), rest));
    match message.type_u8() {
        8 | 13 | 15 | 17 => parts.source.1 = id,
        0 | 14 | 16 | 18 => parts.destination.1 = id,
        3 | 11 | 12 => {
            let inner = ip(&payload[8..], true).map_err(|error| format!("quoted: {error}"))?;
            parts.quoted = Some((inner.source, inner.destination));
            parts.quote_at = Some(header_length + 8);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ACK, Link, Packet};
    use super::*;

    /// The verifier itself must notice every single flipped bit that a checksum covers.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let link = Link { source: [2; 6], destination: [4; 6], tags: vec![] };
        let inner = Packet::udp(([203, 0, 113, 10], 1024), ([192, 0, 2, 80], 53)).fill(5);
        for packet in [
            Packet::tcp(([10, 0, 0, 4], 40_000), ([192, 0, 2, 80], 80), ACK).fill(7),
            Packet::error([192, 0, 2, 1], 3, 3, &inner),
        ] {
            let frame = packet.link(link.clone()).frame();
            verify(&frame).expect("valid as built");
            for bit in 14 * 8..frame.len() * 8 {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert!(verify(&broken).is_err(), "bit {bit} of {frame:02x?}");
            }
        }
    }
}
