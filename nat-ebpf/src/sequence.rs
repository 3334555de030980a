// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! TCP sequence numbers of flows that ask for it ([`FLOW_SEQUENCE`]): following them, and judging a RST by them. What is right
//! is decided in [`nat_common::net::sequence`].

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    abi::{
        config::{MAX_RULES, banked},
        flow::{FLOW_SEQUENCE, FlowEntry, FlowKey, HALF_OUTBOUND, peer_key},
        grant::RULE_RESET_CHECK,
    },
    net::{
        sequence::{self, Step},
        state::{self, Direction},
    },
};

use crate::{
    atomic,
    frame::Frame,
    lookup::word,
    maps::{CONTROL, FLOWS, RULES},
    parse::Parsed,
    verdict,
};

/// Offset in [`FlowEntry`] of the aligned word that ends with the sequence number.
const WORD: usize = 40;
const _: () = assert!(core::mem::offset_of!(FlowEntry, sequence) == WORD + 4);
/// Tries of a compare-and-swap: another CPU may have a segment of the same half.
const TRIES: u32 = 4;

/// What a segment says of numbers.
#[derive(Clone, Copy)]
struct Numbers {
    sequence: u32,
    acknowledged: u32,
    /// Bytes of data.
    data: u32,
}

#[inline(always)]
fn numbers(ctx: *mut xdp_md, parsed: &Parsed) -> Option<Numbers> {
    let tcp = Frame::of_xdp(ctx).at::<[u16; 7]>(parsed.transport())?;
    // SAFETY: `at` has checked that it is within the frame.
    let words = unsafe { *tcp };
    let number = |at: usize| {
        let ([a, b], [c, d]) = (words[at].to_ne_bytes(), words[at + 1].to_ne_bytes());
        u32::from_be_bytes([a, b, c, d])
    };
    let [offset, _] = words[6].to_ne_bytes();
    let headers = parsed.header() + usize::from(offset >> 4) * 4;
    // A header that is longer than the packet: its receiver drops it.
    let data = if parsed.total() > headers { parsed.total() - headers } else { 0 };
    Some(Numbers { sequence: number(2), acknowledged: number(4), data: data as u32 })
}

/// Follows the numbers of the half that `entry` is.
///
/// verifier: global, so that it is verified once, and so that those who do not ask for it pay for one comparison.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_sequence(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    entry: *mut FlowEntry,
) -> u32 {
    if parsed.is_null() || entry.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let parsed = unsafe { &*parsed };
    let Some(numbers) = numbers(ctx, parsed) else { return 0 };
    let next = sequence::after(numbers.sequence, numbers.data, parsed.flags);
    let state = (word(entry) >> 32) as u32 & state::MASK;
    // SAFETY: a map value, of which a recycled one has another word below.
    let direction = direction_of(unsafe { (*entry).half });
    let kept = entry.wrapping_byte_add(WORD).cast::<u64>();
    for _ in 0..TRIES {
        // SAFETY: within the entry, and aligned.
        let seen = unsafe { atomic::load(kept) };
        // Somebody else's by now, who has another use for the word.
        if seen as u32 >> 24 & u32::from(FLOW_SEQUENCE) == 0 {
            break;
        }
        let last = (seen >> 32) as u32;
        match sequence::step(state, direction, parsed.flags, last, next) {
            Step::Keep => break,
            Step::Take => {}
            Step::TakeIfAcknowledged => {
                if !sequence::acknowledges(number_of_peer(&parsed.key, entry), numbers.acknowledged) {
                    break;
                }
            }
        }
        let new = seen & u64::from(u32::MAX) | u64::from(next) << 32;
        // SAFETY: as above.
        if unsafe { atomic::compare_swap(kept, seen, new) } {
            break;
        }
    }
    0
}

/// Whether to believe a RST: 0 or 1. One that is not believed is counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_believed(ctx: *mut xdp_md, parsed: *const Parsed) -> u32 {
    if parsed.is_null() {
        return 1;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let parsed = unsafe { &*parsed };
    let Some(entry) = FLOWS.get_ptr(&parsed.key) else { return 1 };
    if !is_checked(entry) {
        return 1;
    }
    let Some(numbers) = numbers(ctx, parsed) else { return 1 };
    let state = (word(entry) >> 32) as u32 & state::MASK;
    // SAFETY: a map value; of a recycled one, a RST is believed or not that nobody will know of.
    let (direction, own) = unsafe { (direction_of((*entry).half), (*entry).sequence) };
    let other = number_of_peer(&parsed.key, entry);
    let of_segment = (numbers.sequence, numbers.acknowledged);
    if sequence::believed(state, direction, parsed.flags, of_segment, (own, other)) {
        return 1;
    }
    verdict::count(|counters| counters.resets_doubted += 1);
    0
}

/// Whether the flow's rule wants its RST segments checked, and there are numbers to check them by.
#[inline(always)]
fn is_checked(entry: *const FlowEntry) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: array element; a map value.
    let (bank, rule, flags) = unsafe { ((*control).bank & 1, u32::from((*entry).rule), (*entry).flags) };
    flags & FLOW_SEQUENCE != 0
        && RULES.get_ptr(banked(bank, rule % MAX_RULES)).is_some_and(|rule| {
            // SAFETY: array element.
            unsafe { (*rule).flags & RULE_RESET_CHECK != 0 }
        })
}

/// The number that is kept of the other side.
#[inline(always)]
fn number_of_peer(key: &FlowKey, entry: *const FlowEntry) -> u32 {
    // SAFETY: map values.
    unsafe {
        let peer = peer_key(key, (*entry).address, (*entry).port, (*entry).half);
        FLOWS.get_ptr(&peer).map_or(0, |peer| (*peer).sequence)
    }
}

#[inline(always)]
const fn direction_of(half: u8) -> Direction {
    if half & HALF_OUTBOUND != 0 { Direction::Outbound } else { Direction::Inbound }
}
