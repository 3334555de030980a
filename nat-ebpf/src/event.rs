// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Ring-buffer records for the daemon.

use nat_common::{
    Tick,
    abi::{
        counters::Reason,
        event::{EVENT_NEIGHBOUR, EVENT_REFUSED, Event},
        flow::FlowKey,
    },
};

use crate::{maps::EVENTS, verdict};

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
