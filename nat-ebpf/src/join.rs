// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Opening a session of a mapped inner end: admission, its mapping (opened first if there is none), then the session's
//! halves on the mapping's port. What fails gives back what came before, in reverse order.

use nat_common::{
    abi::{
        config::{BANKS, CLASS_ICMP, CLASSES, MAX_RULES},
        counters::Reason,
        flow::{FLOW_MAPPED, FLOW_PEER, FlowEntry, FlowKey, inbound_key, mapped_port_key, mapping_key},
        grant::{RULE_FILTER_ADDRESS, RULE_PARITY},
    },
    net::state,
};

use crate::{
    allocate,
    life::reclaimable,
    limits::{self, Counted},
    lookup::word,
    mapping,
    maps::{CONTROL, FLOWS, RULES, SEARCH},
    peers,
    ports::Search,
    reap,
    towards::Taken,
    verdict::Verdict,
};

/// The session is admitted and counted in its mapping: `SEARCH` holds the request for [`allocate::natgw_open`].
pub(crate) const JOINED: u64 = 0;
/// There is no mapping yet: `SEARCH` holds the request for it, and [`natgw_mapped`] comes after.
pub(crate) const MAP: u64 = 1;

/// Admits the session that `SEARCH` asks for, and counts it in its mapping: [`JOINED`], [`MAP`] or [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once; and called from the entry point, because of the frames below
/// [`allocate::natgw_open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_join() -> u64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return Verdict::of(Reason::NotConfigured).to_code() };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let search = unsafe { &mut *search };
    allocate::clear(&mut search.entry);
    if let Err(reason) = limits::admit(search) {
        return allocate::refused(search, reason);
    }
    search.session = search.key;
    search.half = search.entry.half;
    search.destination = search.entry.destination;
    let mapping = mapping_key(search.key.source, search.key.source_port, search.key.protocol);
    match FLOWS.get_ptr_mut(&mapping) {
        Some(entry) if !leftover(search, &mapping, entry) => join(search, &mapping, entry),
        _ if search.outside != 0 => give_up(search, Reason::NoMapping),
        _ => {
            search.key = mapping;
            search.preferred = preferred(search);
            MAP
        }
    }
}

/// Goes on after the mapping was opened, or was not: `code` says which.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_mapped(code: u64) -> u64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return Verdict::of(Reason::NotConfigured).to_code() };
    // SAFETY: as in `natgw_join`.
    let search = unsafe { &mut *search };
    search.key = search.session;
    if code != allocate::OPENED {
        // It has been counted and answered there.
        limits::discharge(&search.key, admitted(search));
        return code;
    }
    search.made = 1;
    let mapping = mapping_key(search.key.source, search.key.source_port, search.key.protocol);
    match FLOWS.get_ptr_mut(&mapping) {
        Some(entry) => join(search, &mapping, entry),
        None => give_up(search, Reason::FlowRace),
    }
}

/// Which ports are tried first for a mapping (RFC 4787 REQ-4): even for even, odd for odd, if the rule says so.
#[inline(always)]
fn preferred(search: &Search) -> u64 {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let Some(rule) = RULES.get_ptr(search.rule % (BANKS * MAX_RULES)) else { return u64::MAX };
    // SAFETY: array element.
    if unsafe { (*rule).flags } & RULE_PARITY == 0 || search.slot % CLASSES >= CLASS_ICMP {
        return u64::MAX;
    }
    if search.key.source_port[1] & 1 == 0 { EVEN } else { !EVEN }
}

/// A mapping without sessions whose port is not granted any more makes room for one on a port that is.
#[inline(always)]
fn leftover(search: &Search, key: &FlowKey, entry: *mut FlowEntry) -> bool {
    // SAFETY: a map value.
    if search.outside != 0 || unsafe { (*entry).sequence } != 0 || allocate::still_granted(key, entry) {
        return false;
    }
    let first = word(entry);
    mapping::remove_idle(key, entry, first)
}

