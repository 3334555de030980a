// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Parsed packet → flow.
//!
//! In the steady state this is one hash lookup and a comparison of `touched` with the current tick. Once a tick and
//! half, or when a TCP segment opens or closes something, [`maintain`] does the rest.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    abi::{
        config::{CLASS_TCP, CLASSES, ROLE_INSIDE, ROLE_OUTSIDE},
        counters::Reason,
        flow::{FLOW_MAPPED, FLOW_SEQUENCE, FlowEntry, FlowKey, HALF_INSTANCE, HALF_OUTBOUND},
    },
    net::{
        icmp,
        state::{self, Direction, tcp_flag},
    },
};

use crate::{
    atomic,
    classify::{Arrival, DOUBTED, JUDGED},
    late, maintain,
    maps::FLOWS,
    opening,
    parse::{Kind, Parsed},
    sequence,
    verdict::Verdict,
};

/// What to write into a packet and where to send it.
#[derive(Clone, Copy)]
pub(crate) struct Rewrite {
    /// New source (outbound) or destination (inbound) address.
    pub(crate) address: [u8; 4],
    /// New port or identifier.
    pub(crate) port: [u8; 2],
    /// Direction.
    pub(crate) direction: Direction,
    /// Port slot to leave by; [`route::FOREIGN`]: leave it to the stack.
    pub(crate) slot: u8,
    /// Largest IP packet.
    pub(crate) mtu: u16,
    /// The neighbour's MAC address.
    pub(crate) next_hop: [u8; 6],
    /// The half, for its packet and byte counts and for what is done beside translation.
    pub(crate) entry: *mut FlowEntry,
}

/// Result of a lookup.
pub(crate) enum Found {
    /// The flow is alive.
    Alive(Rewrite),
    /// There is none.
    Missing,
}

/// The state word: identity in the low half, state in the high half.
#[inline(always)]
pub(crate) fn word(entry: *const FlowEntry) -> u64 {
    // SAFETY: a map value; the word is its first 8 bytes.
    unsafe { atomic::load(entry.cast()) }
}

/// Replaces the state word if it is still `expected`.
#[inline(always)]
pub(crate) fn swap_word(entry: *mut FlowEntry, expected: u64, state: u32) -> bool {
    let new = u64::from(expected as u32) | (u64::from(state) << 32);
    // SAFETY: as in `word`.
    unsafe { atomic::compare_swap(entry.cast(), expected, new) }
}

