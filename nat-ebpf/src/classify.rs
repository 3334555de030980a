// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a packet is that belongs to no flow: whose it is, and whether it may open one.
//!
//! Everything here is off the fast path.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    Tick,
    abi::{
        config::{
            CLASS_OTHER, CLASS_TCP, CLASSES, Control, FEATURE_INSTANCE, FEATURE_MAPPING, FEATURE_POLICY,
            FEATURE_RULE_FIRST, NO_SLOT, PortTag, ROLE_INSIDE, ROLE_OUTSIDE,
        },
        counters::Reason,
        grant::{BackendRef, grant_slot},
    },
    net::{
        icmp,
        state::{self, tcp_flag},
    },
};

use crate::{
    allocate, atomic, constants, fragment, hairpin, inbound, instance,
    maps::{BACKEND_STATE, CONTROL, PORT_BY_TAG, PORTS},
    opening,
    parse::{Kind, Parsed},
    policy,
    route::{self, Answer, Route},
    verdict::Verdict,
};

/// Where and when a packet came in.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Arrival {
    /// Slot of the logical interface.
    pub(crate) slot: u32,
    /// `ROLE_*`, and [`JUDGED`].
    pub(crate) role: u32,
    /// Interface index; for routing, and only then, it must be the logical one.
    pub(crate) ifindex: u32,
    /// The time.
    pub(crate) now: Tick,
}

/// [`Arrival::role`]: the packet may open a flow again that is over. Here, because another word on the entry point's stack
/// is felt by every packet.
pub(crate) const JUDGED: u32 = 1 << 31;

/// [`Arrival::role`]: the packet is a RST that is not believed ([`crate::sequence::natgw_believed`]).
pub(crate) const DOUBTED: u32 = 1 << 30;

/// [`Arrival::role`]: a backend's packet that is looked up again as if it had arrived outside.
pub(crate) const HAIRPINNED: u32 = 1 << 29;

/// [`Arrival::role`]: [`hairpin::natgw_aim`] has looked at the packet, which is for a frontend, but no mapping's.
pub(crate) const TO_FRONTEND: u32 = 1 << 28;
/// [`Arrival::role`]: and it is to be hairpinned.
pub(crate) const TO_MAPPING: u32 = 1 << 27;

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
/// The packet belongs to an instance IP: `ICMP_WORK` holds what [`crate::instance`] is to do.
pub(crate) const INSTANCE: u64 = 2;
/// As [`OPEN`], from outside.
pub(crate) const OPEN_INBOUND: u64 = 3;
/// The packet is a fragment that waits for the first one of its datagram: [`crate::fragment::natgw_hold_back`].
pub(crate) const HOLD: u64 = 8;

/// As [`OPEN`], of a mapped inner end: [`crate::join`] comes first.
pub(crate) const JOIN: u64 = 4;
/// As [`JOIN`], from outside.
pub(crate) const JOIN_INBOUND: u64 = 5;
/// From outside, to a port that some backend holds: [`opening::natgw_unsolicited`] decides.
pub(crate) const UNSOLICITED: u64 = 6;
/// From inside, for a frontend: [`hairpin::natgw_aim`] looks, and [`natgw_miss`] is asked again.
pub(crate) const AIM: u64 = 7;

/// Decides about a packet that matched no flow: [`OPEN`], [`ICMP_ERROR`], … or [`Verdict::to_code`].
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
        && let Some(frontend) = inbound::frontend_of(control.bank & 1, parsed.key.destination)
    {
        return inbound::packet(parsed, control, frontend);
    }
    if arrival.role & u32::from(ROLE_OUTSIDE) != 0
        && control.features & FEATURE_INSTANCE != 0
        && let Some(found) = instance::of_address(control.bank & 1, parsed.key.destination)
    {
        return instance::inbound(ctx, parsed, arrival, control, found);
    }
    if arrival.role & u32::from(ROLE_INSIDE) != 0 {
        return outbound(ctx, parsed, arrival, control);
    }
    Err(Verdict::of(Reason::NotFrontend))
}

