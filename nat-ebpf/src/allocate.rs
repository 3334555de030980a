// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Opening a flow: admission to the table, claim of a port, both halves.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use nat_common::{
    Tick,
    abi::{
        config::{BANKS, CLASS_OTHER, CLASSES, MAX_RULES, banked},
        counters::Reason,
        flow::{
            FLOW_MAPPED, FLOW_MAPPING, FlowEntry, FlowKey, HALF_INBOUND, HALF_INSTANCE, HALF_OUTBOUND,
            ZONE_FLOW, inbound_key,
        },
        grant::{BackendKey, BackendRef, Grant, REFUSAL_SILENT, REFUSALS_PER_TICK, grant_slot},
    },
    net::{protocol, state},
    ports::{has_address, segment_of},
};

use crate::{
    atomic, event, full, join, limits, mapping,
    maps::{BACKENDS, CONTROL, FLOWS, GRANT_STATE, GRANTS, RULES, SEARCH, SETS, TABLE},
    ports::{self, Search},
    record,
    verdict::{self, Verdict},
};

/// `BPF_NOEXIST`: insert only if the key is not there.
pub(crate) const NOEXIST: u64 = 1;
/// `EEXIST`, from an insert with [`NOEXIST`].
pub(crate) const EEXIST: i32 = -17;
/// `E2BIG`: no free element.
pub(crate) const E2BIG: i32 = -7;

/// What is configured for a backend.
#[inline(always)]
pub(crate) fn backend(bank: u32, address: [u8; 4]) -> Option<*const BackendRef> {
    BACKENDS.get_ptr(&BackendKey { address, bank })
}

/// Whether an address is a backend's in the given bank.
#[inline(always)]
pub(crate) fn is_backend(bank: u32, address: [u8; 4]) -> bool {
    backend(bank, address).is_some()
}

/// The grant of a backend slot for `class`, if there is a rule: its slot and itself.
#[inline(always)]
pub(crate) fn grant_in(bank: u32, backend: u32, class: u32) -> Option<(u32, *const Grant)> {
    let slot = grant_slot(backend, class);
    let grant = GRANTS.get_ptr(banked(bank, slot))?;
    // SAFETY: array element.
    if unsafe { (*grant).is_none() } { None } else { Some((slot, grant)) }
}

/// The grant of `source` for `class` in the bank in force: its slot and itself.
#[inline(always)]
pub(crate) fn grant_of(bank: u32, source: [u8; 4], class: u32) -> Option<(u32, *const Grant)> {
    let backend = backend(bank, source)?;
    // SAFETY: map value; slots are written before they are referred to.
    grant_in(bank, unsafe { (*backend).slot }, class)
}

/// Whether a rule gives a backend ports for another protocol than TCP, UDP and ICMP.
#[inline(always)]
pub(crate) fn takes(bank: u32, backend: Option<*const BackendRef>, number: u8) -> bool {
    let Some(backend) = backend else { return false };
    // SAFETY: map value.
    let Some((_, grant)) = grant_in(bank, unsafe { (*backend).slot }, CLASS_OTHER) else { return false };
    // SAFETY: array element.
    allows(bank, unsafe { (*grant).rule }, number)
}

/// Whether a rule names another protocol than TCP, UDP and ICMP.
#[inline(always)]
fn allows(bank: u32, rule: u32, number: u8) -> bool {
    RULES.get_ptr(banked(bank, rule % MAX_RULES)).is_some_and(|rule| {
        // SAFETY: array element.
        unsafe { (*rule).protocols & protocol::rule_bit(number) != 0 }
    })
}

/// Whether the port of an outbound half still belongs to its backend, under the same rule.
#[inline(always)]
pub(crate) fn still_granted(key: &FlowKey, entry: *const FlowEntry) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: map values.
    let (bank, slot, rule, address, port) =
        unsafe { ((*control).bank & 1, (*entry).grant, (*entry).rule, (*entry).address, (*entry).port) };
    match grant_of(bank, key.source, slot % CLASSES) {
        Some((found, grant)) if found == slot => {
            // SAFETY: array element.
            let Grant { own, shared, rule: granted, .. } = unsafe { *grant };
            let named = slot % CLASSES != CLASS_OTHER || allows(bank, granted, key.protocol);
            // Of a kept port only the address is granted.
            let keeps = protocol::keeps_port(key.protocol);
            granted == u32::from(rule)
                && named
                && (has(bank, own, address, port, keeps) || has(bank, shared, address, port, keeps))
        }
        _ => false,
    }
}

