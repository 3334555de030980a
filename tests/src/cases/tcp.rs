// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP beyond its life cycle (see `timers`): rare openings, RST by sequence number, and who hears of segments that come too late.

use nat_common::{
    abi::{
        counters::Reason,
        flow::FLOW_SEQUENCE,
        grant::{REFUSALS_PER_TICK, RULE_FLOW_SHIFT, RULE_RESET_CHECK, RULE_RESET_PACKET},
    },
    net::sequence::WINDOW,
};

use super::timers::seconds;
use crate::{
    case::{Case, P1, returned, rewritten},
    harness::{
        World,
        world::{FRONTEND, SERVER, SERVER2, STRANGER, WEB},
    },
    packet::{ACK, End, FIN, PSH, Packet, RST, SYN},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const OUTER: End = (FRONTEND, P1);
/// First numbers of the backend and of the server: the latter's wrap soon.
const OUT: u32 = 1000;
const IN: u32 = u32::MAX - 500;

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [openings(), believed(), doubted(), late(), late_and_silent()].concat()
}

fn world(flags: u32) -> World {
    World { rule_flags: flags, ..World::default() }
}

/// A segment of the backend and of the server with these numbers.
fn out(flags: u8, sequence: u32, acknowledged: u32) -> Packet {
    Packet::tcp(CLIENT, HTTP, flags).numbers(sequence, acknowledged)
}

fn reply(flags: u8, sequence: u32, acknowledged: u32) -> Packet {
    Packet::tcp(HTTP, OUTER, flags).numbers(sequence, acknowledged)
}

impl Case {
    /// A handshake with the numbers [`OUT`] and [`IN`].
    fn numbered(self) -> Self {
        self.goes(out(SYN, OUT, 0), P1)
            .opens(0, "tcp")
            .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT)
            .goes(out(ACK, OUT + 1, IN + 1), P1)
    }

    /// The flow is still established: it lives longer than one that was reset.
    fn still_open(self) -> Self {
        self.ticks(seconds(15) + 1).goes(out(ACK, OUT + 1, IN + 1), P1)
    }

    /// The flow was reset.
    fn then_over(self) -> Self {
        self.ticks(seconds(15) + 1).inside(out(ACK, OUT + 1, IN + 1)).drops(Reason::FlowExpired)
    }

    /// A RST that is translated and not believed.
    fn doubted_in(self, packet: Packet) -> Self {
        let sent = returned(&packet, CLIENT.0, CLIENT.1);
        self.outside(packet).back(sent).change("resets_doubted", 1)
    }

    fn doubted_out(self, packet: Packet) -> Self {
        let sent = rewritten(&packet, FRONTEND, P1);
        self.inside(packet).out(sent).change("resets_doubted", 1)
    }
}

/// RFC 9293 §3.5 and what is not in order.
fn openings() -> Vec<Case> {
    let plain = |name| Case::new(name, World::default());
    let syn = |name| plain(name).goes(out(SYN, OUT, 0), P1).opens(0, "tcp");
    let lives = |case: Case| case.ticks(seconds(240)).comes(reply(ACK, IN, OUT), CLIENT);
    let is_handshake =
        |case: Case| case.ticks(seconds(30) + 1).outside(reply(ACK, IN, OUT)).drops(Reason::FlowExpired);
    vec![
        lives(
            syn("simultaneous_open_without_another_ack")
                .comes(reply(SYN, IN, 0), CLIENT)
                .goes(out(SYN | ACK, OUT, IN + 1), P1)
                .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT),
        ),
        is_handshake(
            syn("an_answer_that_is_sent_again_does_not_establish")
                .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT)
                .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT),
        ),
        is_handshake(syn("a_fin_before_the_answer_closes_nothing").goes(out(FIN | ACK, OUT + 1, IN), P1)),
        is_handshake(
            syn("a_fin_from_outside_before_the_answer_closes_nothing")
                .comes(reply(FIN | ACK, IN, OUT + 1), CLIENT),
        ),
        lives(
            syn("a_fin_may_finish_the_handshake")
                .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT)
                .goes(out(FIN | ACK, OUT + 1, IN + 1), P1),
        ),
        // RFC 5382 REQ-4: nobody hears of a SYN that nobody expects.
        plain("a_syn_from_outside_is_not_answered")
            .outside(Packet::tcp(HTTP, (FRONTEND, 1024), SYN))
            .drops(Reason::NoMapping),
    ]
}

