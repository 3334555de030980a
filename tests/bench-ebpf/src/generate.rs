// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The generator: run through `BPF_PROG_TEST_RUN` with live frames, one frame per run.

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::PerCpuArray, programs::XdpContext};
use bench_ebpf::{BOTH, Generator, HEADER_HALVES, HOMEWARD, OUTBOUND, OUTWARD, checksum, half};

use crate::{LEARNT, copy, high, low, udp_checksum};

#[map]
static GENERATOR: PerCpuArray<Generator> = PerCpuArray::with_max_entries(1, 0);

/// Writes the next flow's header over the frame and sends it to the side that the flow's next packet comes from.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    match write_next(&ctx) {
        Some(target) => crate::redirect(target),
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<u32> {
    let state = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: one pinned thread runs this program on this CPU, so nobody else writes the element meanwhile; the
    // runner writes it only between runs.
    let state = unsafe { &mut *state };
    let header = crate::at::<[u16; HEADER_HALVES]>(ctx, 0)?;
    // SAFETY: the bounds were checked above, frames start at an even address and no one else sees this frame yet.
    let header = unsafe { &mut *header };

    let tag = state.port_base + state.next.backend * state.port_stride + state.next.round;
    let tag = (tag as u16).to_be();
    let destination = (state.destination_base + state.next.destination).to_be();
    let direction = state.direction;
    if direction == OUTBOUND || (direction == BOTH && state.turn == 0) {
        outbound(state, header, tag, destination);
        state.turn = 1;
        if direction == OUTBOUND {
            advance(state);
        }
        return Some(OUTWARD);
    }
    inbound(state, header, tag, destination)?;
    state.turn = 0;
    advance(state);
    Some(HOMEWARD)
}

#[inline(always)]
fn outbound(state: &Generator, header: &mut [u16; HEADER_HALVES], tag: u16, destination: u32) {
    let source = (state.source_base + state.next.backend).to_be();
    let addresses = low(source) + high(source) + low(destination) + high(destination);
    copy(&state.outbound.header, header);
    header[half::TAG] = tag;
    header[half::SOURCE] = low(source) as u16;
    header[half::SOURCE + 1] = high(source) as u16;
    header[half::DESTINATION] = low(destination) as u16;
    header[half::DESTINATION + 1] = high(destination) as u16;
    header[half::SOURCE_PORT] = tag;
    header[half::IP_CHECKSUM] = checksum(state.outbound.ip_sum + addresses + u32::from(tag));
    header[half::UDP_CHECKSUM] = udp_checksum(state.outbound.udp_sum + addresses + u32::from(tag));
}

/// The answer: to where the sink saw the flow come from.
#[inline(always)]
fn inbound(state: &Generator, header: &mut [u16; HEADER_HALVES], tag: u16, destination: u32) -> Option<()> {
    let learnt = *LEARNT.get(state.first + state.flows - state.left)?;
    let seen = ((learnt >> 32) as u32).to_be();
    let port = (learnt as u16).to_be();
    let addresses = low(seen) + high(seen) + low(destination) + high(destination);
    copy(&state.inbound.header, header);
    header[half::TAG] = tag;
    header[half::SOURCE] = low(destination) as u16;
    header[half::SOURCE + 1] = high(destination) as u16;
    header[half::DESTINATION] = low(seen) as u16;
    header[half::DESTINATION + 1] = high(seen) as u16;
    header[half::DESTINATION_PORT] = port;
    header[half::IP_CHECKSUM] = checksum(state.inbound.ip_sum + addresses + u32::from(tag));
    header[half::UDP_CHECKSUM] = udp_checksum(state.inbound.udp_sum + addresses + u32::from(port));
    Some(())
}

/// Counts instead of dividing: three divisions a frame would be charged to every gateway measured.
#[inline(always)]
fn advance(state: &mut Generator) {
    state.left -= 1;
    if state.left == 0 {
        state.left = state.flows;
        state.next = state.start;
        return;
    }
    state.next.backend += 1;
    if state.next.backend < state.backends {
        return;
    }
    state.next.backend = 0;
    state.next.destination += 1;
    if state.next.destination < state.destinations {
        return;
    }
    state.next.destination = 0;
    state.next.round += 1;
}