/// Arrived inside, and no flow.
#[inline(always)]
fn outbound(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival, control: &Control) -> Result<u64, Verdict> {
    if parsed.key.destination[0] >= 224 {
        return Err(Verdict::of(Reason::Multicast));
    }
    let mut way = Route::default();
    if control.features & FEATURE_MAPPING != 0
        && arrival.role & (TO_FRONTEND | TO_MAPPING) == 0
        && inbound::frontend_of(control.bank & 1, parsed.key.destination).is_some()
    {
        return Ok(AIM);
    }
    if arrival.role & TO_MAPPING != 0 {
        hairpin::way(&mut way);
    } else {
        route::lookup(ctx, arrival.ifindex, parsed.key.source, parsed.key.destination, &mut way);
        leaves_outside(&way, control.bank & 1, parsed.key.source)?;
    }
    // One-armed: a backend's own interface is also the outside one, yet what goes to a backend stays inside.
    if way.role & ROLE_INSIDE != 0 && allocate::is_backend(control.bank & 1, parsed.key.destination) {
        return Err(Verdict::of(Reason::NotOutbound));
    }
    if matches!(parsed.key.source[0], 0 | 127 | 224..) {
        return Err(Verdict::of(Reason::InvalidSource));
    }
    let bank = control.bank & 1;
    let backend = allocate::backend(bank, parsed.key.source);
    // SAFETY: map value.
    let public = backend.map_or([0; 4], |backend| unsafe { (*backend).instance });
    if control.features & FEATURE_POLICY != 0 {
        match by_policy(parsed, arrival, control, backend) {
            // Of an instance IP no flow is kept: what opens nothing belongs to a connection that was allowed.
            Err(verdict) if verdict.is(Reason::Denied) && public != [0; 4] && continues(parsed) => {}
            done => done?,
        }
    }
    if parsed.kind == Kind::IcmpError {
        return Ok(ICMP_ERROR);
    }
    if let Some(backend) = backend
        && public != [0; 4]
        && !rule_first(parsed, control, Some(backend))
    {
        // SAFETY: map value.
        return instance::outbound(ctx, parsed, arrival, &way, unsafe { &*backend });
    }
    match parsed.kind {
        Kind::Fragment if fragment::awaits_first(parsed) => awaited(parsed, arrival, control, backend),
        Kind::Fragment => Err(Verdict::of(fragment::untranslatable(parsed))),
        Kind::OtherProtocol => Err(without_rule(arrival, control, backend, Reason::ProtocolUnsupported)),
        Kind::IcmpOther => Err(without_rule(arrival, control, backend, Reason::IcmpUnsupported)),
        _ => opening::outbound(ctx, parsed, arrival, control, &way, backend),
    }
}

/// Whether a packet is a TCP segment that cannot open a connection. One with SYN and without ACK might, whatever else it
/// says.
#[inline(always)]
pub(crate) fn continues(parsed: &Parsed) -> bool {
    parsed.kind == Kind::Query
        && u32::from(parsed.class) == CLASS_TCP
        && parsed.flags & (tcp_flag::SYN | tcp_flag::ACK) != tcp_flag::SYN
}

/// Whether a backend's outbound rule takes a packet, although it has an instance IP: the configuration says so, and a
/// rule can take it.
#[inline(always)]
fn rule_first(parsed: &Parsed, control: &Control, backend: Option<*const BackendRef>) -> bool {
    let opens = match u32::from(parsed.class) {
        CLASS_TCP => state::opens(parsed.flags),
        // An instance IP takes them with nothing to change but the address.
        CLASS_OTHER => false,
        _ => parsed.key.protocol != crate::parse::ICMP || icmp::is_request(parsed.icmp_type),
    };
    control.features & FEATURE_RULE_FIRST != 0
        && parsed.kind == Kind::Query
        && opens
        && backend.is_some_and(|backend| {
            // SAFETY: map value.
            let slot = unsafe { (*backend).slot };
            allocate::grant_in(control.bank & 1, slot, u32::from(parsed.class)).is_some()
        })
}

