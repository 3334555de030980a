// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Frame → [`Parsed`]: Ethernet, up to two VLAN tags, IPv4, and the first bytes of TCP, UDP or ICMP.
//!
//! What contradicts itself is `malformed` here, before anything else looks at it: later stages rely on
//! `l4 + minimal header ≤ l3 + total length ≤ frame`. A frame may be in several buffers (Linux 5.18); the headers are in the
//! first of them, or it is `malformed`.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_get_buff_len};
use nat_common::{
    abi::{
        config::{CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASS_UDP},
        counters::Reason,
        flow::FlowKey,
    },
    net::{icmp, protocol},
};
use network_types::{icmp::Icmpv4Hdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    constants,
    frame::{self, Frame},
    scratch,
    verdict::Verdict,
};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Length of a VLAN tag.
pub(crate) const TAG: usize = 4;
/// Length of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// IP protocol numbers.
pub(crate) const ICMP: u8 = 1;
/// See [`ICMP`].
pub(crate) const TCP: u8 = 6;
/// See [`ICMP`].
pub(crate) const UDP: u8 = 17;

// Ethertypes, as loaded.
const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100u16.to_be();
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8u16.to_be();

/// What the packet is to a NAT.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Kind {
    /// Another protocol. First, so that it is what a [`Parsed`] of zeroes says.
    #[default]
    OtherProtocol,
    /// TCP, UDP, ICMP query, or a protocol that a rule may name ([`protocol::rule_bit`]): may belong to a flow.
    Query,
    /// ICMP error that quotes another packet.
    IcmpError,
    /// ICMP of another type.
    IcmpOther,
    /// A fragment whose ports are not known.
    Fragment,
}

/// [`Parsed::fragment`]: a whole packet.
pub(crate) const WHOLE: u8 = 0;
/// [`Parsed::fragment`]: the first fragment of several.
pub(crate) const FIRST: u8 = 1;
/// [`Parsed::fragment`]: a later fragment, without a transport header.
pub(crate) const LATER: u8 = 2;
/// [`Parsed::fragment`]: one that must not be translated: see [`crate::fragment`].
pub(crate) const TINY: u8 = 3;

/// What later stages need to know. Small: it lives on the stack of the entry point.
#[repr(C, align(8))]
#[derive(Default)]
pub(crate) struct Parsed {
    /// The 5-tuple; ports are zero unless `kind` is [`Kind::Query`].
    pub(crate) key: FlowKey,
    /// VLAN numbers, outermost first.
    pub(crate) vlan: [u16; 2],
    /// IP total length in bytes.
    pub(crate) total: u16,
    /// Offset of the IPv4 header.
    pub(crate) l3: u8,
    /// Length of the IPv4 header.
    pub(crate) header: u8,
    /// Protocol class, `CLASS_*`.
    pub(crate) class: u8,
    /// VLAN tags.
    pub(crate) tags: u8,
    /// See [`Kind`].
    pub(crate) kind: Kind,
    /// TTL as received.
    pub(crate) ttl: u8,
    /// TCP flags, zero for others.
    pub(crate) flags: u8,
    /// ICMP type.
    pub(crate) icmp_type: u8,
    /// Whether the packet must not be fragmented.
    pub(crate) dont_fragment: bool,
    /// [`WHOLE`], [`FIRST`], ….
    pub(crate) fragment: u8,
}
const _: () = assert!(size_of::<Parsed>() == 32, "every packet pays for it");

impl Parsed {
    /// One that says nothing yet, in `room`. Written by words, whatever the compiler makes of `Parsed::default()`: it was three calls of
    /// a `memset` that goes byte by byte, a tenth of a packet's time.
    #[inline(always)]
    pub(crate) fn begin(room: &mut MaybeUninit<Self>) -> &mut Self {
        // SAFETY: zero is a value of each of its fields.
        unsafe {
            scratch::clear(room.as_mut_ptr());
            room.assume_init_mut()
        }
    }

    /// Offset of the IPv4 header, bounded.
    ///
    /// verifier: a global function could have written to a `Parsed` that was passed to it, so its fields are unknown
    /// numbers afterwards; packet offsets have to be bounded again. `l3` is 14, 18 or 22.
    #[inline(always)]
    pub(crate) fn network(&self) -> usize {
        usize::from(self.l3 & 0x1f)
    }

