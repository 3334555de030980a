// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The one place where a packet's end is counted and turned into an XDP action.

use aya_ebpf::bindings::xdp_action;
use nat_common::abi::{
    counters::{Counters, Fate, REASON_SLOTS, Reason},
    grant::REFUSAL_SILENT,
};

use crate::maps::COUNTERS;

/// Flag in an action: see [`Verdict::answer`].
const ANSWER: u32 = 1 << 16;
/// Where `REFUSAL_*` is in an action.
const STYLE_SHIFT: u32 = 17;

/// What happens to a packet and why.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    // verifier: a number, not the enum: with the enum's range known LLVM drops the mask in `conclude`.
    reason: u32,
    action: u32,
}

impl Verdict {
    /// Dropped, or left to the stack, as the reason says.
    #[inline(always)]
    pub(crate) const fn of(reason: Reason) -> Self {
        let action = match reason.fate() {
            Fate::Dropped => xdp_action::XDP_DROP,
            Fate::Passed => xdp_action::XDP_PASS,
            // A translated or answered packet has an action of its own: `sent`.
            Fate::Translated | Fate::Answered => xdp_action::XDP_ABORTED,
        };
        Self { reason: reason as u32, action }
    }

    /// To be answered with an ICMP error; `mtu` is for "fragmentation needed". [`crate::answer`] makes a final verdict
    /// of it, called from the entry point, where the stack is still short.
    #[inline(always)]
    pub(crate) const fn answer(reason: Reason, mtu: u16) -> Self {
        Self { reason: reason as u32, action: ANSWER | mtu as u32 }
    }

    /// Refused; the sender hears what `style` (`REFUSAL_*`) says.
    #[inline(always)]
    pub(crate) const fn refused(reason: Reason, style: u32) -> Self {
        if style == REFUSAL_SILENT {
            return Self::of(reason);
        }
        Self { reason: reason as u32, action: ANSWER | (style & 3) << STYLE_SHIFT }
    }

    /// `REFUSAL_*`, if this is to be answered as a refusal.
    #[inline(always)]
    pub(crate) const fn style(self) -> u32 {
        self.action >> STYLE_SHIFT & 3
    }

    /// The verdict of a packet that was refused and is not, or cannot be, answered.
    #[inline(always)]
    pub(crate) const fn silent(self) -> Self {
        Self { reason: self.reason, action: xdp_action::XDP_DROP }
    }

    /// The verdict of a packet that was refused, and turned into its answer.
    #[inline(always)]
    pub(crate) const fn answered(self) -> Self {
        Self { reason: self.reason, action: xdp_action::XDP_TX }
    }

    /// The MTU, if this is to be answered.
    #[inline(always)]
    pub(crate) const fn wants_answer(self) -> Option<u16> {
        if self.action & ANSWER != 0 { Some(self.action as u16) } else { None }
    }

    /// Whether the TTL ran out, among those to be answered.
    #[inline(always)]
    pub(crate) const fn is_ttl(self) -> bool {
        self.reason == Reason::TtlExceeded as u32
    }

    /// Whether this is the reason.
    #[inline(always)]
    pub(crate) const fn is(self, reason: Reason) -> bool {
        self.reason == reason as u32
    }

    /// Whether the packet goes to the stack.
    #[inline(always)]
    pub(crate) const fn is_pass(self) -> bool {
        self.action == xdp_action::XDP_PASS
    }

    /// Number of the reason.
    #[inline(always)]
    pub(crate) const fn reason(self) -> u32 {
        self.reason
    }

    /// Whether the packet was translated: their reasons come first, but for one.
    #[inline(always)]
    pub(crate) const fn is_translated(self) -> bool {
        self.reason < Reason::TtlExceeded as u32 || self.is(Reason::Hairpinned)
    }

    /// As a number, to return from a global function; never 0 … 15.
    #[inline(always)]
    pub(crate) const fn to_code(self) -> u64 {
        1 << 63 | (self.action as u64) << 32 | self.reason as u64
    }

    /// The verdict in a number from [`Self::to_code`].
    #[inline(always)]
    pub(crate) const fn from_code(code: u64) -> Self {
        Self { reason: code as u32, action: (code >> 32) as u32 & 0x7fff_ffff }
    }

    /// Sent with `action`, the result of a redirect, `XDP_TX` or `XDP_PASS` to the stack.
    #[inline(always)]
    pub(crate) const fn sent(reason: Reason, action: u32) -> Self {
        Self { reason: reason as u32, action }
    }
}

/// Counts a packet in. `None` cannot happen; the verifier wants to hear it.
#[inline(always)]
pub(crate) fn open() -> Option<*mut Counters> {
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own copy; XDP programs do not interrupt each other on a CPU.
    unsafe { (*counters).seen += 1 };
    Some(counters)
}

/// Counts a packet out.
#[inline(always)]
pub(crate) fn conclude(counters: *mut Counters, size: u64, verdict: Verdict) -> u32 {
    let index = verdict.reason as usize & (REASON_SLOTS - 1);
    // SAFETY: as in `open`; the index is masked to the arrays' length.
    unsafe {
        (*counters).seen_bytes += size;
        *(&raw mut (*counters).packets).cast::<u64>().add(index) += 1;
        *(&raw mut (*counters).bytes).cast::<u64>().add(index) += size;
    }
    verdict.action
}

/// Changes this CPU's counters beside the verdicts.
#[inline(always)]
pub(crate) fn count(change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: as in `open`.
        change(unsafe { &mut *counters });
    }
}
