// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Before a refusal: is there a flow that has expired and was not swept yet?
//!
//! A walk over all ports finds out, and when the first of them can expire at all: until then there is nothing to look
//! for, and a refusal costs what the look at the root costs. A walk for one packet ends after [`MOST_WALKED`] ports; it
//! goes on from there with a packet of the next tick, so that no receive queue waits for long.

use nat_common::{
    Tick,
    abi::{
        config::{CLASSES, Control, MAX_RULES, banked},
        flow::{FlowEntry, HALF_INBOUND, ZONE_FLOW, peer_key},
        grant::PortSet,
        record::RootRecord,
    },
    net::{state, timers},
    ports::leaf_of,
};

use crate::{
    atomic,
    life::end_of,
    lookup::word,
    mapping,
    maps::{CONTROL, FLOWS, ROOTS, RULES, TABLE},
    pick::set_id,
    ports::{CLAIMED, NO_PORT, PHASE_WALK, SEARCHING, Search, Tried, attempt, failed},
    reap,
    record::{mark, record_key, root_key},
    verdict,
};

/// Most ports looked at for one packet.
const MOST_WALKED: u32 = 4096;

/// Whether the time has come for some flow: then [`PHASE_WALK`], else [`NO_PORT`].
#[inline(always)]
pub(crate) fn begin(search: &mut Search, root: *const RootRecord) -> u32 {
    let Some(control) = CONTROL.get_ptr(0) else { return NO_PORT };
    // SAFETY: array element; words of a map value, of which the pairs are written as one.
    unsafe {
        let known = (*root).generation == (*control).generation;
        if known && (*root).due != 0 && before(search.now, (*root).due) {
            return NO_PORT;
        }
        search.number = if known { (*root).cursor } else { 0 };
        search.due = if search.number == 0 { at_most(search.now, &*control) } else { (*root).next_due };
    }
    search.phase = PHASE_WALK;
    verdict::count(|counters| counters.searches += 1);
    SEARCHING
}

/// Closing a connection may shorten its life: nothing is known for longer than the shortest timeout.
#[inline(always)]
fn at_most(now: Tick, control: &Control) -> Tick {
    now.wrapping_add(control.shortest)
}

#[inline(always)]
pub(crate) const fn before(first: Tick, second: Tick) -> bool {
    (first.wrapping_sub(second) as i32) < 0
}

/// Looks at one port for a flow that has expired.
#[inline(never)]
pub(crate) fn port(search: &mut Search, set: *const PortSet) -> u32 {
    // SAFETY: array element.
    let ports = unsafe { (*set).ports };
    if search.number >= ports || search.walked >= MOST_WALKED {
        note(search, set, ports, search.now.wrapping_add(1));
        return NO_PORT;
    }
    let free = match occupant(search, set) {
        Occupant::Nobody => true,
        Occupant::Alive => false,
        Occupant::Expired => evict(search),
    };
    if free {
        match attempt(search, set, search.number) {
            Tried::Claimed => {
                let (address, port) = (search.inbound.destination, search.inbound.destination_port);
                mark(&record_key(&search.key, address, leaf_of(port)), port);
                // There may be more: the next one goes on from here.
                note(search, set, ports, 0);
                return CLAIMED;
            }
            Tried::Taken => {}
            Tried::Failed(reason) => return failed(reason),
        }
    }
    search.number += 1;
    search.walked += 1;
    SEARCHING
}

/// Writes down when the next walk is due, or how far this one has come and when (`again`) it goes on.
#[inline(never)]
fn note(search: &Search, set: *const PortSet, ports: u32, again: Tick) {
    let key = root_key(&search.key, set_id(set));
    let (Some(root), Some(control)) = (ROOTS.get_ptr_mut(&key), CONTROL.get_ptr(0)) else { return };
    let done = search.number >= ports;
    // SAFETY: array element; words of a map value, each pair written at once so that they belong together.
    unsafe {
        let generation = u64::from((*control).generation) << 32;
        // A pass that was begun long ago may come to an end after what it had found out.
        let due = u64::from(if done && !before(search.due, again) { search.due } else { again });
        let cursor = if done { 0 } else { u64::from(search.number) | u64::from(search.due) << 32 };
        (&raw mut (*root).cursor).cast::<u64>().write_volatile(cursor);
        (&raw mut (*root).due).cast::<u64>().write_volatile(due | generation);
    }
}

