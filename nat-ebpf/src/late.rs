// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! TCP segments that come too late: on a flow that is over, or on none. Dropped, and the talker hears of it by RST where the
//! rule says so ([`RULE_RESET_PACKET`]): then it need not wait for its own timer.
//!
//! Who is outside is answered only if the table still has the flow of exactly this 5-tuple; both sides within the
//! budgets of refusals.

use nat_common::{
    abi::{
        config::{CLASS_TCP, CLASSES, MAX_RULES, banked},
        counters::Reason,
        grant::{REFUSAL_TCP_RESET, RULE_RESET_PACKET},
    },
    net::state,
};

use crate::{
    allocate,
    classify::Arrival,
    maps::{CONTROL, FLOWS, RULES},
    parse::{Parsed, WHOLE},
    verdict::Verdict,
};

/// The verdict on a packet whose flow is over and which opens nothing: [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_late(parsed: *const Parsed, arrival: *const Arrival) -> u64 {
    const SILENT: u64 = Verdict::of(Reason::FlowExpired).to_code();
    if parsed.is_null() || arrival.is_null() {
        return SILENT;
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    let (Some(control), Some(entry)) = (CONTROL.get_ptr(0), FLOWS.get_ptr(&parsed.key)) else {
        return SILENT;
    };
    // SAFETY: array element; a map value, and of a recycled one another rule of the same configuration decides.
    let (bank, rule, grant) = unsafe { ((*control).bank & 1, u32::from((*entry).rule), (*entry).grant) };
    segment(Reason::FlowExpired, parsed, arrival, bank, (rule, grant)).to_code()
}

/// Drops a segment; its sender is told if `rule` says so and the budget of `grant` has some left.
#[inline(always)]
pub(crate) fn segment(
    reason: Reason,
    parsed: &Parsed,
    arrival: &Arrival,
    bank: u32,
    (rule, grant): (u32, u32),
) -> Verdict {
    // SAFETY: array element.
    let tells = RULES
        .get_ptr(banked(bank, rule % MAX_RULES))
        .is_some_and(|rule| unsafe { (*rule).flags } & RULE_RESET_PACKET != 0);
    if !tells || grant % CLASSES != CLASS_TCP || parsed.fragment != WHOLE || !state::continues(parsed.flags) {
        return Verdict::of(reason);
    }
    Verdict::refused(reason, allocate::audible(grant, REFUSAL_TCP_RESET, arrival.now))
}
