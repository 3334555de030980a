// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a description to bytes, by etherparse.

use super::{Body, Packet};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, TcpHeader, UdpHeader,
    checksum::Sum16BitWords,
};

impl Packet {
    /// The whole frame.
    ///
    /// # Panics
    ///
    /// If the Ethernet part is not set, or the description cannot be a packet.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let link = self.link.as_ref().expect("the packet has an Ethernet part");
        let mut frame = Vec::new();
        frame.extend(link.destination);
        frame.extend(link.source);
        for (protocol, control) in &link.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(0x0800u16.to_be_bytes());
        frame.extend(self.packet());
        if frame.len() < self.pad_to {
            frame.resize(self.pad_to, 0);
        }
        frame
    }

    /// The IP packet without the Ethernet part.
    ///
    /// # Panics
    ///
    /// If the description cannot be a packet: lengths beyond what fields can hold.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let payload_length = self.payload_length();
        let mut ip = Ipv4Header::new(
            payload_length,
            self.ttl,
            IpNumber(self.protocol()),
            self.source.0,
            self.destination.0,
        )
        .expect("the payload fits an IPv4 packet");
        ip.options =
            self.options.as_slice().try_into().expect("options in multiples of four bytes, at most 40");
        ip.set_payload_len(payload_length.into()).expect("the packet fits 65,535 bytes");
        ip.identification = self.id;
        ip.dscp = (self.tos >> 2).try_into().expect("six bits");
        ip.ecn = (self.tos & 3).try_into().expect("two bits");
        ip.dont_fragment = self.df;
        ip.more_fragments = self.fragment.0;
        ip.fragment_offset = self.fragment.1.try_into().expect("thirteen bits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = ip.to_bytes().to_vec();
        self.transport(&ip, &mut bytes);
        bytes
    }

    fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => 6,
            Body::Udp { .. } => 17,
            Body::Echo { .. } | Body::Query { .. } | Body::Error { .. } | Body::Icmp { .. } => 1,
            Body::Sctp => 132,
            Body::Other { protocol } | Body::Covered { protocol } => *protocol,
        }
    }

    fn payload_length(&self) -> u16 {
        let length = match &self.body {
            Body::Tcp { options, .. } => 20 + options.len() + self.data.len(),
            Body::Udp { .. }
            | Body::Echo { .. }
            | Body::Query { .. }
            | Body::Icmp { .. }
            | Body::Covered { .. } => 8 + self.data.len(),
            Body::Sctp => 12 + self.data.len(),
            Body::Error { quote, keep, .. } => 8 + quote.packet().len().min(*keep) + self.data.len(),
            Body::Other { .. } => self.data.len(),
        };
        length.try_into().expect("the payload fits an IPv4 packet")
    }

    fn transport(&self, ip: &Ipv4Header, bytes: &mut Vec<u8>) {
        let mut payload = self.data.clone();
        match &self.body {
            Body::Tcp { flags, options } => {
                let (sequence, acknowledged) = self.numbers;
                let mut tcp = TcpHeader::new(self.source.1, self.destination.1, sequence, 0xf00d);
                tcp.fin = flags & super::FIN != 0;
                tcp.syn = flags & super::SYN != 0;
                tcp.rst = flags & super::RST != 0;
                tcp.psh = flags & super::PSH != 0;
                tcp.ack = flags & super::ACK != 0;
                tcp.acknowledgment_number = acknowledged;
                tcp.set_options_raw(options).expect("options in multiples of four bytes, at most 40");
                tcp.checksum = tcp.calc_checksum_ipv4(ip, &payload).expect("a short segment");
                bytes.extend(tcp.to_bytes());
            }
            Body::Udp { checksum } => {
                let header = if *checksum {
                    UdpHeader::with_ipv4_checksum(self.source.1, self.destination.1, ip, &payload)
                } else {
                    UdpHeader::without_ipv4_checksum(self.source.1, self.destination.1, payload.len())
                };
                bytes.extend(header.expect("a short datagram").to_bytes());
            }
            Body::Echo { reply } => {
                let id = if *reply { self.destination.1 } else { self.source.1 };
                let echo = IcmpEchoHeader { id, seq: 1 };
                let kind = if *reply { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
                bytes.extend(Icmpv4Header::with_checksum(kind, &payload).to_bytes());
            }
            Body::Query { kind } => {
                let id = if kind % 2 == 0 { self.destination.1 } else { self.source.1 };
                let [high, low] = id.to_be_bytes();
                let kind = Icmpv4Type::Unknown { type_u8: *kind, code_u8: 0, bytes5to8: [high, low, 0, 1] };
                bytes.extend(Icmpv4Header::with_checksum(kind, &payload).to_bytes());
            }
            Body::Error { kind, code, rest, quote, keep } => {
                let mut quoted = quote.packet();
                quoted.truncate(*keep);
                quoted.append(&mut payload);
                payload = quoted;
                let kind = Icmpv4Type::Unknown { type_u8: *kind, code_u8: *code, bytes5to8: *rest };
                bytes.extend(Icmpv4Header::with_checksum(kind, &payload).to_bytes());
            }
            Body::Icmp { kind, code } => {
                let kind = Icmpv4Type::Unknown { type_u8: *kind, code_u8: *code, bytes5to8: [0; 4] };
                bytes.extend(Icmpv4Header::with_checksum(kind, &payload).to_bytes());
            }
            Body::Other { .. } => {}
            Body::Sctp => bytes.extend(self.sctp_header(&payload)),
            Body::Covered { protocol } => bytes.extend(self.covered_header(*protocol, &payload)),
        }
        bytes.extend(payload);
    }

    /// Ports, verification tag, and the CRC32c over the packet in which it is zero, least significant byte first (RFC 9260
    /// §3.1, appendix A).
    fn sctp_header(&self, payload: &[u8]) -> [u8; 12] {
        let [a, b] = self.source.1.to_be_bytes();
        let [c, d] = self.destination.1.to_be_bytes();
        let header = [a, b, c, d, 0xca, 0xfe, 0xf0, 0x0d, 0, 0, 0, 0];
        let [e, f, g, h] = crc32c(&[&header[..], payload].concat()).to_le_bytes();
        [a, b, c, d, 0xca, 0xfe, 0xf0, 0x0d, e, f, g, h]
    }

    /// UDP-Lite (RFC 3828) or DCCP (RFC 4340), the whole packet covered.
    fn covered_header(&self, protocol: u8, payload: &[u8]) -> [u8; 8] {
        let length = u16::try_from(8 + payload.len()).expect("a short packet");
        let [a, b] = self.source.1.to_be_bytes();
        let [c, d] = self.destination.1.to_be_bytes();
        let ports = [a, b, c, d];
        let sum = Sum16BitWords::new()
            .add_4bytes(self.source.0)
            .add_4bytes(self.destination.0)
            .add_2bytes([0, protocol])
            .add_2bytes(length.to_be_bytes())
            .add_4bytes(ports)
            .add_slice(payload);
        // Zero would be "none", which neither has.
        let [e, f] = match sum.ones_complement().to_ne_bytes() {
            [0, 0] => [0xff, 0xff],
            bytes => bytes,
        };
        [a, b, c, d, 0, 0, e, f]
    }
}

