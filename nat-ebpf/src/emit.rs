// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The last stage: checks that can still fail, translation, Ethernet header, and out.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_xdp_adjust_head,
};
use nat_common::{
    abi::{
        config::PortConfig,
        counters::Reason,
        flow::{FLOW_CLAMP, FLOW_IDENTIFY},
    },
    net::state::{Direction, tcp_flag},
};
use network_types::eth::EthHdr;

use crate::{
    atomic, clamp,
    classify::Arrival,
    constants,
    frame::{self, Frame},
    lookup::Rewrite,
    maps::{CONTROL, PORTS, TX_PORTS},
    parse::{Parsed, TAG, WHOLE},
    piece, route, translate,
    verdict::Verdict,
};

/// Ethertype of IPv4, as on the wire.
const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();

/// Translates a packet of a flow and sends it.
#[inline(always)]
pub(crate) fn flow(
    ctx: *mut xdp_md,
    parsed: &Parsed,
    arrival: &Arrival,
    rewrite: &Rewrite,
) -> Result<Verdict, Verdict> {
    let outbound = matches!(rewrite.direction, Direction::Outbound);
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    if rewrite.slot == route::NOWHERE {
        return Err(Verdict::of(Reason::RouteLost));
    }
    // SAFETY: a map value.
    if parsed.fragment != WHOLE || unsafe { (*rewrite.entry).flags } & FLOW_IDENTIFY != 0 {
        return Err(slowly(ctx, parsed, arrival, rewrite));
    }
    if rewrite.slot == route::FOREIGN {
        // The stack may fragment it, and the guard has to know the pieces.
        if outbound && !parsed.dont_fragment {
            return Err(slowly(ctx, parsed, arrival, rewrite));
        }
        if outbound {
            return Err(to_guard());
        }
        clamp(ctx, parsed, arrival.slot, parsed.network(), rewrite);
        let frame = Frame::of_xdp(ctx);
        // The stack decrements the TTL itself.
        translate::packet(&frame, parsed, parsed.network(), rewrite, false)
            .ok_or(Verdict::of(Reason::Malformed))?;
        count(parsed, rewrite);
        return Ok(Verdict::sent(Reason::TranslatedToStack, xdp_action::XDP_PASS));
    }
    if parsed.total() > usize::from(rewrite.mtu) {
        // RFC 4787 REQ-13: what may be fragmented is.
        if !parsed.dont_fragment {
            return Err(slowly(ctx, parsed, arrival, rewrite));
        }
        return Err(Verdict::answer(Reason::TooBig, rewrite.mtu));
    }
    let egress = Egress::prepare(ctx, parsed.network(), usize::from(parsed.tags), rewrite.slot)?;
    clamp(ctx, parsed, arrival.slot, egress.l3, rewrite);
    let frame = Frame::of_xdp(ctx);
    egress.check(&frame)?;
    translate::packet(&frame, parsed, egress.l3, rewrite, true).ok_or(Verdict::of(Reason::Malformed))?;
    count(parsed, rewrite);
    let reason = if outbound { Reason::TranslatedOut } else { Reason::TranslatedIn };
    egress.send(ctx, &frame, rewrite.next_hop, reason)
}

/// The last stage for what needs more than a whole packet usually does.
#[inline(always)]
fn slowly(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival, rewrite: &Rewrite) -> Verdict {
    // What the guard translates, it clamps, too.
    if rewrite.slot != route::FOREIGN || matches!(rewrite.direction, Direction::Inbound) {
        clamp(ctx, parsed, arrival.slot, parsed.network(), rewrite);
    }
    Verdict::from_code(piece::natgw_piece(ctx, parsed, arrival))
}

/// Clamps the maximum segment size if the segment is one with SYN and its flow's rule says so.
#[inline(always)]
fn clamp(ctx: *mut xdp_md, parsed: &Parsed, from: u32, l3: usize, rewrite: &Rewrite) {
    // The flags of what is no TCP are zero.
    // SAFETY: a map value.
    if parsed.flags & tcp_flag::SYN != 0 && unsafe { (*rewrite.entry).flags } & FLOW_CLAMP != 0 {
        clamp::natgw_clamp(ctx, parsed, from, l3 as u32);
    }
}

/// An outbound packet without a usable next hop goes to the stack untranslated, and only where the guard will meet
/// it on its way out.
#[inline(always)]
pub(crate) fn to_guard() -> Verdict {
    Verdict::of(if guarded() { Reason::NeighbourUnresolved } else { Reason::NotConfigured })
}

/// Whether there is a guard.
#[inline(always)]
pub(crate) fn guarded() -> bool {
    // SAFETY: array element.
    CONTROL.get_ptr(0).is_some_and(|control| unsafe { (*control).guarded } != 0)
}

