// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Claiming without a choice of port: for protocols that have none, or whose checksum covers it
//! ([`nat_common::net::protocol::keeps_port`]). What there is to choose from are the addresses of the set.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop};
use nat_common::{abi::grant::MAX_SEGMENTS, ports::SEGMENT_MASK};

use crate::{
    maps::{SEARCH, SETS},
    ports::{CLAIMED, NO_PORT, SEARCHING, Search, TABLE_ERROR, Tried, attempt_port, failed},
    walk,
};

/// Claims the flow's own port on the first address of a set on which it is free towards the destination;
/// `Search::outcome`.
///
/// verifier: global, so that it is verified once; and a callback of `bpf_loop`, or the removal of a flow would be verified
/// for each of the segments.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_keep(index: u32) -> u32 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return TABLE_ERROR };
    // SAFETY: this CPU's own element, of which the caller uses nothing meanwhile.
    let search = unsafe { &mut *search };
    search.set = index;
    search.number = 0;
    search.outcome = SEARCHING;
    // SAFETY: `step` has the signature that the helper wants and uses no context.
    unsafe { bpf_loop(MAX_SEGMENTS as u32, step as *mut c_void, core::ptr::null_mut(), 0) };
    if search.outcome == SEARCHING { NO_PORT } else { search.outcome }
}

/// Tries the address of one segment. 0: again, 1: done.
unsafe extern "C" fn step(index: u32, _context: *mut c_void) -> i64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: this CPU's own element; nothing else runs between the steps.
    let search = unsafe { &mut *search };
    let Some(set) = SETS.get_ptr(search.set) else { return 1 };
    // SAFETY: array element; the index is masked.
    let segment = unsafe { (*set).segments[(index & SEGMENT_MASK) as usize] };
    let address = u32::from_ne_bytes(segment.address);
    // Pieces on one address are mostly neighbours; one that is not is tried twice.
    if segment.count != 0 && address != search.number {
        search.number = address;
        search.outcome = on_address(search, address);
    }
    i64::from(search.outcome != SEARCHING)
}

/// A flow that is over and was not swept yet (the daemon may be dead) gives way.
#[inline(always)]
fn on_address(search: &mut Search, address: u32) -> u32 {
    let outcome = attempt(search, address);
    if outcome == SEARCHING && walk::take_over(search) { attempt(search, address) } else { outcome }
}

#[inline(never)]
fn attempt(search: &mut Search, address: u32) -> u32 {
    let port = search.key.source_port;
    match attempt_port(search, address.to_ne_bytes(), port) {
        Tried::Claimed => CLAIMED,
        Tried::Taken => SEARCHING,
        Tried::Failed(reason) => failed(reason),
    }
}
