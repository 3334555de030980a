// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Removing a flow.
//!
//! One actor removes both halves: whoever swaps `DEAD` into the state word of the outbound half. The order is fixed:
//! both halves dead, outbound half out of the table, inbound half out of the table (the port is free from here on),
//! record bit cleared, counts lowered.

use nat_common::{
    abi::{
        config::{CLASS_TCP, CLASSES},
        flow::{FlowEntry, FlowKey, HALF_INSTANCE, ZONE_FLOW, inbound_key},
    },
    net::{
        protocol, state,
        timers::{TimerClass, class_of},
    },
};

use crate::{
    atomic,
    limits::{self, Counted},
    lookup::{swap_word, word},
    mapping,
    maps::{FLOWS, GRANT_STATE, TABLE},
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
    let (address, port, grant) = unsafe { ((*entry).address, (*entry).port, (*entry).grant) };
    let handshake = class_of(CLASS_TCP, bits & state::MASK) == TimerClass::TcpHandshake;
    let half_open = grant % CLASSES == CLASS_TCP && handshake;
    // SAFETY: as above.
    let counted = unsafe {
        // The port of a session is its mapping's, and stays claimed: as that of an instance IP.
        let half = (*entry).half | mapping::leave(key, entry);
        Counted { grant, half, destination: (*entry).destination, half_open }
    };
    remove(key, address, port);
    // The port of an instance IP, and one that was kept, is in no set, and nobody looks for it.
    if counted.half & HALF_INSTANCE == 0 && !protocol::keeps_port(key.protocol) {
        record::release(grant, key, address, port);
    }
    limits::discharge(key, counted);
    if key.zone[0] == ZONE_FLOW
        && let Some(state) = GRANT_STATE.get_ptr_mut(grant)
    {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).flows, u64::MAX) };
    }
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).flows, u64::MAX) };
    }
    true
}

/// Takes both halves out of the table, the outbound one first.
///
/// verifier: a function of its own, so that the other key is not on the stack below `record::release`.
#[inline(never)]
fn remove(key: &FlowKey, address: [u8; 4], port: [u8; 2]) {
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
}
