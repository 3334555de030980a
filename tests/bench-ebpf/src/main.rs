// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Benchmark programs: `generate` and `attack` write live frames, `forward` and `back` are the redirect-only floor,
//! `sink` and `home` count and drop.
#![no_std]
#![no_main]

mod attack;
mod generate;
mod sink;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, DevMap},
    programs::XdpContext,
};
use bench_ebpf::{HOMEWARD, OUTWARD};

/// The interfaces that this loading sends to: [`OUTWARD`] and [`HOMEWARD`]. A device map remembers devices, not
/// numbers, so the two may be in different namespaces.
#[map]
static TARGET: DevMap = DevMap::with_max_entries(2, 0);

/// Flow number → [`bench_ebpf::learnt`]; written by the sink, read for inbound packets. The runner sets the size.
#[map]
static LEARNT: Array<u64> = Array::with_max_entries(1, 0);

/// Sends every frame on unread: what any gateway that redirects pays at least.
#[xdp]
fn forward(_ctx: XdpContext) -> u32 {
    redirect(OUTWARD)
}

/// The same for the other direction.
#[xdp]
fn back(_ctx: XdpContext) -> u32 {
    redirect(HOMEWARD)
}

#[inline(always)]
fn redirect(target: u32) -> u32 {
    TARGET.redirect(target, 0).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Writes a header over a frame. Pages come back from the sink as the gateway left them, so the whole header is written
/// for every frame.
///
/// An array assignment would become a call of a byte-by-byte `memcpy`, which costs as much as the rest of the chain.
#[inline(always)]
fn copy<const HALVES: usize>(from: &[u16; HALVES], to: &mut [u16; HALVES]) {
    let words = HALVES / 4;
    let (source, out) = (from.as_ptr().cast::<u64>(), to.as_mut_ptr().cast::<u64>());
    for index in 0..words {
        // SAFETY: both arrays hold that many words. Headers stand at multiples of 8 bytes in map values, which are
        // aligned to 8; live frames start 256 bytes and two aligned structures into a page.
        unsafe { out.add(index).write_volatile(source.add(index).read_volatile()) };
    }
    for (to, from) in to.iter_mut().zip(from).skip(4 * words) {
        *to = *from;
    }
}

/// First two bytes on the wire of a big-endian word, as a wire half.
#[inline(always)]
const fn low(word: u32) -> u32 {
    word & 0xffff
}

/// Last two bytes on the wire of a big-endian word, as a wire half.
#[inline(always)]
const fn high(word: u32) -> u32 {
    word >> 16
}

/// A UDP checksum; RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
#[inline(always)]
const fn udp_checksum(sum: u32) -> u16 {
    match bench_ebpf::checksum(sum) {
        0 => 0xffff,
        sum => sum,
    }
}

/// Packet bytes as a pointer to `T`, when all of `T` lies within the packet.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
