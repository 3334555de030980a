// SPDX-License-Identifier: MIT OR Apache-2.0
//! When a flow is over, judged by the data path itself: nothing sweeps here.

use nat_common::{abi::counters::Reason, tick};

use crate::{
    case::{Case, P1, P2, rewritten},
    harness::{
        World,
        world::{FRONTEND, SERVER, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);

/// Ticks that a timer of so many seconds lasts.
#[must_use]
pub fn seconds(seconds: u32) -> u32 {
    tick::from_seconds(seconds)
}

impl Case {
    /// A segment from inside on the old tuple starts a new connection with the port it had.
    #[must_use]
    fn reopens(self, packet: Packet, port: u16, class: &str) -> Self {
        let sent = rewritten(&packet, FRONTEND, port);
        self.inside(packet).out(sent).change(&format!("grant.0.{class}.opened"), 1)
    }

    fn expired_in(self, packet: Packet) -> Self {
        self.outside(packet).drops(Reason::FlowExpired)
    }

    fn expired_out(self, packet: Packet) -> Self {
        self.inside(packet).drops(Reason::FlowExpired)
    }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [datagrams(), connections(), closing(), again()].concat()
}

fn datagrams() -> Vec<Case> {
    let udp = |name| Case::new(name, World::default()).goes(Packet::udp(CLIENT, DNS), P1).opens(0, "udp");
    let ping =
        |name| Case::new(name, World::default()).goes(Packet::ping((WEB, 7), SERVER), P1).opens(0, "icmp");
    let answer = Packet::udp(DNS, OUTER);
    let mut kept = udp("udp_kept_alive_from_outside_alone");
    for _ in 0..5 {
        kept = kept.ticks(seconds(239)).comes(answer.clone(), CLIENT);
    }
    let mut kept_out = udp("udp_kept_alive_from_inside_alone");
    for _ in 0..5 {
        kept_out = kept_out.ticks(seconds(239)).goes(Packet::udp(CLIENT, DNS), P1);
    }
    vec![
        udp("udp_lives_240_seconds").ticks(seconds(240)).comes(answer.clone(), CLIENT),
        udp("udp_is_over_after_240_seconds").ticks(seconds(240) + 1).expired_in(answer.clone()),
        udp("udp_starts_again_from_inside")
            .ticks(seconds(240) + 1)
            .reopens(Packet::udp(CLIENT, DNS), P1, "udp")
            .comes(answer.clone(), CLIENT),
        udp("a_late_answer_does_not_revive")
            .ticks(seconds(240) + 1)
            .expired_in(answer.clone())
            .ticks(1)
            .expired_in(answer.clone()),
        kept.goes(Packet::udp(CLIENT, DNS), P1),
        kept_out.comes(answer, CLIENT),
        ping("ping_lives_60_seconds")
            .ticks(seconds(60))
            .comes(Packet::pong(SERVER, OUTER), (WEB, 7))
            .ticks(seconds(60) + 1)
            .expired_in(Packet::pong(SERVER, OUTER))
            .reopens(Packet::ping((WEB, 7), SERVER), P1, "icmp"),
    ]
}

fn connections() -> Vec<Case> {
    let syn =
        |name| Case::new(name, World::default()).goes(Packet::tcp(CLIENT, HTTP, SYN), P1).opens(0, "tcp");
    let open = |name| Case::new(name, World::default()).handshake(CLIENT, HTTP, P1);
    let reply = Packet::tcp(HTTP, OUTER, ACK);
    vec![
        syn("handshake_has_30_seconds").ticks(seconds(30)).comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT),
        syn("handshake_is_over_after_30_seconds").ticks(seconds(30) + 1).expired_in(Packet::tcp(
            HTTP,
            OUTER,
            SYN | ACK,
        )),
        syn("half_a_handshake_stays_one")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT)
            .ticks(seconds(30) + 1)
            .expired_in(Packet::tcp(HTTP, OUTER, SYN | ACK)),
        syn("an_ack_from_outside_alone_establishes_nothing")
            .comes(reply.clone(), CLIENT)
            .ticks(seconds(30) + 1)
            .expired_in(reply.clone()),
        open("established_lives_240_seconds").ticks(seconds(240)).comes(reply.clone(), CLIENT),
        open("established_is_over_after_240_seconds")
            .ticks(seconds(240) + 1)
            .expired_in(reply.clone())
            .expired_out(Packet::tcp(CLIENT, HTTP, ACK))
            .expired_out(Packet::tcp(CLIENT, HTTP, FIN | ACK))
            .expired_out(Packet::tcp(CLIENT, HTTP, RST)),
        open("a_new_syn_after_expiry_starts_again")
            .ticks(seconds(240) + 1)
            .reopens(Packet::tcp(CLIENT, HTTP, SYN), P1, "tcp")
            .ticks(seconds(30) + 1)
            .expired_in(Packet::tcp(HTTP, OUTER, SYN | ACK)),
        open("a_syn_within_an_open_connection_changes_nothing")
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .ticks(seconds(240))
            .comes(reply, CLIENT),
    ]
}

