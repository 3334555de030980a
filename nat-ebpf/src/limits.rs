// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a backend may use up: its rule's limits, and its share of the table.
//!
//! Every count is taken with one atomic addition, and given back by whoever oversteps. What a flow was counted in is
//! in its halves (`HALF_*`), so that it is given back as it was taken, whatever the configuration says by then.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use nat_common::{
    Tick,
    abi::{
        config::{CLASS_TCP, CLASSES, Control, MAX_RULES, banked},
        counters::Reason,
        flow::{
            DESTINATION_ASIDE, FlowEntry, FlowKey, HALF_BURST, HALF_CAPPED, HALF_LIMITED, HALF_RESERVED,
            HALF_WITHOUT_TCP,
        },
        grant::{Limits, MAX_DESTINATIONS, Quota, RULE_LIMITED, RULE_WITHOUT_TCP, Rule, quota_index},
    },
    net::timers::{TimerClass, class_of},
    tick::TICK_SHIFT,
};

use crate::{
    allocate, atomic, constants,
    maps::{BACKEND_STATE, CONTROL, GRANTS, QUOTA, RULES, TABLE},
    ports::Search,
    towards::{self, Taken},
};

/// What a flow was counted in.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    /// [`nat_common::abi::grant::grant_slot`].
    pub(crate) grant: u32,
    /// `HALF_*`.
    pub(crate) half: u8,
    /// [`nat_common::abi::flow::FlowEntry::destination`].
    pub(crate) destination: u8,
    /// Whether its handshake is not finished.
    pub(crate) half_open: bool,
}

/// Takes the flow that `search` asks for into account. What it was counted in is left in `search.entry`.
#[inline(always)]
pub(crate) fn admit(search: &mut Search) -> Result<(), Reason> {
    let (Some(rule), Some(grant)) = (RULES.get_ptr(search.rule), GRANTS.get_ptr(search.grant)) else {
        return Err(Reason::NotConfigured);
    };
    // SAFETY: array elements.
    let (flags, reserved) = unsafe { ((*rule).flags, (*grant).reserved) };
    // What comes in from outside does not use up what the backend may open, and limits are for connections.
    let limits = flags & RULE_LIMITED != 0 && search.outside == 0 && !allocate::is_mapping(search);
    if limits {
        match limited(search, rule) {
            ADMITTED => {}
            code => return Err(reason(code)),
        }
    }
    share(search, reserved).inspect_err(|_| {
        if limits {
            give_back(&search.key, counted(search));
        }
    })
}

/// What the flow of `search` is counted in so far.
#[inline(always)]
pub(crate) fn counted(search: &Search) -> Counted {
    Counted {
        grant: search.slot,
        half: search.entry.half,
        destination: search.entry.destination,
        half_open: search.slot % CLASSES == CLASS_TCP,
    }
}

/// The backend's share of the table: the guaranteed part first, then the common budget. What its rules have reserved for
/// destinations is set aside from the guaranteed part: flows on it are not counted there, and others do not get it.
#[inline(always)]
fn share(search: &mut Search, reserved: u32) -> Result<(), Reason> {
    let backend = search.slot / CLASSES;
    let (Some(control), Some(table)) = (CONTROL.get_ptr(0), TABLE.get_ptr_mut(0)) else {
        return Err(Reason::NotConfigured);
    };
    let Some(state) = BACKEND_STATE.get_ptr_mut(backend) else { return Err(Reason::NotConfigured) };
    // SAFETY: array elements.
    unsafe {
        let Control { guaranteed_flows, burst_flows, .. } = *control;
        // More than the guarantee cannot be set aside; the configuration does not ask for it.
        let aside = if reserved <= guaranteed_flows { reserved } else { 0 };
        if aside != 0 && search.entry.half & HALF_RESERVED != 0 {
            search.entry.destination |= DESTINATION_ASIDE;
            return Ok(());
        }
        // What comes in from outside leaves the backend half of its guarantee, and everyone the common budget.
        let most =
            if search.outside == 0 { guaranteed_flows - aside } else { (guaranteed_flows - aside) / 2 };
        if atomic::fetch_add(&raw mut (*state).flows, 1) < u64::from(most) {
            return Ok(());
        }
        atomic::add(&raw mut (*state).flows, u64::MAX);
        if search.outside != 0 {
            return Err(Reason::TableShare);
        }
        if atomic::fetch_add(&raw mut (*table).burst, 1) < u64::from(burst_flows) {
            search.entry.half |= HALF_BURST;
            return Ok(());
        }
        atomic::add(&raw mut (*table).burst, u64::MAX);
    }
    Err(Reason::TableShare)
}

// Results of `limited`.
const ADMITTED: u32 = 0;
const RATE: u32 = 1;
const HALF_OPEN: u32 = 2;
const DESTINATION: u32 = 3;
const FLOWS: u32 = 4;
const CAP: u32 = 5;
const RACE: u32 = 6;
const FAULT: u32 = 7;

