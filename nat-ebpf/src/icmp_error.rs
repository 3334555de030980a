// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! ICMP errors about packets of a flow, with the packet they quote (RFC 5508 §4).
//!
//! The quoted packet went the other way than the error: an error from outside quotes what left as
//! `frontend:port → destination`, an error from inside quotes what arrived as `destination → backend:port`. Either
//! way the flow is found under the quoted tuple reversed. Errors neither prolong nor end a flow (RFC 5508 REQ-4…6).

use aya_ebpf::bindings::{xdp_action, xdp_md};
use nat_common::{
    Tick,
    abi::{
        config::{
            CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASS_UDP, CLASSES, Control, FEATURE_INSTANCE, ROLE_INSIDE,
            ROLE_OUTSIDE,
        },
        counters::Reason,
        flow::{FlowKey, HALF_OUTBOUND},
        fragment::FRAGMENT_NONE,
    },
    net::{icmp, protocol, state, timers},
};
use network_types::icmp::Icmpv4Hdr;

use crate::{
    allocate,
    classify::Arrival,
    emit::{Egress, to_guard},
    fragment,
    frame::{self, Frame},
    inbound::stray_error,
    instance,
    life::expired,
    lookup::word,
    maps::{CONTROL, FLOWS, ICMP_WORK},
    parse::{ICMP, IPV4, Parsed, TCP, UDP},
    requote::{Edit, rewrite},
    route::{self, Answer, Route},
    translate,
    verdict::Verdict,
};

/// The packet inside an error.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Quoted {
    /// The tuple under which its flow is found: the quoted one, reversed.
    pub(crate) key: FlowKey,
    /// Protocol class.
    class: u8,
    /// Offset of its IP header, relative to the outer one.
    pub(crate) ip: u8,
    /// Offset of its transport header, relative to the outer IP header.
    pub(crate) transport: u8,
    /// Offset of its TCP checksum, likewise; 0 if there is none: it is in the 17th and 18th byte, and errors may
    /// quote less (RFC 792: 8 bytes).
    pub(crate) checksum: u8,
    /// Bytes of its transport header that are quoted and may be rewritten: 8, 4 (the ports), or 0 for a later fragment and
    /// what quotes nothing of use.
    pub(crate) shown: u8,
    /// Identification to write: what it had before it was translated.
    pub(crate) id: [u8; 2],
}

