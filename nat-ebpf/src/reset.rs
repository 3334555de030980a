// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! RST to a connection that is refused, as its destination would send it if nobody listened (RFC 9293 §3.10.7.1).

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};
use nat_common::net::{checksum::fold, state::tcp_flag};
use network_types::{ip::Ipv4Hdr, tcp::TcpHdr};

use crate::{
    answer::{is_for_us, turn_round, within_budget},
    frame,
    parse::{Kind, Parsed, TCP, WHOLE},
    translate,
};

/// Bytes of the answer after the Ethernet header.
const LENGTH: usize = size_of::<Ipv4Hdr>() + size_of::<TcpHdr>();

/// Turns a TCP segment into the RST that answers it. 0, and the frame not to be used, if there must not be one.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_reset(ctx: *mut xdp_md, parsed: *const Parsed, slot: u32) -> u32 {
    if parsed.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    u32::from(is_for_us(ctx, slot) && reset(ctx, unsafe { &*parsed }))
}

#[inline(always)]
fn reset(ctx: *mut xdp_md, parsed: &Parsed) -> bool {
    // Of a fragment, it is not known how much there is to acknowledge.
    if parsed.kind != Kind::Query
        || parsed.fragment != WHOLE
        || parsed.flags & tcp_flag::RST != 0
        || !within_budget()
    {
        return false;
    }
    let l3 = parsed.network();
    let Some(segment) = frame::load::<[u8; size_of::<TcpHdr>()]>(ctx, parsed.transport()) else {
        return false;
    };
    // SAFETY: the context is the program's own. `bpf_xdp_get_buff_len`: Linux 5.18.
    unsafe {
        let surplus = bpf_xdp_get_buff_len(ctx) as i32 - (l3 + LENGTH) as i32;
        if surplus < 0 || bpf_xdp_adjust_tail(ctx, -surplus) != 0 {
            return false;
        }
    }
    let tcp = header(parsed, &segment);
    let ([a, b, c, d], [e, f, g, h]) = (parsed.key.destination, parsed.key.source);
    let [high, low] = (LENGTH as u16).to_be_bytes();
    let ip = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, TCP, 0, 0, a, b, c, d, e, f, g, h];
    turn_round(ctx, usize::from(parsed.tags), 0)
        && frame::store::<[u8; size_of::<Ipv4Hdr>()]>(ctx, l3, &ip)
        && frame::store::<[u8; size_of::<TcpHdr>()]>(ctx, l3 + size_of::<Ipv4Hdr>(), &tcp)
        && checksums(ctx, parsed, l3)
}

/// A segment with ACK is answered with its acknowledgement number as sequence number; one without is acknowledged.
#[inline(always)]
fn header(parsed: &Parsed, segment: &[u8; size_of::<TcpHdr>()]) -> [u8; size_of::<TcpHdr>()] {
    let [a, b] = parsed.key.destination_port;
    let [c, d] = parsed.key.source_port;
    if parsed.flags & tcp_flag::ACK != 0 {
        let [e, f, g, h] = [segment[8], segment[9], segment[10], segment[11]];
        return [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0x50, tcp_flag::RST, 0, 0, 0, 0, 0, 0];
    }
    let first = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    let data = parsed.total() - parsed.header() - usize::from(segment[12] >> 4) * 4;
    let controls =
        u32::from(parsed.flags & tcp_flag::SYN != 0) + u32::from(parsed.flags & tcp_flag::FIN != 0);
    let [e, f, g, h] = first.wrapping_add(data as u32).wrapping_add(controls).to_be_bytes();
    [a, b, c, d, 0, 0, 0, 0, e, f, g, h, 0x50, tcp_flag::RST | tcp_flag::ACK, 0, 0, 0, 0, 0, 0]
}

/// Both checksums, over headers in which they are zero.
#[inline(always)]
fn checksums(ctx: *mut xdp_md, parsed: &Parsed, l3: usize) -> bool {
    let l4 = l3 + size_of::<Ipv4Hdr>();
    let ip = translate::sum(ctx, l3 as u32, size_of::<Ipv4Hdr>() as u32);
    let tcp = translate::sum(ctx, l4 as u32, size_of::<TcpHdr>() as u32);
    if ip == translate::UNREADABLE || tcp == translate::UNREADABLE {
        return false;
    }
    let (source, destination) =
        (u32::from_ne_bytes(parsed.key.source), u32::from_ne_bytes(parsed.key.destination));
    let pseudo = (source & 0xffff)
        + (source >> 16)
        + (destination & 0xffff)
        + (destination >> 16)
        + u32::from(u16::from(TCP).to_be())
        + u32::from((size_of::<TcpHdr>() as u16).to_be());
    frame::store(ctx, l3 + 10, &(!(ip as u16)).to_ne_bytes())
        && frame::store(ctx, l4 + 16, &(!fold(tcp + pseudo)).to_ne_bytes())
}