/// Applies the policies to an outbound packet.
#[inline(always)]
pub(crate) fn by_policy(
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    backend: Option<*const BackendRef>,
) -> Result<(), Verdict> {
    let bank = control.bank & 1;
    // SAFETY: map value.
    let awaits = fragment::awaits_first(parsed)
        && backend.is_some_and(|backend| unsafe { (*backend).instance } == [0; 4]);
    // SAFETY: map value.
    let policies =
        backend.map_or_else(|| policy::of_strangers(bank), |backend| unsafe { (*backend).policies });
    let subject = policy::Subject {
        bank,
        policies,
        remote: parsed.key.destination,
        protocol: parsed.key.protocol,
        port: policy::port_of(parsed),
        counted: true,
        unsure: awaits,
    };
    match policy::outbound(&subject) {
        policy::Found::Nothing => Ok(()),
        // Judged when its ports are known.
        policy::Found::Denied if awaits => Ok(()),
        policy::Found::Bypassed => Err(Verdict::of(Reason::Bypassed)),
        policy::Found::Denied => {
            let Some(backend) = backend else { return Err(Verdict::of(Reason::Denied)) };
            // SAFETY: map value.
            let slot = unsafe { (*backend).slot };
            if let Some(state) = BACKEND_STATE.get_ptr_mut(slot) {
                // SAFETY: array element.
                unsafe { atomic::add(&raw mut (*state).refused_policy, 1) };
            }
            let class = match u32::from(parsed.class) {
                CLASS_OTHER => CLASS_TCP,
                class => class,
            };
            let style = match allocate::grant_in(bank, slot, class) {
                // SAFETY: array element.
                Some((_, grant)) => opening::on_refusal(bank, unsafe { (*grant).rule }),
                None => control.on_refusal,
            };
            let style = allocate::audible(grant_slot(slot, class), style, arrival.now);
            Err(Verdict::refused(Reason::Denied, style))
        }
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

/// A later fragment is held if the first one could open a flow.
#[inline(always)]
fn awaited(
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    backend: Option<*const BackendRef>,
) -> Result<u64, Verdict> {
    let Some(backend) = backend else { return Err(no_rule(arrival, control, NO_SLOT)) };
    // SAFETY: map value.
    let (slot, class) = unsafe { ((*backend).slot, u32::from(parsed.class)) };
    match allocate::grant_in(control.bank & 1, slot, class) {
        Some(_) => Ok(HOLD),
        None => Err(no_rule(arrival, control, grant_slot(slot, class))),
    }
}

/// `reason`, unless the source has no rule at all: that is what its operator has to know first.
#[inline(always)]
pub(crate) fn without_rule(
    arrival: &Arrival,
    control: &Control,
    backend: Option<*const BackendRef>,
    reason: Reason,
) -> Verdict {
    let Some(backend) = backend else { return no_rule(arrival, control, NO_SLOT) };
    // SAFETY: map value.
    let slot = unsafe { (*backend).slot };
    match allocate::grant_in(control.bank & 1, slot, CLASS_TCP) {
        Some(_) => Verdict::of(reason),
        None => no_rule(arrival, control, grant_slot(slot, CLASS_TCP)),
    }
}

/// No rule covers the packet of a backend, or of a stranger ([`NO_SLOT`]).
#[inline(always)]
pub(crate) fn no_rule(arrival: &Arrival, control: &Control, slot: u32) -> Verdict {
    if let Some(state) = BACKEND_STATE.get_ptr_mut(slot / CLASSES) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*state).refused_rule, 1) };
    }
    Verdict::refused(Reason::NoOutboundRule, allocate::audible(slot, control.on_refusal, arrival.now))
}
