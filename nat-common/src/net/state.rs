// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has been seen of a flow.
//!
//! A flow's state is a set of bits that only grows: both directions add to it with an atomic OR, so that a FIN from
//! each side at the same moment on two CPUs loses neither. The state's name and timer follow from the set
//! ([`super::timers::class_of`]). Only opening a new connection on the same tuple starts a new set.
//!
//! The bits are the low half of [`crate::abi::flow::FlowEntry::state`]; the high half is the flow's nonce.

/// SYN from inside.
pub const SYN_OUT: u32 = 1;
/// SYN, with or without ACK, from outside.
pub const SYN_IN: u32 = 1 << 1;
/// Both SYNs and an ACK after them.
pub const ESTABLISHED: u32 = 1 << 2;
/// FIN from inside.
pub const FIN_OUT: u32 = 1 << 3;
/// FIN from outside.
pub const FIN_IN: u32 = 1 << 4;
/// RST from either side.
pub const RST: u32 = 1 << 5;
/// Being removed. Whoever sets it on the outbound half owns the removal of both halves.
pub const DEAD: u32 = 1 << 15;
/// The bits; above them is the nonce.
pub const MASK: u32 = 0xffff;

/// TCP flags as in byte 13 of the header (RFC 9293 §3.1).
pub mod tcp_flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Open.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement valid.
    pub const ACK: u8 = 0x10;
}

/// Direction of a packet, as seen from the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the backend.
    Outbound,
    /// To the backend.
    Inbound,
}

/// Bits that a segment with `flags` adds to `state`. Zero in the steady state.
#[inline(always)]
#[must_use]
pub const fn tcp_bits(state: u32, direction: Direction, flags: u8) -> u32 {
    let outbound = matches!(direction, Direction::Outbound);
    let mut bits = 0;
    if flags & tcp_flag::RST != 0 {
        return RST & !state;
    }
    if flags & tcp_flag::SYN != 0 {
        bits |= if outbound { SYN_OUT } else { SYN_IN };
    } else if flags & tcp_flag::ACK != 0 && state & SYN_IN != 0 && state & SYN_OUT != 0 {
        bits |= ESTABLISHED;
    }
    if flags & tcp_flag::FIN != 0 {
        bits |= if outbound { FIN_OUT } else { FIN_IN };
    }
    bits & !state
}

/// Whether a segment opens a connection: SYN and neither ACK, RST nor FIN.
#[inline(always)]
#[must_use]
pub const fn opens(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// Whether an opening segment from inside on a flow in `state` is a new connection on the old tuple, and not a
/// retransmission: the old one has been closed or reset.
#[inline(always)]
#[must_use]
pub const fn reopens(state: u32, flags: u8) -> bool {
    opens(flags) && (state & RST != 0 || state & (FIN_OUT | FIN_IN) == FIN_OUT | FIN_IN)
}

#[cfg(test)]
mod tests {
    use super::{Direction::*, *};
    use crate::{
        abi::config::CLASS_TCP,
        net::timers::{TimerClass, class_of},
    };

    fn run(steps: &[(Direction, u8)]) -> TimerClass {
        let state =
            steps.iter().fold(0, |state, (direction, flags)| state | tcp_bits(state, *direction, *flags));
        class_of(CLASS_TCP, state)
    }

    const SYN: u8 = tcp_flag::SYN;
    const SYN_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;
    const ACK: u8 = tcp_flag::ACK;
    const FIN_ACK: u8 = tcp_flag::FIN | tcp_flag::ACK;
    const RESET: u8 = tcp_flag::RST;

    #[test]
    fn life_of_a_connection() {
        use TimerClass::*;
        let open = [(Outbound, SYN), (Inbound, SYN_ACK), (Outbound, ACK)];
        assert_eq!(run(&open[..1]), TcpHandshake);
        assert_eq!(run(&open[..2]), TcpHandshake);
        assert_eq!(run(&open), TcpEstablished);
        let then = |more: &[(Direction, u8)]| run(&[&open[..], more].concat());
        assert_eq!(then(&[(Inbound, ACK), (Outbound, ACK)]), TcpEstablished);
        assert_eq!(then(&[(Outbound, FIN_ACK)]), TcpHalfClosed);
        assert_eq!(then(&[(Inbound, FIN_ACK), (Outbound, ACK)]), TcpHalfClosed);
        assert_eq!(then(&[(Inbound, FIN_ACK), (Outbound, FIN_ACK)]), TcpClosed);
        assert_eq!(then(&[(Inbound, RESET)]), TcpReset);
        assert_eq!(then(&[(Outbound, RESET)]), TcpReset);
    }

    #[test]
    fn what_is_not_an_open_handshake_stays_in_it() {
        use TimerClass::*;
        assert_eq!(run(&[(Outbound, SYN), (Outbound, SYN), (Outbound, ACK)]), TcpHandshake);
        assert_eq!(run(&[(Outbound, SYN), (Inbound, ACK)]), TcpHandshake);
        assert_eq!(run(&[(Outbound, SYN), (Inbound, SYN), (Outbound, SYN_ACK)]), TcpHandshake);
        assert_eq!(
            run(&[(Outbound, SYN), (Inbound, SYN), (Outbound, SYN_ACK), (Inbound, ACK)]),
            TcpEstablished
        );
        assert_eq!(run(&[(Outbound, SYN), (Inbound, tcp_flag::RST | ACK)]), TcpReset);
    }

    #[test]
    fn bits_only_grow_and_are_reported_once() {
        for state in 0..64u32 {
            for flags in 0..=0x3fu8 {
                for direction in [Outbound, Inbound] {
                    let bits = tcp_bits(state, direction, flags);
                    assert_eq!(bits & state, 0);
                    assert_eq!(bits & !0x3f, 0);
                    assert_eq!(
                        tcp_bits(state | bits | ESTABLISHED, direction, flags),
                        0,
                        "{state:#x} {flags:#x}"
                    );
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
}
