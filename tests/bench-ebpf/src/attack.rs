// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The attacker: one backend that floods, run like the generator.

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::PerCpuArray, programs::XdpContext};
use bench_ebpf::{ATTACK_HALVES, Attack, OUTWARD, checksum, half};

use crate::{copy, high, low, udp_checksum};

#[map]
static ATTACK: PerCpuArray<Attack> = PerCpuArray::with_max_entries(1, 0);

/// Writes the next packet of the flood over the frame and sends it to the gateway.
#[xdp]
fn attack(ctx: XdpContext) -> u32 {
    match write_next(&ctx) {
        Some(()) => crate::redirect(OUTWARD),
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<()> {
    let state = ATTACK.get_ptr_mut(0)?;
    // SAFETY: one pinned thread runs this program on this CPU; the runner writes the element only between runs.
    let state = unsafe { &mut *state };
    let header = crate::at::<[u16; ATTACK_HALVES]>(ctx, 0)?;
    // SAFETY: the bounds were checked above, frames start at an even address and no one else sees this frame yet.
    let header = unsafe { &mut *header };

    let number = state.number;
    state.number = number.wrapping_add(1);
    let rest = number >> (state.shift & 31);
    let source_port = ((state.source_port + (number & state.source_mask)) as u16).to_be();
    let port = ((state.destination_port + (rest & state.port_mask)) as u16).to_be();
    let farther = (rest >> (state.port_shift & 31)) & state.destination_mask;
    let destination = (state.destination + farther).to_be();
    let varying = low(destination) + high(destination);

    copy(&state.header, header);
    header[half::DESTINATION] = low(destination) as u16;
    header[half::DESTINATION + 1] = high(destination) as u16;
    header[half::SOURCE_PORT] = source_port;
    header[half::DESTINATION_PORT] = port;
    header[half::IP_CHECKSUM] = checksum(state.ip_sum + varying);
    let sum = state.transport_sum + varying + u32::from(source_port) + u32::from(port);
    if state.tcp == 1 {
        header[half::TCP_CHECKSUM] = checksum(sum);
    } else {
        header[half::UDP_CHECKSUM] = udp_checksum(sum);
    }
    Some(())
}
