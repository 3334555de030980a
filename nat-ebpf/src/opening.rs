// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whether a packet may open a flow; if so, the request for [`crate::allocate::natgw_open`], in `SEARCH`.

use aya_ebpf::bindings::xdp_md;
use nat_common::{
    abi::{
        config::{
            CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASSES, Control, FEATURE_POLICY, MAX_RULES, NO_SLOT, banked,
        },
        counters::Reason,
        flow::{FLOW_MAPPED, FLOW_SEQUENCE, mapping_key},
        grant::{
            BackendRef, Grant, PeerKey, REFUSAL_SILENT, RULE_FILTER_ADDRESS, RULE_FILTER_NONE,
            RULE_FLOW_SHIFT, RULE_MAPPED, grant_slot,
        },
    },
    net::{
        icmp,
        state::{self, Direction},
    },
};

use crate::{
    allocate,
    classify::{self, Arrival, HAIRPINNED, JOIN, JOIN_INBOUND, OPEN, OPEN_INBOUND, no_rule},
    event, inbound as at_frontend, instance, late, limits,
    lookup::word,
    mapping,
    maps::{CONTROL, FLOWS, RULES, SEARCH},
    parse::{FIRST, ICMP, Parsed, WHOLE},
    peers, policy,
    ports::Search,
    route::{self, Answer, Route},
    translate,
    verdict::Verdict,
};

/// The request of a packet from inside: [`OPEN`].
#[inline(always)]
pub(crate) fn outbound(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    way: &Route,
    backend: Option<*const BackendRef>,
) -> Result<u64, Verdict> {
    let (bank, class) = (control.bank & 1, u32::from(parsed.class));
    if class == CLASS_OTHER && !allocate::takes(bank, backend, parsed.key.protocol) {
        return Err(classify::without_rule(arrival, control, backend, Reason::ProtocolUnsupported));
    }
    let Some(backend) = backend else {
        return Err(no_rule(arrival, control, NO_SLOT));
    };
    // SAFETY: map value.
    let backend = unsafe { (*backend).slot };
    let Some((slot, grant)) = allocate::grant_in(bank, backend, class) else {
        return Err(no_rule(arrival, control, grant_slot(backend, class)));
    };
    // Only the first fragment opens a flow.
    if parsed.fragment != WHOLE && parsed.fragment != FIRST {
        return Err(Verdict::of(Reason::FragmentOrphan));
    }
    if u32::from(parsed.class) == CLASS_TCP && !state::opens(parsed.flags) {
        // SAFETY: array element.
        let rule = unsafe { (*grant).rule };
        return Err(late::segment(Reason::TcpNoFlow, parsed, arrival, bank, (rule, slot)));
    }
    if parsed.key.protocol == ICMP && !icmp::is_request(parsed.icmp_type) {
        return Err(Verdict::of(Reason::IcmpUnsupported));
    }
    if !translate::own_checksum_ok(ctx, parsed) {
        return Err(Verdict::of(Reason::BadChecksum));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    let resolved = matches!(way.answer, Answer::Found);
    if resolved && parsed.dont_fragment && parsed.total() > usize::from(way.mtu) {
        return Err(Verdict::answer(Reason::TooBig, way.mtu));
    }
    if !resolved {
        event::neighbour(&parsed.key, way.ifindex, way.neighbour, arrival.now);
        if control.guarded == 0 {
            return Err(Verdict::of(Reason::NotConfigured));
        }
    }
    let Some(request) = request(control, arrival, slot, grant) else {
        return Err(Verdict::of(Reason::NotConfigured));
    };
    request.key = parsed.key;
    request.bits = state::tcp_bits(0, Direction::Outbound, parsed.flags);
    request.way.slot = if resolved { way.slot } else { route::FOREIGN };
    request.way.mtu = way.mtu;
    request.way.next_hop = way.next_hop;
    request.way.epoch = if resolved { control.epoch } else { 0 };
    Ok(if request.flags & FLOW_MAPPED != 0 && class <= CLASS_ICMP { JOIN } else { OPEN })
}

/// This CPU's request, filled in as far as both directions agree.
#[inline(always)]
fn request(
    control: &Control,
    arrival: &Arrival,
    slot: u32,
    grant: *const Grant,
) -> Option<&'static mut Search> {
    let bank = control.bank & 1;
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let request = unsafe { &mut *SEARCH.get_ptr_mut(0)? };
    // SAFETY: array element.
    let rule = unsafe { (*grant).rule } % MAX_RULES;
    request.slot = slot;
    request.bank = bank;
    request.grant = banked(bank, slot);
    request.rule = banked(bank, rule);
    request.on_refusal = on_refusal(bank, rule);
    request.flags = flow_flags(bank, rule, slot % CLASSES);
    request.preferred = u64::MAX;
    request.fixed = 0;
    request.outside = 0;
    request.joined = 0;
    request.made = 0;
    request.now = arrival.now;
    Some(request)
}