    /// Offset of the transport header, bounded.
    #[inline(always)]
    pub(crate) fn transport(&self) -> usize {
        self.network() + self.header()
    }

    /// IP total length in bytes.
    #[inline(always)]
    pub(crate) fn total(&self) -> usize {
        usize::from(self.total)
    }

    /// Length of the IPv4 header, bounded.
    #[inline(always)]
    pub(crate) fn header(&self) -> usize {
        usize::from(self.header & 0x3c)
    }
}

/// Reads the headers into `parsed`.
#[inline(always)]
pub(crate) fn packet(ctx: *mut xdp_md, size: &mut usize, parsed: &mut Parsed) -> Result<(), Verdict> {
    let frame = &Frame::of_xdp(ctx);
    let ethertype = ethernet(ctx, size, frame, parsed)?;
    if ethertype != ETHERTYPE_IPV4 {
        *size = whole(ctx);
        return Err(Verdict::of(Reason::NotIpv4));
    }
    let header = ipv4(ctx, size, frame, parsed)?;
    let Ipv4Words { fragment, ttl_and_protocol, source, destination, .. } = header;
    let [flags, _] = fragment.to_ne_bytes();
    let [ttl, protocol] = ttl_and_protocol.to_ne_bytes();
    parsed.key.source = source.to_ne_bytes();
    parsed.key.destination = destination.to_ne_bytes();
    parsed.key.set_protocol(protocol);
    parsed.ttl = ttl;
    parsed.dont_fragment = flags & 0x40 != 0;
    if fragment & MORE_OR_OFFSET != 0 {
        parsed.kind = Kind::Fragment;
        parsed.fragment = if fragment & OFFSET == 0 { FIRST } else { LATER };
        return Ok(());
    }
    match protocol {
        TCP => tcp(frame, parsed),
        UDP => udp(frame, parsed),
        ICMP => icmp(frame, parsed),
        _ => {
            natgw_other(ctx, parsed);
            Ok(())
        }
    }
}

const MALFORMED: Verdict = Verdict::of(Reason::Malformed);

#[inline(always)]
fn ethernet(ctx: *mut xdp_md, size: &mut usize, frame: &Frame, parsed: &mut Parsed) -> Result<u16, Verdict> {
    let mut offset = ETHERNET - 2;
    let mut ethertype = read::<u16>(frame, offset)?;
    if constants::trunk() {
        for tag in 0..2 {
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
                break;
            }
            let control = read::<u16>(frame, offset + 2)?;
            parsed.vlan[tag] = u16::from_be(control) & 0x0fff;
            parsed.tags += 1;
            offset += TAG;
            ethertype = read::<u16>(frame, offset)?;
        }
    }
    if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN {
        *size = whole(ctx);
        return Err(Verdict::of(Reason::OtherVlan));
    }
    parsed.l3 = (offset + 2) as u8;
    Ok(ethertype)
}

/// An IPv4 header (RFC 791) in words as they are loaded: fields of alignment 1 would be loaded byte by byte.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
struct Ipv4Words {
    version_and_tos: u16,
    total: u16,
    identification: u16,
    fragment: u16,
    ttl_and_protocol: u16,
    checksum: u16,
    source: u32,
    destination: u32,
}
const _: () = assert!(size_of::<Ipv4Words>() == IPV4);

/// "More fragments" and the fragment offset, as loaded.
const MORE_OR_OFFSET: u16 = 0x3fffu16.to_be();
/// The fragment offset alone, as loaded.
const OFFSET: u16 = 0x1fffu16.to_be();

#[inline(always)]
fn ipv4(
    ctx: *mut xdp_md,
    size: &mut usize,
    frame: &Frame,
    parsed: &mut Parsed,
) -> Result<Ipv4Words, Verdict> {
    let header = read::<Ipv4Words>(frame, parsed.network())?;
    let [version_and_length, _] = header.version_and_tos.to_ne_bytes();
    let length = usize::from(version_and_length & 0x0f) * 4;
    let total = usize::from(u16::from_be(header.total));
    if version_and_length >> 4 != 4 || length < IPV4 || total < length {
        *size = whole(ctx);
        return Err(MALFORMED);
    }
    // What ends within the first buffer is not asked about the others.
    if parsed.network() + total > frame.len() {
        *size = whole(ctx);
        if parsed.network() + total > *size {
            return Err(MALFORMED);
        }
    }
    parsed.header = length as u8;
    parsed.total = total as u16;
    Ok(header)
}

