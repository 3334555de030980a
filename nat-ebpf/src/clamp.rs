// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! A smaller maximum segment size in SYN segments (`mss_clamp`), so that a connection works where ICMP "fragmentation
//! needed" is lost on the way. Never a larger one; a segment without the option stays as it is: then 536 bytes hold
//! (RFC 9293 §3.7.1), which fit nearly everywhere.

use aya_ebpf::{bindings::xdp_md, cty::c_void, helpers::generated::bpf_loop};
use nat_common::{
    abi::{
        config::{MAX_RULES, banked},
        flow::{FlowEntry, FlowKey, HALF_OUTBOUND, peer_key},
    },
    net::{
        checksum::Delta,
        mss::{self, MOST_OPTIONS, Walk},
    },
};
use network_types::tcp::TcpHdr;

use crate::{
    frame,
    maps::{CONTROL, FLOWS, PORTS, RULES},
    parse::Parsed,
    route::{self, Answer, Route},
};

/// Offset of the checksum in a TCP header.
pub(crate) const CHECKSUM: usize = 16;

/// Clamps a SYN segment of a flow that came in by port `slot`; `l3` is where its IPv4 header is now.
///
/// Changes no more than the option and the checksum, and fails silently: a segment that is not clamped still goes.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_clamp(ctx: *mut xdp_md, parsed: *const Parsed, slot: u32, l3: u32) -> u32 {
    if parsed.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let parsed = unsafe { &*parsed };
    let Some(entry) = FLOWS.get_ptr(&parsed.key) else { return 0 };
    let most = most(&parsed.key, entry, smaller(link(slot), way_back(ctx, &parsed.key, entry)));
    let l4 = (l3 & 0x3f) as usize + parsed.header();
    let Some(header) = frame::load::<[u8; size_of::<TcpHdr>()]>(ctx, l4) else { return 0 };
    let end = l4 + usize::from(header[12] >> 4) * 4;
    let mut options = Options { ctx, walk: Walk::new((l4 + size_of::<TcpHdr>()) as u32, end as u32) };
    // SAFETY: `step` has the signature that the helper wants, and the context outlives the call.
    unsafe { bpf_loop(MOST_OPTIONS, step as *mut c_void, (&raw mut options).cast(), 0) };
    let (at, found) = (options.walk.value_at as usize, options.walk.value as u16);
    if !options.walk.found() || found <= most {
        return 0;
    }
    let sum = change(at - l4, found, most).apply([header[CHECKSUM], header[CHECKSUM + 1]]);
    u32::from(frame::store(ctx, at, &most.to_be_bytes()) && frame::store(ctx, l4 + CHECKSUM, &sum))
}

/// A walk through the options, kept on the stack: callbacks of `bpf_loop` may keep pointers only there.
#[repr(C)]
struct Options {
    ctx: *mut xdp_md,
    walk: Walk,
}

/// Looks at the next option. 0: again, 1: done.
///
/// verifier: a callback, or every option would be verified for every way to get there.
unsafe extern "C" fn step(_index: u32, options: *mut c_void) -> i64 {
    // SAFETY: the caller's state.
    let Options { ctx, walk } = unsafe { &mut *options.cast::<Options>() };
    if !walk.goes_on() {
        return 1;
    }
    let Some(four) = frame::load::<[u8; 4]>(*ctx, walk.at as usize) else { return 1 };
    walk.step(four);
    0
}

/// What a new value at `offset` in the header changes in the checksum. At an odd offset its bytes belong to two words, the
/// first to the lower half of one and the second to the upper half of the next.
#[inline(always)]
pub(crate) fn change(offset: usize, old: u16, new: u16) -> Delta {
    let (old, new) = if offset & 1 == 0 { (old, new) } else { (old.swap_bytes(), new.swap_bytes()) };
    Delta::ZERO.word(old.to_be_bytes(), new.to_be_bytes())
}

/// MTU of a port's interface.
#[inline(always)]
pub(crate) fn link(slot: u32) -> u16 {
    // SAFETY: array element.
    PORTS.get_ptr(slot).map_or(u16::MAX, |port| unsafe { (*port).mtu })
}

/// The largest segment that either end may be told of: as the rule says, or what fits the routes of both directions and
/// the link that the segment came by, of which `link` is the MTU.
#[inline(always)]
pub(crate) fn most(key: &FlowKey, entry: *const FlowEntry, link: u16) -> u16 {
    // SAFETY: a map value; one that is recycled is another flow's, of another rule at worst.
    let (address, port, half, rule) =
        unsafe { ((*entry).address, (*entry).port, (*entry).half, u32::from((*entry).rule)) };
    let Some(control) = CONTROL.get_ptr(0) else { return u16::MAX };
    // SAFETY: array elements.
    let bank = unsafe { (*control).bank } & 1;
    let wanted =
        RULES.get_ptr(banked(bank, rule % MAX_RULES)).map_or(0, |rule| unsafe { (*rule).segment_size });
    if wanted != 0 {
        return if wanted > u32::from(u16::MAX) { u16::MAX } else { wanted as u16 };
    }
    let mut mtu = smaller(link, route_mtu(entry));
    if let Some(peer) = FLOWS.get_ptr(&peer_key(key, address, port, half)) {
        mtu = smaller(mtu, route_mtu(peer));
    }
    mss::for_mtu(mtu)
}

/// MTU of the route that answers to a segment from inside will take: its half has not looked it up when the first segment
/// leaves. From outside, the other half knows.
#[inline(always)]
fn way_back(ctx: *mut xdp_md, key: &FlowKey, entry: *const FlowEntry) -> u16 {
    // SAFETY: a map value.
    let (half, slot) = unsafe { ((*entry).half, (*entry).slot) };
    let Some(port) = PORTS.get_ptr(u32::from(slot)) else { return u16::MAX };
    if half & HALF_OUTBOUND == 0 {
        return u16::MAX;
    }
    let mut way = Route::default();
    // SAFETY: array element.
    route::lookup(ctx, unsafe { (*port).ifindex }, key.destination, key.source, &mut way);
    if matches!(way.answer, Answer::Found) { way.mtu } else { u16::MAX }
}

#[inline(always)]
const fn smaller(one: u16, other: u16) -> u16 {
    if one < other { one } else { other }
}

/// MTU of a half's route; one that is not known restricts nothing.
#[inline(always)]
fn route_mtu(entry: *const FlowEntry) -> u16 {
    // SAFETY: a map value.
    let (slot, mtu) = unsafe { ((*entry).slot, (*entry).mtu) };
    if slot >= route::NOWHERE || mtu == 0 { u16::MAX } else { mtu }
}
