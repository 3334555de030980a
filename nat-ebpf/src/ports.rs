// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Claiming a SNAT port: exact, random, and at a cost that does not grow with occupancy.
//!
//! The claim is the `BPF_NOEXIST` insert of the inbound half; everything else only decides what to try.
//!
//! 1. *Probes*: a few ports at random. Nearly always enough.
//! 2. *Pick*: when the probes collide, a bitmap record of what is known to be taken towards this destination. A bit
//!    is set before its port is tried and stays set if the port turns out to be taken; it is cleared after a flow has
//!    left the table. So a bit may be 0 while the port is taken (costs one try) and is 1 without it only between a
//!    claimer's set and its insert, or a releaser's delete and its clear. No zero bit, and no release since before
//!    the look: every port is taken.
//! 3. *Walk*: before a refusal, and at most every [`SEARCH_EVERY`] ticks, a look at every port for a flow that has
//!    expired and was not swept yet (the daemon may be dead). It also mends what is left of evicted records.
//!
//! The steps run inside `bpf_loop` (Linux 5.17), whose callback may keep pointers only on the stack: the state of a
//! search is in a per-CPU map instead, which also keeps the stack small.

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
};
use nat_common::{
    Tick,
    abi::{
        config::{CLASSES, Grant},
        counters::Reason,
        flow::{FlowEntry, FlowKey, HALF_INBOUND, inbound_key, peer_key},
        record::{LEAF_PORTS, LEAF_WORDS, PortRecord},
    },
    net::{
        state,
        timers::{self, GRACE},
    },
    ports::{WORD_MASK, free_bit, leaf_ports, leaves, locate, scale, valid_bits},
};

use crate::{
    allocate::{EEXIST, NOEXIST, table_reason},
    atomic,
    lookup::{expired, word},
    maps::{CONTROL, FLOWS, GRANT_STATE, GRANTS, RECORDS, SEARCH, TABLE},
    reap,
    record::{mark, record_key, record_of, word_of},
    verdict,
};

/// Random tries before the record is asked.
const PROBES: u32 = 2;
/// Ticks for which a collision makes the record be asked first (about 8 s).
const PRESSURE_TICKS: Tick = 16;
/// Ticks between two walks over the same leaf (about 2 s).
const SEARCH_EVERY: Tick = 4;
/// Most steps of one search: every port of the largest grant tried and walked, and every leaf looked at.
const MAX_STEPS: u32 = 4 * 1_048_576;

/// The state of one search.
#[repr(C)]
pub(crate) struct Search {
    /// The half to insert.
    pub(crate) entry: FlowEntry,
    /// Next hop of the outbound half: slot, MTU, MAC address, epoch.
    pub(crate) way: FlowEntry,
    /// An empty record.
    pub(crate) blank: PortRecord,
    /// Outbound key of the new flow.
    pub(crate) key: FlowKey,
    /// Its inbound key with the port last tried.
    inbound: FlowKey,
    /// An expired flow that has a port, and its state word.
    outbound: FlowKey,
    first: u64,
    /// Sum of the records' epochs in this pass over the leaves, and in the one before.
    epochs: u64,
    previous: u64,
    /// Backend slot × 4 + class.
    pub(crate) slot: u32,
    /// Index of the grant in force.
    pub(crate) grant: u32,
    leaf: u32,
    seen: u32,
    start: u32,
    number: u32,
    walking: u32,
    /// The time.
    pub(crate) now: Tick,
    /// First state bits.
    pub(crate) bits: u32,
    outcome: u32,
}

// Values of `Search::outcome`.
const SEARCHING: u32 = 0;
const CLAIMED: u32 = 1;
const NO_PORT: u32 = 2;
const TABLE_FULL: u32 = 3;
const TABLE_ERROR: u32 = 4;

enum Tried {
    Claimed,
    Taken,
    Failed(Reason),
}

