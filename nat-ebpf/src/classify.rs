// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a packet is that belongs to no flow: whose it is, and whether it may open one.
//!
//! Everything here is off the fast path.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    Tick,
    abi::{
        config::{
            CLAIMED_BYTES, CLASS_TCP, Control, FRONTEND_LOCAL, Frontend, FrontendKey, MAX_FRONTENDS, NO_SLOT,
            PortTag, ROLE_INSIDE, ROLE_OUTSIDE, frontend_index, grant_index,
        },
        counters::Reason,
    },
    net::{
        icmp,
        state::{self, Direction},
    },
};

use crate::{
    allocate, constants, event,
    maps::{CONTROL, FRONTEND_INFO, FRONTENDS, PORT_BY_TAG, PORTS, SEARCH},
    parse::{Kind, Parsed},
    route::{self, Answer, Route},
    translate,
    verdict::Verdict,
};

/// Where and when a packet came in.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Arrival {
    /// Slot of the logical interface.
    pub(crate) slot: u32,
    /// `ROLE_*`.
    pub(crate) role: u32,
    /// Interface index; for routing, and only then, it must be the logical one.
    pub(crate) ifindex: u32,
    /// The time.
    pub(crate) now: Tick,
}

/// Finds the port by the device and the VLAN tags.
#[inline(always)]
pub(crate) fn ingress(parsed: &Parsed, now: Tick, arrival: &mut Arrival) -> Result<(), Verdict> {
    const OTHER: Verdict = Verdict::of(Reason::OtherVlan);
    arrival.now = now;
    if parsed.tags == 0 {
        if constants::slot() == NO_SLOT {
            return Err(OTHER);
        }
        arrival.slot = constants::slot();
        arrival.role = constants::role();
        arrival.ifindex = constants::lower();
        return Ok(());
    }
    let tag = PortTag { lower: constants::lower(), vlan: parsed.vlan };
    let slot = PORT_BY_TAG.get_ptr(&tag).ok_or(OTHER)?;
    // SAFETY: map value, written as a whole word.
    arrival.slot = unsafe { *slot };
    let port = PORTS.get_ptr(arrival.slot).ok_or(OTHER)?;
    // SAFETY: array element.
    unsafe {
        arrival.role = u32::from((*port).role);
        arrival.ifindex = (*port).ifindex;
    }
    if arrival.role == 0 { Err(OTHER) } else { Ok(()) }
}

/// The packet may open a flow: `SEARCH` holds the request for [`allocate::open`].
pub(crate) const OPEN: u64 = 0;
/// The packet is an ICMP error for [`crate::icmp_error`].
pub(crate) const ICMP_ERROR: u64 = 1;