/// A connection from outside to an instance IP whose answers an outbound rule would take: [`OPEN_INBOUND`].
#[inline(always)]
pub(crate) fn inbound(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
    backend: [u8; 4],
    slot: u32,
    grant: *const Grant,
) -> Result<u64, Verdict> {
    // Only the first fragment opens a flow.
    if parsed.fragment != WHOLE && parsed.fragment != FIRST {
        return Err(Verdict::of(Reason::FragmentOrphan));
    }
    if u32::from(parsed.class) == CLASS_TCP && !state::opens(parsed.flags) {
        return Err(Verdict::of(Reason::TcpNoFlow));
    }
    if !translate::own_checksum_ok(ctx, parsed) {
        return Err(Verdict::of(Reason::BadChecksum));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    let Some(request) = request(control, arrival, slot, grant) else {
        return Err(Verdict::of(Reason::NotConfigured));
    };
    // Nobody outside hears of refusals.
    request.on_refusal = REFUSAL_SILENT;
    request.inbound = parsed.key;
    request.key = parsed.key.reversed();
    request.key.source = backend;
    request.bits = state::tcp_bits(0, Direction::Inbound, parsed.flags);
    request.fixed = 1;
    request.outside = 1;
    // The address is the backend's own, whatever its rule does.
    request.flags &= !FLOW_MAPPED;
    request.way.slot = route::FOREIGN;
    request.way.epoch = 0;
    Ok(OPEN_INBOUND)
}

/// What a rule says about refusals.
#[inline(always)]
pub(crate) fn on_refusal(bank: u32, rule: u32) -> u32 {
    // SAFETY: array element.
    RULES.get_ptr(banked(bank, rule % MAX_RULES)).map_or(0, |rule| unsafe { (*rule).on_refusal })
}

/// `FLOW_*` of a rule's new flows in a protocol class.
#[inline(always)]
pub(crate) fn flow_flags(bank: u32, rule: u32, class: u32) -> u8 {
    let none = if class == CLASS_TCP { 0 } else { FLOW_SEQUENCE };
    // SAFETY: array element.
    RULES.get_ptr(banked(bank, rule % MAX_RULES)).map_or(0, |rule| unsafe {
        let mapped = if (*rule).flags & RULE_MAPPED != 0 && class <= CLASS_ICMP { FLOW_MAPPED } else { 0 };
        ((*rule).flags >> RULE_FLOW_SHIFT) as u8 & !FLOW_MAPPED & !none | mapped
    })
}

/// A packet from outside, or a hairpinned one, to a port that a backend holds, without a flow: [`JOIN_INBOUND`] if it is the
/// port of a mapping and filtering lets it in (RFC 4787 §5), or [`Verdict::to_code`].
///
/// verifier: global, and called from the entry point, where the stack is short.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_unsolicited(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u64 {
    let (Some(control), false, false) = (CONTROL.get_ptr(0), parsed.is_null(), arrival.is_null()) else {
        return Verdict::of(Reason::NotConfigured).to_code();
    };
    // SAFETY: not null, and the only caller passes whole values; array element.
    let (parsed, arrival, control) = unsafe { (&*parsed, &*arrival, &*control) };
    match unsolicited(ctx, parsed, arrival, control) {
        Ok(next) => next,
        Err(verdict) => verdict.to_code(),
    }
}

#[inline(always)]
fn unsolicited(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    control: &Control,
) -> Result<u64, Verdict> {
    const CLOSED: Verdict = Verdict::of(Reason::NoMapping);
    let (bank, class) = (control.bank & 1, u32::from(parsed.class));
    let mut target = mapping::Target::default();
    if (class == CLASS_TCP && !state::opens(parsed.flags))
        || !mapping::target(&parsed.key, control, arrival.now, &mut target)
    {
        return Err(CLOSED);
    }
    let Some((slot, grant)) = allocate::grant_in(bank, target.grant / CLASSES, class) else {
        return Err(CLOSED);
    };
    // What outlives its grant ends when the backend lets go of it.
    let key = mapping_key(target.address, target.port, parsed.key.protocol);
    let granted = FLOWS.get_ptr(&key).is_some_and(|entry| allocate::still_granted(&key, entry));
    if !granted || !filter(parsed, arrival, bank, &target) {
        return Err(CLOSED);
    }
    let ours = arrival.role & HAIRPINNED == 0
        && (at_frontend::frontend_of(bank, parsed.key.source).is_some()
            || instance::of_address(bank, parsed.key.source).is_some());
    if ours
        || matches!(parsed.key.source[0], 0 | 127 | 224..)
        || allocate::is_backend(bank, parsed.key.source)
    {
        return Err(Verdict::of(Reason::InvalidSource));
    }
    if control.features & FEATURE_POLICY != 0 && denied(parsed, bank, target.address) {
        return Err(Verdict::of(Reason::Denied));
    }
    inbound(ctx, parsed, arrival, control, target.address, slot, grant)?;
    // SAFETY: this CPU's own element, just filled in.
    let Some(request) = SEARCH.get_ptr_mut(0).map(|search| unsafe { &mut *search }) else {
        return Err(CLOSED);
    };
    request.flags |= FLOW_MAPPED;
    request.key.source_port = target.port;
    if arrival.role & HAIRPINNED != 0 {
        request.way.slot = route::HAIRPIN;
    }
    Ok(JOIN_INBOUND)
}

