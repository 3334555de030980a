// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Endpoint-independent mappings (RFC 4787 §4.1): one SNAT port for an inner end, whatever the destination.
//!
//! A mapping is kept as a flow of `ZONE_MAPPING` to 0.0.0.0:0: its port is claimed, found again and released as that of any
//! flow. Each destination has a flow of its own beside it, a *session*, on the mapping's port, so that packets find
//! theirs with one look-up. The mapping counts its sessions. It may go when it has none and has been idle for its
//! timeout; or when none of them can be alive, even if what is left of them is still in the table.
//!
//! The count is in the outbound half, the time until which a session can be alive in the inbound one, both in the upper
//! half of a word whose lower half says that this is a mapping. Elements are recycled at once: the word is changed by
//! compare-and-swap, so it is never a flow's, and the identity is compared again afterwards.

use nat_common::{
    Tick,
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP, CLASSES, Control, MAX_RULES, banked},
        flow::{
            FLOW_MAPPED, FLOW_MAPPING, FLOW_PEER, FlowEntry, FlowKey, HALF_INSTANCE, HALF_OUTBOUND,
            MAPPING_GONE, inbound_key, mapped_port_key, mapping_key,
        },
        grant::{PeerKey, Rule},
        names::delay::MAPPING_JUDGED,
    },
    net::{
        state,
        timers::{self, GRACE, TIMER_CLASSES, TimerClass, class_of},
    },
};

use crate::{
    atomic, delay,
    lookup::word,
    maps::{FLOWS, RULES},
    peers, reap,
};

/// One session, in [`tally`].
const SESSION: u64 = 1 << 32;
/// Swaps tried in a row.
const SWAPS: u32 = 16;

/// The word with the count of sessions (outbound half) or their end (inbound half) in its upper half.
#[inline(always)]
fn tally(entry: *mut FlowEntry) -> *mut u64 {
    const {
        assert!(
            core::mem::offset_of!(FlowEntry, rule) == 40 && core::mem::offset_of!(FlowEntry, sequence) == 44
        )
    }
    // SAFETY: a map value; rule, destination, flags and sequence are its word at 40.
    unsafe { (&raw mut (*entry).rule).cast() }
}

/// Whether a word read by [`tally`] is a mapping's.
#[inline(always)]
const fn is_mapping(word: u64) -> bool {
    word as u32 >> 24 & FLOW_MAPPING as u32 != 0
}

/// Whether an element still is what it was found as.
#[inline(always)]
fn same(entry: *const FlowEntry, key: &FlowKey) -> bool {
    let found = word(entry);
    found as u32 == key.fold() && (found >> 32) as u32 & state::DEAD == 0
}

/// Counts a session in; false if the mapping is being removed.
#[inline(always)]
pub(crate) fn take(key: &FlowKey, entry: *mut FlowEntry) -> bool {
    for _ in 0..SWAPS {
        // SAFETY: a word of a map value.
        unsafe {
            let seen = atomic::load(tally(entry));
            if !same(entry, key) || !is_mapping(seen) || (seen >> 32) as u32 & MAPPING_GONE != 0 {
                return false;
            }
            if atomic::compare_swap(tally(entry), seen, seen + SESSION) {
                if same(entry, key) {
                    return true;
                }
                atomic::add(tally(entry), SESSION.wrapping_neg());
                return false;
            }
        }
    }
    false
}

/// Counts out a flow, `session` under `key`, that is still in the table, but dead: [`HALF_INSTANCE`] if it is a session, else
/// 0. One that has outlived its mapping is not counted in
/// the next of the same inner end: that is younger.
#[inline(never)]
pub(crate) fn leave(key: &FlowKey, session: *const FlowEntry) -> u8 {
    // SAFETY: a map value that is the caller's.
    let (created, flags, grant) = unsafe { ((*session).created, (*session).flags, (*session).grant) };
    if flags & FLOW_MAPPED == 0 {
        return 0;
    }
    uncount(key, created, flags, grant);
    HALF_INSTANCE
}