#[inline(never)]
fn has(bank: u32, set: u32, address: [u8; 4], port: [u8; 2], any_port: bool) -> bool {
    if set == 0 {
        return false;
    }
    let Some(set) = SETS.get_ptr(banked(bank, set - 1)) else { return false };
    // SAFETY: array element.
    let set = unsafe { &*set };
    if any_port { has_address(set, address) } else { segment_of(set, address, port).is_some() }
}

/// A random nonce in the high half of a state.
#[inline(always)]
pub(crate) fn nonce() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() & !state::MASK }
}

/// Counts a flow as opened.
#[inline(always)]
pub(crate) fn count_opened(grant: u32) {
    if let Some(state) = GRANT_STATE.get_ptr_mut(grant) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).opened, 1) };
    }
}

/// [`natgw_open`] has opened the flow.
pub(crate) const OPENED: u64 = 0;

/// Opens the flow that `SEARCH` asks for: [`OPENED`], then its halves are in the table and can be looked up, or
/// [`Verdict::to_code`].
///
/// If another CPU opens the same flow at the same moment, its port is used and ours is given back.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_open() -> u64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return Verdict::of(Reason::NotConfigured).to_code() };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let search = unsafe { &mut *search };
    match insert(search) {
        Ok(()) => OPENED,
        Err(reason) => {
            if search.joined != 0 {
                join::quit(search);
            }
            refused(search, reason)
        }
    }
}

/// Counts and answers a refusal: [`Verdict::to_code`].
#[inline(always)]
pub(crate) fn refused(search: &Search, reason: Reason) -> u64 {
    refuse(search, reason);
    // The sender's next packet may find what this one did not: nothing to give up for.
    let again = matches!(reason, Reason::FlowRace | Reason::SearchCut);
    let on_refusal = if again { REFUSAL_SILENT } else { search.on_refusal };
    Verdict::refused(reason, audible(search.slot, on_refusal, search.now)).to_code()
}

#[inline(always)]
fn insert(search: &mut Search) -> Result<(), Reason> {
    if full::known(search) {
        return Err(Reason::NoFreePort);
    }
    clear(&mut search.entry);
    if search.joined == 0 {
        limits::admit(search)?;
    } else {
        search.entry.half = search.half;
        search.entry.destination = search.destination;
    }
    let mapping = is_mapping(search);
    if search.outside != 0 && search.flags & FLOW_MAPPED == 0 {
        search.entry.half |= HALF_INSTANCE;
    }
    let counted = limits::counted(search);
    search.entry.state = nonce() | if mapping { 0 } else { search.bits };
    search.entry.address = search.key.source;
    search.entry.port = search.key.source_port;
    search.entry.half = HALF_INBOUND | counted.half;
    search.entry.slot = crate::route::FOREIGN;
    search.entry.grant = search.slot;
    search.entry.created = search.now;
    search.entry.flags = if mapping { FLOW_MAPPING } else { search.flags };
    if mapping {
        search.entry.sequence = search.now.wrapping_add(longest(search));
    }
    search.entry.rule = (search.rule / BANKS) as u16;
    if let Err(reason) = ports::claim(search) {
        if reason == Reason::FlowRace && search.joined != 0 {
            // Another CPU has opened the same session: it is looked up.
            limits::discharge(&search.key, counted);
            join::quit(search);
            return Ok(());
        }
        limits::discharge(&search.key, counted);
        return Err(reason);
    }
    let (address, port) = (search.inbound.destination, search.inbound.destination_port);
    search.entry.identity = search.key.fold();
    search.entry.sequence = 0;
    search.entry.address = address;
    search.entry.port = port;
    search.entry.half = HALF_OUTBOUND | counted.half;
    search.entry.slot = search.way.slot;
    search.entry.mtu = search.way.mtu;
    search.entry.next_hop = search.way.next_hop;
    search.entry.epoch = search.way.epoch;
    // One opened from outside has yet to look up its next hop, with its first packet; 0 in both halves would be "over".
    search.entry.touched = search.now.wrapping_sub(search.outside);
    match FLOWS.insert(&search.key, &search.entry, NOEXIST) {
        Ok(()) => {
            opened(search.slot, mapping);
            Ok(())
        }
        Err(error) => {
            undo(search, counted, address, port);
            if error == EEXIST {
                if search.joined != 0 {
                    join::quit(search);
                }
                verdict::count(|counters| counters.same_flow_races += 1);
                return Ok(());
            }
            Err(table_reason(error))
        }
    }
}