/// Reads the quoted packet. False for one that concerns nothing of ours: no IPv4, or too short. What has no ports (another
/// protocol, a later fragment) can still be an instance IP's: class `CLASS_OTHER`.
#[inline(never)]
fn read_quotation(ctx: *mut xdp_md, parsed: &Parsed, now: Tick, quoted: &mut Quoted) -> bool {
    let base = parsed.network() + parsed.header() + size_of::<Icmpv4Hdr>();
    // As words (RFC 791 §3.1): byte by byte LLVM would keep them all on the stack.
    let Some([start, piece, protocol, source, destination]) =
        frame::load::<[u32; IPV4 / 4]>(ctx, base).map(|words| words.map(u32::to_ne_bytes))
    else {
        return false;
    };
    let length = usize::from(start[0] & 0x0f) * 4;
    if start[0] >> 4 != 4 || length < IPV4 {
        return false;
    }
    let later = piece[2] & 0x1f != 0 || piece[3] != 0;
    let transport = base + length;
    let Some(rest) = (parsed.network() + parsed.total()).checked_sub(transport) else { return false };
    // Source and destination port, or ICMP type, code, checksum; and what follows.
    let [mut first, mut second] = [0u32; 2];
    quoted.shown = 0;
    if !later && rest >= 8 {
        let Some(words) = frame::load::<[u32; 2]>(ctx, transport) else { return false };
        ([first, second], quoted.shown) = (words, 8);
    } else if !later && rest >= 4 {
        // RFC 792 says 8 bytes; the ports are in the first four.
        let Some(word) = frame::load::<u32>(ctx, transport) else { return false };
        (first, quoted.shown) = (word, 4);
    }
    let number = protocol[1];
    let (ports, class) = match number {
        _ if later => (0, CLASS_OTHER),
        ICMP if quoted.shown < 8 => return false,
        ICMP => match icmp::kind(first.to_ne_bytes()[0]) {
            // The identifier is the source port of what asks, and so the destination port here.
            icmp::Kind::Request => (u32::from_le(second.to_le() << 16), CLASS_ICMP),
            icmp::Kind::Reply => (u32::from_le(second.to_le() & 0xffff), CLASS_ICMP),
            _ => (0, CLASS_OTHER),
        },
        TCP | UDP if quoted.shown == 0 => return false,
        TCP => (first.rotate_left(16), CLASS_TCP),
        UDP => (first.rotate_left(16), CLASS_UDP),
        number if protocol::has_ports(number) => (first.rotate_left(16), CLASS_OTHER),
        _ => (0, CLASS_OTHER),
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    quoted.key = FlowKey {
        source: destination,
        destination: source,
        source_port: [a, b],
        destination_port: [c, d],
        protocol: number,
        zone: [0; 3],
    };
    quoted.class = class as u8;
    quoted.id = [piece[0], piece[1]];
    if later || piece[2] & 0x20 != 0 {
        // It was sent with another identification, and a later one has its ports from the first.
        let sent = fragment::as_sent(source, destination, quoted.id, number, now);
        if sent.state != FRAGMENT_NONE {
            quoted.id = sent.id;
            if later {
                quoted.key.source_port = sent.destination_port;
                quoted.key.destination_port = sent.source_port;
                quoted.class = fragment::class_of(number) as u8;
            }
        }
    }
    quoted.ip = (base - parsed.network()) as u8;
    let transport = transport - parsed.network();
    quoted.transport = transport as u8;
    quoted.checksum =
        if class == CLASS_TCP && transport + 18 <= parsed.total() { transport as u8 + 16 } else { 0 };
    true
}

/// The error is to be translated: `ICMP_WORK` holds what [`natgw_icmp_rewrite`] is to do.
pub(crate) const REWRITE: u64 = 2;

/// The error is about a hairpinned packet: [`natgw_icmp_hairpin`] goes on.
pub(crate) const HAIRPIN: u64 = 3;

/// Decides about an error: [`REWRITE`], [`HAIRPIN`] or [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once; and apart from the rewriting, so that the stacks do not add up.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_icmp_error(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    match decide(ctx, parsed, arrival) {
        Ok(next) => next,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn decide(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<u64, Verdict> {
    let Some(control) = CONTROL.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: array element.
    let control = unsafe { &*control };
    let Some(work) = ICMP_WORK.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let work = unsafe { &mut *work };
    // verifier: not on the stack, of which the calls from here leave nothing.
    let quoted = &mut work.quoted;
    // RFC 5508 REQ-3 (b): an error whose quoted header has a wrong checksum is not translated.
    if !read_quotation(ctx, parsed, arrival.now, quoted)
        || !translate::header_checksum_ok(
            ctx,
            parsed.network() + usize::from(quoted.ip),
            usize::from(quoted.transport - quoted.ip),
        )
    {
        // Quotes nothing that could be a flow: the host's business if it owns the address.
        return Err(Verdict::of(stray_error(control.bank & 1, parsed.key.destination, CLASS_ICMP, [0; 2])));
    }
    let Some((address, port, outbound)) =
        flow_of(&quoted.key, control, arrival.now).or_else(|| instance_of(parsed, quoted, arrival, control))
    else {
        let Quoted { key, class, .. } = *quoted;
        return Err(Verdict::of(stray_error(
            control.bank & 1,
            key.destination,
            u32::from(class),
            key.destination_port,
        )));
    };
    if outbound && is_hairpin(&quoted.key) {
        work.edit = Edit { address, port, outbound, decrement: 0 };
        return Ok(HAIRPIN);
    }
    let (side, other) = if outbound { (ROLE_INSIDE, ROLE_OUTSIDE) } else { (ROLE_OUTSIDE, ROLE_INSIDE) };
    if arrival.role & u32::from(side) == 0 {
        return Err(Verdict::of(Reason::WrongSide));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::of(Reason::TtlExceededSilent));
    }
    let destination = if outbound { parsed.key.destination } else { address };
    let mut way = Route::default();
    route::lookup(ctx, arrival.ifindex, parsed.key.source, destination, &mut way);
    let found = matches!(way.answer, Answer::Found) && way.role & other != 0;
    if !found && !(matches!(way.answer, Answer::Unresolved) && way.role & other != 0) {
        return Err(Verdict::of(Reason::RouteLost));
    }
    if !found && outbound {
        return Err(to_guard());
    }
    if found && parsed.total() > usize::from(way.mtu) {
        return Err(Verdict::of(Reason::TooBigSilent));
    }
    // The stack decrements the TTL itself.
    work.edit = Edit { address, port, outbound, decrement: u8::from(found) };
    work.hairpin = false;
    work.slot = if found { way.slot } else { route::FOREIGN };
    work.next_hop = way.next_hop;
    Ok(REWRITE)
}

/// Finds who sent the hairpinned packet that an error is about (RFC 5508 REQ-7): [`REWRITE`] or [`Verdict::to_code`].
///
/// verifier: global, as [`natgw_icmp_error`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_icmp_hairpin(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    match hairpin(ctx, parsed, arrival) {
        Ok(()) => REWRITE,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn hairpin(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<(), Verdict> {
    let (Some(control), Some(work)) = (CONTROL.get_ptr(0), ICMP_WORK.get_ptr_mut(0)) else {
        return Err(Verdict::of(Reason::NotConfigured));
    };
    // SAFETY: array element, and this CPU's own.
    let (control, work) = unsafe { (&*control, &mut *work) };
    if arrival.role & u32::from(ROLE_INSIDE) == 0 {
        return Err(Verdict::of(Reason::WrongSide));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::of(Reason::TtlExceededSilent));
    }
    // The quoted packet as it was sent to the mapping's port, reversed: the sender's own flow has that.
    let key = FlowKey { source: work.edit.address, source_port: work.edit.port, ..work.quoted.key };
    let Some((address, port, false)) = flow_of(&key, control, arrival.now) else {
        return Err(Verdict::of(Reason::IcmpErrorNoFlow));
    };
    let mut way = Route::default();
    route::lookup(ctx, arrival.ifindex, parsed.key.source, address, &mut way);
    if way.role & ROLE_INSIDE == 0 {
        return Err(Verdict::of(Reason::RouteLost));
    }
    match way.answer {
        Answer::Found if parsed.total() > usize::from(way.mtu) => {
            return Err(Verdict::of(Reason::TooBigSilent));
        }
        Answer::Found => {}
        Answer::Unresolved => return Err(Verdict::of(Reason::HairpinUnresolved)),
        _ => return Err(Verdict::of(Reason::RouteLost)),
    }
    work.second = Edit { address, port, outbound: false, decrement: 1 };
    work.hairpin = true;
    work.slot = way.slot;
    work.next_hop = way.next_hop;
    Ok(())
}

/// Whether the checksum of an error is right, for one that [`natgw_icmp_error`] would translate: nobody has a gateway add
/// up what concerns no flow.
///
/// RFC 5508 REQ-3 (a): an error with a wrong checksum is dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_icmp_sound(ctx: *mut xdp_md, parsed: *const Parsed) -> u32 {
    if parsed.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    let parsed = unsafe { &*parsed };
    let length = parsed.total().saturating_sub(parsed.header());
    u32::from(translate::long_sum(ctx, parsed.transport() as u32, length as u32) == 0xffff)
}

