// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Ring-buffer records for the daemon.

use nat_common::{
    Tick,
    abi::{
        config::CLASS_OTHER,
        counters::Reason,
        event::{EVENT_NEIGHBOUR, EVENT_REFUSED, Event},
        flow::FlowKey,
        grant::grant_slot,
    },
};

use crate::{
    maps::{EVENTS, GRANT_STATE},
    route::Route,
    verdict,
};

/// A new flow was refused.
#[inline(never)]
pub(crate) fn refused(key: &FlowKey, grant: u32, reason: Reason, now: Tick) {
    send(Event {
        kind: EVENT_REFUSED,
        reason: reason as u32,
        tick: now,
        grant,
        key: *key,
        ifindex: 0,
        address: [0; 4],
    });
}

/// The next hop towards `address` by `ifindex` has no MAC address.
#[inline(never)]
pub(crate) fn neighbour(key: &FlowKey, ifindex: u32, address: [u8; 4], now: Tick) {
    send(Event {
        kind: EVENT_NEIGHBOUR,
        reason: Reason::NeighbourUnresolved as u32,
        tick: now,
        grant: u32::MAX,
        key: *key,
        ifindex,
        address,
    });
}

/// As [`neighbour`], for a packet of backend slot `backend` that no flow is kept for: once a tick, or every packet would
/// be an event.
#[inline(always)]
pub(crate) fn neighbour_of(backend: u32, key: &FlowKey, way: &Route, now: Tick) {
    let Some(state) = GRANT_STATE.get_ptr_mut(grant_slot(backend, CLASS_OTHER)) else { return };
    // SAFETY: array element. Two CPUs may both report: harmless.
    unsafe {
        if (*state).reported == now {
            return;
        }
        (*state).reported = now;
    }
    neighbour(key, way.ifindex, way.neighbour, now);
}

#[inline(always)]
fn send(event: Event) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(0);
        }
        None => verdict::count(|counters| counters.events_lost += 1),
    }
}