/// Counts the session in its mapping, and in the filter, and asks for the mapping's port.
#[inline(always)]
fn join(search: &mut Search, key: &FlowKey, entry: *mut FlowEntry) -> u64 {
    // SAFETY: a map value, compared by `take` afterwards.
    let (address, port) = unsafe { ((*entry).address, (*entry).port) };
    if !mapping::take(key, entry) {
        return give_up(search, Reason::FlowRace);
    }
    search.joined = 1;
    search.flags = search.flags & !FLOW_PEER | FLOW_MAPPED;
    search.inbound = inbound_key(&search.key, address, port);
    search.fixed = 1;
    let Some(rule) = RULES.get_ptr(search.rule % (BANKS * MAX_RULES)) else { return JOINED };
    // SAFETY: array element.
    let rule = unsafe { &*rule };
    let until = search.now.wrapping_add(mapping::longest(rule, search.slot % CLASSES));
    let now = if search.outside == 0 { search.now } else { 0 };
    mapping::prolong(&mapped_port_key(address, port, search.key.protocol), until, now);
    if rule.flags & RULE_FILTER_ADDRESS == 0 {
        return JOINED;
    }
    match peers::take(&mapping::peer_of(&search.key, search.slot), until) {
        Taken::Yes => {
            search.flags |= FLOW_PEER;
            JOINED
        }
        taken => {
            search.joined = 0;
            mapping::uncount(&search.key, search.now, search.flags, search.slot);
            let race = matches!(taken, Taken::Race);
            give_up(search, if race { Reason::FlowRace } else { Reason::TableError })
        }
    }
}

/// What the session is counted in.
#[inline(always)]
fn admitted(search: &Search) -> Counted {
    Counted { half: search.half, destination: search.destination, ..limits::counted(search) }
}

#[inline(always)]
fn give_up(search: &Search, reason: Reason) -> u64 {
    limits::discharge(&search.key, admitted(search));
    allocate::refused(search, reason)
}

/// A session that was counted in is not opened: counts it out, and removes the mapping if it was made for it.
#[inline(never)]
pub(crate) fn quit(search: &mut Search) {
    search.joined = 0;
    mapping::uncount(&search.key, search.now, search.flags, search.slot);
    let key = mapping_key(search.key.source, search.key.source_port, search.key.protocol);
    if search.made != 0
        && let Some(entry) = FLOWS.get_ptr_mut(&key)
    {
        let first = word(entry);
        mapping::remove_idle(&key, entry, first);
    }
}

/// What stands in the way of a session on its mapping's port.
pub(crate) enum Obstacle {
    /// What was there has been removed.
    Gone,
    /// The same session: another CPU was faster.
    Same,
    /// Another CPU is removing it.
    Going,
    /// Another inner end's flow, from before the mapping.
    Other,
}

/// Looks at the flow that has the tuple of `search.inbound`; one that has expired is removed: a mapping that ended when none
/// of its sessions could be alive leaves them behind.
#[inline(never)]
pub(crate) fn obstacle(search: &mut Search) -> Obstacle {
    use nat_common::{
        abi::flow::{HALF_INBOUND, peer_key},
        net::timers::class_of,
    };
    let (Some(half), Some(control)) = (FLOWS.get_ptr(&search.inbound), CONTROL.get_ptr(0)) else {
        return Obstacle::Gone;
    };
    // SAFETY: a map value; `reap::flow` acts only on the state word read below.
    let (address, port) = unsafe { ((*half).address, (*half).port) };
    if (word(half) >> 32) as u32 & state::DEAD != 0 {
        return Obstacle::Going;
    }
    search.outbound = peer_key(&search.inbound, address, port, HALF_INBOUND);
    let same = address == search.key.source && port == search.key.source_port;
    let Some(entry) = FLOWS.get_ptr_mut(&search.outbound) else {
        return if same { Obstacle::Same } else { Obstacle::Other };
    };
    let first = word(entry);
    // SAFETY: a map value, and an array element.
    let (grant, control) = unsafe { ((*entry).grant, &*control) };
    let timer = class_of(grant % CLASSES, (first >> 32) as u32 & state::MASK);
    if reclaimable(&search.outbound, entry, timer, control, search.now)
        && reap::flow(&search.outbound, entry, first)
    {
        return Obstacle::Gone;
    }
    if same { Obstacle::Same } else { Obstacle::Other }
}
