// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Removing a flow.
//!
//! One actor removes both halves: whoever swaps `DEAD` into the state word of the outbound half. The order is fixed:
//! both halves dead, outbound half out of the table, inbound half out of the table (the port is free from here on),
//! record bit cleared, counts lowered.

use nat_common::{
    abi::{
        config::{CLASSES, MAX_BACKENDS},
        flow::{FlowEntry, FlowKey, HALF_BURST, inbound_key},
    },
    net::state,
};

use crate::{
    atomic,
    lookup::{swap_word, word},
    maps::{BACKEND_STATE, FLOWS, GRANT_STATE, TABLE},
    record,
};

/// Removes the flow whose outbound half is `entry` under `key`, if its state word is still `first`.
#[inline(never)]
pub(crate) fn flow(key: &FlowKey, entry: *mut FlowEntry, first: u64) -> bool {
    let bits = (first >> 32) as u32;
    // Somebody else's already: swapping a word for itself would succeed, too, and both would remove.
    if bits & state::DEAD != 0 || first as u32 != key.fold() || !swap_word(entry, first, bits | state::DEAD) {
        return false;
    }
    // SAFETY: a map value that is ours since the swap.
    let (address, port, grant, half) =
        unsafe { ((*entry).address, (*entry).port, (*entry).grant, (*entry).half) };
    let inbound = inbound_key(key, address, port);
    if let Some(other) = FLOWS.get_ptr_mut(&inbound) {
        for _ in 0..4 {
            let seen = word(other);
            if seen as u32 != inbound.fold() || swap_word(other, seen, (seen >> 32) as u32 | state::DEAD) {
                break;
            }
        }
    }
    // Absent already: cannot be, since only the actor who set DEAD removes.
    let _ = FLOWS.remove(key);
    let _ = FLOWS.remove(&inbound);
    record::release(grant, key, address, port);
    discharge(grant, half);
    if let Some(state) = GRANT_STATE.get_ptr_mut(grant) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).flows, u64::MAX) };
    }
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).flows, u64::MAX) };
    }
    true
}

/// Takes a flow back out of what it was counted in: the common budget, or its backend's guarantee.
#[inline(always)]
pub(crate) fn discharge(grant: u32, half: u8) {
    if half & HALF_BURST != 0 {
        if let Some(table) = TABLE.get_ptr_mut(0) {
            // SAFETY: array element.
            unsafe { atomic::add(&raw mut (*table).burst, u64::MAX) };
        }
        return;
    }
    let backend = grant / CLASSES;
    if backend < MAX_BACKENDS
        && let Some(state) = BACKEND_STATE.get_ptr_mut(backend)
    {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).flows, u64::MAX) };
    }
}