#[inline(always)]
fn reason(code: u32) -> Reason {
    match code {
        RATE => Reason::RateLimit,
        HALF_OPEN => Reason::HalfOpenLimit,
        DESTINATION => Reason::DestinationLimit,
        FLOWS => Reason::FlowLimit,
        CAP => Reason::PortCap,
        RACE => Reason::FlowRace,
        _ => Reason::TableError,
    }
}

/// Applies the limits of a rule that has some.
#[inline(never)]
fn limited(search: &mut Search, rule: *const Rule) -> u32 {
    // SAFETY: array element.
    let rule = unsafe { &*rule };
    let limits = &rule.limits;
    let without_tcp = rule.flags & RULE_WITHOUT_TCP != 0;
    let Some(quota) = QUOTA.get_ptr_mut(quota_index(search.slot / CLASSES, without_tcp)) else {
        return FAULT;
    };
    if limits.interval != 0 && !in_rate(quota, limits, search.now) {
        return RATE;
    }
    search.entry.half |= HALF_LIMITED | if without_tcp { HALF_WITHOUT_TCP } else { 0 };
    if search.slot % CLASSES == CLASS_TCP {
        // SAFETY: array element.
        let others = unsafe { atomic::fetch_add(&raw mut (*quota).half_open, 1) };
        if limits.max_half_open != 0 && others >= u64::from(limits.max_half_open) {
            // SAFETY: as above.
            unsafe { atomic::add(&raw mut (*quota).half_open, u64::MAX) };
            return HALF_OPEN;
        }
    }
    let code = counts(search, quota, limits);
    if code != ADMITTED && search.slot % CLASSES == CLASS_TCP {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*quota).half_open, u64::MAX) };
    }
    code
}

/// Counts the flow on its destination, on the backend, and on backend and destination.
#[inline(always)]
fn counts(search: &mut Search, quota: *mut Quota, limits: &Limits) -> u32 {
    let destination = destination_of(search, limits);
    let mut reserved = false;
    if let Some(index) = destination {
        let entry = &limits.destinations[index as usize & (MAX_DESTINATIONS - 1)];
        let count = destination_count(quota, index);
        // SAFETY: a word of an array element.
        let others = unsafe { atomic::fetch_add(count, 1) };
        if entry.max_flows != 0 && others >= u64::from(entry.max_flows) {
            // SAFETY: as above.
            unsafe { atomic::add(count, u64::MAX) };
            return DESTINATION;
        }
        reserved = others < u64::from(entry.reserved);
        search.entry.destination = index as u8 + 1;
    }
    if reserved {
        search.entry.half |= HALF_RESERVED;
    } else {
        // SAFETY: array element.
        let others = unsafe { atomic::fetch_add(&raw mut (*quota).flows, 1) };
        if limits.max_flows != 0 && others >= u64::from(limits.max_flows.saturating_sub(limits.reserved)) {
            uncount(quota, search.entry.half, search.entry.destination);
            return FLOWS;
        }
    }
    if limits.max_ports == 0 {
        return ADMITTED;
    }
    let code = match towards::take(&towards::key_of(&search.key, search.slot), limits.max_ports) {
        Taken::Yes => ADMITTED,
        Taken::Full => CAP,
        Taken::Race => RACE,
        Taken::Fault => FAULT,
    };
    if code == ADMITTED {
        search.entry.half |= HALF_CAPPED;
    } else {
        uncount(quota, search.entry.half, search.entry.destination);
    }
    code
}

#[inline(always)]
fn destination_count(quota: *mut Quota, index: u32) -> *mut u64 {
    // SAFETY: the index is masked to the array's length.
    unsafe { (&raw mut (*quota).destinations).cast::<u64>().add((index as usize) & (MAX_DESTINATIONS - 1)) }
}

#[inline(always)]
fn uncount(quota: *mut Quota, half: u8, destination: u8) {
    // SAFETY: words of an array element.
    unsafe {
        if destination != 0 {
            let index = u32::from(destination & !DESTINATION_ASIDE).wrapping_sub(1);
            atomic::add(destination_count(quota, index), u64::MAX);
        }
        if half & HALF_RESERVED == 0 {
            atomic::add(&raw mut (*quota).flows, u64::MAX);
        }
    }
}

/// The first destination of the rule that the flow goes to.
#[inline(always)]
fn destination_of(search: &Search, limits: &Limits) -> Option<u32> {
    let address = u32::from_ne_bytes(search.key.destination);
    let class = 1u16 << (search.slot % CLASSES);
    for index in 0..MAX_DESTINATIONS {
        let entry = &limits.destinations[index];
        let port = u16::from_ne_bytes(entry.port);
        if entry.classes & class != 0
            && address & u32::from_ne_bytes(entry.mask) == u32::from_ne_bytes(entry.address)
            && (port == 0 || port == u16::from_ne_bytes(search.key.destination_port))
        {
            return Some(index as u32);
        }
    }
    None
}