/// What ends a flow whose rule checks RST segments.
fn believed() -> Vec<Case> {
    let sequence = u32::from(FLOW_SEQUENCE) << RULE_FLOW_SHIFT;
    let checked = |name| Case::new(name, world(RULE_RESET_CHECK | sequence));
    let open = |name| checked(name).numbered();
    let syn = |name| checked(name).goes(out(SYN, OUT, 0), P1).opens(0, "tcp");
    vec![
        open("rst_with_the_next_number").comes(reply(RST, IN + 1, 0), CLIENT).then_over(),
        open("rst_from_inside_with_the_next_number").goes(out(RST | ACK, OUT + 1, IN + 1), P1).then_over(),
        open("rst_after_data_and_over_the_wrap")
            .comes(reply(PSH | ACK, IN + 1, OUT + 1).fill(1000), CLIENT)
            .comes(reply(RST | ACK, IN.wrapping_add(1001), OUT + 1), CLIENT)
            .then_over(),
        open("rst_that_answers_an_older_ack")
            .comes(reply(PSH | ACK, IN + 1, OUT + 1).fill(1000), CLIENT)
            .comes(reply(RST, IN + 1, 0), CLIENT)
            .then_over(),
        open("rst_after_fin_counts_the_fin")
            .goes(out(FIN | ACK, OUT + 1, IN + 1), P1)
            .goes(out(RST, OUT + 2, 0), P1)
            .then_over(),
        open("rst_after_a_keepalive_probe")
            .goes(out(ACK, OUT, IN + 1).fill(1), P1)
            .goes(out(ACK, OUT, IN + 1), P1)
            .goes(out(RST, OUT + 1, 0), P1)
            .then_over(),
        syn("a_refused_syn").comes(reply(RST | ACK, 0, OUT + 1), CLIENT).then_over(),
        // More was lost on the way here than a window; the ACK shows that the segment is the connection's.
        open("a_gap_is_crossed_by_what_is_acknowledged")
            .comes(reply(ACK, IN.wrapping_add(3 * WINDOW), OUT + 1).fill(10), CLIENT)
            .comes(reply(RST, IN.wrapping_add(3 * WINDOW + 10), 0), CLIENT)
            .then_over(),
        open("a_new_connection_has_new_numbers")
            .comes(reply(RST, IN + 1, 0), CLIENT)
            .inside(out(SYN, 0x7000_0000, 0))
            .out(rewritten(&out(SYN, 0x7000_0000, 0), FRONTEND, P1))
            .change("grant.0.tcp.opened", 1)
            .comes(reply(SYN | ACK, 0x5000_0000, 0x7000_0001), CLIENT)
            .goes(out(ACK, 0x7000_0001, 0x5000_0001), P1)
            .doubted_in(reply(RST, IN + 1, 0))
            .doubted_out(out(RST, OUT + 1, 0))
            .comes(reply(RST, 0x5000_0001, 0), CLIENT)
            .then_over(),
        Case::new("every_rst_is_believed_without_the_check", world(sequence))
            .numbered()
            .comes(reply(RST, IN.wrapping_add(12_345_678), 0), CLIENT)
            .then_over(),
        Case::new("every_rst_is_believed_without_numbers", world(RULE_RESET_CHECK))
            .numbered()
            .comes(reply(RST, IN.wrapping_add(12_345_678), 0), CLIENT)
            .then_over(),
    ]
}

/// What does not end it.
fn doubted() -> Vec<Case> {
    let sequence = u32::from(FLOW_SEQUENCE) << RULE_FLOW_SHIFT;
    let checked = |name| Case::new(name, world(RULE_RESET_CHECK | sequence));
    let open = |name| checked(name).numbered();
    let syn = |name| checked(name).goes(out(SYN, OUT, 0), P1).opens(0, "tcp");
    let stray = reply(RST, IN.wrapping_add(1 << 30), 0);
    let mut kept = open("a_stray_rst_does_not_keep_a_flow");
    for _ in 0..5 {
        kept = kept.ticks(seconds(40)).doubted_in(stray.clone());
    }
    vec![
        open("stray_rst_from_outside").doubted_in(stray.clone()).still_open(),
        open("stray_rst_from_inside").doubted_out(out(RST, OUT.wrapping_add(1 << 31), 0)).still_open(),
        open("rst_ahead_of_what_was_sent").doubted_in(reply(RST, IN + 2, 0)).still_open(),
        open("rst_further_back_than_a_window")
            .doubted_in(reply(RST, IN.wrapping_sub(WINDOW), 0))
            .still_open(),
        // RFC 9293 §3.10.7.3: in SYN-SENT only what acknowledges the SYN is acceptable.
        syn("a_rst_without_ack_does_not_refuse_a_syn")
            .doubted_in(reply(RST, 0, OUT + 1))
            .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT),
        syn("a_rst_that_acknowledges_another_syn")
            .doubted_in(reply(RST | ACK, 0, OUT + 2))
            .comes(reply(SYN | ACK, IN, OUT + 1), CLIENT),
        // Neither number nor acknowledgement of a stranger's segment fits: it moves nothing.
        open("a_stray_segment_does_not_prepare_for_a_rst")
            .comes(reply(ACK, IN.wrapping_add(1 << 30), 0x3333_3333).fill(10), CLIENT)
            .doubted_in(reply(RST, IN.wrapping_add((1 << 30) + 10), 0))
            .still_open(),
        open("nor_does_a_syn_on_an_open_connection")
            .comes(reply(SYN, IN.wrapping_add(1 << 30), 0), CLIENT)
            .doubted_in(reply(RST, IN.wrapping_add((1 << 30) + 1), 0))
            .still_open(),
        kept.ticks(seconds(40) + 1).outside(reply(ACK, IN + 1, OUT + 1)).drops(Reason::FlowExpired),
        open("a_doubted_rst_on_a_flow_that_is_over")
            .ticks(seconds(240) + 1)
            .outside(stray)
            .drops(Reason::FlowExpired)
            .change("resets_doubted", 1),
    ]
}

