// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What is done for a flow once a tick and half, or when a TCP segment opens or closes something: expiry, next hop,
//! state, and a new connection on an old tuple.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    Tick,
    abi::{
        config::{
            CLASS_TCP, CLASSES, Control, FEATURE_POLICY, HEARTBEAT_TICKS, MAX_RULES, ROLE_INSIDE,
            ROLE_OUTSIDE, banked,
        },
        flow::{FLOW_MAPPED, FlowEntry, FlowKey, HALF_INSTANCE, HALF_LIMITED, HALF_OUTBOUND, peer_key},
        grant::{RULE_FILTER_ADDRESS, RULE_FILTER_NONE, RULE_LIMITED},
        names::delay::ANEW,
    },
    net::{
        state::{self, Direction},
        timers,
    },
};

use crate::{
    allocate,
    classify::{Arrival, DOUBTED, JUDGED},
    constants, event,
    life::{expired, rested},
    limits,
    lookup::{swap_word, word},
    mapping,
    maps::{CONTROL, FLOWS, RULES, SEARCH},
    opening,
    parse::Parsed,
    reap,
    route::{self, Answer, Route},
};

/// Which half is visited, from where, and when.
struct Visit<'a> {
    key: &'a FlowKey,
    ifindex: u32,
    now: Tick,
    /// Whether the packet shows that the flow is alive.
    counts: bool,
}

/// The flow is alive and up to date.
pub(crate) const ALIVE: u32 = 0;
/// It was over, and has been removed so that the packet may open another.
pub(crate) const GONE: u32 = 1;
/// It is over, and the packet does not open anything.
pub(crate) const EXPIRED: u32 = 2;
/// The element changed hands.
pub(crate) const RECYCLED: u32 = 3;
/// Another CPU changed the flow at the same moment.
pub(crate) const RACE: u32 = 4;

/// It is over and its port must not be used again: [`natgw_remove`] is to remove it.
pub(crate) const REMOVE: u32 = 5;
/// It is over, and whether the packet may open it again is to be judged first: [`crate::opening::natgw_reopen`].
pub(crate) const JUDGE: u32 = 6;
/// Its backend has too many unfinished handshakes.
pub(crate) const HALF_OPEN: u32 = 7;

/// Removes the flow of a packet that [`natgw_maintain`] has found to be over: [`GONE`] or [`RACE`].
///
/// verifier: global, and called from the entry point, where the stack is short.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_remove(parsed: *const Parsed) -> u32 {
    if parsed.is_null() {
        return RACE;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let key = unsafe { &(*parsed).key };
    let (Some(entry), Some(search)) = (FLOWS.get_ptr_mut(key), SEARCH.get_ptr(0)) else { return GONE };
    // SAFETY: this CPU's own element, written by `reopen`; a map value, of which a recycled one has another nonce.
    let (first, address, port, half) =
        unsafe { ((*search).first, (*entry).address, (*entry).port, (*entry).half) };
    if half & HALF_OUTBOUND != 0 {
        return if reap::flow(key, entry, first) { GONE } else { RACE };
    }
    let peer = peer_key(key, address, port, half);
    let Some(other) = FLOWS.get_ptr_mut(&peer) else { return GONE };
    let theirs = word(other);
    let same = (theirs ^ first) >> 48 == 0;
    if same && reap::flow(&peer, other, theirs) { GONE } else { RACE }
}

