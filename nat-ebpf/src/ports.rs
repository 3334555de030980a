// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Claiming a SNAT port: exact, random, and at a cost that does not grow with occupancy.
//!
//! The claim is the `BPF_NOEXIST` insert of the inbound half; everything else only decides what to try. A backend's own
//! ports come first, then those that it shares. For each of the two sets:
//!
//! 1. *Probes*: a few ports at random, fewer the fuller they are towards this destination ([`Pressure`]). Nearly always enough.
//! 2. *Pick* ([`crate::pick`]): when the probes collide, bitmaps of what is known to be taken towards this destination.
//! 3. *Walk* ([`crate::walk`]): before a refusal, and only if some flow may have expired since the last one, a look at
//!    the ports for a flow that has expired and was not swept yet (the daemon may be dead).
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
        config::banked,
        counters::Reason,
        flow::{FlowEntry, FlowKey, inbound_key},
        grant::{Grant, MAX_SEGMENTS, PortSet, SET_ORDERED},
        record::{PROBES, PortRecord, Pressure, RootRecord},
    },
    net::protocol,
    ports::{SEGMENT_MASK, leaf_of, locate, scale},
};

use crate::{
    allocate::{EEXIST, NOEXIST, table_reason},
    join::{self, Obstacle},
    keep,
    maps::{FLOWS, GRANTS, SEARCH, SETS},
    pick, record, walk,
};

/// Most ports tried for one packet: what was learnt stays in the records.
pub(crate) const MOST_TRIES: u32 = 8192;
/// Most steps of one search.
const MOST_STEPS: u32 = 65_536;

/// The state of one search.
#[repr(C)]
pub(crate) struct Search {
    /// The half to insert.
    pub(crate) entry: FlowEntry,
    /// Next hop of the outbound half: slot, MTU, MAC address, epoch.
    pub(crate) way: FlowEntry,
    /// An empty record.
    pub(crate) blank: PortRecord,
    /// An empty root.
    pub(crate) blank_root: RootRecord,
    /// Outbound key of the new flow.
    pub(crate) key: FlowKey,
    /// Its inbound key with the port last tried.
    pub(crate) inbound: FlowKey,
    /// An expired flow that has a port, and its state word.
    pub(crate) outbound: FlowKey,
    pub(crate) first: u64,
    /// Copy of the root's bits, and its epoch then.
    pub(crate) full: [u64; MAX_SEGMENTS],
    pub(crate) epoch: u64,
    /// Backend slot × 4 + class.
    pub(crate) slot: u32,
    /// Index of the grant in force.
    pub(crate) grant: u32,
    /// Index of the rule in force.
    pub(crate) rule: u32,
    /// Bank in force.
    pub(crate) bank: u32,
    /// Index of the port set that is searched.
    pub(crate) set: u32,
    /// Segment and leaf looked at, or to begin with.
    pub(crate) segment: u32,
    pub(crate) leaf: u32,
    /// Bit in a leaf to begin with.
    pub(crate) start: u32,
    /// Segments that are known to be full.
    pub(crate) seen: u32,
    /// Whether a full root may be believed.
    pub(crate) spins: u32,
    /// Ports tried.
    pub(crate) tries: u32,
    /// 1: a leaf had many ports in a row that are taken.
    pub(crate) crowded: u32,
    /// Walk: port number, ports looked at, and the first tick in which one may be free.
    pub(crate) number: u32,
    pub(crate) walked: u32,
    pub(crate) due: Tick,
    /// `PHASE_*`.
    pub(crate) phase: u32,
    /// The time.
    pub(crate) now: Tick,
    /// First state bits.
    pub(crate) bits: u32,
    /// `REFUSAL_*` of the rule.
    pub(crate) on_refusal: u32,
    /// 1: address and port of `inbound` are to be claimed, no others.
    pub(crate) fixed: u32,
    /// 1: opened from outside.
    pub(crate) outside: u32,
    /// 1: the new flow is a session that has been admitted and counted in its mapping.
    pub(crate) joined: u32,
    /// 1: and the mapping was opened for it.
    pub(crate) made: u32,
    /// Bits of a word of a leaf that are tried first: all, or those of one parity.
    pub(crate) preferred: u64,
    /// Outbound key of the session, while its mapping is opened.
    pub(crate) session: FlowKey,
    /// What `mapping::over` has judged of the flow `outbound`.
    pub(crate) judged: u64,
    /// What an admitted session is counted in.
    pub(crate) half: u8,
    pub(crate) destination: u8,
    /// `FLOW_*`.
    pub(crate) flags: u8,
    pub(crate) outcome: u32,
}