/// Carries out what [`natgw_icmp_error`] has decided: [`Verdict::to_code`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_icmp_rewrite(ctx: *mut xdp_md, parsed: *const Parsed) -> u64 {
    if parsed.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes a whole value.
    carry_out(ctx, unsafe { &*parsed }).unwrap_or_else(|verdict| verdict).to_code()
}

#[inline(always)]
fn carry_out(ctx: *mut xdp_md, parsed: &Parsed) -> Result<Verdict, Verdict> {
    let Some(work) = ICMP_WORK.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element.
    let work = unsafe { &*work };
    if work.slot == route::FOREIGN {
        rewrite(ctx, parsed.network(), work).ok_or(Verdict::of(Reason::Malformed))?;
        return Ok(Verdict::sent(Reason::TranslatedToStack, xdp_action::XDP_PASS));
    }
    let egress = Egress::prepare(ctx, parsed.network(), usize::from(parsed.tags), work.slot)?;
    rewrite(ctx, egress.l3, work).ok_or(Verdict::of(Reason::Malformed))?;
    let reason = if work.hairpin {
        Reason::Hairpinned
    } else if work.edit.outbound {
        Reason::IcmpErrorOut
    } else {
        Reason::IcmpErrorIn
    };
    egress.send(ctx, &Frame::of_xdp(ctx), work.next_hop, reason)
}

