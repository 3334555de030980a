// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Instance IPs: one public address for one backend, every protocol, ports as they are, no flow kept.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use nat_common::{
    abi::{
        config::{CLASS_UDP, Control, FEATURE_POLICY, FEATURE_RULE_FIRST, ROLE_INSIDE},
        counters::Reason,
        grant::BackendRef,
        policy::{Instance, InstanceKey},
    },
    net::{
        checksum::Delta,
        protocol::{DCCP, UDP_LITE},
    },
};

use crate::{
    allocate,
    classify::{self, Arrival},
    emit::{Egress, guarded, to_guard},
    event,
    frame::{self, Frame},
    icmp_error::Work,
    maps::{ICMP_WORK, INSTANCES},
    opening,
    parse::{IPV4, Kind, Parsed, TCP, UDP},
    policy,
    route::{self, Answer, Route},
    translate,
    verdict::Verdict,
};

/// The backend of an instance IP.
#[inline(always)]
pub(crate) fn of_address(bank: u32, address: [u8; 4]) -> Option<&'static Instance> {
    // SAFETY: map value, written before its bank is put in force.
    INSTANCES.get_ptr(&InstanceKey { address, bank }).map(|instance| unsafe { &*instance })
}

/// A packet of a backend that leaves by its instance IP.
#[inline(always)]
pub(crate) fn outbound(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    way: &Route,
    backend: &BackendRef,
) -> Result<u64, Verdict> {
    let public = backend.instance;
    if matches!(way.answer, Answer::Unresolved) {
        event::neighbour_of(backend.slot, &parsed.key, way, arrival.now);
        return Err(to_guard());
    }
    prepare(ctx, parsed, way, public, true)
}

/// A packet from outside for an instance IP.
#[inline(always)]
pub(crate) fn inbound(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    instance: &Instance,
) -> Result<u64, Verdict> {
    let bank = control.bank & 1;
    // No route back is asked for: so at least nobody outside passes for a neighbour of the backend.
    if matches!(parsed.key.source[0], 0 | 127 | 224..) || allocate::is_backend(bank, parsed.key.source) {
        return Err(Verdict::of(Reason::InvalidSource));
    }
    // What opens nothing belongs to a connection that was allowed, perhaps the backend's own.
    if control.features & FEATURE_POLICY != 0 && !classify::continues(parsed) {
        let subject = policy::Subject {
            bank,
            policies: instance.policies,
            remote: parsed.key.source,
            protocol: parsed.key.protocol,
            port: policy::port_of(parsed),
            counted: true,
            unsure: false,
        };
        if policy::inbound(&subject) == policy::Found::Denied {
            return Err(Verdict::of(Reason::Denied));
        }
    }
    if parsed.kind == Kind::IcmpError {
        return Ok(classify::ICMP_ERROR);
    }
    let transport = parsed.kind == Kind::Query && u32::from(parsed.class) <= CLASS_UDP;
    if control.features & FEATURE_RULE_FIRST != 0
        && transport
        && let Some((slot, grant)) = allocate::grant_in(bank, instance.slot, u32::from(parsed.class))
    {
        // Its answers would leave by the outbound rule: a flow keeps them on this address.
        return opening::inbound(ctx, parsed, arrival, control, instance.backend, slot, grant);
    }
    let mut way = Route::default();
    route::lookup(ctx, arrival.ifindex, parsed.key.source, instance.backend, &mut way);
    match way.answer {
        Answer::Found if way.role & ROLE_INSIDE != 0 => {}
        Answer::Unresolved if way.role & ROLE_INSIDE != 0 => {
            event::neighbour_of(instance.slot, &parsed.key, &way, arrival.now);
        }
        _ => return Err(Verdict::of(Reason::RouteLost)),
    }
    prepare(ctx, parsed, &way, instance.backend, false)
}