/// Whether a new flow is within the rate: generic cell rate algorithm, virtual scheduling (ITU-T I.371 §6.2.3.2.2).
#[inline(always)]
fn in_rate(quota: *mut Quota, limits: &Limits, tick: Tick) -> bool {
    let now = if constants::test_clock() {
        u64::from(tick) << TICK_SHIFT
    } else {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    };
    for _ in 0..8 {
        // SAFETY: a word of an array element.
        unsafe {
            let due = atomic::load(&raw const (*quota).due);
            // A debt that was run up under more generous limits counts as far as these allow one.
            let most = now + limits.tolerance;
            let from = if due > most { most.saturating_sub(limits.interval) } else { due };
            let from = if from > now { from } else { now };
            if from + limits.interval > now + limits.tolerance {
                return false;
            }
            if atomic::compare_swap(&raw mut (*quota).due, due, from + limits.interval) {
                return true;
            }
        }
    }
    false
}

/// Takes a flow back out of the limits that it was counted in.
#[inline(never)]
pub(crate) fn give_back(key: &FlowKey, counted: Counted) {
    if counted.half & HALF_LIMITED == 0 {
        return;
    }
    let index = quota_index(counted.grant / CLASSES, counted.half & HALF_WITHOUT_TCP != 0);
    if let Some(quota) = QUOTA.get_ptr_mut(index) {
        uncount(quota, counted.half, counted.destination);
        if counted.half_open {
            // SAFETY: a word of an array element.
            unsafe { atomic::add(&raw mut (*quota).half_open, u64::MAX) };
        }
    }
    if counted.half & HALF_CAPPED != 0 {
        towards::give_back(&towards::key_of(key, counted.grant));
    }
}

/// A handshake is finished, one way or another.
#[inline(never)]
pub(crate) fn opened(grant: u32, half: u8) {
    if half & HALF_LIMITED == 0 {
        return;
    }
    if let Some(quota) = QUOTA.get_ptr_mut(quota_index(grant / CLASSES, half & HALF_WITHOUT_TCP != 0)) {
        // SAFETY: a word of an array element.
        unsafe { atomic::add(&raw mut (*quota).half_open, u64::MAX) };
    }
}

/// Takes a flow back out of everything it was counted in before it was in the table.
#[inline(always)]
pub(crate) fn discharge(key: &FlowKey, counted: Counted) {
    give_back(key, counted);
    if counted.destination & DESTINATION_ASIDE != 0 {
        return;
    }
    if counted.half & HALF_BURST != 0 {
        if let Some(table) = TABLE.get_ptr_mut(0) {
            // SAFETY: array element.
            unsafe { atomic::add(&raw mut (*table).burst, u64::MAX) };
        }
    } else if let Some(state) = BACKEND_STATE.get_ptr_mut(counted.grant / CLASSES) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).flows, u64::MAX) };
    }
}

/// Whether a new connection on the tuple of one that was counted against limits is within the rate.
#[inline(always)]
pub(crate) fn again_in_rate(entry: *const FlowEntry, bank: u32, now: Tick) -> bool {
    // SAFETY: a map value.
    let (grant, half, rule) = unsafe { ((*entry).grant, (*entry).half, u32::from((*entry).rule)) };
    if half & HALF_LIMITED == 0 {
        return true;
    }
    let index = quota_index(grant / CLASSES, half & HALF_WITHOUT_TCP != 0);
    let (Some(rule), Some(quota)) = (RULES.get_ptr(banked(bank, rule % MAX_RULES)), QUOTA.get_ptr_mut(index))
    else {
        return false;
    };
    // SAFETY: array element.
    let limits = unsafe { &(*rule).limits };
    limits.interval == 0 || in_rate(quota, limits, now)
}

// Results of `handshake_again`.
/// It is not counted, or is so already.
pub(crate) const NOT_COUNTED: u32 = 0;
/// It was counted.
pub(crate) const COUNTED: u32 = 1;
/// The limit is reached.
pub(crate) const TOO_MANY: u32 = 2;

/// Counts the handshake of a new connection on the tuple of one that is over, in state `before`.
#[inline(never)]
pub(crate) fn handshake_again(entry: *const FlowEntry, before: u32) -> u32 {
    // SAFETY: a map value.
    let (grant, half, rule) = unsafe { ((*entry).grant, (*entry).half, u32::from((*entry).rule)) };
    let open = class_of(CLASS_TCP, before) == TimerClass::TcpHandshake;
    if half & HALF_LIMITED == 0 || grant % CLASSES != CLASS_TCP || open {
        return NOT_COUNTED;
    }
    let Some(control) = CONTROL.get_ptr(0) else { return TOO_MANY };
    // SAFETY: array element.
    let bank = unsafe { (*control).bank } & 1;
    let index = quota_index(grant / CLASSES, half & HALF_WITHOUT_TCP != 0);
    let (Some(rule), Some(quota)) = (RULES.get_ptr(banked(bank, rule % MAX_RULES)), QUOTA.get_ptr_mut(index))
    else {
        return TOO_MANY;
    };
    // SAFETY: array elements.
    unsafe {
        let most = (*rule).limits.max_half_open;
        if atomic::fetch_add(&raw mut (*quota).half_open, 1) >= u64::from(most) && most != 0 {
            atomic::add(&raw mut (*quota).half_open, u64::MAX);
            return TOO_MANY;
        }
    }
    COUNTED
}