/// `tcp_reset` on packet.
fn late() -> Vec<Case> {
    let told = |name| Case::new(name, world(RULE_RESET_PACKET));
    let over = |name| told(name).numbered().ticks(seconds(240) + 1);
    let mut budget = over("late_segments_are_answered_within_a_budget");
    for number in 0..REFUSALS_PER_TICK + 2 {
        budget = if number % 2 == 0 {
            budget.inside(out(ACK, OUT + 1, IN + 1))
        } else {
            budget.outside(reply(ACK, IN + 1, OUT + 1))
        };
        budget = if number < REFUSALS_PER_TICK {
            budget.reset_late(Reason::FlowExpired)
        } else {
            budget.drops(Reason::FlowExpired)
        };
    }
    let mut without = told("a_segment_without_flow_is_answered");
    for packet in [
        out(ACK, 7, 8),
        out(PSH | ACK, 7, 8).fill(100),
        out(FIN | ACK, 7, 8),
        out(SYN | ACK, 7, 8),
        out(FIN, 7, 0).fill(3),
        out(0, 7, 0).fill(3),
    ] {
        without = without.inside(packet).reset_late(Reason::TcpNoFlow);
    }
    vec![
        over("a_late_segment_from_inside_is_answered")
            .inside(out(PSH | ACK, OUT + 1, IN + 1).fill(100))
            .reset_late(Reason::FlowExpired),
        over("a_late_segment_from_outside_is_answered")
            .outside(reply(PSH | ACK, IN + 1, OUT + 1).fill(100))
            .reset_late(Reason::FlowExpired),
        over("a_late_fin_is_answered")
            .inside(out(FIN | ACK, OUT + 1, IN + 1))
            .reset_late(Reason::FlowExpired),
        told("after_the_rest_of_a_closed_flow")
            .numbered()
            .goes(out(FIN | ACK, OUT + 1, IN + 1), P1)
            .comes(reply(FIN | ACK, IN + 1, OUT + 2), CLIENT)
            .comes(reply(FIN | ACK, IN + 1, OUT + 2), CLIENT)
            .ticks(seconds(240) + 1)
            .outside(reply(FIN | ACK, IN + 1, OUT + 2))
            .reset_late(Reason::FlowExpired),
        over("a_new_syn_is_not_answered_but_opens")
            .inside(out(SYN, OUT, 0))
            .out(rewritten(&out(SYN, OUT, 0), FRONTEND, P1))
            .change("grant.0.tcp.opened", 1),
        budget.ticks(1).inside(out(ACK, OUT + 1, IN + 1)).reset_late(Reason::FlowExpired),
        without,
    ]
}

/// What is not answered, whatever the rule says.
fn late_and_silent() -> Vec<Case> {
    let told = |name| Case::new(name, world(RULE_RESET_PACKET));
    let over = |name| told(name).numbered().ticks(seconds(240) + 1);
    vec![
        over("a_late_rst_is_not_answered")
            .inside(out(RST, OUT + 1, 0))
            .drops(Reason::FlowExpired)
            .outside(reply(RST | ACK, IN + 1, OUT + 1))
            .drops(Reason::FlowExpired),
        over("a_late_syn_from_outside_is_not_answered").outside(reply(SYN, IN, 0)).drops(Reason::FlowExpired),
        // The same port, another sender: nothing in the table is theirs.
        over("strangers_outside_are_not_answered")
            .outside(Packet::tcp((SERVER, 81), OUTER, ACK))
            .drops(Reason::NoMapping)
            .outside(Packet::tcp((SERVER2, 80), OUTER, ACK))
            .drops(Reason::NoMapping),
        told("strangers_inside_are_not_answered")
            .inside(Packet::tcp((STRANGER, 40_000), HTTP, ACK))
            .drops(Reason::NoOutboundRule),
        told("a_rst_without_flow_is_not_answered").inside(out(RST | ACK, 7, 8)).drops(Reason::TcpNoFlow),
        told("a_syn_and_fin_without_flow_are_not_answered")
            .inside(out(SYN | FIN, 7, 8))
            .drops(Reason::TcpNoFlow),
        told("other_protocols_are_not_reset")
            .goes(Packet::udp(CLIENT, HTTP), P1)
            .opens(0, "udp")
            .ticks(seconds(240) + 1)
            .outside(Packet::udp(HTTP, OUTER))
            .drops(Reason::FlowExpired),
        Case::new("late_segments_are_dropped_in_silence_by_default", World::default())
            .numbered()
            .ticks(seconds(240) + 1)
            .inside(out(ACK, OUT + 1, IN + 1))
            .drops(Reason::FlowExpired)
            .outside(reply(ACK, IN + 1, OUT + 1))
            .drops(Reason::FlowExpired),
    ]
}