/// A decision about an ICMP error, between the two functions that make it and carry it out.
#[repr(C)]
pub(crate) struct Work {
    pub(crate) quoted: Quoted,
    pub(crate) edit: Edit,
    /// What is written after it, of a hairpinned packet: the other end.
    pub(crate) second: Edit,
    pub(crate) next_hop: [u8; 6],
    pub(crate) slot: u8,
    pub(crate) hairpin: bool,
}

/// The other name of the end that is translated, and whether the half is the outbound one.
#[inline(always)]
fn flow_of(key: &FlowKey, control: &Control, now: Tick) -> Option<([u8; 4], [u8; 2], bool)> {
    let entry = FLOWS.get_ptr(key)?;
    let first = word(entry);
    let state = (first >> 32) as u32;
    // SAFETY: a map value; identity compared after reading.
    let (address, port, half, grant) =
        unsafe { ((*entry).address, (*entry).port, (*entry).half, (*entry).grant) };
    if first as u32 != key.fold() || state & state::DEAD != 0 || word(entry) as u32 != first as u32 {
        return None;
    }
    let timer = timers::class_of(grant % CLASSES, state & state::MASK);
    if expired(key, entry, timer, control, now, 0) {
        return None;
    }
    Some((address, port, half & HALF_OUTBOUND != 0))
}

/// Whether the flow goes to the port of a mapping.
#[inline(always)]
fn is_hairpin(key: &FlowKey) -> bool {
    // SAFETY: a map value.
    FLOWS.get_ptr(key).is_some_and(|entry| unsafe { (*entry).slot } == route::HAIRPIN)
}

/// The same for a packet of an instance IP, which has no flow.
#[inline(always)]
fn instance_of(
    parsed: &Parsed,
    quoted: &Quoted,
    arrival: &Arrival,
    control: &Control,
) -> Option<([u8; 4], [u8; 2], bool)> {
    let bank = control.bank & 1;
    if control.features & FEATURE_INSTANCE == 0 {
        return None;
    }
    // Sent to another address, it has not met the policies of this one.
    if arrival.role & u32::from(ROLE_OUTSIDE) != 0
        && parsed.key.destination == quoted.key.destination
        && let Some(instance) = instance::of_address(bank, quoted.key.destination)
    {
        return Some((instance.backend, quoted.key.destination_port, false));
    }
    let backend = allocate::backend(bank, quoted.key.source)?;
    // SAFETY: map value.
    let public = unsafe { (*backend).instance };
    if public == [0; 4] { None } else { Some((public, quoted.key.source_port, true)) }
}