/// As [`leave`], of a session that did not come into the table.
#[inline(always)]
pub(crate) fn uncount(key: &FlowKey, created: Tick, flags: u8, grant: u32) {
    if flags & FLOW_PEER != 0 {
        peers::give_back(&peer_of(key, grant));
    }
    let mapping = mapping_key(key.source, key.source_port, key.protocol);
    let Some(entry) = FLOWS.get_ptr_mut(&mapping) else { return };
    for _ in 0..SWAPS {
        // SAFETY: a map value.
        unsafe {
            let seen = atomic::load(tally(entry));
            let younger = (created.wrapping_sub((*entry).created) as i32) < 0;
            let sessions = (seen >> 32) as u32 & !MAPPING_GONE;
            if younger || sessions == 0 || !is_mapping(seen) || word(entry) as u32 != mapping.fold() {
                return;
            }
            if atomic::compare_swap(tally(entry), seen, seen - SESSION) {
                return;
            }
        }
    }
    // SAFETY: a map value. So many others at once: none of them would be if the mapping were going.
    unsafe { atomic::add(tally(entry), SESSION.wrapping_neg()) };
}

/// The address outside that a session counts for.
#[inline(always)]
pub(crate) fn peer_of(key: &FlowKey, grant: u32) -> PeerKey {
    PeerKey { grant, remote: key.destination, port: key.source_port, reserved: [0; 2] }
}

/// What [`over`] has judged; never 0 for a mapping that is over.
pub(crate) type Judged = u64;
/// It is not over.
pub(crate) const ALIVE: Judged = 0;

/// Whether a mapping, `entry` under `key`, is over; with `gone`, whether it has been for so long that it can be removed.
#[inline(never)]
pub(crate) fn over(key: &FlowKey, entry: *mut FlowEntry, control: &Control, now: Tick, gone: bool) -> Judged {
    // SAFETY: map values; what is acted on is the word judged here.
    unsafe {
        let seen = atomic::load(tally(entry));
        let index = banked(control.bank & 1, u32::from((*entry).rule) % MAX_RULES);
        let Some(rule) = RULES.get_ptr(index) else { return ALIVE };
        let Some(other) = FLOWS.get_ptr(&inbound_key(key, (*entry).address, (*entry).port)) else {
            return ALIVE;
        };
        if !is_mapping(seen) {
            return ALIVE;
        }
        let class = (*entry).grant % CLASSES;
        let rest = if gone { longest_rest(&*rule, class) } else { 0 };
        if timers::expired(now, (*other).sequence, rest) {
            return seen;
        }
        let grace = if gone { GRACE } else { 0 };
        let timer = class_of(class, 0);
        let timeout = (*rule).timeouts[timer as usize & (TIMER_CLASSES - 1)] + grace;
        let idle = |touched| touched == 0 || timers::expired(now, touched, timeout);
        if seen >> 32 == 0 && idle((*entry).touched) && idle((*other).touched) { seen } else { ALIVE }
    }
}

/// When a mapping without further packets can be removed, by the times in its halves.
#[inline(always)]
pub(crate) fn end_of(entry: *const FlowEntry, other: *const FlowEntry, rule: &Rule) -> Tick {
    // SAFETY: map values; of recycled ones the answer is off for one walk.
    unsafe {
        let class = (*entry).grant % CLASSES;
        let timeout = rule.timeouts[class_of(class, 0) as usize & (TIMER_CLASSES - 1)];
        let last = if (*other).touched == 0 { (*entry).touched } else { (*other).touched };
        if (*entry).sequence == 0 {
            last.wrapping_add(timeout + GRACE + 1)
        } else {
            (*other).sequence.wrapping_add(longest_rest(rule, class) + 1)
        }
    }
}

/// Removes a mapping that [`over`] has judged, if nothing has changed since.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey, entry: *mut FlowEntry, first: u64, judged: Judged) -> bool {
    delay::at(MAPPING_JUDGED);
    // SAFETY: a word of a map value.
    let ours = judged >> 63 == 0
        && unsafe { atomic::compare_swap(tally(entry), judged, judged | u64::from(MAPPING_GONE) << 32) };
    ours && reap::flow(key, entry, first)
}

/// Removes a mapping that has no sessions.
#[inline(always)]
pub(crate) fn remove_idle(key: &FlowKey, entry: *mut FlowEntry, first: u64) -> bool {
    // SAFETY: a word of a map value.
    let seen = unsafe { atomic::load(tally(entry)) };
    is_mapping(seen) && seen >> 32 == 0 && remove(key, entry, first, seen)
}

/// The timers of a class: first and last.
#[inline(always)]
const fn timers_of(class: u32) -> (usize, usize) {
    use TimerClass::{Icmp, TcpReset, Udp};
    match class {
        CLASS_TCP => (0, TcpReset as usize),
        CLASS_UDP => (Udp as usize, Udp as usize),
        _ => (Icmp as usize, Icmp as usize),
    }
}

