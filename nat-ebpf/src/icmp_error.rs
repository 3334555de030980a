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
    },
    net::{checksum::Delta, icmp, state, timers},
};
use network_types::icmp::Icmpv4Hdr;

use crate::{
    allocate,
    classify::Arrival,
    emit::{Egress, to_guard},
    frame::{self, Frame},
    inbound::stray_error,
    instance,
    life::expired,
    lookup::word,
    maps::{CONTROL, FLOWS, ICMP_WORK},
    parse::{ICMP, IPV4, Parsed, TCP, UDP},
    route::{self, Answer, Route},
    translate,
    verdict::Verdict,
};

/// The packet inside an error.
#[repr(C)]
#[derive(Default)]
struct Quoted {
    /// The tuple under which its flow is found: the quoted one, reversed.
    key: FlowKey,
    /// Protocol class.
    class: u8,
    /// Offset of its IP header, relative to the outer one.
    ip: u8,
    /// Offset of its transport header, relative to the outer IP header.
    transport: u8,
    /// Offset of its TCP checksum, likewise; 0 if there is none: it is in the 17th and 18th byte, and errors may
    /// quote less (RFC 792: 8 bytes).
    checksum: u8,
}

/// Reads the quoted packet. False for one that concerns nothing of ours: no IPv4, or too short. What has no ports (another
/// protocol, a later fragment) can still be an instance IP's: class `CLASS_OTHER`.
#[inline(never)]
fn read_quotation(ctx: *mut xdp_md, parsed: &Parsed, quoted: &mut Quoted) -> bool {
    let base = parsed.network() + parsed.header() + size_of::<Icmpv4Hdr>();
    let Some(header) = frame::load::<[u8; IPV4]>(ctx, base) else { return false };
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < IPV4 {
        return false;
    }
    let later = header[6] & 0x1f != 0 || header[7] != 0;
    let transport = base + length;
    if transport + 8 > parsed.network() + parsed.total() {
        return false;
    }
    let Some(first) = frame::load::<[u8; 8]>(ctx, transport) else { return false };
    let (ports, class) = match header[9] {
        _ if later => ([0; 4], CLASS_OTHER),
        TCP => ([first[2], first[3], first[0], first[1]], CLASS_TCP),
        UDP => ([first[2], first[3], first[0], first[1]], CLASS_UDP),
        ICMP if first[0] == icmp::ECHO_REQUEST => ([0, 0, first[4], first[5]], CLASS_ICMP),
        ICMP if first[0] == icmp::ECHO_REPLY => ([first[4], first[5], 0, 0], CLASS_ICMP),
        _ => ([0; 4], CLASS_OTHER),
    };
    quoted.key = FlowKey {
        source: [header[16], header[17], header[18], header[19]],
        destination: [header[12], header[13], header[14], header[15]],
        source_port: [ports[0], ports[1]],
        destination_port: [ports[2], ports[3]],
        protocol: header[9],
        zone: [0; 3],
    };
    quoted.class = class as u8;
    quoted.ip = (base - parsed.network()) as u8;
    let transport = transport - parsed.network();
    quoted.transport = transport as u8;
    quoted.checksum =
        if class == CLASS_TCP && transport + 18 <= parsed.total() { transport as u8 + 16 } else { 0 };
    true
}

/// The error is to be translated: `ICMP_WORK` holds what [`natgw_icmp_rewrite`] is to do.
pub(crate) const REWRITE: u64 = 2;

