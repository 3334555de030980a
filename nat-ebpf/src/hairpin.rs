// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Packets from a backend to the SNAT port of a mapping (RFC 4787 REQ-9, RFC 5382 REQ-8).
//!
//! The sender's flow to that address and port says what to write as source, and [`route::HAIRPIN`] instead of a way out.
//! With that source the packet is looked up again, as if it had arrived outside: it finds, or opens, the session of the
//! mapping's backend, if filtering lets it. Both ends are written at last, so that what is dropped, answered or left to the
//! stack on the way is as it came.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    Tick,
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, ROLE_OUTSIDE},
        counters::Reason,
        flow::{FLOW_SEQUENCE, FlowEntry},
    },
    net::state::{self, Direction},
};

use crate::{
    allocate,
    classify::{Arrival, HAIRPINNED, TO_FRONTEND, TO_MAPPING},
    emit::{self, Egress},
    frame::Frame,
    lookup::{self, Rewrite, word},
    mapping,
    maps::{CONTROL, FLOWS, TURN},
    parse::{Kind, Parsed},
    route, sequence, translate,
    verdict::Verdict,
};

/// One hairpinned packet.
#[repr(C)]
pub(crate) struct Turn {
    /// What it came with as source.
    source: [u8; 4],
    source_port: [u8; 2],
    /// What it leaves with.
    from_port: [u8; 2],
    from: [u8; 4],
    to: [u8; 4],
    to_port: [u8; 2],
    next_hop: [u8; 6],
    slot: u8,
    reserved: u8,
}

/// Whether a backend's packet without a flow, for a frontend, is to be turned round: [`TO_MAPPING`] if it is to a port of a
/// mapping that is alive, else [`TO_FRONTEND`]. An error is about a hairpinned packet, if it is about anything.
///
/// verifier: global, and called from the entry point, where the stack is short.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_aim(parsed: *const Parsed, arrival: *const Arrival) -> u32 {
    let (Some(control), false, false) = (CONTROL.get_ptr(0), parsed.is_null(), arrival.is_null()) else {
        return TO_FRONTEND;
    };
    // SAFETY: not null, and the only caller passes whole values; array element.
    let (parsed, arrival, control) = unsafe { (&*parsed, &*arrival, &*control) };
    let class = u32::from(parsed.class);
    let mut target = mapping::Target::default();
    let aimed = parsed.kind == Kind::IcmpError
        || (parsed.kind == Kind::Query
            && class < CLASS_ICMP
            && allocate::grant_of(control.bank & 1, parsed.key.source, class).is_some()
            && mapping::target(&parsed.key, control, arrival.now, &mut target));
    if aimed { TO_MAPPING } else { TO_FRONTEND }
}

/// The way of a hairpinned packet of the sender's flow.
#[inline(always)]
pub(crate) fn way(way: &mut route::Route) {
    way.answer = route::Answer::Found;
    way.slot = route::HAIRPIN;
    way.role = ROLE_OUTSIDE;
    way.mtu = u16::MAX;
}

/// Gives the packet its flow's source, for the second look-up.
///
/// verifier: global, so that what it needs is not on the entry point's stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_turn(
    parsed: *mut Parsed,
    arrival: *mut Arrival,
    address: u32,
    port: u32,
) -> u32 {
    let (Some(turn), false, false) = (TURN.get_ptr_mut(0), parsed.is_null(), arrival.is_null()) else {
        return 1;
    };
    // SAFETY: this CPU's own element; not null, and the only caller passes whole values.
    let (turn, parsed, arrival) = unsafe { (&mut *turn, &mut *parsed, &mut *arrival) };
    turn.source = parsed.key.source;
    turn.source_port = parsed.key.source_port;
    turn.from = address.to_ne_bytes();
    turn.from_port = (port as u16).to_ne_bytes();
    parsed.key.source = turn.from;
    parsed.key.source_port = turn.from_port;
    arrival.role = u32::from(ROLE_OUTSIDE) | HAIRPINNED;
    0
}

/// Gives the packet back what it came with.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_turn_back(parsed: *mut Parsed) -> u32 {
    let (Some(turn), false) = (TURN.get_ptr(0), parsed.is_null()) else { return 1 };
    // SAFETY: as in `natgw_turn`.
    let (turn, parsed) = unsafe { (&*turn, &mut *parsed) };
    parsed.key.source = turn.source;
    parsed.key.source_port = turn.source_port;
    0
}