/// Bytes in all buffers of a frame.
#[inline(always)]
fn whole(ctx: *mut xdp_md) -> usize {
    // SAFETY: the context is the program's own. Linux 5.18.
    unsafe { bpf_xdp_get_buff_len(ctx) as usize }
}

/// Bytes after the IP header.
#[inline(always)]
fn payload(parsed: &Parsed) -> usize {
    parsed.total() - parsed.header()
}

#[inline(always)]
fn tcp(frame: &Frame, parsed: &mut Parsed) -> Result<(), Verdict> {
    const { assert!(size_of::<TcpHdr>() == 20) }
    let header = frame.at::<[u16; 10]>(parsed.transport()).ok_or(MALFORMED)?;
    // SAFETY: `at` has checked that the header is within the frame.
    let [source, destination, offset_and_flags] = unsafe { [(*header)[0], (*header)[1], (*header)[6]] };
    let [offset, flags] = offset_and_flags.to_ne_bytes();
    let length = usize::from(offset >> 4) * 4;
    if length < size_of::<TcpHdr>() || length > payload(parsed) {
        return Err(MALFORMED);
    }
    parsed.key.set_ports([source, destination]);
    parsed.flags = flags;
    parsed.class = CLASS_TCP as u8;
    parsed.kind = Kind::Query;
    Ok(())
}

#[inline(always)]
fn udp(frame: &Frame, parsed: &mut Parsed) -> Result<(), Verdict> {
    const { assert!(size_of::<UdpHdr>() == 8) }
    let [source, destination, length, _] = read::<[u16; 4]>(frame, parsed.transport())?;
    let length = usize::from(u16::from_be(length));
    if length < size_of::<UdpHdr>() || length > payload(parsed) {
        return Err(MALFORMED);
    }
    parsed.key.set_ports([source, destination]);
    parsed.class = CLASS_UDP as u8;
    parsed.kind = Kind::Query;
    Ok(())
}

#[inline(always)]
fn icmp(frame: &Frame, parsed: &mut Parsed) -> Result<(), Verdict> {
    let header = frame.at::<Icmpv4Hdr>(parsed.transport()).ok_or(MALFORMED)?;
    if payload(parsed) < size_of::<Icmpv4Hdr>() {
        return Err(MALFORMED);
    }
    // SAFETY: `at` has checked that the header is within the frame.
    let Icmpv4Hdr { type_, data, .. } = unsafe { *header };
    let identifier = [data[0], data[1]];
    parsed.icmp_type = type_;
    parsed.class = CLASS_ICMP as u8;
    parsed.kind = match icmp::kind(type_) {
        icmp::Kind::Request => {
            parsed.key.source_port = identifier;
            Kind::Query
        }
        icmp::Kind::Reply => {
            parsed.key.destination_port = identifier;
            Kind::Query
        }
        icmp::Kind::Error => Kind::IcmpError,
        icmp::Kind::Other => Kind::IcmpOther,
    };
    Ok(())
}

/// A protocol that a rule may name is a query; anything else, and what is too short for one, is not.
///
/// verifier: global, so that what distinguishes the protocols is looked at once, and not on every way of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_other(ctx: *mut xdp_md, parsed: *mut Parsed) -> u32 {
    if parsed.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let parsed = unsafe { &mut *parsed };
    let number = parsed.key.protocol;
    parsed.kind = Kind::OtherProtocol;
    if protocol::rule_bit(number) == 0 || parsed.total() < parsed.header() + protocol::shortest(number) {
        return 0;
    }
    if protocol::has_ports(number) {
        let Some([a, b, c, d]) = frame::load::<[u8; 4]>(ctx, parsed.transport()) else { return 0 };
        parsed.key.source_port = [a, b];
        parsed.key.destination_port = [c, d];
    }
    parsed.class = CLASS_OTHER as u8;
    parsed.kind = Kind::Query;
    0
}

#[inline(always)]
fn read<T: Copy>(frame: &Frame, offset: usize) -> Result<T, Verdict> {
    // SAFETY: `at` has checked that the value is within the frame.
    frame.at::<T>(offset).map(|value| unsafe { *value }).ok_or(MALFORMED)
}
