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
/// Both SYNs, and an ACK after them or a SYN with ACK from either side.
pub const ESTABLISHED: u32 = 1 << 2;
/// FIN from inside.
pub const FIN_OUT: u32 = 1 << 3;
/// FIN from outside.
pub const FIN_IN: u32 = 1 << 4;
/// RST from either side.
pub const RST: u32 = 1 << 5;
/// SYN with ACK from inside.
pub const SYN_ACK_OUT: u32 = 1 << 6;
/// SYN with ACK from outside.
pub const SYN_ACK_IN: u32 = 1 << 7;
/// Idle for too long, and both ends are being told so by RST: over, whatever its timer says. Set once, by whoever hands
/// the flow to the daemon.
pub const TOLD: u32 = 1 << 8;
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
///
/// The states are those of RFC 6146 §3.5.2.2 and RFC 7857 §2, with what they leave to the implementer decided so:
///
/// - *SYN.* Every SYN of a side counts once; one that comes again, or on an established connection, changes nothing
///   (its receiver answers with a challenge ACK, RFC 5961 §4, and a client that has forgotten the connection then resets it).
/// - *Established* is what both ends think established: both SYNs and an ACK without SYN; or, in a simultaneous open (RFC
///   9293 figure 8), a SYN with ACK from each side, which need not be followed by another ACK. A SYN with ACK that is
///   sent again by one side does not establish.
/// - *FIN* counts in an established connection only, so that SYN and FIN do not get a timer, and a place among established
///   flows, that nobody has answered for. It may itself be the ACK that establishes.
/// - *RST* of either side, at any time, if it is believed ([`super::sequence::believed`]).
/// - Everything else (data, also after FIN; keep-alive probes; ACKs out of state) changes nothing and is translated.
#[inline(always)]
#[must_use]
pub const fn tcp_bits(state: u32, direction: Direction, flags: u8) -> u32 {
    const BOTH: u32 = SYN_OUT | SYN_IN;
    const BOTH_ACKNOWLEDGE: u32 = SYN_ACK_OUT | SYN_ACK_IN;
    let outbound = matches!(direction, Direction::Outbound);
    let mut bits = 0;
    if flags & tcp_flag::RST != 0 {
        return RST & !state;
    }
    if flags & tcp_flag::SYN != 0 {
        bits |= syn_of(direction);
        if flags & tcp_flag::ACK != 0 {
            bits |= if outbound { SYN_ACK_OUT } else { SYN_ACK_IN };
            if (state | bits) & BOTH_ACKNOWLEDGE == BOTH_ACKNOWLEDGE {
                bits |= ESTABLISHED;
            }
        }
    } else if flags & tcp_flag::ACK != 0 && state & BOTH == BOTH {
        bits |= ESTABLISHED;
    }
    if flags & tcp_flag::FIN != 0 && (state | bits) & ESTABLISHED != 0 {
        bits |= if outbound { FIN_OUT } else { FIN_IN };
    }
    bits & !state
}

/// The bit for a SYN in this direction.
#[inline(always)]
#[must_use]
pub const fn syn_of(direction: Direction) -> u32 {
    match direction {
        Direction::Outbound => SYN_OUT,
        Direction::Inbound => SYN_IN,
    }
}

/// Whether a segment opens a connection: SYN and neither ACK, RST nor FIN.
#[inline(always)]
#[must_use]
pub const fn opens(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// Whether an opening segment from inside on a flow in `state` is a new connection on the old tuple, and not a
/// retransmission: the old one has been closed or reset. (On one that has been idle for too long it is, too; that is not
/// in the state.) A SYN on a half-closed connection is none: to its other end the old one is alive.
#[inline(always)]
#[must_use]
pub const fn reopens(state: u32, flags: u8) -> bool {
    opens(flags) && (state & RST != 0 || state & (FIN_OUT | FIN_IN) == FIN_OUT | FIN_IN)
}

/// Whether a segment can be answered by RST when there is no connection for it (RFC 9293 §3.10.7.1), and says that its sender
/// believes there is one: a RST is never answered, and a SYN opens.
#[inline(always)]
#[must_use]
pub const fn continues(flags: u8) -> bool {
    flags & tcp_flag::RST == 0 && flags & (tcp_flag::SYN | tcp_flag::ACK) != tcp_flag::SYN
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
