// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Fragments: a later one has no ports, and gets those that the first one of its datagram had.
//!
//! A first fragment goes the way of a whole packet and leaves an entry in `FRAGMENTS` ([`crate::piece`]). A later one
//! finds the entry here, and then its flow, like any packet. If the entry is not there yet, [`natgw_hold_back`] leaves
//! it to the TC program ([`crate::hold`]), which can keep packets; XDP cannot.
//!
//! Only headers are rewritten. What overlaps, contradicts itself or never becomes complete is between the two ends, as
//! without a gateway; only what could change the ports that were judged is dropped here (RFC 1858, RFC 3128).

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    Tick,
    abi::{
        config::{
            CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASS_UDP, FEATURE_INSTANCE, FRONTEND_LOCAL, ROLE_OUTSIDE,
        },
        counters::Reason,
        fragment::{
            DATAGRAMS_IN_ALL, DATAGRAMS_PER_TICK, DUPLICATE_TICKS, FRAGMENT_AWAITED, FRAGMENT_KNOWN,
            FRAGMENT_NONE, FRAGMENT_REFUSED, FRAGMENT_SHARES as SHARE_SLOTS, FRAGMENT_STACK, FRAGMENT_TICKS,
            FRAGMENT_WAITING, FragmentEntry, FragmentKey, HELD_BYTES, SIDE_SENT, UNTRANSLATED_IN_ALL, spread,
        },
    },
    net::{icmp, timers},
};

use crate::{
    allocate::{self, NOEXIST},
    atomic,
    classify::Arrival,
    frame, inbound, instance,
    maps::{CONTROL, FRAGMENT_SHARES, FRAGMENTS},
    parse::{FIRST, ICMP, Kind, LATER, Parsed, TCP, TINY, UDP},
    verdict::Verdict,
};

/// [`natgw_fragment`]: on with the packet.
pub(crate) const GO_ON: u64 = 0;

