// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP sequence numbers (RFC 9293 §3.4): which is the next one that a sender uses, and whether to believe a RST.
//!
//! Of each side one number is kept: the one after the last that it has used, as seen here. A segment moves it forward by
//! at most [`WINDOW`]; what is up to that far behind is a retransmission. One that is further off, ahead or behind, is believed
//! only if it acknowledges what the other side has sent, which somebody who sees neither side does not know: so a number that a
//! stranger has moved is mended by the next segment of its own side. A SYN sets it, until the connection is established; one
//! with ACK only if it acknowledges the other side's.

use super::state::{self, Direction, tcp_flag};

/// How far a number may be from the one that is expected, in bytes. 1 MiB: more than Linux has in flight on most paths, and
/// 1/4096 of all numbers, which is the chance of a guess (RFC 5961 §3).
pub const WINDOW: u32 = 1 << 20;

/// The number after a segment's last: SYN and FIN count as one.
#[inline(always)]
#[must_use]
pub const fn after(sequence: u32, data: u32, flags: u8) -> u32 {
    let syn = flags & tcp_flag::SYN != 0;
    let fin = flags & tcp_flag::FIN != 0;
    sequence.wrapping_add(data).wrapping_add(syn as u32).wrapping_add(fin as u32)
}

/// What a segment makes of the number that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is older, or says nothing about numbers.
    Keep,
    /// Its end is kept.
    Take,
    /// Its end is kept if it acknowledges what the other side has sent ([`acknowledges`]).
    TakeIfAcknowledged,
}

/// Judges a segment of the side that sends in `direction`, whose end is at `next`, while `last` is kept. `state`: with what
/// this segment has added.
#[inline(always)]
#[must_use]
pub const fn step(state: u32, direction: Direction, flags: u8, last: u32, next: u32) -> Step {
    if flags & tcp_flag::RST != 0 {
        return Step::Keep;
    }
    if flags & tcp_flag::SYN != 0 {
        return if state & state::ESTABLISHED != 0 {
            Step::Keep
        } else if flags & tcp_flag::ACK != 0 {
            Step::TakeIfAcknowledged
        } else {
            Step::Take
        };
    }
    if state & state::syn_of(direction) == 0 {
        return Step::Keep;
    }
    let ahead = next.wrapping_sub(last);
    let behind = last.wrapping_sub(next);
    if behind <= WINDOW {
        Step::Keep
    } else if ahead <= WINDOW {
        Step::Take
    } else if flags & tcp_flag::ACK != 0 {
        Step::TakeIfAcknowledged
    } else {
        Step::Keep
    }
}

/// Whether `number` is one that a side may acknowledge, or reset with, while the next one that is used is `last`: that, or
/// up to [`WINDOW`] before.
#[inline(always)]
#[must_use]
pub const fn acknowledges(last: u32, number: u32) -> bool {
    last.wrapping_sub(number) <= WINDOW
}

/// Whether to believe a RST from the side that sends in `direction`.
///
/// A connection that is aborted sends the next number of its side; one that does not exist answers with what the other
/// side acknowledged (RFC 9293 §3.10.7.1), which is that or older. Whoever has not sent a SYN yet can only refuse the other
/// side's: the RST acknowledges it, and so must any from outside until the connection is established. `own` and `other` are what is kept of the RST's sender and of its receiver;
/// `acknowledged` has no meaning without ACK in `flags`.
///
/// What is not believed costs nothing but time: the flow stays for as long as its timer says. If the receiver asks back (RFC
/// 5961 §3.2), the second RST has exactly the number that it expects.
#[inline(always)]
#[must_use]
pub const fn believed(
    state: u32,
    direction: Direction,
    flags: u8,
    (sequence, acknowledged): (u32, u32),
    (own, other): (u32, u32),
) -> bool {
    // What a stranger can say before the connection is established is not to be relied on: a SYN of his sets the number.
    let known = state & state::ESTABLISHED != 0 || matches!(direction, Direction::Outbound);
    if known && state & state::syn_of(direction) != 0 {
        return acknowledges(own, sequence);
    }
    // A SYN has no more data than a packet.
    flags & tcp_flag::ACK != 0 && other.wrapping_sub(acknowledged) <= u16::MAX as u32
}

#[cfg(test)]
mod tests {
    use super::{
        super::state::{ESTABLISHED, SYN_IN, SYN_OUT},
        Direction::*,
        *,
    };
    use proptest::prelude::*;

    const SYN: u8 = tcp_flag::SYN;
    const ACK: u8 = tcp_flag::ACK;
    const FIN: u8 = tcp_flag::FIN;
    const RST: u8 = tcp_flag::RST;
    const OPEN: u32 = SYN_OUT | SYN_IN | ESTABLISHED;

    #[test]
    fn syn_and_fin_count_one() {
        assert_eq!(after(100, 0, ACK), 100);
        assert_eq!(after(100, 7, ACK), 107);
        assert_eq!(after(100, 0, SYN), 101);
        assert_eq!(after(100, 7, SYN | ACK), 108);
        assert_eq!(after(100, 7, FIN | ACK), 108);
        assert_eq!(after(u32::MAX, 1, FIN), 1);
    }

