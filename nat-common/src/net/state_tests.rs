// SPDX-License-Identifier: MIT OR Apache-2.0
//! States × segments × directions.

use super::{Direction::*, *};
use crate::{
    abi::config::CLASS_TCP,
    net::timers::{TimerClass, TimerClass::*, class_of},
};

const SYN: u8 = tcp_flag::SYN;
const SYN_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;
const ACK: u8 = tcp_flag::ACK;
const FIN: u8 = tcp_flag::FIN;
const FIN_ACK: u8 = tcp_flag::FIN | tcp_flag::ACK;
const RESET: u8 = tcp_flag::RST;
/// All bits that segments set.
const BITS: u32 = 0xff;

type Segment = (Direction, u8);

fn state_after(steps: &[Segment]) -> u32 {
    steps.iter().fold(0, |state, (direction, flags)| state | tcp_bits(state, *direction, *flags))
}

fn run(steps: &[Segment]) -> TimerClass {
    class_of(CLASS_TCP, state_after(steps))
}

const OPEN: [Segment; 3] = [(Outbound, SYN), (Inbound, SYN_ACK), (Outbound, ACK)];

#[test]
fn life_of_a_connection() {
    assert_eq!(run(&OPEN[..1]), TcpHandshake);
    assert_eq!(run(&OPEN[..2]), TcpHandshake);
    assert_eq!(run(&OPEN), TcpEstablished);
    let then = |more: &[Segment]| run(&[&OPEN[..], more].concat());
    assert_eq!(then(&[(Inbound, ACK), (Outbound, ACK)]), TcpEstablished);
    assert_eq!(then(&[(Outbound, FIN_ACK)]), TcpHalfClosed);
    assert_eq!(then(&[(Inbound, FIN_ACK), (Outbound, ACK)]), TcpHalfClosed);
    assert_eq!(then(&[(Inbound, FIN_ACK), (Outbound, FIN_ACK)]), TcpClosed);
    assert_eq!(then(&[(Inbound, RESET)]), TcpReset);
    assert_eq!(then(&[(Outbound, RESET)]), TcpReset);
}