fn closing() -> Vec<Case> {
    let open = |name| Case::new(name, World::default()).handshake(CLIENT, HTTP, P1);
    let closed = |name| {
        open(name)
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
    };
    let reply = Packet::tcp(HTTP, OUTER, ACK);
    vec![
        open("half_closed_lives_on_by_its_packets")
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .ticks(seconds(239))
            .comes(reply.clone().fill(100), CLIENT)
            .ticks(seconds(239))
            .comes(reply.clone().fill(100), CLIENT)
            .ticks(seconds(240) + 1)
            .expired_in(reply.clone()),
        closed("closed_rests_240_seconds").ticks(seconds(240)).goes(Packet::tcp(CLIENT, HTTP, ACK), P1),
        closed("closed_is_over_after_240_seconds")
            .ticks(seconds(240) + 1)
            .expired_out(Packet::tcp(CLIENT, HTTP, ACK))
            .expired_in(reply.clone()),
        closed("retransmissions_do_not_prolong_closed")
            .ticks(seconds(200))
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .ticks(seconds(41))
            .expired_in(Packet::tcp(HTTP, OUTER, FIN | ACK)),
        open("closed_by_both_at_once")
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .ticks(seconds(240) + 1)
            .expired_in(reply.clone()),
        open("reset_from_outside_rests_15_seconds")
            .comes(Packet::tcp(HTTP, OUTER, RST), CLIENT)
            .ticks(seconds(15))
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1)
            .ticks(1)
            .expired_out(Packet::tcp(CLIENT, HTTP, ACK)),
        open("reset_from_inside_rests_15_seconds")
            .goes(Packet::tcp(CLIENT, HTTP, RST | ACK), P1)
            .ticks(seconds(15))
            .comes(reply.clone(), CLIENT)
            .ticks(1)
            .expired_in(reply),
    ]
}

fn again() -> Vec<Case> {
    let open = |name| Case::new(name, World::default()).handshake(CLIENT, HTTP, P1);
    vec![
        open("a_closed_connection_reopens_on_its_port")
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .ticks(5)
            .reopens(Packet::tcp(CLIENT, HTTP, SYN), P1, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1)
            .ticks(seconds(240))
            .comes(Packet::tcp(HTTP, OUTER, ACK), CLIENT),
        open("a_reset_connection_reopens_on_its_port")
            .comes(Packet::tcp(HTTP, OUTER, RST), CLIENT)
            .reopens(Packet::tcp(CLIENT, HTTP, SYN), P1, "tcp")
            .ticks(seconds(30) + 1)
            .expired_in(Packet::tcp(HTTP, OUTER, SYN | ACK)),
        Case::new("a_connection_reset_at_once_still_hears_the_answer", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .goes(Packet::tcp(CLIENT, HTTP, RST), P1)
            .comes(Packet::tcp(HTTP, OUTER, ACK), CLIENT)
            .ticks(seconds(15))
            .comes(Packet::tcp(HTTP, OUTER, ACK), CLIENT)
            .ticks(1)
            .expired_in(Packet::tcp(HTTP, OUTER, ACK)),
        open("a_half_closed_connection_does_not_reopen")
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .goes(Packet::tcp(CLIENT, (SERVER, 81), SYN), P2)
            .opens(0, "tcp"),
    ]
}