/// Brings a half up to date.
///
/// verifier: a global function is verified once, by itself, instead of once for every state that its callers can be
/// in; that is a factor of fifty here. Its pointers may be null as far as the verifier knows.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_maintain(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u32 {
    if parsed.is_null() || arrival.is_null() {
        return RACE;
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    let counts = arrival.role & DOUBTED == 0;
    let visit = &Visit { key: &parsed.key, ifindex: arrival.ifindex, now: arrival.now, counts };
    let Some(entry) = FLOWS.get_ptr_mut(visit.key) else { return GONE };
    let Some(control) = CONTROL.get_ptr(0) else { return RACE };
    // SAFETY: array element.
    let control = unsafe { &*control };
    let first = word(entry);
    let state = (first >> 32) as u32 & state::MASK;
    if first as u32 != parsed.key.fold() {
        return RECYCLED;
    }
    // Being removed since it was found: not to be brought back to life.
    if state & state::DEAD != 0 {
        return RACE;
    }
    // SAFETY: a map value; whatever is written below is written after the identity has been compared.
    let (grant, half) = unsafe { ((*entry).grant, (*entry).half) };
    let class = grant % CLASSES;
    let flags = parsed.flags;
    let outbound = half & HALF_OUTBOUND != 0;
    let opening = (outbound || half & HALF_INSTANCE != 0 || open_outside(entry, control))
        && (class != CLASS_TCP || state::opens(flags));
    let over = state & state::TOLD != 0
        || expired(visit.key, entry, timers::class_of(class, state), control, visit.now, 0);
    if over && !opening {
        return EXPIRED;
    }
    let mut anew = over || (opening && class == CLASS_TCP && state::reopens(state, flags));
    // Whoever is outside does not cut short the rest of a port: it is for the destination's sake, but from all others.
    if anew
        && !outbound
        && half & HALF_INSTANCE == 0
        && !rested(visit.key, entry, timers::class_of(class, state), control, visit.now)
    {
        if over {
            return EXPIRED;
        }
        anew = false;
    }
    if anew {
        if outbound
            && arrival.role & JUDGED == 0
            && (control.features & FEATURE_POLICY != 0 || half & HALF_LIMITED != 0)
        {
            return JUDGE;
        }
        let done = reopen(visit.key, entry, first, flags, visit.now);
        if done != ALIVE {
            return done;
        }
    } else {
        let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
        let bits =
            if class == CLASS_TCP && visit.counts { state::tcp_bits(state, direction, flags) } else { 0 };
        if bits != 0 {
            note(visit.key, entry, bits, visit.now);
        }
    }
    touch(ctx, visit, entry, control)
}

/// Whether what comes from outside may open a session anew that is over, as it may open one.
#[inline(always)]
fn open_outside(entry: *const FlowEntry, control: &Control) -> bool {
    // SAFETY: a map value.
    let (flags, rule) = unsafe { ((*entry).flags, u32::from((*entry).rule)) };
    flags & FLOW_MAPPED != 0
        && RULES.get_ptr(banked(control.bank & 1, rule % MAX_RULES)).is_some_and(|rule| {
            // SAFETY: array element.
            unsafe { (*rule).flags & (RULE_FILTER_ADDRESS | RULE_FILTER_NONE) != 0 }
        })
}

/// Looks up the next hop again if anything may have changed, and marks the half as seen.
#[inline(always)]
fn touch(ctx: *mut xdp_md, visit: &Visit, entry: *mut FlowEntry, control: &Control) -> u32 {
    let first = word(entry);
    if first as u32 != visit.key.fold() {
        return RECYCLED;
    }
    // SAFETY: a map value; identity compared above and again after the writes.
    unsafe {
        let daemon_is_dead = visit.now.wrapping_sub(control.heartbeat) > HEARTBEAT_TICKS;
        let hairpin = (*entry).slot == route::HAIRPIN;
        if !hairpin && (*entry).epoch != control.epoch
            || (!hairpin && daemon_is_dead && (*entry).touched != visit.now)
        {
            // Read before the look-up: a change that comes in between is looked up again.
            let epoch = core::ptr::read_volatile(&raw const control.epoch);
            let (slot, way) = way(ctx, visit, entry);
            if slot >= route::NOWHERE {
                // No way, and so no MAC address to send to: it is looked up again in the next tick.
                (*entry).slot = slot;
                (*entry).epoch = 0;
            } else {
                (*entry).next_hop = way.next_hop;
                (*entry).mtu = way.mtu;
                (*entry).slot = slot;
                (*entry).epoch = epoch;
            }
            if word(entry) as u32 != first as u32 {
                // Recycled between the comparison and the writes: its new owner looks up its next hop again.
                (*entry).epoch = 0;
                return RECYCLED;
            }
        }
        if (*entry).flags & FLOW_MAPPED != 0 {
            mapping::refresh(visit.key, entry, control, visit.now);
        }
        let state = (word(entry) >> 32) as u32 & state::MASK;
        if visit.counts && timers::class_of((*entry).grant % CLASSES, state).refreshes() {
            (*entry).touched = visit.now;
        }
    }
    ALIVE
}