/// Name, way to the state, its timer, and what five segments from outside and from inside lead to.
type Row = (&'static str, Vec<Segment>, TimerClass, [TimerClass; 5], [TimerClass; 5]);

/// What each segment makes of each state, in both directions: the whole table. Rows are ways to a state and its timer;
/// columns are what SYN, SYN with ACK, ACK, FIN with ACK and RST from outside, then from inside, lead to.
#[test]
fn every_segment_in_every_state() {
    let (h, e, f, c, r) = (TcpHandshake, TcpEstablished, TcpHalfClosed, TcpClosed, TcpReset);
    let open = OPEN.to_vec();
    let and = |more: &[Segment]| [&open[..], more].concat();
    let table: [Row; 11] = [
        ("SYN out", open[..1].to_vec(), h, [h, h, h, h, r], [h, h, h, h, r]),
        ("SYN in", vec![(Inbound, SYN)], h, [h, h, h, h, r], [h, h, h, h, r]),
        // The server's ACK or FIN after its SYN with ACK is believed: it has the client's SYN.
        ("SYN with ACK in", open[..2].to_vec(), h, [h, h, e, f, r], [h, e, e, f, r]),
        ("both SYNs", vec![(Outbound, SYN), (Inbound, SYN)], h, [h, h, e, f, r], [h, h, e, f, r]),
        (
            "simultaneous, one with ACK",
            vec![(Outbound, SYN), (Inbound, SYN), (Outbound, SYN_ACK)],
            h,
            [h, e, e, f, r],
            [h, h, e, f, r],
        ),
        ("established", open.clone(), e, [e, e, e, f, r], [e, e, e, f, r]),
        ("FIN out", and(&[(Outbound, FIN_ACK)]), f, [f, f, f, c, r], [f, f, f, f, r]),
        ("FIN in", and(&[(Inbound, FIN_ACK)]), f, [f, f, f, f, r], [f, f, f, c, r]),
        ("both FINs", and(&[(Inbound, FIN_ACK), (Outbound, FIN_ACK)]), c, [c, c, c, c, r], [c, c, c, c, r]),
        ("reset", and(&[(Inbound, RESET)]), r, [r; 5], [r; 5]),
        (
            "closed, then reset",
            and(&[(Inbound, FIN_ACK), (Outbound, FIN_ACK), (Outbound, RESET)]),
            r,
            [r; 5],
            [r; 5],
        ),
    ];
    for (name, way, class, from_outside, from_inside) in table {
        assert_eq!(run(&way), class, "{name}");
        for (direction, wanted) in [(Inbound, from_outside), (Outbound, from_inside)] {
            for (flags, wanted) in [SYN, SYN_ACK, ACK, FIN_ACK, RESET].into_iter().zip(wanted) {
                let step = [&way[..], &[(direction, flags)]].concat();
                assert_eq!(run(&step), wanted, "{name}, then {flags:#x} {direction:?}");
            }
        }
    }
}

#[test]
fn what_is_not_an_open_handshake_stays_in_it() {
    assert_eq!(run(&[(Outbound, SYN), (Outbound, SYN), (Outbound, ACK)]), TcpHandshake);
    assert_eq!(run(&[(Outbound, SYN), (Inbound, ACK)]), TcpHandshake);
    // The server sends its answer again: the client may not have had it.
    assert_eq!(run(&[(Outbound, SYN), (Inbound, SYN_ACK), (Inbound, SYN_ACK)]), TcpHandshake);
    assert_eq!(run(&[(Outbound, SYN), (Inbound, tcp_flag::RST | ACK)]), TcpReset);
}

/// RFC 9293 §3.5, figure 8.
#[test]
fn a_simultaneous_open_needs_no_ack_of_its_own() {
    let open = [(Outbound, SYN), (Inbound, SYN), (Outbound, SYN_ACK)];
    assert_eq!(run(&open), TcpHandshake);
    assert_eq!(run(&[&open[..], &[(Inbound, SYN_ACK)]].concat()), TcpEstablished);
    assert_eq!(run(&[&open[..], &[(Inbound, ACK)]].concat()), TcpEstablished);
    let crossed = [(Outbound, SYN), (Inbound, SYN), (Inbound, SYN_ACK), (Outbound, SYN_ACK)];
    assert_eq!(run(&crossed), TcpEstablished);
}

/// Or SYN and FIN, which nobody has answered, would get the timer of a closing connection and leave the count of
/// unfinished handshakes.
#[test]
fn a_fin_counts_in_an_established_connection_only() {
    for flags in [FIN, FIN_ACK, SYN | FIN] {
        assert_eq!(run(&[(Outbound, SYN), (Outbound, flags)]), TcpHandshake, "{flags:#x}");
        assert_eq!(run(&[(Outbound, SYN), (Inbound, flags)]), TcpHandshake, "{flags:#x}");
    }
    assert_eq!(run(&[(Outbound, SYN), (Inbound, SYN_ACK), (Outbound, FIN)]), TcpHandshake);
    assert_eq!(run(&[(Outbound, SYN), (Inbound, SYN_ACK), (Outbound, FIN_ACK)]), TcpHalfClosed);
}

/// Data, keep-alive probes (RFC 9293 §3.8.4: an ACK with an old number, with or without a byte) and window updates are
/// ACKs to the state.
#[test]
fn what_is_only_acknowledged_changes_nothing() {
    let ways: [&[Segment]; 3] = [&[], &[(Outbound, FIN_ACK)], &[(Inbound, FIN_ACK), (Outbound, FIN_ACK)]];
    for way in ways {
        let state = state_after(&[&OPEN[..], way].concat());
        for (direction, flags) in [(Outbound, ACK), (Inbound, ACK), (Outbound, ACK | 0x08), (Inbound, 0)] {
            assert_eq!(tcp_bits(state, direction, flags), 0, "{state:#x} {flags:#x}");
        }
    }
}

#[test]
fn bits_only_grow_and_are_reported_once() {
    for state in 0..=BITS {
        for flags in 0..=0x3fu8 {
            for direction in [Outbound, Inbound] {
                let bits = tcp_bits(state, direction, flags);
                assert_eq!(bits & state, 0);
                assert_eq!(bits & !BITS, 0);
                // A FIN is noted with the ACK that establishes, or when it is sent again.
                let all = state | bits | ESTABLISHED;
                let again = all | tcp_bits(all, direction, flags);
                assert_eq!(tcp_bits(again, direction, flags), 0, "{state:#x} {flags:#x}");
            }
        }
    }
}

/// Two CPUs see a segment of each side at once, each with the state from before; what both find is ORed into both halves.
/// Nothing that the order of the two could have brought is missing for longer than until the next ACK.
#[test]
fn both_halves_converge() {
    for state in 0..=BITS {
        for one in 0..=0x1fu8 {
            for other in 0..=0x1fu8 {
                let at_once = state | tcp_bits(state, Outbound, one) | tcp_bits(state, Inbound, other);
                let first = state | tcp_bits(state, Outbound, one);
                let after = first | tcp_bits(first, Inbound, other);
                assert_eq!(at_once & !after, 0, "{state:#x} {one:#x} {other:#x}");
                assert_eq!(after & !at_once & !(ESTABLISHED | FIN_IN), 0, "{state:#x} {one:#x} {other:#x}");
            }
        }
    }
}

#[test]
fn only_a_finished_connection_reopens() {
    assert!(!reopens(SYN_OUT, SYN));
    assert!(!reopens(SYN_OUT | SYN_IN | ESTABLISHED | FIN_OUT, SYN));
    assert!(reopens(SYN_OUT | SYN_IN | ESTABLISHED | FIN_OUT | FIN_IN, SYN));
    assert!(reopens(SYN_OUT | RST, SYN));
    assert!(!reopens(SYN_OUT | RST, SYN_ACK));
}

#[test]
fn only_what_belongs_to_a_connection_is_answered_by_reset() {
    for (flags, answered) in [
        (ACK, true),
        (FIN_ACK, true),
        (SYN_ACK, true),
        (FIN, true),
        (0, true),
        (SYN, false),
        (SYN | FIN, false),
        (RESET, false),
        (RESET | ACK, false),
    ] {
        assert_eq!(continues(flags), answered, "{flags:#x}");
    }
}