/// Whether what is opened is a mapping.
#[inline(always)]
pub(crate) fn is_mapping(search: &Search) -> bool {
    search.key.zone[0] != ZONE_FLOW
}

/// See [`mapping::longest`].
#[inline(always)]
fn longest(search: &Search) -> Tick {
    // SAFETY: array element.
    RULES
        .get_ptr(search.rule % (BANKS * MAX_RULES))
        .map_or(0, |rule| mapping::longest(unsafe { &*rule }, search.slot % CLASSES))
}

/// Zeroes an entry by words: an assignment of 64 bytes becomes a call to `memcpy`, from a copy on the stack.
#[inline(always)]
pub(crate) fn clear(entry: &mut FlowEntry) {
    let words = core::ptr::from_mut(entry).cast::<u64>();
    for word in 0..size_of::<FlowEntry>() / 8 {
        // SAFETY: within the entry, which is aligned to 8 bytes.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// Gives a claimed port back. The inbound half is ours alone: only the owner of an outbound half removes one.
#[inline(never)]
fn undo(search: &Search, counted: limits::Counted, address: [u8; 4], port: [u8; 2]) {
    let _ = FLOWS.remove(&inbound_key(&search.key, address, port));
    if search.fixed == 0 && !protocol::keeps_port(search.key.protocol) {
        record::release(search.slot, &search.key, address, port);
    }
    limits::discharge(&search.key, counted);
}

/// The reason for a table update that failed with `error`.
#[inline(always)]
pub(crate) fn table_reason(error: i32) -> Reason {
    if error == E2BIG { Reason::TableFull } else { Reason::TableError }
}

#[inline(always)]
fn opened(slot: u32, mapping: bool) {
    // A mapping takes a place in the table, but is no connection.
    if !mapping && let Some(state) = GRANT_STATE.get_ptr_mut(slot) {
        // SAFETY: array element.
        unsafe {
            atomic::add(&raw mut (*state).flows, 1);
            atomic::add(&raw mut (*state).opened, 1);
        }
    }
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).flows, 1) };
    }
}

/// Counts a refusal and reports the first one of a tick.
#[inline(always)]
fn refuse(request: &Search, reason: Reason) {
    let Some(state) = GRANT_STATE.get_ptr_mut(request.slot) else { return };
    // SAFETY: array element. Two CPUs may both report: harmless.
    let report = unsafe {
        let count = match reason {
            Reason::NoFreePort | Reason::SearchCut => &raw mut (*state).refused,
            Reason::FlowLimit
            | Reason::HalfOpenLimit
            | Reason::RateLimit
            | Reason::DestinationLimit
            | Reason::PortCap => &raw mut (*state).refused_limit,
            _ => &raw mut (*state).refused_table,
        };
        atomic::add(count, 1);
        let report = (*state).reported != request.now;
        if report {
            (*state).reported = request.now;
        }
        report
    };
    if report {
        let key = if is_mapping(request) { &request.session } else { &request.key };
        event::refused(key, request.slot, reason, request.now);
    }
}

/// What the sender of a refused packet hears: what is configured, unless this grant's answers for this tick are used up.
/// One that is no backend has no grant, and hears nothing: nothing would bound its storm.
#[inline(always)]
pub(crate) fn audible(slot: u32, on_refusal: u32, now: Tick) -> u32 {
    if on_refusal == REFUSAL_SILENT {
        return REFUSAL_SILENT;
    }
    let Some(state) = GRANT_STATE.get_ptr_mut(slot) else { return REFUSAL_SILENT };
    // SAFETY: array element. Two CPUs at the turn of a tick may both start anew: some answers more.
    unsafe {
        if (*state).answered != now {
            (*state).answered = now;
            (&raw mut (*state).answers).write_volatile(0);
        }
        if atomic::fetch_add(&raw mut (*state).answers, 1) < REFUSALS_PER_TICK {
            on_refusal
        } else {
            REFUSAL_SILENT
        }
    }
}
