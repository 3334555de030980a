// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whether a flow is over, and whether its port can go to another.
//!
//! Judged once a tick and half, by the sweep, and by who looks for a port: never for each packet.

use nat_common::{
    Tick,
    abi::{
        config::{Control, MAX_RULES, banked},
        flow::{FlowEntry, FlowKey, HALF_OUTBOUND, peer_key},
        grant::Rule,
    },
    net::timers::{self, Refresh, Seen, TIMER_CLASSES, TimerClass},
};

use crate::maps::{FLOWS, RULES};

/// Whether the flow has been idle for its timeout plus `grace` ticks.
#[inline(always)]
pub(crate) fn expired(
    key: &FlowKey,
    entry: *const FlowEntry,
    timer: TimerClass,
    control: &Control,
    now: Tick,
    grace: Tick,
) -> bool {
    let Some(rule) = rule_of(entry, control) else { return false };
    idle_for(key, entry, rule, timer, now, timeout_of(key, entry, rule, timer) + grace)
}

/// Whether the flow is over, and has been for as long as its port rests.
#[inline(always)]
pub(crate) fn reclaimable(
    key: &FlowKey,
    entry: *const FlowEntry,
    timer: TimerClass,
    control: &Control,
    now: Tick,
) -> bool {
    let Some(rule) = rule_of(entry, control) else { return false };
    idle_for(key, entry, rule, timer, now, timeout_of(key, entry, rule, timer) + rest_of(rule, timer))
}

/// As [`reclaimable`], without the grace of a flow whose port need not rest.
#[inline(always)]
pub(crate) fn rested(
    key: &FlowKey,
    entry: *const FlowEntry,
    timer: TimerClass,
    control: &Control,
    now: Tick,
) -> bool {
    let Some(rule) = rule_of(entry, control) else { return false };
    // SAFETY: array element; the timer class is below TIMER_CLASSES.
    let rest = unsafe { (*rule).rests[timer as usize & (TIMER_CLASSES - 1)] };
    idle_for(key, entry, rule, timer, now, timeout_of(key, entry, rule, timer) + rest)
}

/// The first tick in which a flow without further packets is [`reclaimable`], by both its halves.
#[inline(always)]
pub(crate) fn end_of(
    key: &FlowKey,
    entry: *const FlowEntry,
    other: *const FlowEntry,
    timer: TimerClass,
    control: &Control,
) -> Option<Tick> {
    let rule = rule_of(entry, control)?;
    // SAFETY: a map value; of a recycled one the answer is off for one walk.
    let theirs = unsafe { (*other).touched };
    let last = timers::last(refresh(rule, timer), &seen(entry, theirs))?;
    Some(last.wrapping_add(timeout_of(key, entry, rule, timer) + rest_of(rule, timer) + 1))
}

#[inline(always)]
fn rule_of(entry: *const FlowEntry, control: &Control) -> Option<*const Rule> {
    // SAFETY: a map value.
    let rule = unsafe { (*entry).rule };
    RULES.get_ptr(banked(control.bank & 1, u32::from(rule) % MAX_RULES))
}

#[inline(always)]
fn refresh(rule: *const Rule, timer: TimerClass) -> Refresh {
    // SAFETY: array element.
    let flags = unsafe { (*rule).flags };
    if matches!(timer, TimerClass::Udp) { Refresh::of_flags(flags) } else { Refresh::Either }
}

#[inline(always)]
fn timeout_of(key: &FlowKey, entry: *const FlowEntry, rule: *const Rule, timer: TimerClass) -> Tick {
    // SAFETY: array element; the timer class is below TIMER_CLASSES.
    let (timeout, by_port) =
        unsafe { ((*rule).timeouts[timer as usize & (TIMER_CLASSES - 1)], (*rule).udp_ports[0].last != 0) };
    if !matches!(timer, TimerClass::Udp) || !by_port {
        return timeout;
    }
    // SAFETY: a map value.
    let outbound = unsafe { (*entry).half } & HALF_OUTBOUND != 0;
    let port = if outbound { key.destination_port } else { key.source_port };
    match port_timeout(rule, u16::from_be_bytes(port)) {
        0 => timeout,
        other => other,
    }
}

/// The timeout of UDP flows to `port`; 0: none of its own.
///
/// verifier: not inlined, so that its loop is not walked in every state of its callers.
#[inline(never)]
fn port_timeout(rule: *const Rule, port: u16) -> Tick {
    // SAFETY: array element.
    timers::port_timeout(unsafe { &(*rule).udp_ports }, port)
}

#[inline(always)]
fn rest_of(rule: *const Rule, timer: TimerClass) -> Tick {
    // SAFETY: array element; the timer class is below TIMER_CLASSES.
    timers::rest(unsafe { (*rule).rests[timer as usize & (TIMER_CLASSES - 1)] })
}

/// What the halves say: `entry`, and when the other one was touched.
#[inline(always)]
fn seen(entry: *const FlowEntry, theirs: Tick) -> Seen {
    // SAFETY: a map value.
    let (created, ours, half) = unsafe { ((*entry).created, (*entry).touched, (*entry).half) };
    let (outbound, inbound) = if half & HALF_OUTBOUND != 0 { (ours, theirs) } else { (theirs, ours) };
    Seen { created, outbound, inbound }
}

#[inline(always)]
fn idle_for(
    key: &FlowKey,
    entry: *const FlowEntry,
    rule: *const Rule,
    timer: TimerClass,
    now: Tick,
    timeout: Tick,
) -> bool {
    let refresh = refresh(rule, timer);
    // SAFETY: a map value.
    let (touched, address, port, half) =
        unsafe { ((*entry).touched, (*entry).address, (*entry).port, (*entry).half) };
    // Mostly this half's own packets suffice.
    if matches!(refresh, Refresh::Either) && touched != 0 && !timers::expired(now, touched, timeout) {
        return false;
    }
    // SAFETY: a map value; a recycled one makes the flow look alive for one tick more at most.
    let theirs =
        FLOWS.get_ptr(&peer_key(key, address, port, half)).map_or(0, |peer| unsafe { (*peer).touched });
    match timers::last(refresh, &seen(entry, theirs)) {
        Some(last) => timers::expired(now, last, timeout),
        None => true,
    }
}