/// Decides about a packet that matched no flow: [`OPEN`], [`ICMP_ERROR`] or [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once; and what comes next is called from the entry point, so that the
/// stacks never add up to more than 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_miss(ctx: *mut xdp_md, parsed: *const Parsed, arrival: *const Arrival) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    match miss(ctx, parsed, arrival) {
        Ok(next) => next,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn miss(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<u64, Verdict> {
    let Some(control) = CONTROL.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: array element. Copied, so that all of this packet's decisions are by one bank.
    let control = &unsafe { core::ptr::read_volatile(control) };
    if arrival.role & u32::from(ROLE_OUTSIDE) != 0
        && let Some(frontend) = frontend_of(control.bank & 1, parsed.key.destination)
    {
        return inbound(parsed, frontend);
    }
    if arrival.role & u32::from(ROLE_INSIDE) != 0 {
        return outbound(ctx, parsed, arrival, control);
    }
    Err(Verdict::of(Reason::NotFrontend))
}

#[inline(always)]
fn frontend_of(bank: u32, address: [u8; 4]) -> Option<*const Frontend> {
    let slot = FRONTENDS.get_ptr(&FrontendKey { address, bank })?;
    // SAFETY: map value, written as a whole word.
    let slot = unsafe { *slot };
    if slot >= MAX_FRONTENDS {
        return None;
    }
    FRONTEND_INFO.get_ptr(frontend_index(bank, slot))
}

/// Arrived outside for a frontend, and no flow.
#[inline(always)]
fn inbound(parsed: &Parsed, frontend: *const Frontend) -> Result<u64, Verdict> {
    // SAFETY: array element.
    let local = unsafe { (*frontend).flags } & FRONTEND_LOCAL != 0;
    let unclaimed = |reason| Err(Verdict::of(if local { Reason::HostTraffic } else { reason }));
    match parsed.kind {
        Kind::Fragment => Err(Verdict::of(Reason::Fragment)),
        Kind::IcmpError => Ok(ICMP_ERROR),
        Kind::IcmpOther => unclaimed(Reason::IcmpUnsupported),
        Kind::OtherProtocol => unclaimed(Reason::ProtocolUnsupported),
        Kind::Query => {
            let request = parsed.key.protocol == crate::parse::ICMP && parsed.icmp_type == icmp::ECHO_REQUEST;
            if !request && claimed(frontend, u32::from(parsed.class), parsed.key.destination_port) {
                return Err(Verdict::of(Reason::NoMapping));
            }
            unclaimed(Reason::NoMapping)
        }
    }
}

/// What becomes of an ICMP error from outside that quotes no flow: the host's own, if it owns the address and no
/// backend holds the quoted port.
#[inline(always)]
pub(crate) fn stray_error(bank: u32, address: [u8; 4], class: u32, port: [u8; 2]) -> Reason {
    let Some(frontend) = frontend_of(bank, address) else { return Reason::IcmpErrorNoFlow };
    // SAFETY: array element.
    let local = unsafe { (*frontend).flags } & FRONTEND_LOCAL != 0;
    if local && !claimed(frontend, class, port) { Reason::HostTraffic } else { Reason::IcmpErrorNoFlow }
}

/// Whether some backend holds the port.
#[inline(always)]
fn claimed(frontend: *const Frontend, class: u32, port: [u8; 2]) -> bool {
    let block = usize::from(u16::from_be_bytes(port)) >> 3;
    let byte = (block >> 3) & (CLAIMED_BYTES - 1);
    let class = if class > 2 { 2 } else { class as usize };
    // SAFETY: array element; class and byte are within the bitmap.
    let bits = unsafe { *(&raw const (*frontend).claimed).cast::<u8>().add(class * CLAIMED_BYTES + byte) };
    bits & (1 << (block & 7)) != 0
}

/// Arrived inside, and no flow.
#[inline(always)]
fn outbound(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival, control: &Control) -> Result<u64, Verdict> {
    if parsed.key.destination[0] >= 224 {
        return Err(Verdict::of(Reason::Multicast));
    }
    let mut way = Route::default();
    route::lookup(ctx, arrival.ifindex, parsed.key.source, parsed.key.destination, &mut way);
    leaves_outside(&way, control.bank & 1, parsed.key.source)?;
    // One-armed: a backend's own interface is also the outside one, yet what goes to a backend stays inside.
    if way.role & ROLE_INSIDE != 0 && allocate::is_backend(control.bank & 1, parsed.key.destination) {
        return Err(Verdict::of(Reason::NotOutbound));
    }
    if matches!(parsed.key.source[0], 0 | 127 | 224..) {
        return Err(Verdict::of(Reason::InvalidSource));
    }
    match parsed.kind {
        Kind::IcmpError => Ok(ICMP_ERROR),
        Kind::Fragment => Err(Verdict::of(Reason::Fragment)),
        Kind::OtherProtocol => Err(without_rule(control, parsed, Reason::ProtocolUnsupported)),
        Kind::IcmpOther => Err(without_rule(control, parsed, Reason::IcmpUnsupported)),
        Kind::Query => open(ctx, parsed, arrival, control, &way),
    }
}

/// The route decides whether a packet is outbound at all: it is if it leaves by an outside interface. A backend's
/// packet that would leave by an interface that is not configured is dropped: it may be an outside interface that was
/// made anew a moment ago, without a guard yet.
#[inline(always)]
fn leaves_outside(way: &Route, bank: u32, source: [u8; 4]) -> Result<(), Verdict> {
    match way.answer {
        Answer::Found | Answer::Unresolved if way.role & ROLE_OUTSIDE != 0 => Ok(()),
        Answer::Found | Answer::Unresolved if way.role == 0 && allocate::is_backend(bank, source) => {
            Err(Verdict::of(Reason::ForeignInterface))
        }
        Answer::Tunnel if allocate::is_backend(bank, source) => Err(Verdict::of(Reason::ForeignInterface)),
        Answer::Found | Answer::Unresolved | Answer::Tunnel => Err(Verdict::of(Reason::NotOutbound)),
        Answer::Local => Err(Verdict::of(Reason::Local)),
        Answer::ForwardingOff => Err(Verdict::of(Reason::ForwardingOff)),
        Answer::None => Err(Verdict::of(Reason::NoRoute)),
    }
}

/// `reason`, unless the source has no rule at all: that is what its operator has to know first.
#[inline(always)]
fn without_rule(control: &Control, parsed: &Parsed, reason: Reason) -> Verdict {
    let known = allocate::grant_of(control.bank & 1, parsed.key.source, CLASS_TCP).is_some();
    Verdict::of(if known { reason } else { Reason::NoOutboundRule })
}

/// Whether an outbound packet may open a flow; if so, the request for it.
#[inline(always)]
fn open(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    way: &Route,
) -> Result<u64, Verdict> {
    let Some((slot, _)) = allocate::grant_of(control.bank & 1, parsed.key.source, u32::from(parsed.class))
    else {
        return Err(Verdict::of(Reason::NoOutboundRule));
    };
    if u32::from(parsed.class) == CLASS_TCP && !state::opens(parsed.flags) {
        return Err(Verdict::of(Reason::TcpNoFlow));
    }
    if parsed.key.protocol == crate::parse::ICMP && parsed.icmp_type != icmp::ECHO_REQUEST {
        return Err(Verdict::of(Reason::IcmpUnsupported));
    }
    if !translate::header_checksum_ok(ctx, parsed.network(), parsed.header()) {
        return Err(Verdict::of(Reason::BadChecksum));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    let resolved = matches!(way.answer, Answer::Found);
    if resolved && parsed.total() > usize::from(way.mtu) {
        return Err(Verdict::answer(Reason::TooBig, way.mtu));
    }
    if !resolved {
        event::neighbour(&parsed.key, way.ifindex, way.neighbour, arrival.now);
        if control.guarded == 0 {
            return Err(Verdict::of(Reason::NotConfigured));
        }
    }
    let Some(request) = SEARCH.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let request = unsafe { &mut *request };
    request.key = parsed.key;
    request.slot = slot;
    request.grant = grant_index(control.bank & 1, slot);
    request.bits = state::tcp_bits(0, Direction::Outbound, parsed.flags);
    request.now = arrival.now;
    request.way.slot = if resolved { way.slot } else { route::FOREIGN };
    request.way.mtu = way.mtu;
    request.way.next_hop = way.next_hop;
    request.way.epoch = if resolved { control.epoch } else { 0 };
    Ok(OPEN)
}
