// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets as data: a fluent description that an independent library (etherparse) turns into bytes.
//!
//! Nothing here uses the project's own packet arithmetic, so that a mistake in it cannot hide itself.

pub mod build;
pub mod diff;
pub mod pieces;
pub mod verify;

/// Address and port (or ICMP identifier), host byte order.
pub type End = ([u8; 4], u16);

/// Ethernet addresses and VLAN tags of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source MAC address.
    pub source: [u8; 6],
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Tags, outermost first: protocol (0x8100, 0x88a8) and control information.
    pub tags: Vec<(u16, u16)>,
}

/// What an IPv4 packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp {
        /// Byte 13 of the header.
        flags: u8,
        /// Options, a multiple of four bytes.
        options: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// False: sent with checksum zero, "none".
        checksum: bool,
    },
    /// ICMP echo; the identifier is the source port of a request and the destination port of a reply.
    Echo {
        /// Reply instead of request.
        reply: bool,
    },
    /// ICMP error that quotes a packet.
    Error {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// Bytes 4 to 7: unused, MTU or pointer.
        rest: [u8; 4],
        /// The quoted packet.
        quote: Box<Packet>,
        /// Most bytes of it that are quoted.
        keep: usize,
    },
    /// An ICMP query other than echo; the identifier is where it is in [`Body::Echo`].
    Query {
        /// ICMP type: odd ones ask (13, 15, 17), even ones answer.
        kind: u8,
    },
    /// Another ICMP message.
    Icmp {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
    /// Another protocol.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
    /// Another protocol with ports, whose checksum in bytes 6 and 7 covers the addresses (UDP-Lite, DCCP).
    Covered {
        /// IP protocol number.
        protocol: u8,
    },
    /// SCTP, with a CRC32c over everything behind the IP header (RFC 9260 §6.8).
    Sctp,
}

/// An IPv4 packet, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Ethernet part; `None`: the runner of cases fills it in.
    pub link: Option<Link>,
    /// Sender.
    pub source: End,
    /// Receiver.
    pub destination: End,
    /// Time to live.
    pub ttl: u8,
    /// IP identification.
    pub id: u16,
    /// Type of service byte.
    pub tos: u8,
    /// "Don't fragment".
    pub df: bool,
    /// "More fragments" and the fragment offset in units of 8 bytes.
    pub fragment: (bool, u16),
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload of the transport.
    pub data: Vec<u8>,
    /// What is carried.
    pub body: Body,
    /// TCP: sequence and acknowledgement number.
    pub numbers: (u32, u32),
    /// Zeros are added to the frame up to this length.
    pub pad_to: usize,
}

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;
/// ICMP destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// ICMP time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

impl Packet {
    fn new(source: End, destination: End, body: Body) -> Self {
        Self {
            link: None,
            source,
            destination,
            ttl: 64,
            id: 0x1234,
            tos: 0,
            df: false,
            fragment: (false, 0),
            options: Vec::new(),
            data: Vec::new(),
            body,
            numbers: (0x0102_0304, 0x0506_0708),
            pad_to: 0,
        }
    }

    /// A TCP segment without payload.
    #[must_use]
    pub fn tcp(source: End, destination: End, flags: u8) -> Self {
        Self::new(source, destination, Body::Tcp { flags, options: Vec::new() })
    }

    /// A UDP datagram with a checksum and four bytes of payload.
    #[must_use]
    pub fn udp(source: End, destination: End) -> Self {
        Self::new(source, destination, Body::Udp { checksum: true }).data(b"ping")
    }

    /// An echo request; `source.1` is the identifier.
    #[must_use]
    pub fn ping(source: End, destination: [u8; 4]) -> Self {
        Self::new(source, (destination, 0), Body::Echo { reply: false }).data(b"abcdefgh")
    }

    /// An echo reply; `destination.1` is the identifier.
    #[must_use]
    pub fn pong(source: [u8; 4], destination: End) -> Self {
        Self::new((source, 0), destination, Body::Echo { reply: true }).data(b"abcdefgh")
    }

    /// An ICMP error from `source` to the sender of `quote`, which is quoted whole.
    #[must_use]
    pub fn error(source: [u8; 4], kind: u8, code: u8, quote: &Self) -> Self {
        let destination = (quote.source.0, 0);
        let body = Body::Error { kind, code, rest: [0; 4], quote: Box::new(quote.clone()), keep: usize::MAX };
        Self::new((source, 0), destination, body)
    }