/// Everything that can fail, before anything is written: [`classify::INSTANCE`], and in `ICMP_WORK` what is to be done.
#[inline(always)]
fn prepare(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    way: &Route,
    address: [u8; 4],
    outbound: bool,
) -> Result<u64, Verdict> {
    if !translate::own_checksum_ok(ctx, parsed) {
        return Err(Verdict::of(Reason::BadChecksum));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    let mut resolved = matches!(way.answer, Answer::Found);
    if resolved && parsed.total() > usize::from(way.mtu) {
        if parsed.dont_fragment {
            return Err(Verdict::answer(Reason::TooBig, way.mtu));
        }
        // The stack fragments; outbound, the guard translates the pieces.
        if outbound {
            return Err(Verdict::of(if guarded() { Reason::TooBigToStack } else { Reason::TooBigSilent }));
        }
        resolved = false;
    }
    let Some(work) = ICMP_WORK.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let work = unsafe { &mut *work };
    work.edit.address = address;
    work.edit.outbound = outbound;
    work.slot = if resolved { way.slot } else { route::FOREIGN };
    work.next_hop = way.next_hop;
    Ok(classify::INSTANCE)
}

/// Carries out what has been prepared: [`Verdict::to_code`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_instance(ctx: *mut xdp_md, parsed: *const Parsed) -> u64 {
    if parsed.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes a whole value.
    carry_out(ctx, unsafe { &*parsed }).unwrap_or_else(|verdict| verdict).to_code()
}

#[inline(always)]
fn carry_out(ctx: *mut xdp_md, parsed: &Parsed) -> Result<Verdict, Verdict> {
    const MALFORMED: Verdict = Verdict::of(Reason::Malformed);
    let Some(work) = ICMP_WORK.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element.
    let work: &Work = unsafe { &*work };
    if work.slot == route::FOREIGN {
        // The stack decrements the TTL itself.
        rewrite(ctx, parsed, parsed.network(), work, 0).ok_or(MALFORMED)?;
        return Ok(Verdict::sent(Reason::TranslatedToStack, xdp_action::XDP_PASS));
    }
    let egress = Egress::prepare(ctx, parsed.network(), usize::from(parsed.tags), work.slot)?;
    rewrite(ctx, parsed, egress.l3, work, 1).ok_or(MALFORMED)?;
    let reason = if work.edit.outbound { Reason::InstanceOut } else { Reason::InstanceIn };
    egress.send(ctx, &Frame::of_xdp(ctx), work.next_hop, reason)
}

/// Rewrites the address, the TTL, and the checksums that cover them.
#[inline(never)]
fn rewrite(ctx: *mut xdp_md, parsed: &Parsed, l3: usize, work: &Work, decrement: u8) -> Option<()> {
    let mut ip = frame::load::<[u8; IPV4]>(ctx, l3)?;
    let outbound = work.edit.outbound;
    let old = if outbound { [ip[12], ip[13], ip[14], ip[15]] } else { [ip[16], ip[17], ip[18], ip[19]] };
    let addresses = Delta::ZERO.address(old, work.edit.address);
    // Only the first fragment has a transport header.
    let first = ip[6] & 0x1f == 0 && ip[7] == 0;
    if first && let Some(offset) = checksum_offset(ip[9]) {
        let at = l3 + parsed.header() + offset;
        // A first fragment may be too short to have one; the far end puts it together and sees the difference.
        if parsed.header() + offset + 2 <= parsed.total()
            && let Some(old) = frame::load::<[u8; 2]>(ctx, at)
        {
            let new = if zero_is_none(ip[9]) { addresses.apply_udp(old) } else { addresses.apply(old) };
            frame::store(ctx, at, &new);
        }
    }
    let ttl = ip[8] - decrement;
    let changes = addresses.word([ip[8], ip[9]], [ttl, ip[9]]);
    [ip[10], ip[11]] = changes.apply([ip[10], ip[11]]);
    ip[8] = ttl;
    if outbound {
        [ip[12], ip[13], ip[14], ip[15]] = work.edit.address;
    } else {
        [ip[16], ip[17], ip[18], ip[19]] = work.edit.address;
    }
    if frame::store(ctx, l3, &ip) { Some(()) } else { None }
}

/// Whether a transport checksum of zero stands for none, so that one that comes out as zero is written as 0xffff (RFC 768,
/// RFC 3828 §3.1).
#[inline(always)]
pub(crate) const fn zero_is_none(protocol: u8) -> bool {
    matches!(protocol, UDP | UDP_LITE)
}

/// Where in a transport header the checksum is that covers the addresses, too.
#[inline(always)]
pub(crate) const fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP | UDP_LITE | DCCP => Some(6),
        _ => None,
    }
}
