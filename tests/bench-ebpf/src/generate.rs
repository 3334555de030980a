// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The generator: run through `BPF_PROG_TEST_RUN` with live frames, one frame per run.

use aya_ebpf::{bindings::xdp_action, macros::map, macros::xdp, maps::Array, programs::XdpContext};
use bench_ebpf::{Generator, HEADER_HALVES, checksum, half};

#[map]
static GENERATOR: Array<Generator> = Array::with_max_entries(1, 0);

/// Writes the next flow's header over the frame and sends it to the target interface.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    match write_next(&ctx) {
        Some(()) => crate::redirect(),
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn write_next(ctx: &XdpContext) -> Option<()> {
    let state = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: one thread runs one loading of this program, so nobody else writes the element meanwhile; the
    // runner writes it only between runs.
    let state = unsafe { &mut *state };
    let header = crate::at::<[u16; HEADER_HALVES]>(ctx, 0)?;
    // SAFETY: the bounds were checked above, frames start at an even address and no one else sees this frame yet.
    let header = unsafe { &mut *header };

    let source = (state.source_base + state.next.backend).to_be();
    let destination = (state.destination_base + state.next.destination).to_be();
    let port = state.port_base + state.next.backend * state.port_stride + state.next.round;
    let port = (port as u16).to_be();
    let addresses = low(source) + high(source) + low(destination) + high(destination);

    copy(&state.header, header);
    header[half::SOURCE] = low(source) as u16;
    header[half::SOURCE + 1] = high(source) as u16;
    header[half::DESTINATION] = low(destination) as u16;
    header[half::DESTINATION + 1] = high(destination) as u16;
    header[half::SOURCE_PORT] = port;
    header[half::IP_CHECKSUM] = checksum(state.ip_sum + addresses);
    let udp = checksum(state.udp_sum + addresses + u32::from(port));
    // RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
    header[half::UDP_CHECKSUM] = if udp == 0 { 0xffff } else { udp };

    advance(state);
    Some(())
}

/// Pages come back from the sink as the gateway left them: the whole header is written for every frame.
///
/// An array assignment would become a call of a byte-by-byte `memcpy`, which costs as much as the rest of the chain.
#[inline(always)]
fn copy(from: &[u16; HEADER_HALVES], to: &mut [u16; HEADER_HALVES]) {
    const WORDS: usize = HEADER_HALVES / 4;
    let (words, out) = (from.as_ptr().cast::<u64>(), to.as_mut_ptr().cast::<u64>());
    for index in 0..WORDS {
        // SAFETY: both arrays hold five words and a half. Map values are aligned to 8 bytes and `header` comes
        // first in the value; live frames start 256 bytes and two aligned structures into a page.
        unsafe { out.add(index).write_volatile(words.add(index).read_volatile()) };
    }
    to[HEADER_HALVES - 1] = from[HEADER_HALVES - 1];
}

/// First two bytes on the wire of a big-endian word, as a wire half.
#[inline(always)]
const fn low(word: u32) -> u32 {
    word & 0xffff
}

/// Last two bytes on the wire of a big-endian word, as a wire half.
#[inline(always)]
const fn high(word: u32) -> u32 {
    word >> 16
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