/// The way to the other end of the flow from where the packet came in, and the port to use.
#[inline(always)]
fn way(ctx: *mut xdp_md, visit: &Visit, entry: *const FlowEntry) -> (u8, Route) {
    // SAFETY: a map value.
    let (address, half) = unsafe { ((*entry).address, (*entry).half) };
    let (destination, wanted) = if half & HALF_OUTBOUND != 0 {
        (visit.key.destination, ROLE_OUTSIDE)
    } else {
        (address, ROLE_INSIDE)
    };
    let mut way = Route::default();
    route::lookup(ctx, visit.ifindex, visit.key.source, destination, &mut way);
    if matches!(way.answer, Answer::Unresolved) {
        event::neighbour(visit.key, way.ifindex, way.neighbour, visit.now);
    }
    let slot = match way.answer {
        Answer::Found if way.role & wanted != 0 => way.slot,
        // The guard sits on outside ports only: what would leave by another interface must not go to the stack.
        Answer::Unresolved if way.role & wanted != 0 => route::FOREIGN,
        _ => route::NOWHERE,
    };
    (slot, way)
}

/// Adds TCP events to both halves. A close starts the cool-down: from here on `touched` stands still.
#[inline(always)]
fn note(key: &FlowKey, entry: *mut FlowEntry, bits: u32, now: Tick) {
    // SAFETY: a map value.
    let (address, port, half) = unsafe { ((*entry).address, (*entry).port, (*entry).half) };
    add_bits(entry, key, bits, now);
    let peer = peer_key(key, address, port, half);
    if let Some(other) = FLOWS.get_ptr_mut(&peer) {
        add_bits(other, &peer, bits, now);
    }
}

#[inline(always)]
fn add_bits(entry: *mut FlowEntry, key: &FlowKey, bits: u32, now: Tick) {
    for _ in 0..4 {
        let seen = word(entry);
        let state = (seen >> 32) as u32;
        if seen as u32 != key.fold() || state & state::DEAD != 0 {
            return;
        }
        // First the time, then the state: the new state's timer may be shorter, and somebody who sees it must not judge
        // by a time from long ago. A flow that is over keeps the time of its end, and a half that has seen no packet
        // yet stays so: its first one looks up its next hop.
        if timers::class_of(CLASS_TCP, state & state::MASK).refreshes() {
            // SAFETY: a map value whose identity was just compared; an aligned 32-bit store.
            unsafe {
                if (*entry).touched != 0 {
                    (*entry).touched = now;
                }
            }
        }
        if swap_word(entry, seen, state | bits) {
            handshake_over(entry, state & state::MASK, (state | bits) & state::MASK);
            return;
        }
    }
}

/// Whoever ends the handshake in the outbound half takes it off its backend's count of unfinished ones.
#[inline(always)]
fn handshake_over(entry: *const FlowEntry, before: u32, after: u32) {
    use timers::{TimerClass::TcpHandshake, class_of};
    // SAFETY: a map value whose state word was just swapped.
    let (grant, half) = unsafe { ((*entry).grant, (*entry).half) };
    if half & (HALF_OUTBOUND | HALF_LIMITED) == HALF_OUTBOUND | HALF_LIMITED
        && class_of(CLASS_TCP, before) == TcpHandshake
        && class_of(CLASS_TCP, after) != TcpHandshake
    {
        limits::opened(grant, half);
    }
}