/// Ticks for which a session that has a packet now may live at most.
#[inline(always)]
pub(crate) fn longest(rule: &Rule, class: u32) -> Tick {
    let (first, last) = timers_of(class);
    let mut longest = 0;
    for timer in 0..TIMER_CLASSES {
        if timer >= first && timer <= last {
            longest = later(longest, rule.timeouts[timer]);
        }
    }
    if class == CLASS_UDP {
        for port in &rule.udp_ports {
            longest = later(longest, port.timeout);
        }
    }
    longest
}

/// Ticks for which a session may rest at most.
#[inline(always)]
fn longest_rest(rule: &Rule, class: u32) -> Tick {
    let (first, last) = timers_of(class);
    let mut longest = 0;
    for timer in 0..TIMER_CLASSES {
        if timer >= first && timer <= last {
            longest = later(longest, timers::rest(rule.rests[timer]));
        }
    }
    longest
}

#[inline(always)]
const fn later(first: Tick, second: Tick) -> Tick {
    if first > second { first } else { second }
}

/// A session has a packet: its mapping is alive at least as long as it may be. Packets from inside prolong the mapping
/// itself, too (RFC 4787 REQ-6).
#[inline(never)]
pub(crate) fn refresh(key: &FlowKey, entry: *const FlowEntry, control: &Control, now: Tick) {
    // SAFETY: a map value.
    let (address, port, half, flags, grant, rule) = unsafe {
        ((*entry).address, (*entry).port, (*entry).half, (*entry).flags, (*entry).grant, (*entry).rule)
    };
    let Some(rule) = RULES.get_ptr(banked(control.bank & 1, u32::from(rule) % MAX_RULES)) else { return };
    // SAFETY: array element.
    let until = now.wrapping_add(longest(unsafe { &*rule }, grant % CLASSES));
    let outbound = half & HALF_OUTBOUND != 0;
    let mapping = if outbound {
        mapped_port_key(address, port, key.protocol)
    } else {
        mapped_port_key(key.destination, key.destination_port, key.protocol)
    };
    prolong(&mapping, until, if outbound { now } else { 0 });
    if flags & FLOW_PEER != 0 {
        let (remote, port) = if outbound { (key.destination, key.source_port) } else { (key.source, port) };
        peers::extend(&PeerKey { grant, remote, port, reserved: [0; 2] }, until);
    }
}

/// A session of the mapping, whose inbound half is under `key`, may live until `until`; a packet came from inside at `now`,
/// 0: from outside.
#[inline(never)]
pub(crate) fn prolong(key: &FlowKey, until: Tick, now: Tick) {
    let Some(other) = FLOWS.get_ptr_mut(key) else { return };
    extend(key, other, until);
    if now != 0 {
        // SAFETY: a map value; a recycled one is taken as touched now.
        unsafe { (*other).touched = now };
    }
}

#[inline(always)]
fn extend(key: &FlowKey, other: *mut FlowEntry, until: Tick) {
    for _ in 0..SWAPS {
        // SAFETY: a word of a map value.
        unsafe {
            let seen = atomic::load(tally(other));
            let known = (seen >> 32) as u32;
            if known.wrapping_sub(until) as i32 >= 0 || !is_mapping(seen) || word(other) as u32 != key.fold()
            {
                return;
            }
            if atomic::compare_swap(tally(other), seen, u64::from(seen as u32) | u64::from(until) << 32) {
                return;
            }
        }
    }
}

/// The mapping that a SNAT port belongs to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Target {
    /// Inner end.
    pub(crate) address: [u8; 4],
    pub(crate) port: [u8; 2],
    /// Rule slot.
    pub(crate) rule: u16,
    /// Grant slot.
    pub(crate) grant: u32,
}

/// Looks up whose SNAT port the destination of `packet` is; false if there is no mapping that is alive.
#[inline(never)]
pub(crate) fn target(packet: &FlowKey, control: &Control, now: Tick, target: &mut Target) -> bool {
    let key = mapped_port_key(packet.destination, packet.destination_port, packet.protocol);
    let Some(half) = FLOWS.get_ptr(&key) else { return false };
    // SAFETY: a map value; identity compared after reading.
    unsafe {
        target.address = (*half).address;
        target.port = (*half).port;
        target.rule = (*half).rule;
        target.grant = (*half).grant;
    }
    if !same(half, &key) || target.grant % CLASSES >= CLASS_ICMP {
        return false;
    }
    let mapping = mapping_key(target.address, target.port, packet.protocol);
    match FLOWS.get_ptr_mut(&mapping) {
        Some(entry) => same(entry, &mapping) && over(&mapping, entry, control, now, false) == ALIVE,
        None => false,
    }
}