/// [`natgw_second`]: `TURN` holds what [`natgw_turned`] needs.
pub(crate) const FOUND: u64 = 0;
/// [`natgw_second`]: there is no flow yet.
pub(crate) const MISSING: u64 = 1;
/// [`natgw_second`]: [`crate::maintain::natgw_maintain`] is to come first.
pub(crate) const TOUCH: u64 = 2;

/// The second look-up: [`FOUND`], [`MISSING`], [`TOUCH`] unless `touched` is set, or [`Verdict::to_code`].
///
/// verifier: global, so that it is not in the entry point; and calls nothing that needs much of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_second(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
    touched: u32,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    match second(ctx, parsed, arrival, touched != 0) {
        Ok(code) => code,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn second(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival, touched: bool) -> Result<u64, Verdict> {
    let Some(entry) = FLOWS.get_ptr_mut(&parsed.key) else { return Ok(MISSING) };
    let state = (word(entry) >> 32) as u32;
    if state & state::DEAD != 0 {
        return Ok(MISSING);
    }
    if !touched && is_due(entry, state & state::MASK, parsed, arrival.now) {
        return Ok(TOUCH);
    }
    let found = lookup::opened(&parsed.key, Direction::Inbound)?;
    if found.slot == route::FOREIGN {
        // The stack would take a source that may be the host's own for a spoofed one.
        return Err(Verdict::of(Reason::HairpinUnresolved));
    }
    if found.slot >= route::HAIRPIN {
        return Err(Verdict::of(Reason::RouteLost));
    }
    if parsed.total() > usize::from(found.mtu) {
        return Err(Verdict::answer(Reason::TooBig, found.mtu));
    }
    let Some(turn) = TURN.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element.
    let turn = unsafe { &mut *turn };
    turn.to = found.address;
    turn.to_port = found.port;
    turn.slot = found.slot;
    turn.next_hop = found.next_hop;
    // SAFETY: a map value, as in the entry point.
    if unsafe { (*found.entry).flags } & FLOW_SEQUENCE != 0 {
        sequence::natgw_sequence(ctx, parsed, found.entry);
    }
    emit::count(parsed, &found);
    Ok(FOUND)
}

/// Whether the half is to be brought up to date first, as [`lookup::flow`] would.
#[inline(always)]
fn is_due(entry: *const FlowEntry, state: u32, parsed: &Parsed, now: Tick) -> bool {
    // SAFETY: a map value; identity compared by the caller.
    let touched = unsafe { (*entry).touched };
    touched != now
        || (u32::from(parsed.class) == CLASS_TCP
            && (state::tcp_bits(state, Direction::Inbound, parsed.flags) != 0
                || state::reopens(state, parsed.flags)))
}

/// Translates both ends and sends: [`Verdict::to_code`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_turned(ctx: *mut xdp_md, parsed: *mut Parsed) -> u64 {
    if parsed.is_null() || natgw_turn_back(parsed) != 0 {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes a whole value.
    send(ctx, unsafe { &*parsed }).unwrap_or_else(|verdict| verdict).to_code()
}

#[inline(always)]
fn send(ctx: *mut xdp_md, parsed: &Parsed) -> Result<Verdict, Verdict> {
    const MALFORMED: Verdict = Verdict::of(Reason::Malformed);
    let Some(turn) = TURN.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element.
    let turn = unsafe { &*turn };
    let rewrite = |address, port, direction| Rewrite {
        address,
        port,
        direction,
        slot: 0,
        mtu: 0,
        next_hop: [0; 6],
        entry: core::ptr::null_mut(),
    };
    let egress = Egress::prepare(ctx, parsed.network(), usize::from(parsed.tags), turn.slot)?;
    let frame = Frame::of_xdp(ctx);
    egress.check(&frame)?;
    let (from, to) = (
        rewrite(turn.from, turn.from_port, Direction::Outbound),
        rewrite(turn.to, turn.to_port, Direction::Inbound),
    );
    translate::packet(&frame, parsed, egress.l3, &from, true).ok_or(MALFORMED)?;
    translate::packet(&frame, parsed, egress.l3, &to, false).ok_or(MALFORMED)?;
    egress.send(ctx, &frame, turn.next_hop, Reason::Hairpinned)
}
