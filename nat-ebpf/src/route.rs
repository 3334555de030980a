// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Next hop by the kernel's routing and neighbour tables.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibParams, xdp_md},
    helpers::generated::bpf_fib_lookup,
};
use nat_common::abi::config::MAX_PORTS;

use crate::{
    maps::{PORT_BY_IFINDEX, PORTS, SCRATCH},
    scratch,
};

/// `AF_INET`.
const INET: u8 = 2;

// `BPF_FIB_LKUP_RET_*` of include/uapi/linux/bpf.h and what each obliges the caller to do.
/// Send to `dmac` on `ifindex`.
const SUCCESS: i64 = 0;
/// The address is local or a broadcast, or there is no route at all: the stack's business.
const NOT_FORWARDED: i64 = 4;
/// `net.ipv4.conf.*.forwarding` is off on the incoming interface.
const FORWARDING_DISABLED: i64 = 5;
/// The route encapsulates (lightweight tunnel): XDP cannot.
const TUNNEL: i64 = 6;
/// The route is known, the neighbour's MAC address is not.
const NO_NEIGHBOUR: i64 = 7;

/// What the routing tables say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Blackhole, unreachable, prohibit. First, so that it is what a [`Route`] of zeroes says.
    None,
    /// Use the next hop.
    Found,
    /// The port is known, the MAC address is not.
    Unresolved,
    /// One of the gateway's own addresses, a broadcast, or no route at all: the kernel does not tell them apart.
    Local,
    /// Forwarding is off on the incoming interface.
    ForwardingOff,
    /// The stack would encapsulate the packet, and send it by whatever interface: no guard sees what is inside.
    Tunnel,
}

/// A next hop. Only as good as `answer`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// What the tables say.
    pub(crate) answer: Answer,
    /// Slot of the port to leave by; 255: not one of ours.
    pub(crate) slot: u8,
    /// Roles of that port.
    pub(crate) role: u8,
    /// Largest IP packet, in bytes.
    pub(crate) mtu: u16,
    /// The neighbour's MAC address.
    pub(crate) next_hop: [u8; 6],
    /// Interface to leave by.
    pub(crate) ifindex: u32,
    /// The neighbour: the destination itself or a gateway.
    pub(crate) neighbour: [u8; 4],
}

impl Default for Route {
    #[inline(always)]
    fn default() -> Self {
        let mut room = MaybeUninit::uninit();
        // SAFETY: zero is a value of each field.
        unsafe {
            scratch::clear(room.as_mut_ptr());
            room.assume_init()
        }
    }
}

/// No port of ours.
pub(crate) const FOREIGN: u8 = 255;
/// No usable way at all, where [`FOREIGN`] in a half means "the right kind of port, but the neighbour's MAC address is
/// not known".
pub(crate) const NOWHERE: u8 = 254;

/// The packet goes to the SNAT port of a mapping: [`crate::hairpin`].
pub(crate) const HAIRPIN: u8 = 253;

/// Looks up the way from interface `from` to `destination`, with policy routing by `source`; `way` comes from
/// [`Route::default`].
///
/// `tot_len` 1 is below every MTU: the kernel then reports the route's MTU instead of judging by it (Linux 5.12,
/// commit e1850ea9bd9e).
#[inline(never)]
pub(crate) fn lookup(ctx: *mut xdp_md, from: u32, source: [u8; 4], destination: [u8; 4], way: &mut Route) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU. Zero is valid for every field.
    let params = unsafe {
        scratch::clear(&raw mut (*scratch).fib);
        &mut (*scratch).fib
    };
    params.family = INET;
    params.ifindex = from;
    params.__bindgen_anon_1.tot_len = 1;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    // SAFETY: the context is the program's own, the parameters have their true size.
    let code = unsafe { bpf_fib_lookup(ctx.cast(), &raw mut *params, size_of::<FibParams>() as i32, 0) };
    let answer = match code {
        SUCCESS => Answer::Found,
        NO_NEIGHBOUR => Answer::Unresolved,
        TUNNEL => Answer::Tunnel,
        NOT_FORWARDED => Answer::Local,
        FORWARDING_DISABLED => Answer::ForwardingOff,
        _ => Answer::None,
    };
    // SAFETY: both members of the union are u16; the helper fills it on success.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    let slot =
        if matches!(answer, Answer::Found | Answer::Unresolved) { slot_of(params.ifindex) } else { FOREIGN };
    // SAFETY: array element, written as a whole by the daemon before its slot is handed out.
    let role = PORTS.get_ptr(u32::from(slot)).map_or(0, |port| unsafe { (*port).role });
    // SAFETY: both members of the union are plain data; the kernel puts the gateway here, if there is one, before it
    // looks for the neighbour (net/core/filter.c, bpf_ipv4_fib_lookup).
    let neighbour = unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes();
    *way = Route { answer, slot, role, mtu, next_hop: params.dmac, ifindex: params.ifindex, neighbour };
}

#[inline(always)]
fn slot_of(ifindex: u32) -> u8 {
    match PORT_BY_IFINDEX.get_ptr(&ifindex) {
        // SAFETY: written by the daemon as a whole word.
        Some(slot) => match unsafe { *slot } {
            slot if slot < MAX_PORTS => slot as u8,
            _ => FOREIGN,
        },
        None => FOREIGN,
    }
}
