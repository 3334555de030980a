// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragmentation and reassembly (RFC 791 §3.2), written apart from the kernel's and from the code under test.

use std::collections::BTreeMap;

use etherparse::Ipv4Header;

/// Cuts an IPv4 packet without options into fragments of at most `payload` bytes, a multiple of eight.
///
/// # Panics
///
/// When that is no packet, or no such number.
#[must_use]
pub fn split(packet: &[u8], payload: usize) -> Vec<Vec<u8>> {
    assert!(payload > 0 && payload.is_multiple_of(8), "fragments of {payload} bytes");
    let (header, body) = Ipv4Header::from_slice(packet).expect("an IPv4 packet");
    let count = body.len().div_ceil(payload);
    let piece = |(number, bytes): (usize, &[u8])| {
        let mut header = header.clone();
        header.more_fragments = number + 1 < count || header.more_fragments;
        let offset = usize::from(header.fragment_offset.value()) + number * payload / 8;
        header.fragment_offset =
            u16::try_from(offset).ok().and_then(|offset| offset.try_into().ok()).expect("thirteen bits");
        header.set_payload_len(bytes.len()).expect("shorter than before");
        header.header_checksum = header.calc_header_checksum();
        let mut out = header.to_bytes().to_vec();
        out.extend(bytes);
        out
    };
    body.chunks(payload).enumerate().map(piece).collect()
}

/// Puts fragments of one datagram together, in whatever order they are.
///
/// # Errors
///
/// When one is missing, there twice, or of another datagram.
pub fn join(pieces: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut found: BTreeMap<usize, &[u8]> = BTreeMap::new();
    let (mut whole, mut end): (Option<Ipv4Header>, Option<usize>) = (None, None);
    for piece in pieces {
        let (header, body) = Ipv4Header::from_slice(piece).map_err(|error| error.to_string())?;
        if header.header_checksum != header.calc_header_checksum() {
            return Err("a fragment's header checksum is wrong".to_owned());
        }
        let length = usize::from(header.total_len) - header.header_len();
        let body = body.get(..length).ok_or("a fragment is shorter than it says")?;
        let offset = usize::from(header.fragment_offset.value()) * 8;
        if !header.more_fragments {
            end = Some(offset + length);
        }
        if found.insert(offset, body).is_some() {
            return Err(format!("two fragments at offset {offset}"));
        }
        let datagram =
            |header: &Ipv4Header| (header.source, header.destination, header.identification, header.protocol);
        if let Some(other) = &whole
            && datagram(other) != datagram(&header)
        {
            return Err(format!("fragments of two datagrams: {other:?}, {header:?}"));
        }
        if offset == 0 || whole.is_none() {
            whole = Some(header);
        }
    }
    let mut body: Vec<u8> = Vec::new();
    for (offset, bytes) in found {
        if offset != body.len() {
            return Err(format!("bytes {} to {offset} are missing", body.len()));
        }
        body.extend(bytes);
    }
    if end != Some(body.len()) {
        return Err(format!("it ends at {end:?}, there are {} bytes", body.len()));
    }
    let mut header = whole.ok_or("no fragments")?;
    header.more_fragments = false;
    header.fragment_offset = 0.try_into().map_err(|_| "zero")?;
    header.set_payload_len(body.len()).map_err(|error| error.to_string())?;
    header.header_checksum = header.calc_header_checksum();
    let mut packet = header.to_bytes().to_vec();
    packet.extend(body);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::*;

    #[test]
    fn there_and_back() {
        let packet = Packet::udp(([10, 0, 0, 4], 40_000), ([192, 0, 2, 80], 53)).fill(1000).packet();
        let mut pieces = split(&packet, 64);
        assert_eq!(pieces.len(), 16);
        pieces.reverse();
        assert_eq!(join(&pieces), Ok(packet));
        assert!(join(&pieces[1..]).is_err(), "the last one is missing");
        assert!(join(&pieces[..15]).is_err(), "the first one is missing");
        pieces.push(pieces[0].clone());
        assert!(join(&pieces).is_err(), "one is there twice");
    }
}
