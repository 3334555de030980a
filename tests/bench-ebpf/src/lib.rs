// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Map layouts shared by the benchmark's BPF programs and the runner that drives them.
//!
//! Halfwords called *wire halves* are 16-bit loads of the bytes as they stand on the wire. The Internet checksum
//! does not care about byte order (RFC 1071 §2 B), so sums of wire halves, once folded and complemented, are
//! stored as they are.
#![no_std]

use bytemuck::{Pod, Zeroable};

/// Ethernet, IPv4 without options, and UDP headers of a generated frame, in wire halves.
pub const HEADER_HALVES: usize = 21;

/// Index of the first wire half of each header field that the generator fills in.
pub mod half {
    /// Type of service, with version and header length before it.
    pub const TOS: usize = 7;
    /// IPv4 identification: the [tag](super::Generator) of a generated packet.
    pub const TAG: usize = 9;
    /// IPv4 header checksum.
    pub const IP_CHECKSUM: usize = 12;
    /// IPv4 source address, two halves.
    pub const SOURCE: usize = 13;
    /// IPv4 destination address, two halves.
    pub const DESTINATION: usize = 15;
    /// UDP or TCP source port.
    pub const SOURCE_PORT: usize = 17;
    /// UDP or TCP destination port.
    pub const DESTINATION_PORT: usize = 18;
    /// UDP checksum.
    pub const UDP_CHECKSUM: usize = 20;
    /// TCP checksum.
    pub const TCP_CHECKSUM: usize = 25;
}

/// UDP port at the destination of every generated flow; the sink counts nothing else.
pub const DESTINATION_PORT: u16 = 9000;

/// Longest frame that the sink can verify, Ethernet header included, in bytes.
pub const MAX_FRAME: usize = 1514;

/// Where the generator stands in its cycle of flows. A flow is the triple (backend, destination, round), and
/// neighbouring flows differ in the backend, so that no gateway meets a convenient order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Cursor {
    /// Index of the source address.
    pub backend: u32,
    /// Index of the destination address.
    pub destination: u32,
    /// Distance from the first source port of this backend.
    pub round: u32,
}

/// Headers of a frame and what never changes of its checksums.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Template {
    /// Frame header in wire halves; addresses, ports, tag and checksums are overwritten for every frame.
    pub header: [u16; HEADER_HALVES],
    /// Keeps the following fields aligned.
    pub pad: u16,
    /// Sum of the wire halves of the IPv4 header that never change.
    pub ip_sum: u32,
    /// Sum of the wire halves of UDP pseudo header, UDP header and payload that never change.
    pub udp_sum: u32,
    /// Makes the size a multiple of 8.
    pub reserved: u32,
}

/// [`Generator::direction`]: from backends to destinations.
pub const OUTBOUND: u32 = 0;
/// [`Generator::direction`]: from destinations to where the sink saw the flow come from.
pub const INBOUND: u32 = 1;
/// [`Generator::direction`]: one packet of each kind of every flow, in turn.
pub const BOTH: u32 = 2;

/// Everything the generator program reads or writes; element 0 of the per-CPU map `GENERATOR`.
///
/// Every packet carries its flow's original source port as IPv4 identification, its *tag*: that is what the far side
/// knows the flow by when the port has been translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Generator {
    /// Frames from backends.
    pub outbound: Template,
    /// Frames from destinations.
    pub inbound: Template,
    /// Address of backend 0, host byte order.
    pub source_base: u32,
    /// Address of destination 0, host byte order.
    pub destination_base: u32,
    /// Source addresses in use.
    pub backends: u32,
    /// Destination addresses in use.
    pub destinations: u32,
    /// First source port of backend 0, host byte order.
    pub port_base: u32,
    /// Source ports between the first of one backend and the first of the next.
    pub port_stride: u32,
    /// Number of the flow that the cycle starts with: its place in the map `LEARNT`.
    pub first: u32,
    /// Flow that the cycle starts with.
    pub start: Cursor,
    /// Flows in the cycle, at least 1.
    pub flows: u32,
    /// Flow of the next frame.
    pub next: Cursor,
    /// Flows left before the cycle starts again, at least 1.
    pub left: u32,
    /// [`OUTBOUND`], [`INBOUND`] or [`BOTH`].
    pub direction: u32,
    /// With [`BOTH`]: 1 when the next frame is the flow's inbound one.
    pub turn: u32,
}