// Values of `Search::phase`.
/// Take a copy of the root.
pub(crate) const PHASE_ROOT: u32 = 0;
/// Look for a leaf and a bit.
pub(crate) const PHASE_PICK: u32 = 1;
/// Look for an expired flow.
pub(crate) const PHASE_WALK: u32 = 2;
/// No record could be made: try ports at random.
pub(crate) const PHASE_BLIND: u32 = 3;

// Values of `Search::outcome`.
pub(crate) const SEARCHING: u32 = 0;
pub(crate) const CLAIMED: u32 = 1;
pub(crate) const NO_PORT: u32 = 2;
pub(crate) const TABLE_FULL: u32 = 3;
pub(crate) const TABLE_ERROR: u32 = 4;
pub(crate) const CUT: u32 = 5;

pub(crate) enum Tried {
    Claimed,
    Taken,
    Failed(Reason),
}

/// Claims a port for `search.key` and leaves address and port in `search.inbound`.
#[inline(always)]
pub(crate) fn claim(search: &mut Search) -> Result<(), Reason> {
    if search.fixed != 0 {
        return exactly(search);
    }
    let Some(grant) = GRANTS.get_ptr(search.grant) else { return Err(Reason::NotConfigured) };
    // SAFETY: array element.
    let Grant { own, shared, .. } = unsafe { *grant };
    let keeps = protocol::keeps_port(search.key.protocol);
    let mut outcome = NO_PORT;
    if own != 0 {
        outcome = claim_in(banked(search.bank, own - 1), keeps);
    }
    if outcome == NO_PORT && shared != 0 {
        outcome = claim_in(banked(search.bank, shared - 1), keeps);
    }
    match outcome {
        CLAIMED => Ok(()),
        NO_PORT => Err(Reason::NoFreePort),
        TABLE_FULL => Err(Reason::TableFull),
        TABLE_ERROR => Err(Reason::TableError),
        _ => Err(Reason::SearchCut),
    }
}

#[inline(always)]
fn claim_in(set: u32, keeps: bool) -> u32 {
    if keeps { keep::natgw_keep(set) } else { natgw_search(set) }
}

/// Claims the port that `search.inbound` says.
#[inline(always)]
fn exactly(search: &mut Search) -> Result<(), Reason> {
    match insert(search) {
        Tried::Claimed => return Ok(()),
        Tried::Failed(reason) => return Err(reason),
        Tried::Taken if search.joined == 0 => return Err(Reason::FlowRace),
        Tried::Taken => {}
    }
    match join::obstacle(search) {
        Obstacle::Gone => match insert(search) {
            Tried::Claimed => Ok(()),
            Tried::Taken => Err(Reason::FlowRace),
            Tried::Failed(reason) => Err(reason),
        },
        Obstacle::Same => Err(Reason::FlowRace),
        Obstacle::Going => Err(Reason::FlowRace),
        Obstacle::Other => Err(Reason::NoFreePort),
    }
}