/// Claims a port of `search.grant` for `search.key` and leaves address and port in `search.inbound`.
#[inline(always)]
pub(crate) fn claim(search: &mut Search) -> Result<([u8; 4], [u8; 2]), Reason> {
    let Some(grant) = GRANTS.get_ptr(search.grant) else { return Err(Reason::NotConfigured) };
    let Some(state) = GRANT_STATE.get_ptr_mut(search.slot) else { return Err(Reason::NotConfigured) };
    // SAFETY: array elements; `pressed` is a hint.
    let (ports, pressed) = unsafe { ((*grant).ports, (*state).pressed) };
    if pressed == 0 || search.now.wrapping_sub(pressed) > PRESSURE_TICKS {
        for _ in 0..PROBES {
            match attempt(search, grant, scale(random(), ports)) {
                Tried::Claimed => return Ok((search.inbound.destination, search.inbound.destination_port)),
                Tried::Taken => {}
                Tried::Failed(reason) => return Err(reason),
            }
        }
        // SAFETY: array element.
        unsafe { (*state).pressed = search.now };
    }
    search.leaf = scale(random(), leaves(ports));
    search.seen = 0;
    search.start = scale(random(), LEAF_PORTS);
    search.number = 0;
    search.walking = 0;
    search.epochs = 0;
    search.previous = u64::MAX;
    search.outcome = SEARCHING;
    // SAFETY: `step` has the signature that the helper wants and uses no context.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    match search.outcome {
        CLAIMED => Ok((search.inbound.destination, search.inbound.destination_port)),
        TABLE_FULL => Err(Reason::TableFull),
        TABLE_ERROR => Err(Reason::TableError),
        _ => Err(Reason::NoFreePort),
    }
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Tries to claim port number `number`.
#[inline(always)]
fn attempt(search: &mut Search, grant: *const Grant, number: u32) -> Tried {
    // SAFETY: array element.
    let Some((address, port)) = locate(unsafe { &*grant }, number) else { return Tried::Taken };
    search.inbound = inbound_key(&search.key, address, port);
    search.entry.identity = search.inbound.fold();
    match FLOWS.insert(&search.inbound, &search.entry, NOEXIST) {
        Ok(()) => Tried::Claimed,
        Err(EEXIST) => Tried::Taken,
        Err(error) => Tried::Failed(table_reason(error)),
    }
}

#[inline(always)]
fn failed(reason: Reason) -> u32 {
    if matches!(reason, Reason::TableFull) { TABLE_FULL } else { TABLE_ERROR }
}

/// One step of the search. 0: again, 1: done.
unsafe extern "C" fn step(_index: u32, _context: *mut c_void) -> i64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: this CPU's own element; nothing else runs between the steps.
    let search = unsafe { &mut *search };
    let Some(grant) = GRANTS.get_ptr(search.grant) else { return 1 };
    search.outcome = if search.walking == 0 { pick(search, grant) } else { walk(search, grant) };
    i64::from(search.outcome != SEARCHING)
}

/// Looks for a zero bit in the record of the current leaf.
#[inline(never)]
fn pick(search: &mut Search, grant: *const Grant) -> u32 {
    // SAFETY: array element.
    let ports = unsafe { (*grant).ports };
    let key = record_key(search, grant, search.leaf);
    let tag = key.tag();
    let Some(record) = record_of(search, &key, tag) else {
        verdict::count(|counters| counters.record_fallbacks += 1);
        search.walking = 1;
        return SEARCHING;
    };
    // SAFETY: a map value of an LRU map: it may be recycled; the tag tells.
    let (epoch, found) =
        unsafe { (atomic::load(&raw const (*record).epoch), atomic::load(&raw const (*record).tag)) };
    if found != tag {
        return SEARCHING;
    }
    let within = leaf_ports(ports, search.leaf);
    for offset in 0..LEAF_WORDS as u32 {
        let index = ((search.start >> 6) + offset) & WORD_MASK;
        let slot = word_of(record, index);
        // SAFETY: a word of a map value.
        let taken = unsafe { atomic::load(slot) };
        if let Some(bit) = free_bit(taken, valid_bits(index, within), search.start & 63) {
            return take(search, grant, record, tag, index * 64 + bit);
        }
    }
    // SAFETY: as above.
    let (after, found) =
        unsafe { (atomic::load(&raw const (*record).epoch), atomic::load(&raw const (*record).tag)) };
    if after != epoch || found != tag {
        return SEARCHING;
    }
    leaf_is_full(search, leaves(ports), epoch);
    SEARCHING
}

/// The current leaf has no free port: on to the next one; after all of them, once more if a port was released
/// meanwhile, else to the walk.
#[inline(always)]
fn leaf_is_full(search: &mut Search, leaves: u32, epoch: u64) {
    search.epochs = search.epochs.wrapping_add(epoch);
    search.seen += 1;
    search.leaf = if search.leaf + 1 < leaves { search.leaf + 1 } else { 0 };
    if search.seen < leaves {
        return;
    }
    if leaves == 1 || search.epochs == search.previous {
        search.walking = 1;
    }
    search.previous = search.epochs;
    search.epochs = 0;
    search.seen = 0;
}

