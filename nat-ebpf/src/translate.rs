// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Writing addresses, ports and checksums. Nothing here decides; every bounds check comes before the first write.

use crate::{
    frame::Frame,
    lookup::Rewrite,
    maps::SCRATCH,
    parse::{ICMP, IPV4, Parsed, TCP, UDP},
    scratch,
};
use aya_ebpf::{
    bindings::xdp_md,
    cty::c_void,
    helpers::generated::{bpf_loop, bpf_xdp_load_bytes},
};
use nat_common::net::{
    checksum::{Delta, fold},
    protocol::{DCCP, UDP_LITE},
    state::Direction,
};

/// Rewrites one end of a packet whose IPv4 header is at `l3`. `None`, and nothing written, if a header is not where it
/// was parsed.
///
/// Headers are written as 16-bit words (RFC 791, RFC 9293, RFC 768, RFC 792): LLVM turns a field of alignment 1 into
/// as many instructions as it has bytes.
#[inline(always)]
pub(crate) fn packet(
    frame: &Frame,
    parsed: &Parsed,
    l3: usize,
    rewrite: &Rewrite,
    decrement_ttl: bool,
) -> Option<()> {
    let outbound = matches!(rewrite.direction, Direction::Outbound);
    let (old_address, old_port) = if outbound {
        (parsed.key.source, parsed.key.source_port)
    } else {
        (parsed.key.destination, parsed.key.destination_port)
    };
    let ip = frame.at::<[u16; 10]>(l3)?;
    let addresses = Delta::ZERO.address(old_address, rewrite.address);
    let port = u16::from_ne_bytes(rewrite.port);
    let ports = Delta::ZERO.native(u16::from_ne_bytes(old_port), port);
    let l4 = l3 + parsed.header();
    let end = usize::from(!outbound);
    // SAFETY: every pointer comes from `Frame::at`; indices are within its type.
    unsafe {
        match parsed.key.protocol {
            TCP => {
                let tcp = frame.at::<[u16; 10]>(l4)?;
                (*tcp)[end] = port;
                (*tcp)[8] = addresses.and(ports).apply_native((*tcp)[8]);
            }
            ICMP => {
                let icmp = frame.at::<[u16; 4]>(l4)?;
                (*icmp)[2] = port;
                (*icmp)[1] = ports.apply_native((*icmp)[1]);
            }
            UDP | UDP_LITE => {
                let udp = frame.at::<[u16; 4]>(l4)?;
                (*udp)[end] = port;
                (*udp)[3] = addresses.and(ports).apply_udp_native((*udp)[3]);
            }
            DCCP => {
                let dccp = frame.at::<[u16; 4]>(l4)?;
                (*dccp)[end] = port;
                (*dccp)[3] = addresses.and(ports).apply_native((*dccp)[3]);
            }
            // The port is kept, and nothing covers the address.
            _ => {}
        }
    }
    // SAFETY: as above.
    unsafe { addresses_and_ttl(ip, outbound, rewrite.address, addresses, decrement_ttl) };
    Some(())
}

/// Rewrites the IP header alone: all there is to a later fragment.
#[inline(always)]
pub(crate) fn header(
    frame: &Frame,
    parsed: &Parsed,
    l3: usize,
    rewrite: &Rewrite,
    decrement_ttl: bool,
) -> Option<()> {
    let outbound = matches!(rewrite.direction, Direction::Outbound);
    let old = if outbound { parsed.key.source } else { parsed.key.destination };
    let ip = frame.at::<[u16; 10]>(l3)?;
    let addresses = Delta::ZERO.address(old, rewrite.address);
    // SAFETY: the pointer comes from `Frame::at`.
    unsafe { addresses_and_ttl(ip, outbound, rewrite.address, addresses, decrement_ttl) };
    Some(())
}

/// Writes one address, which changes the checksum by `addresses`, and the TTL.
///
/// # Safety
/// `ip` comes from [`Frame::at`].
#[inline(always)]
unsafe fn addresses_and_ttl(
    ip: *mut [u16; 10],
    outbound: bool,
    address: [u8; 4],
    addresses: Delta,
    decrement_ttl: bool,
) {
    let [a, b, c, d] = address;
    let at = if outbound { 6 } else { 8 };
    // SAFETY: by the caller's promise; indices are within the type.
    unsafe {
        (*ip)[at] = u16::from_ne_bytes([a, b]);
        (*ip)[at + 1] = u16::from_ne_bytes([c, d]);
        let mut changes = addresses;
        if decrement_ttl {
            let [ttl, protocol] = (*ip)[4].to_ne_bytes();
            let new = u16::from_ne_bytes([ttl - 1, protocol]);
            changes = changes.native((*ip)[4], new);
            (*ip)[4] = new;
        }
        (*ip)[5] = changes.apply_native((*ip)[5]);
    }
}