    /// An ICMP query of another type than echo, with the 12 bytes of three timestamps; the identifier is the sender's port
    /// of what asks, and the receiver's of what answers.
    #[must_use]
    pub fn query(source: End, destination: End, kind: u8) -> Self {
        Self::new(source, destination, Body::Query { kind }).data(b"three stamps")
    }

    /// An SCTP packet with 16 bytes after the common header.
    #[must_use]
    pub fn sctp(source: End, destination: End) -> Self {
        Self::new(source, destination, Body::Sctp).data(b"chunks, sixteen.")
    }

    /// An ICMP message that is neither echo nor error.
    #[must_use]
    pub fn icmp(source: [u8; 4], destination: [u8; 4], kind: u8, code: u8) -> Self {
        Self::new((source, 0), (destination, 0), Body::Icmp { kind, code }).data(&[0; 12])
    }

    /// A packet of another protocol.
    #[must_use]
    pub fn other(source: [u8; 4], destination: [u8; 4], protocol: u8) -> Self {
        Self::new((source, 0), (destination, 0), Body::Other { protocol }).data(&[7; 24])
    }

    /// A packet of another protocol with ports and a checksum that covers the addresses.
    #[must_use]
    pub fn covered(source: End, destination: End, protocol: u8) -> Self {
        Self::new(source, destination, Body::Covered { protocol }).data(&[7; 24])
    }

    /// Sets the payload.
    #[must_use]
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// Sets a payload of `length` bytes that are all different from their neighbours.
    #[must_use]
    pub fn fill(mut self, length: usize) -> Self {
        self.data = (0..length).map(|at| (at % 251) as u8).collect();
        self
    }

    /// Sets the time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The same packet one hop later.
    #[must_use]
    pub fn hop(self) -> Self {
        let ttl = self.ttl - 1;
        self.ttl(ttl)
    }

    /// Replaces the source.
    #[must_use]
    pub fn from(mut self, source: End) -> Self {
        self.source = source;
        self
    }

    /// Replaces the destination.
    #[must_use]
    pub fn to(mut self, destination: End) -> Self {
        self.destination = destination;
        self
    }

    /// Sets "don't fragment".
    #[must_use]
    pub fn df(mut self) -> Self {
        self.df = true;
        self
    }

    /// Sets the IP identification.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Makes it a fragment: "more fragments", offset in units of 8 bytes.
    #[must_use]
    pub fn fragment(mut self, more: bool, offset: u16) -> Self {
        self.fragment = (more, offset);
        self
    }

    /// Sets IP options; the length must be a multiple of four.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Sets TCP options; the length must be a multiple of four. Nothing happens to other packets.
    #[must_use]
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = bytes.to_vec();
        }
        self
    }

    /// Replaces the TCP flags. Nothing happens to other packets.
    #[must_use]
    pub fn flags(mut self, new: u8) -> Self {
        if let Body::Tcp { flags, .. } = &mut self.body {
            *flags = new;
        }
        self
    }

    /// Sets the TCP sequence and acknowledgement numbers. Nothing happens to other packets.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledged: u32) -> Self {
        self.numbers = (sequence, acknowledged);
        self
    }

    /// Sends UDP without a checksum.
    #[must_use]
    pub fn no_checksum(mut self) -> Self {
        self.body = Body::Udp { checksum: false };
        self
    }

    /// Quotes at most `bytes` bytes in an ICMP error.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        if let Body::Error { keep, .. } = &mut self.body {
            *keep = bytes;
        }
        self
    }

    /// Sets bytes 4 to 7 of an ICMP error.
    #[must_use]
    pub fn rest(mut self, bytes: [u8; 4]) -> Self {
        if let Body::Error { rest, .. } = &mut self.body {
            *rest = bytes;
        }
        self
    }

    /// Pads the frame with zeros to the Ethernet minimum of 60 bytes.
    #[must_use]
    pub fn padded(mut self) -> Self {
        self.pad_to = 60;
        self
    }

    /// Sets the Ethernet part.
    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = Some(link);
        self
    }

    /// Replaces the IP identification, in the quoted packet too.
    pub fn map_ids(&mut self, change: &mut dyn FnMut(u16) -> u16) {
        self.id = change(self.id);
        if let Body::Error { quote, .. } = &mut self.body {
            quote.map_ids(change);
        }
    }

    /// Replaces every port and identifier, in the quoted packet too.
    pub fn map_ports(&mut self, change: &mut dyn FnMut(u16) -> u16) {
        self.source.1 = change(self.source.1);
        self.destination.1 = change(self.destination.1);
        if let Body::Error { quote, .. } = &mut self.body {
            quote.map_ports(change);
        }
    }
}