/// Sets a bit and tries its port.
#[inline(always)]
fn take(search: &mut Search, grant: *const Grant, record: *mut PortRecord, tag: u64, bit: u32) -> u32 {
    let slot = word_of(record, bit >> 6);
    let mask = 1u64 << (bit & 63);
    // SAFETY: words of a map value; a recycled record is recognised by its tag and the bit taken back.
    unsafe {
        if atomic::fetch_or(slot, mask) & mask != 0 {
            return SEARCHING;
        }
        if atomic::load(&raw const (*record).tag) != tag {
            atomic::and(slot, !mask);
            return SEARCHING;
        }
    }
    match attempt(search, grant, search.leaf * LEAF_PORTS + bit) {
        Tried::Claimed => CLAIMED,
        Tried::Taken => SEARCHING,
        Tried::Failed(reason) => {
            // SAFETY: as above.
            unsafe { atomic::and(slot, !mask) };
            failed(reason)
        }
    }
}

/// Looks at one port for a flow that has expired.
#[inline(never)]
fn walk(search: &mut Search, grant: *const Grant) -> u32 {
    // SAFETY: array element.
    let ports = unsafe { (*grant).ports };
    if search.number >= ports {
        return NO_PORT;
    }
    let key = record_key(search, grant, search.number / LEAF_PORTS);
    if search.number.is_multiple_of(LEAF_PORTS) {
        if let Some(record) = RECORDS.get_ptr_mut(&key) {
            // SAFETY: a map value; `searched` of a recycled one makes us walk once too often or too late by ticks.
            let searched = unsafe { (*record).searched };
            if searched != 0 && search.now.wrapping_sub(searched) < SEARCH_EVERY {
                search.number += LEAF_PORTS;
                return SEARCHING;
            }
        }
        verdict::count(|counters| counters.searches += 1);
    }
    let free = match occupant(search, grant) {
        Occupant::Nobody => true,
        Occupant::Alive => false,
        Occupant::Expired => evict(search),
    };
    if free {
        match attempt(search, grant, search.number) {
            Tried::Claimed => {
                mark(&key, search.number % LEAF_PORTS);
                return CLAIMED;
            }
            Tried::Taken => {}
            Tried::Failed(reason) => return failed(reason),
        }
    }
    search.number += 1;
    if (search.number.is_multiple_of(LEAF_PORTS) || search.number >= ports)
        && let Some(record) = RECORDS.get_ptr_mut(&key)
    {
        // SAFETY: as above; an aligned 32-bit store.
        unsafe { (*record).searched = search.now };
    }
    SEARCHING
}

enum Occupant {
    Nobody,
    Alive,
    Expired,
}

/// Who has the port `search.number`. One that has expired is left in `search.outbound` and `search.first`.
#[inline(never)]
fn occupant(search: &mut Search, grant: *const Grant) -> Occupant {
    // SAFETY: array element.
    let Some((address, port)) = locate(unsafe { &*grant }, search.number) else { return Occupant::Alive };
    search.inbound = inbound_key(&search.key, address, port);
    let Some(half) = FLOWS.get_ptr(&search.inbound) else { return Occupant::Nobody };
    // SAFETY: a map value; `reap::flow` acts only on the state word read here.
    let (address, port) = unsafe { ((*half).address, (*half).port) };
    search.outbound = peer_key(&search.inbound, address, port, HALF_INBOUND);
    let Some(entry) = FLOWS.get_ptr(&search.outbound) else { return Occupant::Alive };
    search.first = word(entry);
    // SAFETY: as above.
    let grant = unsafe { (*entry).grant };
    let timer = timers::class_of(grant % CLASSES, (search.first >> 32) as u32 & state::MASK);
    let Some(control) = CONTROL.get_ptr(0) else { return Occupant::Alive };
    // SAFETY: array element.
    if expired(&search.outbound, entry, timer, unsafe { &*control }, search.now, GRACE) {
        Occupant::Expired
    } else {
        Occupant::Alive
    }
}

/// Removes the flow that `occupant` found.
#[inline(always)]
fn evict(search: &Search) -> bool {
    let Some(entry) = FLOWS.get_ptr_mut(&search.outbound) else { return true };
    let removed = reap::flow(&search.outbound, entry, search.first);
    if removed && let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).taken_over, 1) };
    }
    removed
}