/// Writes another IP identification.
#[inline(always)]
pub(crate) fn identification(frame: &Frame, l3: usize, id: [u8; 2]) -> Option<()> {
    let ip = frame.at::<[u16; 10]>(l3)?;
    let new = u16::from_ne_bytes(id);
    // SAFETY: as above.
    unsafe {
        (*ip)[5] = Delta::ZERO.native((*ip)[2], new).apply_native((*ip)[5]);
        (*ip)[2] = new;
    }
    Some(())
}

/// Longest stretch that [`sum`] adds up: an ICMP header and a quotation of 60 + 8 bytes, rounded up.
pub(crate) const SUM_BYTES: usize = 80;

/// Ones' complement sum, folded, of `length` bytes (even, 80 at most) at `offset`; `None` beyond the frame.
///
/// Reads through `bpf_xdp_load_bytes` (Linux 5.18): LLVM turns a loop over packet bytes into pointer arithmetic that
/// the verifier cannot follow.
#[inline(never)]
pub(crate) fn sum(ctx: *mut xdp_md, offset: u32, length: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return UNREADABLE };
    if length == 0 || length > SUM_BYTES as u32 {
        return UNREADABLE;
    }
    // SAFETY: this CPU's own element; the buffer holds `length` bytes.
    unsafe {
        let bytes = &raw mut (*scratch).bytes;
        scratch::clear(bytes);
        if bpf_xdp_load_bytes(ctx, offset, bytes.cast(), length) != 0 {
            return UNREADABLE;
        }
        let mut sum = 0u32;
        for word in *bytes {
            sum += u32::from(word);
        }
        u32::from(fold(sum))
    }
}

/// Bytes that [`long_sum`] adds up at a time.
const CHUNK: u32 = 64;

/// A sum that grows, kept on the stack: callbacks of `bpf_loop` may keep pointers only there.
#[repr(C)]
struct LongSum {
    ctx: *mut xdp_md,
    sum: u64,
    offset: u32,
    left: u32,
}

/// As [`sum`] for any length, odd ones too. For messages, not for headers: it takes longer.
#[inline(always)]
pub(crate) fn long_sum(ctx: *mut xdp_md, offset: u32, length: u32) -> u32 {
    let mut state = LongSum { ctx, sum: 0, offset, left: length };
    // SAFETY: `add_chunk` has the signature that the helper wants, and the context outlives the call.
    unsafe {
        bpf_loop(length / CHUNK + 1, add_chunk as *mut c_void, (&raw mut state).cast(), 0);
    }
    if state.left != 0 {
        return UNREADABLE;
    }
    let sum = (state.sum & 0xffff_ffff) + (state.sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    u32::from(fold(sum as u32))
}

/// Adds the next chunk. 0: again, 1: done.
unsafe extern "C" fn add_chunk(_index: u32, state: *mut c_void) -> i64 {
    // SAFETY: the caller's state.
    let state = unsafe { &mut *state.cast::<LongSum>() };
    let length = if state.left < CHUNK { state.left } else { CHUNK };
    if length == 0 {
        return 1;
    }
    let mut words = [0u32; CHUNK as usize / 4];
    // SAFETY: the buffer holds `length` bytes.
    if unsafe { bpf_xdp_load_bytes(state.ctx, state.offset, words.as_mut_ptr().cast(), length) } != 0 {
        return 1;
    }
    for word in words {
        state.sum += u64::from(word);
    }
    state.offset += length;
    state.left -= length;
    0
}

/// Not a folded sum.
pub(crate) const UNREADABLE: u32 = u32::MAX;

/// As [`header_checksum_ok`], of a packet's own header.
#[inline(always)]
pub(crate) fn own_checksum_ok(ctx: *mut xdp_md, parsed: &Parsed) -> bool {
    if parsed.header() == IPV4
        && let Some(header) = Frame::of_xdp(ctx).at::<[u16; 10]>(parsed.network())
    {
        let mut sum = 0u32;
        for word in 0..10 {
            // SAFETY: the pointer comes from `Frame::at`.
            sum += u32::from(unsafe { (*header)[word] });
        }
        return fold(sum) == 0xffff;
    }
    header_checksum_ok(ctx, parsed.network(), parsed.header())
}

/// Whether an IPv4 header checksum is right (RFC 1812 §5.2.2). Incremental updates keep a wrong one wrong, so only
/// packets that would open a flow, and quoted ones, are checked.
#[inline(always)]
pub(crate) fn header_checksum_ok(ctx: *mut xdp_md, offset: usize, length: usize) -> bool {
    sum(ctx, offset as u32, length as u32) == 0xffff
}
