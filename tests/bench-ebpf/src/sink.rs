// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The sink: counts the generated packets that arrive, verifies some of them, and drops them all.

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::PerCpuArray, programs::XdpContext};
use bench_ebpf::{DESTINATION_PORT, MAX_FRAME, Sink, checksum};

#[map]
static SINK: PerCpuArray<Sink> = PerCpuArray::with_max_entries(1, 0);

/// Ethernet type and IPv4 version with header length 5, as the wire halves of frame bytes 12–15 begin.
const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const PROTOCOL_UDP: u8 = 17;

/// Bytes before the IPv4 header and before the UDP header; generated packets carry no IPv4 options.
const IP: usize = 14;
const UDP: usize = IP + 20;

/// Counts and drops generated packets; anything else (ARP, IPv6 discovery) goes to the stack.
#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    match count(&ctx) {
        Some(()) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn count(ctx: &XdpContext) -> Option<()> {
    let halves = crate::at::<[u16; (UDP + 8) / 2]>(ctx, 0)?;
    // SAFETY: the bounds were checked above; received frames start at an even address.
    let halves = unsafe { &*halves };
    let protocol = (halves[(IP + 8) / 2].to_be() & 0xff) as u8;
    let generated = halves[IP / 2 - 1] == ETHERTYPE_IPV4
        && protocol == PROTOCOL_UDP
        && halves[(UDP + 2) / 2] == DESTINATION_PORT.to_be();
    if !generated {
        return None;
    }
    let source = (u32::from(halves[(IP + 12) / 2].to_be()) << 16) | u32::from(halves[(IP + 14) / 2].to_be());

    let state = SINK.get_ptr_mut(0)?;
    // SAFETY: the element belongs to this CPU, and XDP programs of one CPU do not interrupt each other.
    let state = unsafe { &mut *state };
    if source == state.frontend {
        state.from_frontend += 1;
    } else if source & state.backend_mask == state.backend_net {
        state.from_backend += 1;
    }
    if state.packets & u64::from(state.check_mask) == 0 {
        state.checked += 1;
        state.bad += u64::from(!is_sound(ctx, halves));
    }
    state.packets += 1;
    state.bytes += (ctx.data_end() - ctx.data()) as u64;
    Some(())
}

/// Whether the lengths agree with the frame and both checksums are right, the UDP one being there at all.
#[inline(always)]
fn is_sound(ctx: &XdpContext, halves: &[u16; (UDP + 8) / 2]) -> bool {
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