/// A new connection (or query) on the tuple of one that is over: the mapping is still claimed, so it is used again
/// if the configuration in force still grants that port; otherwise the old flow is removed first.
#[inline(always)]
fn reopen(key: &FlowKey, entry: *mut FlowEntry, first: u64, flags: u8, now: Tick) -> u32 {
    if admitted_anew(entry) || !allocate::still_granted(key, entry) {
        let Some(search) = SEARCH.get_ptr_mut(0) else { return RACE };
        // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
        unsafe { (*search).first = first };
        return REMOVE;
    }
    let handshake = limits::handshake_again(entry, (first >> 32) as u32 & state::MASK);
    if handshake == limits::TOO_MANY {
        return HALF_OPEN;
    }
    // SAFETY: map values. Times first, in both halves: the sweep reads the word before them and swaps after.
    let (peer, other, half, grant) = unsafe {
        (*entry).touched = now;
        (*entry).created = now;
        let peer = peer_key(key, (*entry).address, (*entry).port, (*entry).half);
        let other = FLOWS.get_ptr_mut(&peer);
        if let Some(other) = other {
            (*other).touched = 0;
        }
        (peer, other, (*entry).half, (*entry).grant)
    };
    let state = allocate::nonce() | state::tcp_bits(0, Direction::Outbound, flags);
    if first as u32 != key.fold() || !swap_word(entry, first, state) {
        if handshake == limits::COUNTED {
            limits::opened(grant, half);
        }
        return RACE;
    }
    let flags = flags_now(entry);
    fresh(entry, flags, now);
    if let Some(other) = other {
        for _ in 0..4 {
            let seen = word(other);
            if seen as u32 != peer.fold() || swap_word(other, seen, state) {
                break;
            }
        }
        fresh(other, flags, now);
        // SAFETY: a map value; aligned 32-bit store.
        unsafe { (*other).touched = 0 };
    }
    allocate::count_opened(grant);
    ALIVE
}

/// Whether a new connection on the tuple is to be admitted like any other: its rule has limits by now that the flow was
/// not counted against, it came from outside, or it has to be counted in its mapping, which may be another by now.
#[inline(always)]
fn admitted_anew(entry: *const FlowEntry) -> bool {
    // SAFETY: a map value.
    let (half, flags, rule) = unsafe { ((*entry).half, (*entry).flags, u32::from((*entry).rule)) };
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: array element.
    let bank = unsafe { (*control).bank } & 1;
    half & HALF_INSTANCE != 0
        || flags & FLOW_MAPPED != 0
        || constants::delay() & ANEW != 0
        || (half & HALF_LIMITED == 0
            && RULES.get_ptr(banked(bank, rule % MAX_RULES)).is_some_and(|rule| {
                // SAFETY: array element.
                unsafe { (*rule).flags & RULE_LIMITED != 0 }
            }))
}

/// What is done for a new connection on an old tuple: what its rule says by now, and the port is whose it was.
#[inline(always)]
fn flags_now(entry: *const FlowEntry) -> u8 {
    // SAFETY: map value and array element.
    unsafe {
        let bank = CONTROL.get_ptr(0).map_or(0, |control| (*control).bank & 1);
        let flags = opening::flow_flags(bank, u32::from((*entry).rule), (*entry).grant % CLASSES);
        flags & !FLOW_MAPPED | (*entry).flags & FLOW_MAPPED
    }
}

#[inline(always)]
fn fresh(entry: *mut FlowEntry, flags: u8, now: Tick) {
    // SAFETY: a map value that belongs to the caller since it swapped the state word.
    unsafe {
        (*entry).created = now;
        (*entry).flags = flags;
        (*entry).epoch = 0;
        (*entry).packets = 0;
        (*entry).bytes = 0;
    }
}