/// Finds out the ports of a fragment: [`GO_ON`], `parsed` then says as much as can be known, or [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_fragment(
    ctx: *mut xdp_md,
    parsed: *mut Parsed,
    arrival: *const Arrival,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&mut *parsed, &*arrival) };
    parsed.class = class_of(parsed.key.protocol) as u8;
    if parsed.fragment == FIRST {
        first(ctx, parsed);
        return GO_ON;
    }
    match later(ctx, parsed, arrival) {
        Ok(()) => GO_ON,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
pub(crate) fn class_of(protocol: u8) -> u32 {
    match protocol {
        TCP => CLASS_TCP,
        UDP => CLASS_UDP,
        ICMP => CLASS_ICMP,
        _ => CLASS_OTHER,
    }
}

/// Reads the transport header of a first fragment as far as it is needed, and demands that all of it be there: what
/// comes later could not be judged (RFC 1858 §3, RFC 3128).
#[inline(always)]
fn first(ctx: *mut xdp_md, parsed: &mut Parsed) {
    let at = parsed.transport();
    let payload = parsed.total().wrapping_sub(parsed.header());
    let minimal = if parsed.key.protocol == TCP { 20 } else { 8 };
    let (Some(ports), true) = (frame::load::<[u8; 8]>(ctx, at), payload >= minimal && payload < 1 << 16)
    else {
        parsed.fragment = if u32::from(parsed.class) == CLASS_OTHER { FIRST } else { TINY };
        return;
    };
    match parsed.key.protocol {
        TCP => {
            let [offset, flags] = frame::load::<[u8; 2]>(ctx, at + 12).unwrap_or_default();
            let length = usize::from(offset >> 4) * 4;
            if length < minimal || length > payload {
                parsed.fragment = TINY;
                return;
            }
            parsed.flags = flags;
        }
        UDP => {}
        ICMP => {
            parsed.icmp_type = ports[0];
            match icmp::kind(ports[0]) {
                icmp::Kind::Request => parsed.key.source_port = [ports[4], ports[5]],
                icmp::Kind::Reply => parsed.key.destination_port = [ports[4], ports[5]],
                _ => return,
            }
            parsed.kind = Kind::Query;
            return;
        }
        _ => return,
    }
    parsed.key.source_port = [ports[0], ports[1]];
    parsed.key.destination_port = [ports[2], ports[3]];
    parsed.kind = Kind::Query;
}

/// Gives a later fragment the ports of the first, if that has come.
#[inline(always)]
fn later(ctx: *mut xdp_md, parsed: &mut Parsed, arrival: &Arrival) -> Result<(), Verdict> {
    // RFC 3128: with offset 1 it would overwrite the flags that the first fragment was judged by.
    if parsed.key.protocol == TCP
        && let Some([high, low]) = frame::load::<[u8; 2]>(ctx, parsed.network() + 6)
        && u16::from_be_bytes([high & 0x1f, low]) == 1
    {
        parsed.fragment = TINY;
        return Ok(());
    }
    let Some(key) = key_of(ctx, parsed, arrival) else { return Ok(()) };
    let entry = entry_of(&key, arrival.now);
    match entry.state & !FRAGMENT_WAITING {
        // The stack's: what was decided about the first is decided again.
        FRAGMENT_KNOWN | FRAGMENT_STACK => {
            parsed.key.source_port = entry.source_port;
            parsed.key.destination_port = entry.destination_port;
            parsed.icmp_type = entry.icmp_type;
            parsed.kind = Kind::Query;
            Ok(())
        }
        FRAGMENT_REFUSED => Err(Verdict::of(Reason::FragmentOrphan)),
        _ => Ok(()),
    }
}

/// The datagram that a packet is a part of.
#[inline(always)]
pub(crate) fn key_of(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Option<FragmentKey> {
    Some(FragmentKey {
        source: parsed.key.source,
        destination: parsed.key.destination,
        id: frame::load::<[u8; 2]>(ctx, parsed.network() + 4)?,
        protocol: parsed.key.protocol,
        side: arrival.role as u8 & 3,
    })
}

/// What is known about a datagram, if it is not too old: else [`FRAGMENT_NONE`].
///
/// verifier: not an `Option`, of which LLVM copies the undefined part, too.
#[inline(always)]
pub(crate) fn entry_of(key: &FragmentKey, now: Tick) -> FragmentEntry {
    for _ in 0..4 {
        let Some(entry) = FRAGMENTS.get_ptr(key) else { break };
        // SAFETY: a map value, copied; it may change hands meanwhile, so its identity is read last.
        let (copy, identity) = unsafe {
            (core::ptr::read_volatile(entry), core::ptr::read_volatile(&raw const (*entry).identity))
        };
        // Otherwise it has just been replaced, and its element is another datagram's.
        if identity == key.fold() {
            if timers::expired(now, copy.made, FRAGMENT_TICKS) {
                break;
            }
            return copy;
        }
    }
    FragmentEntry::default()
}

/// What is known about a datagram by its header as it was sent, translated.
#[inline(always)]
pub(crate) fn as_sent(
    source: [u8; 4],
    destination: [u8; 4],
    id: [u8; 2],
    protocol: u8,
    now: Tick,
) -> FragmentEntry {
    entry_of(&FragmentKey { source, destination, id, protocol, side: SIDE_SENT }, now)
}

/// Whose share a datagram counts in, and whose window it is held in: the frontend's it is sent to, or its source's.
#[inline(always)]
pub(crate) fn party(key: &FragmentKey) -> [u8; 4] {
    // SAFETY: array element.
    let bank = CONTROL.get_ptr(0).map_or(0, |control| unsafe { (*control).bank } & 1);
    if inbound::frontend_of(bank, key.destination).is_some() { key.destination } else { key.source }
}

/// Counts a datagram that is translated; false: its party has begun too many in this tick.
#[inline(always)]
pub(crate) fn admit(key: &FragmentKey, now: Tick) -> bool {
    let (Some(own), Some(all)) = shares(key) else { return false };
    // SAFETY: words of array elements.
    unsafe {
        count(&raw mut (*own).known, now) <= DATAGRAMS_PER_TICK
            || count(&raw mut (*all).known, now) <= DATAGRAMS_IN_ALL
    }
}

/// Likewise one that is not, or not yet.
#[inline(always)]
fn admit_untranslated(key: &FragmentKey, now: Tick) -> bool {
    let (Some(own), Some(all)) = shares(key) else { return false };
    // SAFETY: words of array elements.
    unsafe {
        count(&raw mut (*own).unknown, now) <= DATAGRAMS_PER_TICK
            && count(&raw mut (*all).unknown, now) <= UNTRANSLATED_IN_ALL
    }
}

type Share = Option<*mut nat_common::abi::fragment::FragmentShare>;

#[inline(always)]
fn shares(key: &FragmentKey) -> (Share, Share) {
    let own = spread(party(key)) % (SHARE_SLOTS - 1);
    (FRAGMENT_SHARES.get_ptr_mut(own), FRAGMENT_SHARES.get_ptr_mut(SHARE_SLOTS - 1))
}

/// Adds one to this tick's count. Two CPUs at the turn of a tick may both start anew: some more are let in.
///
/// # Safety
/// `word` is an aligned word of a map value.
#[inline(always)]
unsafe fn count(word: *mut u64, now: Tick) -> u32 {
    // SAFETY: by the caller's promise.
    unsafe {
        let seen = atomic::load(word);
        if (seen >> 32) as Tick != now && atomic::compare_swap(word, seen, u64::from(now) << 32 | 1) {
            return 1;
        }
        atomic::fetch_add(word, 1) as u32 + 1
    }
}

/// Leaves a fragment whose datagram's first one has not come to the TC program, which keeps it: [`Verdict::to_code`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_hold_back(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    Verdict::of(hold_back(ctx, parsed, arrival)).to_code()
}

#[inline(always)]
fn hold_back(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Reason {
    let Some(key) = key_of(ctx, parsed, arrival) else { return Reason::Malformed };
    if parsed.total() > HELD_BYTES {
        return no_room(parsed, arrival);
    }
    // Known meanwhile, or awaited by another fragment already: the TC program looks again.
    if entry_of(&key, arrival.now).state != FRAGMENT_NONE {
        return Reason::FragmentHeld;
    }
    if !admit_untranslated(&key, arrival.now) {
        return no_room(parsed, arrival);
    }
    let entry = FragmentEntry {
        identity: key.fold(),
        state: FRAGMENT_AWAITED,
        made: arrival.now,
        ..FragmentEntry::default()
    };
    if FRAGMENTS.insert(&key, &entry, NOEXIST).is_err() && entry_of(&key, arrival.now).state == FRAGMENT_NONE
    {
        // One of an older datagram is in the way.
        let _ = FRAGMENTS.insert(&key, &entry, 0);
    }
    Reason::FragmentHeld
}

/// What becomes of a fragment that there is no room to keep: the host's own stack can wait for the others, if it may be
/// for the host.
#[inline(always)]
fn no_room(parsed: &Parsed, arrival: &Arrival) -> Reason {
    let Some(control) = CONTROL.get_ptr(0) else { return Reason::FragmentLimit };
    // SAFETY: array element.
    let bank = unsafe { (*control).bank } & 1;
    let local = arrival.role & u32::from(ROLE_OUTSIDE) != 0
        && inbound::frontend_of(bank, parsed.key.destination)
            // SAFETY: array element.
            .is_some_and(|frontend| unsafe { (*frontend).flags } & FRONTEND_LOCAL != 0);
    if local { Reason::HostTraffic } else { Reason::FragmentLimit }
}

/// Notes that a first fragment was dropped, or left to the stack as it was, so that those behind it fare alike.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_first_ended(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
    reason: u32,
    passed: u32,
) -> u32 {
    if parsed.is_null() || arrival.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    let state = if reason == Reason::HostTraffic as u32 || reason == Reason::Bypassed as u32 {
        FRAGMENT_STACK
    } else if passed == 0 && reason != Reason::NoOutboundRule as u32 {
        FRAGMENT_REFUSED
    } else {
        return 0;
    };
    // Without ports, or by an instance IP, each is judged alone.
    if u32::from(parsed.class) == CLASS_OTHER || has_instance(parsed) {
        return 0;
    }
    let Some(key) = key_of(ctx, parsed, arrival) else { return 0 };
    let known = entry_of(&key, arrival.now);
    let before = known.state;
    // Not so that whoever guesses an identification can cut off what is on its way.
    if before & !FRAGMENT_WAITING == FRAGMENT_KNOWN && arrival.now.wrapping_sub(known.made) <= DUPLICATE_TICKS
    {
        return 0;
    }
    if before == FRAGMENT_NONE && !admit_untranslated(&key, arrival.now) {
        return 0;
    }
    let waiting = before == FRAGMENT_AWAITED || before & FRAGMENT_WAITING != 0;
    let entry = FragmentEntry {
        identity: key.fold(),
        source_port: parsed.key.source_port,
        destination_port: parsed.key.destination_port,
        id: key.id,
        state: if waiting { state | FRAGMENT_WAITING } else { state },
        icmp_type: parsed.icmp_type,
        made: arrival.now,
    };
    let _ = FRAGMENTS.insert(&key, &entry, 0);
    1
}

#[inline(always)]
fn has_instance(parsed: &Parsed) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: array element.
    let (features, bank) = unsafe { ((*control).features, (*control).bank & 1) };
    if features & FEATURE_INSTANCE == 0 {
        return false;
    }
    // SAFETY: map value.
    let backends = allocate::backend(bank, parsed.key.source)
        .is_some_and(|backend| unsafe { (*backend).instance } != [0; 4]);
    backends || instance::of_address(bank, parsed.key.destination).is_some()
}

/// Why a fragment whose ports are not known, and that is not to be held, is dropped.
#[inline(always)]
pub(crate) fn untranslatable(parsed: &Parsed) -> Reason {
    if parsed.fragment == TINY { Reason::FragmentTiny } else { Reason::Fragment }
}

/// Whether a fragment's ports may yet become known.
#[inline(always)]
pub(crate) fn awaits_first(parsed: &Parsed) -> bool {
    parsed.kind == Kind::Fragment && parsed.fragment == LATER && u32::from(parsed.class) != CLASS_OTHER
}
