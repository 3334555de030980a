// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Benchmark programs: `generate` writes live frames, `forward` is the redirect-only floor, `sink` counts and drops.
#![no_std]
#![no_main]

mod generate;
mod sink;

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::DevMap, programs::XdpContext};

/// The one interface that `generate` or `forward` of this loading sends to.
#[map]
static TARGET: DevMap = DevMap::with_max_entries(1, 0);

/// Sends every frame on unread: what any gateway that redirects pays at least.
#[xdp]
fn forward(_ctx: XdpContext) -> u32 {
    redirect()
}

#[inline(always)]
fn redirect() -> u32 {
    TARGET.redirect(0, 0).unwrap_or(xdp_action::XDP_ABORTED)
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
