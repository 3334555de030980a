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
    /// IPv4 header checksum.
    pub const IP_CHECKSUM: usize = 12;
    /// IPv4 source address, two halves.
    pub const SOURCE: usize = 13;
    /// IPv4 destination address, two halves.
    pub const DESTINATION: usize = 15;
    /// UDP source port.
    pub const SOURCE_PORT: usize = 17;
    /// UDP checksum.
    pub const UDP_CHECKSUM: usize = 20;
}

/// UDP port that every generated packet is sent to; the sink counts nothing else.
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

/// Everything the generator program reads or writes; element 0 of `GENERATOR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Generator {
    /// Frame header in wire halves; the fields named in [`half`] are overwritten for every frame.
    pub header: [u16; HEADER_HALVES],
    /// Keeps the following fields aligned.
    pub pad: u16,
    /// Sum of the wire halves of the IPv4 header that never change.
    pub ip_sum: u32,
    /// Sum of the wire halves of UDP pseudo header, UDP header and payload that never change.
    pub udp_sum: u32,
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
    /// Flow that the cycle starts with.
    pub start: Cursor,
    /// Flows in the cycle, at least 1.
    pub flows: u32,
    /// Flow of the next frame.
    pub next: Cursor,
    /// Flows left before the cycle starts again, at least 1.
    pub left: u32,
}

/// What the sink counted, and its settings; element 0 of the per-CPU map `SINK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sink {
    /// Generated packets that arrived.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Packets whose source address is the frontend.
    pub from_frontend: u64,
    /// Packets whose source address is a backend's private one.
    pub from_backend: u64,
    /// Packets whose length and checksums were verified.
    pub checked: u64,
    /// Verified packets that were wrong.
    pub bad: u64,
    /// Frontend address, host byte order.
    pub frontend: u32,
    /// Network that the backends are in, host byte order.
    pub backend_net: u32,
    /// Mask of that network, host byte order.
    pub backend_mask: u32,
    /// A packet is verified when its number, and-ed with this, is zero.
    pub check_mask: u32,
}

/// Folds a sum of wire halves into the 16-bit complement that goes into a checksum field.
#[inline(always)]
pub const fn checksum(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let folded = sum as u16;
    !folded
}