/// Whether the rule's filtering lets a packet in to a mapping.
#[inline(never)]
fn filter(parsed: &Parsed, arrival: &Arrival, bank: u32, target: &mapping::Target) -> bool {
    let Some(rule) = RULES.get_ptr(banked(bank, u32::from(target.rule) % MAX_RULES)) else { return false };
    // SAFETY: array element.
    let flags = unsafe { (*rule).flags };
    if flags & RULE_MAPPED == 0 {
        return false;
    }
    let key = PeerKey { grant: target.grant, remote: parsed.key.source, port: target.port, reserved: [0; 2] };
    flags & RULE_FILTER_NONE != 0 || (flags & RULE_FILTER_ADDRESS != 0 && peers::known(&key, arrival.now))
}

/// Whether a policy for packets from outside is against one to a mapping of the backend `address`.
#[inline(never)]
fn denied(parsed: &Parsed, bank: u32, address: [u8; 4]) -> bool {
    let Some(backend) = allocate::backend(bank, address) else { return true };
    let subject = policy::Subject {
        bank,
        // SAFETY: map value.
        policies: unsafe { (*backend).policies },
        remote: parsed.key.source,
        protocol: parsed.key.protocol,
        port: policy::port_of(parsed),
        counted: true,
        unsure: false,
    };
    policy::inbound(&subject) == policy::Found::Denied
}

/// [`natgw_reopen`]: the packet may open its flow again.
pub(crate) const ALLOWED: u64 = 0;

/// [`natgw_reopen`]: the packet is to be left untranslated, and [`crate::maintain::natgw_remove`] to remove its flow.
pub(crate) const BYPASSED: u64 = 1;

/// Judges a packet that would open a flow again which is over, by the policies and the rate in force: [`ALLOWED`] or
/// [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_reopen(parsed: *const Parsed, arrival: *const Arrival) -> u64 {
    const FAULT: u64 = Verdict::of(Reason::NotConfigured).to_code();
    if parsed.is_null() || arrival.is_null() {
        return FAULT;
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    let (Some(control), Some(search)) = (CONTROL.get_ptr(0), SEARCH.get_ptr_mut(0)) else { return FAULT };
    // SAFETY: array element, and this CPU's own.
    let (control, search) = unsafe { (&*control, &mut *search) };
    let Some(entry) = FLOWS.get_ptr(&parsed.key) else { return ALLOWED };
    let bank = control.bank & 1;
    if control.features & FEATURE_POLICY != 0
        && let Err(verdict) =
            classify::by_policy(parsed, arrival, control, allocate::backend(bank, parsed.key.source))
    {
        // The guard would translate by the flow what is to be left as it is.
        if verdict.is(Reason::Bypassed) {
            search.first = word(entry);
            return BYPASSED;
        }
        return verdict.to_code();
    }
    // SAFETY: a map value; of a recycled one, another backend would be told.
    unsafe {
        search.slot = (*entry).grant;
        search.on_refusal = on_refusal(bank, u32::from((*entry).rule));
    }
    search.key = parsed.key;
    search.now = arrival.now;
    if limits::again_in_rate(entry, bank, arrival.now) {
        return ALLOWED;
    }
    allocate::refused(search, Reason::RateLimit)
}

/// Refuses the packet that [`natgw_reopen`] has allowed, for too many unfinished handshakes: [`Verdict::to_code`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_refuse_handshake() -> u64 {
    let Some(search) = SEARCH.get_ptr(0) else { return Verdict::of(Reason::NotConfigured).to_code() };
    // SAFETY: this CPU's own element, filled in by `natgw_reopen`.
    allocate::refused(unsafe { &*search }, Reason::HalfOpenLimit)
}
