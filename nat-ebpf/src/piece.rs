// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The last stage for packets of a flow that are fragments, will be fragmented, or get another IP identification.
//! Apart from [`crate::emit`], so that no other packet pays for it.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use nat_common::{
    abi::{
        config::{MAX_RULES, banked},
        counters::Reason,
        flow::{FLOW_IDENTIFY, HALF_INSTANCE, HALF_OUTBOUND, peer_key},
        fragment::{
            DUPLICATE_TICKS, FRAGMENT_AWAITED, FRAGMENT_KNOWN, FRAGMENT_NONE, FRAGMENT_WAITING,
            FragmentEntry, FragmentKey, SIDE_SENT,
        },
        grant::RULE_KEEP_ID,
    },
    net::state::Direction,
};

use crate::{
    allocate::NOEXIST,
    classify::Arrival,
    emit::{Egress, count, guarded, to_guard},
    fragment::{self, entry_of, key_of},
    frame::Frame,
    ident,
    lookup::{self, Rewrite},
    maps::{CONTROL, FRAGMENTS, RULES},
    parse::{LATER, Parsed, WHOLE},
    route, translate,
    verdict::Verdict,
};

/// Translates and sends a packet whose flow has just been found, and whose TTL does: [`Verdict::to_code`].
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_piece(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    arrival: *const Arrival,
) -> u64 {
    if parsed.is_null() || arrival.is_null() {
        return Verdict::of(Reason::NotConfigured).to_code();
    }
    // SAFETY: not null, and the only caller passes whole values.
    let (parsed, arrival) = unsafe { (&*parsed, &*arrival) };
    piece(ctx, parsed, arrival).unwrap_or_else(|verdict| verdict).to_code()
}

