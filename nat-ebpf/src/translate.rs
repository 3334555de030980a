// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Writing addresses, ports and checksums. Nothing here decides; every bounds check comes before the first write.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_load_bytes};
use nat_common::net::{
    checksum::{Delta, fold},
    state::Direction,
};
use network_types::{icmp::Icmpv4Hdr, ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    frame::Frame,
    lookup::Rewrite,
    parse::{ICMP, Parsed, TCP},
};

/// Rewrites one end of a packet whose IPv4 header is at `l3`. `None`, and nothing written, if a header is not where it was parsed.
#[inline(always)]
pub(crate) fn packet(
    frame: &Frame,
    parsed: &Parsed,
    l3: usize,
    rewrite: &Rewrite,
    decrement_ttl: bool,
) -> Option<()> {
    let &Rewrite { direction, address, port, .. } = rewrite;
    let outbound = matches!(direction, Direction::Outbound);
    let (old_address, old_port) = if outbound {
        (parsed.key.source, parsed.key.source_port)
    } else {
        (parsed.key.destination, parsed.key.destination_port)
    };
    let ip = frame.at::<Ipv4Hdr>(l3)?;
    let l4 = l3 + parsed.header();
    let addresses = Delta::ZERO.address(old_address, address);
    let ports = Delta::ZERO.word(old_port, port);
    // SAFETY: every pointer below comes from `Frame::at` with the type it is used as.
    unsafe {
        match parsed.key.protocol {
            TCP => {
                let tcp = frame.at::<TcpHdr>(l4)?;
                if outbound {
                    (*tcp).source = port
                } else {
                    (*tcp).dest = port
                }
                (*tcp).check = addresses.and(ports).apply((*tcp).check);
            }
            ICMP => {
                let icmp = frame.at::<Icmpv4Hdr>(l4)?;
                (*icmp).data[0] = port[0];
                (*icmp).data[1] = port[1];
                (*icmp).check = ports.apply((*icmp).check);
            }
            _ => {
                let udp = frame.at::<UdpHdr>(l4)?;
                if outbound {
                    (*udp).src = port
                } else {
                    (*udp).dst = port
                }
                (*udp).check = addresses.and(ports).apply_udp((*udp).check);
            }
        }
        ipv4(ip, direction, address, addresses, decrement_ttl);
    }
    Some(())
}

/// Rewrites the IPv4 header.
///
/// # Safety
/// `ip` points to a whole header within the frame.
#[inline(always)]
pub(crate) unsafe fn ipv4(
    ip: *mut Ipv4Hdr,
    direction: Direction,
    address: [u8; 4],
    addresses: Delta,
    decrement_ttl: bool,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut delta = addresses;
        if decrement_ttl {
            let (ttl, protocol) = ((*ip).ttl, (*ip).proto);
            delta = delta.word([ttl, protocol], [ttl - 1, protocol]);
            (*ip).ttl = ttl - 1;
        }
        (*ip).check = delta.apply((*ip).check);
        if matches!(direction, Direction::Outbound) {
            (*ip).src_addr = address;
        } else {
            (*ip).dst_addr = address;
        }
    }
}

/// Longest stretch that [`sum`] adds up: an ICMP header and a quotation of 60 + 8 bytes, rounded up.
const SUM_BYTES: usize = 80;

/// Ones' complement sum, folded, of `length` bytes (even, 80 at most) at `offset`; `None` beyond the frame.
///
/// Reads through `bpf_xdp_load_bytes` (Linux 5.18): LLVM turns a loop over packet bytes into pointer arithmetic that
/// the verifier cannot follow.
#[inline(never)]
pub(crate) fn sum(ctx: *mut xdp_md, offset: u32, length: u32) -> u32 {
    let mut bytes = [0u16; SUM_BYTES / 2];
    if length == 0 || length > SUM_BYTES as u32 {
        return UNREADABLE;
    }
    // SAFETY: the buffer holds `length` bytes.
    if unsafe { bpf_xdp_load_bytes(ctx, offset, bytes.as_mut_ptr().cast(), length) } != 0 {
        return UNREADABLE;
    }
    let mut sum = 0u32;
    for word in bytes {
        sum += u32::from(word);
    }
    u32::from(fold(sum))
}

/// Not a folded sum.
pub(crate) const UNREADABLE: u32 = u32::MAX;

/// Whether an IPv4 header checksum is right (RFC 1812 §5.2.2). Incremental updates keep a wrong one wrong, so only
/// packets that would open a flow, and quoted ones, are checked.
#[inline(always)]
pub(crate) fn header_checksum_ok(ctx: *mut xdp_md, offset: usize, length: usize) -> bool {
    sum(ctx, offset as u32, length as u32) == 0xffff
}