enum Occupant {
    Nobody,
    Alive,
    Expired,
}

/// Who has the port `search.number`. One that has expired is left in `search.outbound` and `search.first`; one that has
/// not may bring `search.due` nearer.
#[inline(never)]
fn occupant(search: &mut Search, set: *const PortSet) -> Occupant {
    // SAFETY: array element.
    let Some((address, port)) = nat_common::ports::locate(unsafe { &*set }, search.number) else {
        return Occupant::Alive;
    };
    search.inbound = nat_common::abi::flow::inbound_key(&search.key, address, port);
    holder(search)
}

/// Removes the flow that has `search.inbound`, if it is over: whether another may have it.
#[inline(always)]
pub(crate) fn take_over(search: &mut Search) -> bool {
    match holder(search) {
        Occupant::Nobody => true,
        Occupant::Alive => false,
        Occupant::Expired => evict(search),
    }
}

/// Who has `search.inbound`: see [`occupant`].
#[inline(never)]
fn holder(search: &mut Search) -> Occupant {
    let Some(half) = FLOWS.get_ptr(&search.inbound) else { return Occupant::Nobody };
    // SAFETY: a map value; `reap::flow` acts only on the state word read here.
    let (address, port) = unsafe { ((*half).address, (*half).port) };
    search.outbound = peer_key(&search.inbound, address, port, HALF_INBOUND);
    let Some(entry) = FLOWS.get_ptr_mut(&search.outbound) else { return Occupant::Alive };
    search.first = word(entry);
    // SAFETY: as above.
    let grant = unsafe { (*entry).grant };
    if search.outbound.zone[0] != ZONE_FLOW {
        return mapping(search, entry, half);
    }
    let timer = timers::class_of(grant % CLASSES, (search.first >> 32) as u32 & state::MASK);
    let Some(control) = CONTROL.get_ptr(0) else { return Occupant::Alive };
    // SAFETY: array element.
    let control = unsafe { &*control };
    let Some(end) = end_of(&search.outbound, entry, half, timer, control) else {
        return Occupant::Expired;
    };
    if !before(search.now, end) {
        return Occupant::Expired;
    }
    if before(end, search.due) {
        search.due = end;
    }
    Occupant::Alive
}

/// [`occupant`] of a port of mappings.
#[inline(always)]
fn mapping(search: &mut Search, entry: *mut FlowEntry, half: *const FlowEntry) -> Occupant {
    let Some(control) = CONTROL.get_ptr(0) else { return Occupant::Alive };
    // SAFETY: array element; a map value.
    let (control, rule) = unsafe { (&*control, u32::from((*entry).rule)) };
    search.judged = mapping::over(&search.outbound, entry, control, search.now, true);
    if search.judged != mapping::ALIVE {
        return Occupant::Expired;
    }
    let Some(rule) = RULES.get_ptr(banked(control.bank & 1, rule % MAX_RULES)) else {
        return Occupant::Alive;
    };
    // SAFETY: array element.
    let end = mapping::end_of(entry, half, unsafe { &*rule });
    if before(end, search.due) {
        search.due = end;
    }
    Occupant::Alive
}

/// Removes the flow that `occupant` found.
#[inline(always)]
fn evict(search: &Search) -> bool {
    let Some(entry) = FLOWS.get_ptr_mut(&search.outbound) else { return true };
    let removed = if search.outbound.zone[0] == ZONE_FLOW {
        reap::flow(&search.outbound, entry, search.first)
    } else {
        mapping::remove(&search.outbound, entry, search.first, search.judged)
    };
    if removed && let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).taken_over, 1) };
    }
    removed
}