/// Finds the flow of a packet, checks that it is alive and came from the right side, and counts the packet on it.
#[inline(always)]
pub(crate) fn flow(ctx: *mut xdp_md, parsed: &Parsed, arrival: &mut Arrival) -> Result<Found, Verdict> {
    let now = arrival.now;
    if parsed.kind != Kind::Query {
        return Ok(Found::Missing);
    }
    let Some(entry) = FLOWS.get_ptr_mut(&parsed.key) else { return Ok(Found::Missing) };
    let first = word(entry);
    let state = (first >> 32) as u32;
    if first as u32 != parsed.key.fold() {
        return Err(Verdict::of(Reason::FlowRecycled));
    }
    if state & state::DEAD != 0 {
        return Ok(Found::Missing);
    }
    // SAFETY: a map value. It may change hands while it is read; the identity is compared again below.
    let (half, touched, grant) = unsafe { ((*entry).half, (*entry).touched, (*entry).grant) };
    let direction = if half & HALF_OUTBOUND != 0 { Direction::Outbound } else { Direction::Inbound };
    let wanted = if half & HALF_OUTBOUND != 0 { ROLE_INSIDE } else { ROLE_OUTSIDE };
    if arrival.role & u32::from(wanted) == 0 || !belongs(parsed, direction) {
        return Err(Verdict::of(Reason::WrongSide));
    }
    let tcp = grant % CLASSES == CLASS_TCP;
    let changes = tcp && state::tcp_bits(state & state::MASK, direction, parsed.flags) != 0;
    let reopens = tcp && state::reopens(state & state::MASK, parsed.flags) && may_open(entry, half);
    if touched != now || changes || reopens {
        // SAFETY: a map value, as above.
        let sequence_kept = unsafe { (*entry).flags } & FLOW_SEQUENCE != 0;
        if changes
            && parsed.flags & tcp_flag::RST != 0
            && sequence_kept
            && sequence::natgw_believed(ctx, parsed) == 0
        {
            arrival.role |= DOUBTED;
        }
        let mut done = maintain::natgw_maintain(ctx, parsed, arrival);
        if done == maintain::JUDGE {
            let code = opening::natgw_reopen(parsed, arrival);
            if code == opening::BYPASSED {
                maintain::natgw_remove(parsed);
                return Err(Verdict::of(Reason::Bypassed));
            }
            if code != opening::ALLOWED {
                return Err(Verdict::from_code(code));
            }
            arrival.role |= JUDGED;
            done = maintain::natgw_maintain(ctx, parsed, arrival);
        }
        if done == maintain::REMOVE {
            done = maintain::natgw_remove(parsed);
        }
        match done {
            maintain::HALF_OPEN => return Err(Verdict::from_code(opening::natgw_refuse_handshake())),
            maintain::ALIVE => {}
            maintain::GONE => return Ok(Found::Missing),
            maintain::EXPIRED => return Err(Verdict::from_code(late::natgw_late(parsed, arrival))),
            maintain::RECYCLED => return Err(Verdict::of(Reason::FlowRecycled)),
            _ => return Err(Verdict::of(Reason::FlowRace)),
        }
    }
    // The nonce, too: the same tuple may have been removed and opened again in the same element.
    let first = word(entry);
    let rewrite = rewrite_of(entry, direction);
    if first as u32 != parsed.key.fold() || (word(entry) ^ first) & !(u64::from(state::MASK) << 32) != 0 {
        return Err(Verdict::of(Reason::FlowRecycled));
    }
    Ok(Found::Alive(rewrite))
}

/// Whether a packet that found this half may open something.
#[inline(always)]
fn may_open(entry: *const FlowEntry, half: u8) -> bool {
    // SAFETY: a map value.
    half & (HALF_OUTBOUND | HALF_INSTANCE) != 0 || unsafe { (*entry).flags } & FLOW_MAPPED != 0
}

/// The rewrite of a flow that was opened a moment ago.
#[inline(always)]
pub(crate) fn opened(key: &FlowKey, direction: Direction) -> Result<Rewrite, Verdict> {
    const RACE: Verdict = Verdict::of(Reason::FlowRace);
    let entry = FLOWS.get_ptr_mut(key).ok_or(RACE)?;
    let first = word(entry);
    let rewrite = rewrite_of(entry, direction);
    if first as u32 != key.fold()
        || (first >> 32) as u32 & state::DEAD != 0
        || word(entry) as u32 != first as u32
    {
        return Err(RACE);
    }
    Ok(rewrite)
}

/// The rewrite of the flow that a packet was just found to belong to, whichever half.
#[inline(always)]
pub(crate) fn found(key: &FlowKey) -> Result<Rewrite, Verdict> {
    let entry = FLOWS.get_ptr(key).ok_or(Verdict::of(Reason::FlowRace))?;
    // SAFETY: a map value; its identity is compared by `opened`.
    let half = unsafe { (*entry).half };
    opened(key, if half & HALF_OUTBOUND != 0 { Direction::Outbound } else { Direction::Inbound })
}

#[inline(always)]
fn rewrite_of(entry: *mut FlowEntry, direction: Direction) -> Rewrite {
    // SAFETY: a map value; the caller compares its identity before and after.
    unsafe {
        Rewrite {
            address: (*entry).address,
            port: (*entry).port,
            direction,
            slot: (*entry).slot,
            mtu: (*entry).mtu,
            next_hop: (*entry).next_hop,
            entry,
        }
    }
}

/// ICMP requests go out and replies come in: a mapping is not open for the other way round.
#[inline(always)]
fn belongs(parsed: &Parsed, direction: Direction) -> bool {
    parsed.key.protocol != crate::parse::ICMP
        || icmp::is_request(parsed.icmp_type) == (direction == Direction::Outbound)
}