/// Decides about an error: [`REWRITE`] or [`Verdict::to_code`].
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
        Ok(()) => REWRITE,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn decide(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<(), Verdict> {
    let Some(control) = CONTROL.get_ptr(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: array element.
    let control = unsafe { &*control };
    let mut quoted = Quoted::default();
    // RFC 5508 REQ-3 (b): an error whose quoted header has a wrong checksum is not translated.
    if !read_quotation(ctx, parsed, &mut quoted)
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
        flow_of(&quoted, control, arrival.now).or_else(|| instance_of(parsed, &quoted, arrival, control))
    else {
        let Quoted { key, class, .. } = quoted;
        return Err(Verdict::of(stray_error(
            control.bank & 1,
            key.destination,
            u32::from(class),
            key.destination_port,
        )));
    };
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
    let Some(work) = ICMP_WORK.get_ptr_mut(0) else { return Err(Verdict::of(Reason::NotConfigured)) };
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let work = unsafe { &mut *work };
    work.quoted = quoted;
    // The stack decrements the TTL itself.
    work.edit = Edit { address, port, outbound, decrement: u8::from(found) };
    work.slot = if found { way.slot } else { route::FOREIGN };
    work.next_hop = way.next_hop;
    Ok(())
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
    let reason = if work.edit.outbound { Reason::IcmpErrorOut } else { Reason::IcmpErrorIn };
    egress.send(ctx, &Frame::of_xdp(ctx), work.next_hop, reason)
}

/// A decision about an ICMP error, between the two functions that make it and carry it out.
#[repr(C)]
pub(crate) struct Work {
    quoted: Quoted,
    pub(crate) edit: Edit,
    pub(crate) next_hop: [u8; 6],
    pub(crate) slot: u8,
    reserved: u8,
}

/// What to write instead of the quoted address and port.
#[repr(C)]
pub(crate) struct Edit {
    pub(crate) address: [u8; 4],
    port: [u8; 2],
    /// The flow's half that the quotation, reversed, found: an error from inside finds the outbound one.
    pub(crate) outbound: bool,
    /// What to take from the outer TTL.
    decrement: u8,
}

impl Edit {
    /// The quoted address that goes is the translated end's: the lookup key's source (outbound) or destination.
    #[inline(always)]
    fn addresses(&self, quoted: &Quoted) -> Delta {
        Delta::ZERO
            .address(if self.outbound { quoted.key.source } else { quoted.key.destination }, self.address)
    }

    #[inline(always)]
    fn ports(&self, quoted: &Quoted) -> Delta {
        Delta::ZERO
            .word(if self.outbound { quoted.key.source_port } else { quoted.key.destination_port }, self.port)
    }

    #[inline(always)]
    fn delta(&self, quoted: &Quoted) -> Delta {
        self.addresses(quoted).and(self.ports(quoted))
    }
}

/// The other name of the end that is translated, and whether the half is the outbound one.
#[inline(always)]
fn flow_of(quoted: &Quoted, control: &Control, now: Tick) -> Option<([u8; 4], [u8; 2], bool)> {
    let entry = FLOWS.get_ptr(&quoted.key)?;
    let first = word(entry);
    let state = (first >> 32) as u32;
    // SAFETY: a map value; identity compared after reading.
    let (address, port, half, grant) =
        unsafe { ((*entry).address, (*entry).port, (*entry).half, (*entry).grant) };
    if first as u32 != quoted.key.fold() || state & state::DEAD != 0 || word(entry) as u32 != first as u32 {
        return None;
    }
    let timer = timers::class_of(grant % CLASSES, state & state::MASK);
    if expired(&quoted.key, entry, timer, control, now, 0) {
        return None;
    }
    Some((address, port, half & HALF_OUTBOUND != 0))
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

/// Rewrites quotation and outer header; `l3` is where the outer IP header is now.
#[inline(always)]
fn rewrite(ctx: *mut xdp_md, l3: usize, work: &Work) -> Option<()> {
    let Work { quoted, edit, .. } = work;
    if inner(ctx, l3, quoted, edit) && outer(ctx, l3, edit) { Some(()) } else { None }
}

/// Rewrites the quoted address and port, and up to three checksums: quoted transport, quoted IP, and ICMP, which
/// covers all of the quotation.
#[inline(never)]
fn inner(ctx: *mut xdp_md, l3: usize, quoted: &Quoted, edit: &Edit) -> bool {
    let at = l3 + usize::from(quoted.ip);
    let (Some(mut header), Some(mut first)) =
        (frame::load::<[u8; IPV4]>(ctx, at), frame::load::<[u8; 8]>(ctx, l3 + usize::from(quoted.transport)))
    else {
        return false;
    };
    let mut changes = quotation(quoted, edit, &mut header, &mut first);
    frame::store(ctx, l3 + usize::from(quoted.transport), &first);
    frame::store(ctx, at, &header);
    if quoted.checksum != 0
        && let Some(old) = frame::load::<[u8; 2]>(ctx, l3 + usize::from(quoted.checksum))
    {
        let new = edit.delta(quoted).apply(old);
        frame::store(ctx, l3 + usize::from(quoted.checksum), &new);
        changes = changes.word(old, new);
    }
    let at = at - size_of::<Icmpv4Hdr>() + 2;
    match frame::load::<[u8; 2]>(ctx, at) {
        Some(old) => frame::store(ctx, at, &changes.apply(old)),
        None => false,
    }
}

/// Rewrites the outer address, TTL and checksum. An error from a router behind the gateway would show its private
/// address: it gets the frontend's, too.
#[inline(never)]
fn outer(ctx: *mut xdp_md, l3: usize, edit: &Edit) -> bool {
    let Some(mut ip) = frame::load::<[u8; IPV4]>(ctx, l3) else { return false };
    let old = if edit.outbound { [ip[12], ip[13], ip[14], ip[15]] } else { [ip[16], ip[17], ip[18], ip[19]] };
    let ttl = ip[8] - edit.decrement;
    let changes = Delta::ZERO.address(old, edit.address).word([ip[8], ip[9]], [ttl, ip[9]]);
    [ip[10], ip[11]] = changes.apply([ip[10], ip[11]]);
    ip[8] = ttl;
    if edit.outbound {
        [ip[12], ip[13], ip[14], ip[15]] = edit.address;
    } else {
        [ip[16], ip[17], ip[18], ip[19]] = edit.address;
    }
    frame::store(ctx, l3, &ip)
}

/// Rewrites the quoted headers; returns what that changes in the ICMP checksum.
#[inline(always)]
fn quotation(quoted: &Quoted, edit: &Edit, inner: &mut [u8; IPV4], first: &mut [u8; 8]) -> Delta {
    let (addresses, ports) = (edit.addresses(quoted), edit.ports(quoted));
    let mut changes = addresses.and(ports);
    let old = [inner[10], inner[11]];
    let new = addresses.apply(old);
    [inner[10], inner[11]] = new;
    changes = changes.word(old, new);
    let [a, b, c, d] = edit.address;
    if edit.outbound {
        [inner[16], inner[17], inner[18], inner[19]] = [a, b, c, d];
    } else {
        [inner[12], inner[13], inner[14], inner[15]] = [a, b, c, d];
    }
    if u32::from(quoted.class) == CLASS_OTHER {
        return changes;
    }
    let old_port = if edit.outbound { quoted.key.source_port } else { quoted.key.destination_port };
    if u32::from(quoted.class) == CLASS_ICMP {
        // With an instance IP the identifier stays, and may be the other end's.
        if old_port == edit.port {
            return changes;
        }
        [first[4], first[5]] = edit.port;
        let old = [first[2], first[3]];
        let new = ports.apply(old);
        [first[2], first[3]] = new;
        return changes.word(old, new);
    }
    if edit.outbound {
        [first[2], first[3]] = edit.port;
    } else {
        [first[0], first[1]] = edit.port;
    }
    if u32::from(quoted.class) == CLASS_UDP {
        let old = [first[6], first[7]];
        let new = addresses.and(ports).apply_udp(old);
        [first[6], first[7]] = new;
        changes = changes.word(old, new);
    }
    changes
}