    #[test]
    fn a_number_moves_forward_by_what_a_window_holds() {
        for last in [0, 1, 1000, u32::MAX - 10, 1 << 31] {
            let step = |ahead: u32| step(OPEN, Outbound, ACK, last, last.wrapping_add(ahead));
            assert_eq!(step(0), Step::Keep);
            assert_eq!(step(1), Step::Take);
            assert_eq!(step(WINDOW), Step::Take);
            assert_eq!(step(WINDOW + 1), Step::TakeIfAcknowledged);
            assert_eq!(step(i32::MAX as u32), Step::TakeIfAcknowledged);
            // Keep-alive probes, retransmissions.
            for behind in [1, 2, 1460, WINDOW] {
                assert_eq!(step(0u32.wrapping_sub(behind)), Step::Keep, "{behind}");
            }
            // A stranger has moved what is kept: the side itself puts it right.
            for behind in [WINDOW + 1, 1 << 30, 1 << 31] {
                assert_eq!(step(0u32.wrapping_sub(behind)), Step::TakeIfAcknowledged, "{behind}");
            }
        }
    }

    #[test]
    fn a_syn_sets_the_number_until_the_connection_is_established() {
        for direction in [Outbound, Inbound] {
            let far = 1 << 30;
            assert_eq!(step(state::syn_of(direction), direction, SYN, 5, far), Step::Take);
            assert_eq!(step(SYN_OUT | SYN_IN, direction, SYN | ACK, 5, far), Step::TakeIfAcknowledged);
            assert_eq!(step(OPEN, direction, SYN, 5, far), Step::Keep);
            assert_eq!(step(OPEN, direction, SYN | ACK, 5, 6), Step::Keep);
        }
    }

    /// What is kept of a side before its SYN is nothing, or of an older connection.
    #[test]
    fn nothing_is_known_of_a_side_before_its_syn() {
        assert_eq!(step(SYN_OUT, Inbound, ACK, 0, 1), Step::Keep);
        assert_eq!(step(SYN_IN, Outbound, ACK, 0, 1), Step::Keep);
    }

    #[test]
    fn what_acknowledges_nothing_crosses_no_gap() {
        assert_eq!(step(OPEN, Outbound, 0, 5, 6 + WINDOW), Step::Keep);
        assert_eq!(step(OPEN, Outbound, 0, 5, 6), Step::Take);
    }

    #[test]
    fn a_rst_moves_nothing() {
        assert_eq!(step(OPEN, Outbound, RST, 5, 6), Step::Keep);
        assert_eq!(step(SYN_OUT, Outbound, RST | SYN, 5, 6), Step::Keep);
    }

    #[test]
    fn a_rst_is_believed_up_to_its_senders_next_number() {
        for own in [0, 77, WINDOW, u32::MAX] {
            let number = |sequence: u32| believed(OPEN, Inbound, RST, (sequence, 0), (own, 9));
            assert!(number(own) && number(own.wrapping_sub(1)) && number(own.wrapping_sub(WINDOW)));
            assert!(!number(own.wrapping_add(1)), "what has not been sent");
            assert!(!number(own.wrapping_sub(WINDOW + 1)) && !number(own.wrapping_add(1 << 31)));
        }
    }

    #[test]
    fn a_refused_syn_is_believed_by_what_is_acknowledged() {
        let refused = |flags, acknowledged| believed(SYN_OUT, Inbound, flags, (0, acknowledged), (123, 1001));
        assert!(refused(RST | ACK, 1001));
        assert!(refused(RST | ACK, 1000), "data with the SYN was not taken");
        assert!(!refused(RST | ACK, 1002) && !refused(RST | ACK, 0x4000_0000));
        assert!(!refused(RST, 1001), "RFC 9293 §3.10.7.3: the receiver drops it");
        // And the other way round, of one that began outside.
        assert!(believed(SYN_IN, Outbound, RST | ACK, (0, 501), (0, 501)));
    }

    proptest! {
        /// Whoever sees the whole conversation in order knows every next number exactly.
        #[test]
        fn what_is_seen_in_order_is_followed(start: u32, sizes in proptest::collection::vec(0u32..65_000, 1..50)) {
            let mut sent = after(start, 0, SYN);
            let mut kept = sent;
            for size in sizes {
                let next = after(sent, size, ACK);
                if step(OPEN, Outbound, ACK, kept, next) == Step::Take {
                    kept = next;
                }
                sent = next;
                prop_assert_eq!(kept, sent);
            }
        }

        /// A stray number moves what is kept by a window at most, and a RST of the real sender is believed nevertheless.
        #[test]
        fn a_stray_number_does_not_move_it_far(last: u32, stray: u32) {
            let kept = if step(OPEN, Inbound, ACK, last, stray) == Step::Take { stray } else { last };
            prop_assert!(kept.wrapping_sub(last) <= WINDOW);
            prop_assert!(believed(OPEN, Inbound, RST, (last, 0), (kept, 0)));
        }
    }
}