/// CRC32c (Castagnoli), bit by bit.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::super::{Link, Packet, SYN, verify::verify};

    /// RFC 3720 §B.4.
    #[test]
    fn crc32c_is_the_one_of_the_rfc() {
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(super::crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn built_frames_verify() {
        let link = Link { source: [2; 6], destination: [4; 6], tags: vec![(0x88a8, 10), (0x8100, 20)] };
        let inner = Packet::tcp(([10, 0, 0, 4], 40_000), ([192, 0, 2, 80], 80), SYN).options(&[1, 1, 1, 1]);
        for packet in [
            inner.clone(),
            Packet::udp(([10, 0, 0, 4], 1), ([192, 0, 2, 80], 2)).fill(33),
            Packet::udp(([10, 0, 0, 4], 1), ([192, 0, 2, 80], 2)).no_checksum(),
            Packet::ping(([10, 0, 0, 4], 77), [192, 0, 2, 80]),
            Packet::query(([10, 0, 0, 4], 77), ([192, 0, 2, 80], 0), 13),
            Packet::sctp(([10, 0, 0, 4], 1), ([192, 0, 2, 80], 2)),
            Packet::covered(([10, 0, 0, 4], 1), ([192, 0, 2, 80], 2), 136),
            Packet::error([192, 0, 2, 1], 3, 1, &inner),
            Packet::error([192, 0, 2, 1], 11, 0, &inner).keep(32),
        ] {
            for packet in [packet.clone(), packet.padded()] {
                let frame = packet.clone().link(link.clone()).frame();
                let parsed = verify(&frame).expect("valid");
                assert_eq!(parsed.tags, [(0x88a8, 10), (0x8100, 20)]);
                assert_eq!(parsed.source.0, packet.source.0);
            }
        }
    }
}
