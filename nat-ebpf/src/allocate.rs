// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Opening a flow: admission to the table, claim of a port, both halves.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use nat_common::{
    abi::{
        config::{BackendKey, CLASSES, Control, Grant, MAX_BACKENDS, grant_index, grant_slot},
        counters::Reason,
        flow::{FlowEntry, FlowKey, HALF_BURST, HALF_INBOUND, HALF_OUTBOUND, inbound_key},
    },
    net::state,
    ports::number_of,
};

use crate::{
    atomic, event,
    maps::{BACKEND_STATE, BACKENDS, CONTROL, FLOWS, GRANT_STATE, GRANTS, SEARCH, TABLE},
    ports::{self, Search},
    reap, record,
    verdict::{self, Verdict},
};

/// `BPF_NOEXIST`: insert only if the key is not there.
pub(crate) const NOEXIST: u64 = 1;
/// `EEXIST`, from an insert with [`NOEXIST`].
pub(crate) const EEXIST: i32 = -17;
/// `E2BIG`: no free element.
pub(crate) const E2BIG: i32 = -7;

/// Whether an address is a backend's in the given bank.
#[inline(always)]
pub(crate) fn is_backend(bank: u32, address: [u8; 4]) -> bool {
    BACKENDS.get_ptr(&BackendKey { address, bank }).is_some()
}

/// The grant of `source` for `class` in the bank in force: its slot and itself.
#[inline(always)]
pub(crate) fn grant_of(bank: u32, source: [u8; 4], class: u32) -> Option<(u32, *const Grant)> {
    let backend = BACKENDS.get_ptr(&BackendKey { address: source, bank })?;
    // SAFETY: map value, written as a whole word.
    let backend = unsafe { *backend };
    if backend >= MAX_BACKENDS {
        return None;
    }
    let slot = grant_slot(backend, class);
    let grant = GRANTS.get_ptr(grant_index(bank, slot))?;
    // SAFETY: array element.
    if unsafe { (*grant).ports } == 0 { None } else { Some((slot, grant)) }
}

/// Whether the port of an outbound half still belongs to its backend, under the same rule.
#[inline(always)]
pub(crate) fn still_granted(key: &FlowKey, entry: *const FlowEntry) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: map values.
    let (bank, class, slot, rule, address, port) = unsafe {
        let slot = (*entry).grant;
        ((*control).bank & 1, slot % CLASSES, slot, (*entry).rule, (*entry).address, (*entry).port)
    };
    match grant_of(bank, key.source, class) {
        // SAFETY: array element.
        Some((found, grant)) if found == slot => unsafe {
            (*grant).rule == u32::from(rule) && number_of(&*grant, address, port).is_some()
        },
        _ => false,
    }
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

/// Opens the flow that `SEARCH` asks for. On success the outbound half is in the table and can be looked up.
///
/// If another CPU opens the same flow at the same moment, its port is used and ours is given back.
#[inline(never)]
pub(crate) fn open() -> Result<(), Verdict> {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let search = unsafe { &mut *search };
    insert(search).map_err(|reason| {
        refuse(search, reason);
        Verdict::of(reason)
    })
}

#[inline(always)]
fn insert(search: &mut Search) -> Result<(), Reason> {
    let Some(grant) = GRANTS.get_ptr(search.grant) else { return Err(Reason::NotConfigured) };
    let burst = admit(search.slot)?;
    clear(&mut search.entry);
    search.entry.state = nonce() | search.bits;
    search.entry.address = search.key.source;
    search.entry.port = search.key.source_port;
    search.entry.half = HALF_INBOUND | burst;
    search.entry.slot = crate::route::FOREIGN;
    search.entry.grant = search.slot;
    search.entry.created = search.now;
    // SAFETY: array element.
    search.entry.rule = unsafe { (*grant).rule } as u16;
    let (address, port) = match ports::claim(search) {
        Ok(claimed) => claimed,
        Err(reason) => {
            reap::discharge(search.slot, burst);
            return Err(reason);
        }
    };
    search.entry.identity = search.key.fold();
    search.entry.address = address;
    search.entry.port = port;
    search.entry.half = HALF_OUTBOUND | burst;
    search.entry.slot = search.way.slot;
    search.entry.mtu = search.way.mtu;
    search.entry.next_hop = search.way.next_hop;
    search.entry.epoch = search.way.epoch;
    search.entry.touched = search.now;
    match FLOWS.insert(&search.key, &search.entry, NOEXIST) {
        Ok(()) => {
            opened(search.slot);
            Ok(())
        }
        Err(error) => {
            undo(search, burst, address, port);
            if error == EEXIST {
                verdict::count(|counters| counters.same_flow_races += 1);
                return Ok(());
            }
            Err(table_reason(error))
        }
    }
}

/// Zeroes an entry by words: an assignment of 64 bytes becomes a call to `memcpy`, from a copy on the stack.
#[inline(always)]
fn clear(entry: &mut FlowEntry) {
    let words = core::ptr::from_mut(entry).cast::<u64>();
    for word in 0..size_of::<FlowEntry>() / 8 {
        // SAFETY: within the entry, which is aligned to 8 bytes.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// Gives a claimed port back. The inbound half is ours alone: only the owner of an outbound half removes one.
#[inline(never)]
fn undo(search: &Search, burst: u8, address: [u8; 4], port: [u8; 2]) {
    let _ = FLOWS.remove(&inbound_key(&search.key, address, port));
    record::release(search.slot, &search.key, address, port);
    reap::discharge(search.slot, burst);
}

/// The reason for a table update that failed with `error`.
#[inline(always)]
pub(crate) fn table_reason(error: i32) -> Reason {
    if error == E2BIG { Reason::TableFull } else { Reason::TableError }
}

/// Takes a flow into its backend's share of the table: the guaranteed part first, then the common budget.
#[inline(always)]
fn admit(slot: u32) -> Result<u8, Reason> {
    let backend = slot / CLASSES;
    let (Some(control), Some(table)) = (CONTROL.get_ptr(0), TABLE.get_ptr_mut(0)) else {
        return Err(Reason::NotConfigured);
    };
    let Some(state) = BACKEND_STATE.get_ptr_mut(backend) else { return Err(Reason::NotConfigured) };
    // SAFETY: array elements.
    unsafe {
        let Control { guaranteed_flows, burst_flows, .. } = *control;
        if atomic::fetch_add(&raw mut (*state).flows, 1) < u64::from(guaranteed_flows) {
            return Ok(0);
        }
        atomic::add(&raw mut (*state).flows, u64::MAX);
        if atomic::fetch_add(&raw mut (*table).burst, 1) < u64::from(burst_flows) {
            return Ok(HALF_BURST);
        }
        atomic::add(&raw mut (*table).burst, u64::MAX);
    }
    Err(Reason::TableShare)
}

#[inline(always)]
fn opened(slot: u32) {
    if let Some(state) = GRANT_STATE.get_ptr_mut(slot) {
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
        if matches!(reason, Reason::NoFreePort) {
            atomic::add(&raw mut (*state).refused, 1);
        } else {
            atomic::add(&raw mut (*state).refused_table, 1);
        }
        let report = (*state).reported != request.now;
        if report {
            (*state).reported = request.now;
        }
        report
    };
    if report {
        event::refused(&request.key, request.slot, reason, request.now);
    }
}
