// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The sinks: count the generated packets that arrive, verify some of them, and drop them all.

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::PerCpuArray, programs::XdpContext};
use bench_ebpf::{ATTACK_TOS, DESTINATION_PORT, HOMEWARD, MAX_FRAME, OUTWARD, Sink, checksum, half, learnt};

use crate::LEARNT;

#[map]
static SINK: PerCpuArray<Sink> = PerCpuArray::with_max_entries(2, 0);

/// Ethernet type and IPv4 version with header length 5, as the wire halves of frame bytes 12–15 begin.
const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const PROTOCOL_UDP: u8 = 17;

/// Bytes before the IPv4 header and before the UDP header; generated packets carry no IPv4 options.
const IP: usize = 14;
const UDP: usize = IP + 20;

type Halves = [u16; (UDP + 8) / 2];

/// The destinations' end: counts and drops generated packets; anything else (ARP, IPv6 discovery) goes to the stack.
#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    finish(outward(&ctx))
}

/// The backends' end, for answers.
#[xdp]
fn home(ctx: XdpContext) -> u32 {
    finish(homeward(&ctx))
}

#[inline(always)]
const fn finish(counted: Option<()>) -> u32 {
    match counted {
        Some(()) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}

/// The frame's first bytes when it is IPv4.
#[inline(always)]
fn ipv4(ctx: &XdpContext) -> Option<&Halves> {
    let halves = crate::at::<Halves>(ctx, 0)?;
    // SAFETY: the bounds were checked above; received frames start at an even address.
    let halves = unsafe { &*halves };
    (halves[IP / 2 - 1] == ETHERTYPE_IPV4).then_some(halves)
}

#[inline(always)]
fn is_udp(halves: &Halves) -> bool {
    (halves[(IP + 8) / 2].to_be() & 0xff) as u8 == PROTOCOL_UDP
}

/// Address whose first wire half stands at index `at`, host byte order.
#[inline(always)]
fn address(halves: &Halves, at: usize) -> u32 {
    (u32::from(halves[at].to_be()) << 16) | u32::from(halves[at + 1].to_be())
}

#[inline(always)]
fn state(index: u32) -> Option<&'static mut Sink> {
    let state = SINK.get_ptr_mut(index)?;
    // SAFETY: the element belongs to this CPU, and XDP programs of one CPU do not interrupt each other.
    Some(unsafe { &mut *state })
}

#[inline(always)]
fn outward(ctx: &XdpContext) -> Option<()> {
    let halves = ipv4(ctx)?;
    if (halves[half::TOS].to_be() & 0xff) as u8 == ATTACK_TOS {
        state(OUTWARD)?.attack += 1;
        return Some(());
    }
    if !is_udp(halves) || halves[half::DESTINATION_PORT] != DESTINATION_PORT.to_be() {
        return None;
    }
    let source = address(halves, half::SOURCE);
    let state = state(OUTWARD)?;
    if source.wrapping_sub(state.frontend) < state.frontends {
        state.from_frontend += 1;
    } else if source & state.backend_mask == state.backend_net {
        state.from_backend += 1;
    }
    if state.learn == 1 {
        learn(state, halves, source);
    }
    count(ctx, halves, state);
    Some(())
}

#[inline(always)]
fn homeward(ctx: &XdpContext) -> Option<()> {
    let halves = ipv4(ctx)?;
    if !is_udp(halves) || halves[half::SOURCE_PORT] != DESTINATION_PORT.to_be() {
        return None;
    }
    let state = state(HOMEWARD)?;
    let destination = address(halves, half::DESTINATION);
    let right = destination & state.backend_mask == state.backend_net
        && halves[half::DESTINATION_PORT] == halves[half::TAG];
    state.to_backend += u64::from(right);
    count(ctx, halves, state);
    Some(())
}

#[inline(always)]
fn count(ctx: &XdpContext, halves: &Halves, state: &mut Sink) {
    if state.packets & u64::from(state.check_mask) == 0 {
        state.checked += 1;
        state.bad += u64::from(!is_sound(ctx, halves));
    }
    state.packets += 1;
    state.bytes += (ctx.data_end() - ctx.data()) as u64;
}

/// Notes down where a flow, known by tag and destination, comes from on this side of the gateway.
#[inline(always)]
fn learn(state: &mut Sink, halves: &Halves, source: u32) {
    if state.port_stride == 0 {
        return;
    }
    let port = u32::from(halves[half::TAG].to_be()).wrapping_sub(state.port_base);
    let (backend, round) = (port / state.port_stride, port % state.port_stride);
    let destination = address(halves, half::DESTINATION).wrapping_sub(state.destination_base);
    let flow = backend + state.backends * (destination + state.destinations * round);
    let Some(seen) = LEARNT.get_ptr_mut(flow) else { return };
    // SAFETY: packets of one flow come from one CPU, so nobody else writes this element.
    let seen = unsafe { &mut *seen };
    state.learnt += u64::from(*seen == 0);
    *seen = learnt(source, halves[half::SOURCE_PORT].to_be());
}

/// Whether the lengths agree with the frame and both checksums are right, the UDP one being there at all.
#[inline(always)]
fn is_sound(ctx: &XdpContext, halves: &Halves) -> bool {
    let length = (ctx.data_end() - ctx.data()) as u32;
    let ip_length = u32::from(halves[(IP + 2) / 2].to_be());
    let udp_length = u32::from(halves[(UDP + 4) / 2].to_be());
    let lengths = ip_length + IP as u32 == length && udp_length + UDP as u32 == length;

    let mut ip_sum = 0;
    for half in &halves[IP / 2..UDP / 2] {
        ip_sum += u32::from(*half);
    }
    let mut udp_sum = u32::from(u16::from(PROTOCOL_UDP).to_be()) + u32::from(halves[(UDP + 4) / 2]);
    for half in &halves[(IP + 12) / 2..UDP / 2] {
        udp_sum += u32::from(*half);
    }
    udp_sum += sum_from_udp(ctx);
    let present = halves[(UDP + 6) / 2] != 0;
    lengths && present && checksum(ip_sum) == 0 && checksum(udp_sum) == 0
}

/// Sum of the wire halves from the UDP header to the end of the frame.
#[inline(always)]
fn sum_from_udp(ctx: &XdpContext) -> u32 {
    let mut sum = 0;
    let mut offset = UDP;
    while offset < MAX_FRAME {
        if let Some(half) = crate::at::<u16>(ctx, offset) {
            // SAFETY: `at` checked the bounds, and the offset is even.
            sum += u32::from(unsafe { *half });
        } else {
            if let Some(byte) = crate::at::<u8>(ctx, offset) {
                // SAFETY: `at` checked the bounds. An odd last byte is padded with zero behind it (RFC 768).
                sum += u32::from(u16::from_ne_bytes([unsafe { *byte }, 0]));
            }
            break;
        }
        offset += 2;
    }
    sum
}