/// Claims a port of one set; `Search::outcome`.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_search(index: u32) -> u32 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return TABLE_ERROR };
    // SAFETY: this CPU's own element, of which the caller uses nothing meanwhile.
    let search = unsafe { &mut *search };
    let Some(set) = SETS.get_ptr(index) else { return NO_PORT };
    let Some(pressed) = record::pressed(&search.key) else { return TABLE_ERROR };
    search.set = index;
    // SAFETY: array elements; `pressed` is a hint.
    let (ports, ordered, pressure) =
        unsafe { ((*set).ports, (*set).flags & SET_ORDERED != 0, Pressure(pressed.read_volatile())) };
    // SAFETY: array element.
    let bound = if ordered { u32::from(unsafe { (*set).segments[0].count }) } else { ports };
    let probes = pressure.probes(search.now);
    for probe in 0..PROBES {
        if probe >= probes {
            break;
        }
        match attempt(search, set, preferred(search, scale(random(), bound))) {
            Tried::Claimed => {
                // Or those who pick from the records would have to find out one by one. Nobody removes the flow before
                // its outbound half is there, so that no release comes before this.
                if probes < PROBES {
                    let (address, port) = (search.inbound.destination, search.inbound.destination_port);
                    record::mark(&record::record_key(&search.key, address, leaf_of(port)), port);
                }
                return CLAIMED;
            }
            Tried::Taken => {}
            Tried::Failed(reason) => return failed(reason),
        }
    }
    if probes != 0 {
        // SAFETY: array element.
        unsafe { pressed.write_volatile(Pressure(pressed.read_volatile()).collided(search.now).0) };
    }
    begin(search, set, bound);
    search.start = random() & 1023;
    search.seen = 0;
    search.spins = 0;
    search.tries = 0;
    search.walked = 0;
    search.crowded = 0;
    search.phase = PHASE_ROOT;
    search.outcome = SEARCHING;
    // SAFETY: `step` has the signature that the helper wants and uses no context.
    unsafe { bpf_loop(MOST_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    if search.crowded != 0 || search.outcome == NO_PORT {
        // SAFETY: array element.
        unsafe { pressed.write_volatile(Pressure(pressed.read_volatile()).crowded(search.now).0) };
    }
    if search.outcome == SEARCHING { CUT } else { search.outcome }
}

/// The number itself, or its neighbour with the wanted parity: runs begin and end at multiples of 8, so that a number is even
/// if its port is.
#[inline(always)]
fn preferred(search: &Search, number: u32) -> u32 {
    number ^ (search.preferred >> (number & 63) & 1 ^ 1) as u32
}

/// Begins at the segment and leaf of a random port, so that each is chosen by its size.
#[inline(always)]
fn begin(search: &mut Search, set: *const PortSet, bound: u32) {
    let mut number = scale(random(), bound);
    search.segment = 0;
    search.leaf = 0;
    for index in 0..MAX_SEGMENTS {
        // SAFETY: array element; the index is below the number of segments.
        let segment = unsafe { (*set).segments[index] };
        if number < u32::from(segment.count) {
            search.segment = index as u32 & SEGMENT_MASK;
            search.leaf = (u32::from(segment.first) + number) >> nat_common::abi::record::LEAF_SHIFT;
            return;
        }
        number -= u32::from(segment.count);
    }
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Tries to claim port number `number` of a set.
#[inline(always)]
pub(crate) fn attempt(search: &mut Search, set: *const PortSet, number: u32) -> Tried {
    // SAFETY: array element.
    let Some((address, port)) = locate(unsafe { &*set }, number) else { return Tried::Taken };
    attempt_port(search, address, port)
}

/// Tries to claim a port.
#[inline(always)]
pub(crate) fn attempt_port(search: &mut Search, address: [u8; 4], port: [u8; 2]) -> Tried {
    search.inbound = inbound_key(&search.key, address, port);
    insert(search)
}

#[inline(always)]
fn insert(search: &mut Search) -> Tried {
    search.entry.identity = search.inbound.fold();
    match FLOWS.insert(&search.inbound, &search.entry, NOEXIST) {
        Ok(()) => Tried::Claimed,
        Err(EEXIST) => Tried::Taken,
        Err(error) => Tried::Failed(table_reason(error)),
    }
}

#[inline(always)]
pub(crate) fn failed(reason: Reason) -> u32 {
    if matches!(reason, Reason::TableFull) { TABLE_FULL } else { TABLE_ERROR }
}

/// One step of the search. 0: again, 1: done.
unsafe extern "C" fn step(_index: u32, _context: *mut c_void) -> i64 {
    let Some(search) = SEARCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: this CPU's own element; nothing else runs between the steps.
    let search = unsafe { &mut *search };
    let Some(set) = SETS.get_ptr(search.set) else { return 1 };
    search.outcome = match search.phase {
        PHASE_ROOT => pick::root(search, set),
        PHASE_PICK => pick::segment(search, set),
        PHASE_WALK => walk::port(search, set),
        _ => blind(search, set),
    };
    i64::from(search.outcome != SEARCHING)
}

#[inline(never)]
fn blind(search: &mut Search, set: *const PortSet) -> u32 {
    search.tries += 1;
    if search.tries > MOST_TRIES {
        return CUT;
    }
    // SAFETY: array element.
    let ports = unsafe { (*set).ports };
    match attempt(search, set, scale(random(), ports)) {
        Tried::Claimed => CLAIMED,
        Tried::Taken => SEARCHING,
        Tried::Failed(reason) => failed(reason),
    }
}
