// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the gateway itself sends, ICMP errors and RST: built again by etherparse from what they must say, and compared byte
//! for byte.

use crate::packet::{
    diff::diff,
    verify::{Parsed, verify},
};

/// What an answer has to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    /// The frame that is answered.
    pub(super) frame: &'a [u8],
    /// ICMP type, code, bytes 4 to 7.
    pub(super) message: (u8, u8, [u8; 4]),
    /// The gateway's address.
    pub(super) source: [u8; 4],
}

impl Answer<'_> {
    /// Checks a frame that is supposed to be the answer.
    pub(super) fn check(&self, found: &[u8]) -> Result<(), String> {
        let asked = verify(self.frame).map_err(|error| format!("the test's own packet: {error}"))?;
        let answer = verify(found).map_err(|error| format!("the answer: {error}"))?;
        if answer.icmp != Some(self.message) {
            return Err(format!("the answer says {:?}, expected {:?}", answer.icmp, self.message));
        }
        returns(&asked, &answer)?;
        let header = usize::from(asked.packet[0] & 15) * 4;
        let at = answer.quote_at.ok_or("the answer quotes nothing")?;
        let quote = answer.packet.len() - at;
        // RFC 792: the header and 8 bytes at least; RFC 1812 §4.3.2.3: as much as fits 576 bytes at most.
        if quote < (header + 8).min(asked.packet.len()) || answer.packet.len() > 576 {
            return Err(format!("{quote} bytes quoted of {}", asked.packet.len()));
        }
        let (kind, code, rest) = self.message;
        let mut ip = etherparse::Ipv4Header::new(
            u16::try_from(8 + quote).map_err(|_| "too long")?,
            answer.ttl,
            etherparse::IpNumber::ICMP,
            self.source,
            asked.source.0,
        )
        .map_err(|error| error.to_string())?;
        like_theirs(&mut ip, &answer.packet)?;
        let kind = etherparse::Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
        let quoted = &asked.packet[..quote];
        let mut expected = ip.to_bytes().to_vec();
        expected.extend(etherparse::Icmpv4Header::with_checksum(kind, quoted).to_bytes());
        expected.extend(quoted);
        if expected == answer.packet { Ok(()) } else { Err(diff(&expected, &answer.packet)) }
    }
}

/// Checks a frame that is supposed to be the RST that answers `asked` (RFC 9293 §3.10.7.1).
pub(super) fn check_reset(asked: &[u8], found: &[u8]) -> Result<(), String> {
    let asked = verify(asked).map_err(|error| format!("the test's own packet: {error}"))?;
    let answer = verify(found).map_err(|error| format!("the answer: {error}"))?;
    returns(&asked, &answer)?;
    let asked_ip = etherparse::Ipv4HeaderSlice::from_slice(&asked.packet).map_err(|e| e.to_string())?;
    let segment = &asked.packet[asked_ip.slice().len()..];
    let tcp = etherparse::TcpHeaderSlice::from_slice(segment).map_err(|error| error.to_string())?;
    let mut reset =
        etherparse::TcpHeader::new(tcp.destination_port(), tcp.source_port(), tcp.acknowledgment_number(), 0);
    reset.rst = true;
    if !tcp.ack() {
        let data = segment.len() - tcp.slice().len();
        let length =
            u32::try_from(data).map_err(|_| "too long")? + u32::from(tcp.syn()) + u32::from(tcp.fin());
        reset.sequence_number = 0;
        reset.ack = true;
        reset.acknowledgment_number = tcp.sequence_number().wrapping_add(length);
    }
    let mut ip = etherparse::Ipv4Header::new(
        20,
        answer.ttl,
        etherparse::IpNumber::TCP,
        asked.destination.0,
        asked.source.0,
    )
    .map_err(|error| error.to_string())?;
    like_theirs(&mut ip, &answer.packet)?;
    reset.checksum = reset.calc_checksum_ipv4(&ip, &[]).map_err(|error| error.to_string())?;
    let expected = [ip.to_bytes().to_vec(), reset.to_bytes().to_vec()].concat();
    if expected == answer.packet { Ok(()) } else { Err(diff(&expected, &answer.packet)) }
}

/// Whether an answer goes back to where the packet came from, with room for the way.
fn returns(asked: &Parsed, answer: &Parsed) -> Result<(), String> {
    if answer.source_mac != asked.destination_mac || answer.destination_mac != asked.source_mac {
        return Err("the answer does not go back to where the packet came from".to_owned());
    }
    if answer.tags.iter().map(tag).ne(asked.tags.iter().map(tag)) {
        return Err(format!("the answer has tags {:x?}, the packet {:x?}", answer.tags, asked.tags));
    }
    if answer.ttl < 64 {
        return Err(format!("the answer starts with TTL {}", answer.ttl));
    }
    Ok(())
}

/// Takes over what is the gateway's free choice: identification, DF and type of service.
fn like_theirs(ip: &mut etherparse::Ipv4Header, packet: &[u8]) -> Result<(), String> {
    let theirs = etherparse::Ipv4HeaderSlice::from_slice(packet).map_err(|error| error.to_string())?;
    ip.identification = theirs.identification();
    ip.dont_fragment = theirs.dont_fragment();
    (ip.dscp, ip.ecn) = (theirs.dcp(), theirs.ecn());
    ip.header_checksum = ip.calc_header_checksum();
    Ok(())
}

/// Protocol and VLAN number: priority bits are not part of where a frame belongs.
fn tag(tag: &(u16, u16)) -> (u16, u16) {
    (tag.0, tag.1 & 0xfff)
}
