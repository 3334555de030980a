// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! TCP flows that end idle, under a rule that wants both ends told ([`RULE_RESET_IDLE`]): the sweep hands them to the daemon,
//! which sends the RST segments. Once each: whoever sets [`state::TOLD`] hands over.

use nat_common::{
    Tick,
    abi::{
        config::{Control, MAX_RULES, banked},
        event::IdleReset,
        flow::{FLOW_SEQUENCE, FlowEntry, FlowKey, inbound_key},
        grant::RULE_RESET_IDLE,
    },
    net::{
        state,
        timers::{GRACE, TimerClass},
    },
};

use crate::{
    atomic,
    lookup::{swap_word, word},
    maps::{FLOWS, RESETS, RULES, TABLE},
};

/// Ticks between a flow's end and telling it: whoever found it alive by an older clock has marked it by then.
pub(crate) const SETTLED: Tick = 1;
/// Ticks after which a flow that could not be handed over is reclaimed like any other (about 34 s).
pub(crate) const PATIENCE: Tick = GRACE + 64;

/// Whether both ends of a flow that is over are still to be told: a connection was open, and its numbers are known.
#[inline(always)]
pub(crate) fn wanted(entry: *const FlowEntry, bits: u32, timer: TimerClass, control: &Control) -> bool {
    // SAFETY: a map value.
    let (flags, rule) = unsafe { ((*entry).flags, u32::from((*entry).rule)) };
    flags & FLOW_SEQUENCE != 0
        && bits & state::TOLD == 0
        && matches!(timer, TimerClass::TcpEstablished | TimerClass::TcpHalfClosed)
        && RULES.get_ptr(banked(control.bank & 1, rule % MAX_RULES)).is_some_and(|rule| {
            // SAFETY: array element.
            unsafe { (*rule).flags & RULE_RESET_IDLE != 0 }
        })
}

/// Hands a flow over, if there is room for it, and nobody has changed it since its state word was `first`.
#[inline(never)]
pub(crate) fn hand_over(key: &FlowKey, entry: *mut FlowEntry, first: u64, now: Tick) -> bool {
    // SAFETY: a map value; of one that changes meanwhile the swap below fails.
    let (address, port) = unsafe { ((*entry).address, (*entry).port) };
    let inbound = inbound_key(key, address, port);
    let Some(other) = FLOWS.get_ptr_mut(&inbound) else { return false };
    let Some(mut record) = RESETS.reserve::<IdleReset>(0) else { return false };
    let to = record.as_mut_ptr();
    // SAFETY: room for one record; map values.
    unsafe {
        (*to).key = *key;
        (*to).address = address;
        (*to).port = port;
        (*to).slots = [(*entry).slot, (*other).slot];
        (*to).sequences = [(*entry).sequence, (*other).sequence];
        (*to).epochs = [(*entry).epoch, (*other).epoch];
        (*to).next_hops = [(*entry).next_hop, (*other).next_hop];
        (*to).tick = now;
    }
    let state = (first >> 32) as u32;
    if first as u32 != key.fold() || !swap_word(entry, first, state | state::TOLD) {
        record.discard(0);
        return false;
    }
    record.submit(0);
    tell(other, &inbound, first);
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).told, 1) };
    }
    true
}

/// The other half is over, too, whatever a clock that was read long ago says; unless it is a new connection's by now.
#[inline(always)]
fn tell(other: *mut FlowEntry, key: &FlowKey, first: u64) {
    for _ in 0..4 {
        let seen = word(other);
        let same = seen as u32 == key.fold() && (seen ^ first) >> 48 == 0;
        if !same || swap_word(other, seen, (seen >> 32) as u32 | state::TOLD) {
            break;
        }
    }
}

/// Counts a flow that is reclaimed although its ends have not been told.
#[inline(always)]
pub(crate) fn given_up() {
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).untold, 1) };
    }
}