/// Type of service of an attacker's packets, by which the sink tells them from the generator's.
pub const ATTACK_TOS: u8 = 0x04;
/// Ethernet, IPv4 and TCP headers, or UDP's and the first 12 bytes of payload, in wire halves.
pub const ATTACK_HALVES: usize = 27;

/// Everything the attacking program reads or writes; element 0 of the per-CPU map `ATTACK`.
///
/// Packet number n has source port `source_port + (n & source_mask)`, and with m = n >> `shift` destination port
/// `destination_port + (m & port_mask)` and address `destination + ((m >> port_shift) & destination_mask)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Attack {
    /// Frame header in wire halves; what varies is overwritten for every frame.
    pub header: [u16; ATTACK_HALVES],
    /// 1: TCP, 0: UDP.
    pub tcp: u16,
    /// Sum of the wire halves of the IPv4 header that never change.
    pub ip_sum: u32,
    /// Sum of the wire halves of pseudo header, transport header and payload that never change.
    pub transport_sum: u32,
    /// Number of the next packet.
    pub number: u32,
    /// First source port, host byte order.
    pub source_port: u32,
    /// Source ports in use less one, a power of two less one.
    pub source_mask: u32,
    /// Bits of the number that the source port takes.
    pub shift: u32,
    /// First destination port, host byte order.
    pub destination_port: u32,
    /// Destination ports in use less one, a power of two less one.
    pub port_mask: u32,
    /// Bits of the number that the destination port takes.
    pub port_shift: u32,
    /// First destination address, host byte order.
    pub destination: u32,
    /// Destination addresses in use less one, a power of two less one.
    pub destination_mask: u32,
    /// Makes the size a multiple of 8.
    pub reserved: u32,
}

/// Index in `SINK` and in `TARGET` of packets from backends.
pub const OUTWARD: u32 = 0;
/// Index in `SINK` and in `TARGET` of packets to backends.
pub const HOMEWARD: u32 = 1;

/// What a sink counted, and its settings; elements [`OUTWARD`] and [`HOMEWARD`] of the per-CPU map `SINK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sink {
    /// Generated packets that arrived.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Outward: packets whose source address is a frontend.
    pub from_frontend: u64,
    /// Outward: packets whose source address is a backend's private one.
    pub from_backend: u64,
    /// Homeward: packets for a backend's private address and the port that the flow began with.
    pub to_backend: u64,
    /// Packets whose length and checksums were verified.
    pub checked: u64,
    /// Verified packets that were wrong.
    pub bad: u64,
    /// Flows whose translated source was seen for the first time.
    pub learnt: u64,
    /// An attacker's packets that arrived.
    pub attack: u64,
    /// First frontend address, host byte order.
    pub frontend: u32,
    /// Frontend addresses, from the first on.
    pub frontends: u32,
    /// Network that the backends are in, host byte order.
    pub backend_net: u32,
    /// Mask of that network, host byte order.
    pub backend_mask: u32,
    /// A packet is verified when its number, and-ed with this, is zero.
    pub check_mask: u32,
    /// 1: note down the translated source of every flow in `LEARNT`.
    pub learn: u32,
    /// As in [`Generator`], to find a flow's number from its packet.
    pub destination_base: u32,
    /// As in [`Generator`].
    pub backends: u32,
    /// As in [`Generator`].
    pub destinations: u32,
    /// As in [`Generator`].
    pub port_base: u32,
    /// As in [`Generator`].
    pub port_stride: u32,
    /// Makes the size a multiple of 8.
    pub reserved: u32,
}

/// A translated source as element of `LEARNT`: address and port in host byte order. Zero: not seen.
#[inline(always)]
pub const fn learnt(address: u32, port: u16) -> u64 {
    ((address as u64) << 32) | port as u64
}

/// Folds a sum of wire halves into the 16-bit complement that goes into a checksum field.
#[inline(always)]
pub const fn checksum(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let folded = sum as u16;
    !folded
}