#[inline(always)]
fn piece(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<Verdict, Verdict> {
    const MALFORMED: Verdict = Verdict::of(Reason::Malformed);
    let rewrite = lookup::found(&parsed.key)?;
    let outbound = matches!(rewrite.direction, Direction::Outbound);
    let resolved = rewrite.slot != route::FOREIGN;
    let fits = parsed.total() <= usize::from(rewrite.mtu);
    if resolved && !fits && parsed.dont_fragment {
        return Err(Verdict::answer(Reason::TooBig, rewrite.mtu));
    }
    let stack = !resolved || !fits;
    let sent = identify(ctx, parsed, arrival, &rewrite, stack)?;
    if sent.waiting {
        // Others of its datagram are held: the TC program sends it, and them.
        return Ok(Verdict::of(Reason::FragmentHeld));
    }
    if stack && outbound {
        if !resolved {
            return Err(to_guard());
        }
        return Err(Verdict::of(if guarded() { Reason::TooBigToStack } else { Reason::TooBigSilent }));
    }
    if stack {
        // The stack decrements the TTL itself, and fragments.
        write(&Frame::of_xdp(ctx), parsed, parsed.network(), &rewrite, &sent, false).ok_or(MALFORMED)?;
        count(parsed, &rewrite);
        return Ok(Verdict::sent(Reason::TranslatedToStack, xdp_action::XDP_PASS));
    }
    let egress = Egress::prepare(ctx, parsed.network(), usize::from(parsed.tags), rewrite.slot)?;
    let frame = Frame::of_xdp(ctx);
    egress.check(&frame)?;
    write(&frame, parsed, egress.l3, &rewrite, &sent, true).ok_or(MALFORMED)?;
    count(parsed, &rewrite);
    let reason = if outbound { Reason::TranslatedOut } else { Reason::TranslatedIn };
    egress.send(ctx, &frame, rewrite.next_hop, reason)
}

#[inline(always)]
fn write(
    frame: &Frame,
    parsed: &Parsed,
    l3: usize,
    rewrite: &Rewrite,
    sent: &Sent,
    decrement_ttl: bool,
) -> Option<()> {
    if parsed.fragment == LATER {
        translate::header(frame, parsed, l3, rewrite, decrement_ttl)?;
    } else {
        translate::packet(frame, parsed, l3, rewrite, decrement_ttl)?;
    }
    translate::identification(frame, l3, sent.id)
}

/// How a packet is to be sent.
struct Sent {
    id: [u8; 2],
    /// Later fragments of it are held.
    waiting: bool,
}

/// The identification to send a packet with. What is, or will be, in fragments leaves a note of its ports.
#[inline(always)]
fn identify(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    rewrite: &Rewrite,
    stack: bool,
) -> Result<Sent, Verdict> {
    let Some(key) = key_of(ctx, parsed, arrival) else { return Err(Verdict::of(Reason::Malformed)) };
    let outbound = matches!(rewrite.direction, Direction::Outbound);
    let known = entry_of(&key, arrival.now);
    if parsed.fragment == LATER {
        // It was there a moment ago, when the fragment's ports were found out.
        if known.state & !FRAGMENT_WAITING != FRAGMENT_KNOWN {
            return Err(Verdict::of(Reason::FlowRace));
        }
        return Ok(Sent { id: known.id, waiting: false });
    }
    let (flags, kept) = traits(rewrite);
    // RFC 6864 §4.1: the identification of an atomic datagram means nothing. Inbound, the stack fragments what has its final
    // address by then.
    if parsed.fragment == WHOLE && (parsed.dont_fragment || (!outbound && flags & FLOW_IDENTIFY == 0)) {
        return Ok(Sent { id: key.id, waiting: false });
    }
    let outer =
        peer_key(&parsed.key, rewrite.address, rewrite.port, if outbound { HALF_OUTBOUND } else { 0 });
    // The peer's key is of what comes back.
    let outer = outer.reversed();
    let mut id = if kept { key.id } else { ident::next(outer.source, outer.destination, outer.protocol) };
    if parsed.fragment == WHOLE && !(stack && outbound) {
        return Ok(Sent { id, waiting: false });
    }
    let mut state = FRAGMENT_KNOWN;
    // Those that came first are sent with it.
    if known.state == FRAGMENT_AWAITED || known.state & FRAGMENT_WAITING != 0 {
        state |= FRAGMENT_WAITING;
    }
    // A duplicate has to look like the original.
    if known.state & !FRAGMENT_WAITING == FRAGMENT_KNOWN
        && known.source_port == parsed.key.source_port
        && known.destination_port == parsed.key.destination_port
        && arrival.now.wrapping_sub(known.made) <= DUPLICATE_TICKS
    {
        id = known.id;
    } else if !fragment::admit(&key, arrival.now) {
        return Err(Verdict::of(Reason::FragmentLimit));
    }
    let mut entry = FragmentEntry {
        identity: key.fold(),
        source_port: parsed.key.source_port,
        destination_port: parsed.key.destination_port,
        id,
        state,
        icmp_type: parsed.icmp_type,
        made: arrival.now,
    };
    let fresh = known.state == FRAGMENT_NONE && FRAGMENTS.insert(&key, &entry, NOEXIST).is_ok();
    if !fresh {
        // Perhaps a later one came meanwhile; perhaps there is one of an older datagram.
        if entry_of(&key, arrival.now).state == FRAGMENT_AWAITED {
            state |= FRAGMENT_WAITING;
        }
        entry.state = state;
        let _ = FRAGMENTS.insert(&key, &entry, 0);
    }
    let sent = FragmentKey {
        source: outer.source,
        destination: outer.destination,
        id,
        protocol: outer.protocol,
        side: SIDE_SENT,
    };
    entry.identity = sent.fold();
    entry.source_port = outer.source_port;
    entry.destination_port = outer.destination_port;
    entry.id = key.id;
    let _ = FRAGMENTS.insert(&sent, &entry, 0);
    Ok(Sent { id, waiting: state & FRAGMENT_WAITING != 0 })
}

/// `FLOW_*` of a flow, and whether its packets keep their identification: by its rule, or because it has an instance IP,
/// whose other packets keep theirs.
#[inline(always)]
fn traits(rewrite: &Rewrite) -> (u8, bool) {
    // SAFETY: a map value; of a recycled one, a wrong identification does no harm.
    let (flags, half, rule) =
        unsafe { ((*rewrite.entry).flags, (*rewrite.entry).half, u32::from((*rewrite.entry).rule)) };
    // SAFETY: array element.
    let bank = CONTROL.get_ptr(0).map_or(0, |control| unsafe { (*control).bank } & 1);
    let kept = half & HALF_INSTANCE != 0
        || RULES
            .get_ptr(banked(bank, rule % MAX_RULES))
            // SAFETY: array element.
            .is_some_and(|rule| unsafe { (*rule).flags } & RULE_KEEP_ID != 0);
    (flags, kept)
}