/// Counts the packet on its half. Atomic because two CPUs may carry packets of one half, and because the element may
/// be recycled under us: then one packet too many is counted on a stranger, instead of a whole count overwritten.
#[inline(always)]
pub(crate) fn count(parsed: &Parsed, rewrite: &Rewrite) {
    // SAFETY: a map value.
    unsafe {
        atomic::add(&raw mut (*rewrite.entry).packets, 1);
        atomic::add(&raw mut (*rewrite.entry).bytes, u64::from(parsed.total));
    }
}

/// Where a frame leaves, with room made for its Ethernet header.
pub(crate) struct Egress {
    port: *const PortConfig,
    slot: u8,
    /// Offset of the IPv4 header in the frame as it leaves.
    pub(crate) l3: usize,
}

impl Egress {
    /// Makes the frame longer or shorter by the VLAN tags that come or go. Pointers into it are invalid afterwards.
    #[inline(always)]
    pub(crate) fn prepare(ctx: *mut xdp_md, l3: usize, tags: usize, slot: u8) -> Result<Self, Verdict> {
        let port = PORTS.get_ptr(u32::from(slot)).ok_or(Verdict::of(Reason::NotConfigured))?;
        // SAFETY: array element.
        let wanted = unsafe { (*port).tag_count } as usize & 3;
        let mut egress = Self { port, slot, l3 };
        if wanted != tags {
            let grow = wanted as i32 - tags as i32;
            // SAFETY: the context is the program's own.
            if unsafe { bpf_xdp_adjust_head(ctx, -grow * TAG as i32) } != 0 {
                return Err(Verdict::of(Reason::NotConfigured));
            }
            egress.l3 = size_of::<EthHdr>() + wanted * TAG;
        }
        Ok(egress)
    }

    /// Whether the Ethernet header fits: so that nothing after the first write can fail.
    #[inline(always)]
    pub(crate) fn check(&self, frame: &Frame) -> Result<(), Verdict> {
        frame.at::<EthHdr>(0).map(|_| ()).ok_or(Verdict::of(Reason::Malformed))
    }

    /// Writes the Ethernet header and the tags, and sends.
    #[inline(always)]
    pub(crate) fn send(
        &self,
        ctx: *mut xdp_md,
        frame: &Frame,
        next_hop: [u8; 6],
        reason: Reason,
    ) -> Result<Verdict, Verdict> {
        let header = frame.at::<EthHdr>(0).ok_or(Verdict::of(Reason::Malformed))?;
        // SAFETY: array element; header within the frame.
        let (tags, lower) = unsafe {
            put_mac(&raw mut (*header).dst_addr, next_hop);
            put_mac(&raw mut (*header).src_addr, (*self.port).mac);
            (*header).ether_type = ETHERTYPE_IPV4;
            ((*self.port).tag_count, (*self.port).lower)
        };
        if tags != 0 {
            self.write_tags(ctx);
        }
        if lower == constants::lower() {
            return Ok(Verdict::sent(reason, xdp_action::XDP_TX));
        }
        match TX_PORTS.redirect(u32::from(self.slot), 0) {
            Ok(action) => Ok(Verdict::sent(reason, action)),
            Err(_) => Err(Verdict::of(Reason::NotConfigured)),
        }
    }

    /// Writes everything from the ethertype to the end of the tags; `prepare` has made room for it.
    #[inline(always)]
    fn write_tags(&self, ctx: *mut xdp_md) {
        // SAFETY: array element.
        let (count, [outer, inner]) = unsafe { ((*self.port).tag_count, (*self.port).tags) };
        let [high, low] = ETHERTYPE_IPV4.to_ne_bytes();
        let ([a, b], [c, d]) = (outer.protocol, outer.control);
        if count == 1 {
            frame::store(ctx, ETHERTYPE_AT, &[a, b, c, d, high, low]);
        } else {
            let ([e, f], [g, h]) = (inner.protocol, inner.control);
            frame::store(ctx, ETHERTYPE_AT, &[a, b, c, d, e, f, g, h, high, low]);
        }
    }
}

/// Offset of the ethertype.
const ETHERTYPE_AT: usize = 12;

/// Writes a MAC address by 16-bit words: an assignment of six bytes becomes a call to `memcpy`.
///
/// # Safety
/// `to` points to six bytes at an even address: an address in an Ethernet header.
#[inline(always)]
unsafe fn put_mac(to: *mut [u8; 6], mac: [u8; 6]) {
    let to = to.cast::<u16>();
    // SAFETY: by the caller's promise.
    unsafe {
        to.write(u16::from_ne_bytes([mac[0], mac[1]]));
        to.add(1).write(u16::from_ne_bytes([mac[2], mac[3]]));
        to.add(2).write(u16::from_ne_bytes([mac[4], mac[5]]));
    }
}
