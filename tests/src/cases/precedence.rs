// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instance IP or outbound rule: which one a packet leaves by, when a backend has both.

use nat_common::abi::counters::Reason;

use super::timers::seconds;
use crate::{
    case::{Case, Expect, P1, P2, P3},
    harness::{
        World,
        world::{FRONTEND, GATEWAY_OUTSIDE, PUBLIC, SERVER, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN, TIME_EXCEEDED},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
/// A client outside, and the services that it reaches by the instance IP.
const VISITOR: End = (SERVER, 5555);
const SSH: End = (WEB, 22);
const PUBLIC_SSH: End = (PUBLIC, 22);

impl Case {
    /// The answer of a connection from outside leaves from the instance IP, by its flow.
    #[must_use]
    fn answers(self, packet: Packet) -> Self {
        let port = packet.source.1;
        let sent = packet.clone().from((PUBLIC, port)).hop();
        self.inside(packet).out(sent)
    }

    /// Three-way handshake from outside.
    #[must_use]
    fn accepts(self) -> Self {
        self.comes(Packet::tcp(VISITOR, PUBLIC_SSH, SYN), SSH)
            .opens(0, "tcp")
            .answers(Packet::tcp(SSH, VISITOR, SYN | ACK))
            .comes(Packet::tcp(VISITOR, PUBLIC_SSH, ACK), SSH)
    }

    /// The last packet opens a flow in the place of one that was over.
    #[must_use]
    fn anew(self, class: &str) -> Self {
        self.change(&format!("grant.0.{class}.opened"), 1)
    }
}

fn rule_first() -> World {
    World { rule_first: true, ..World::default().instance() }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("instance_ip_wins_over_the_rule", World::default().instance())
            .leaves(Packet::tcp(CLIENT, HTTP, SYN))
            .leaves(Packet::udp(CLIENT, DNS))
            .leaves(Packet::ping((WEB, 7), SERVER)),
        Case::new("rule_first_outbound", rule_first())
            .handshake(CLIENT, HTTP, P1)
            .goes(Packet::udp(CLIENT, DNS), P2)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, (FRONTEND, P2)), CLIENT)
            .goes(Packet::ping((WEB, 77), SERVER), P3)
            .opens(0, "icmp")
            .comes(Packet::pong(SERVER, (FRONTEND, P3)), (WEB, 77)),
        Case::new("rule_first_what_no_rule_takes", rule_first())
            .leaves(Packet::other(WEB, SERVER, 50))
            .arrives(Packet::other(SERVER, PUBLIC, 50))
            .leaves(Packet::covered(CLIENT, DNS, 136))
            .arrives(Packet::ping((SERVER, 9), PUBLIC))
            .leaves(Packet::pong(WEB, (SERVER, 9)))
            .leaves(Packet::tcp(CLIENT, HTTP, ACK))
            .leaves(Packet::icmp(WEB, SERVER, 5, 0)),
        Case::new("rule_first_for_tcp_only", {
            let mut world = rule_first();
            world.backends[0].ports[1].clear();
            world
        })
        .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
        .opens(0, "tcp")
        .leaves(Packet::udp(CLIENT, DNS))
        .arrives(Packet::udp(DNS, (PUBLIC, 40_000))),
    ];
    cases.extend(from_outside());
    cases.extend(again());
    cases
}

fn from_outside() -> Vec<Case> {
    vec![
        Case::new("rule_first_inbound_tcp", rule_first())
            .accepts()
            .answers(Packet::tcp(SSH, VISITOR, ACK).fill(100))
            .comes(Packet::tcp(VISITOR, PUBLIC_SSH, FIN | ACK), SSH)
            .answers(Packet::tcp(SSH, VISITOR, FIN | ACK))
            // The same backend and far end, the other way: by the rule.
            .goes(Packet::tcp(CLIENT, (SERVER, 5555), SYN), P1)
            .opens(0, "tcp"),
        Case::new("rule_first_inbound_udp", rule_first())
            .comes(Packet::udp(VISITOR, (PUBLIC, 53)), (WEB, 53))
            .opens(0, "udp")
            .answers(Packet::udp((WEB, 53), VISITOR))
            .comes(Packet::udp(VISITOR, (PUBLIC, 53)).no_checksum(), (WEB, 53))
            .answers(Packet::udp((WEB, 53), VISITOR).no_checksum())
            // A port of the block that the backend's rule has.
            .comes(Packet::udp(VISITOR, (PUBLIC, 1024)), (WEB, 1024))
            .opens(0, "udp"),
        Case::new("rule_first_inbound_needs_a_syn", rule_first())
            .outside(Packet::tcp(VISITOR, PUBLIC_SSH, ACK))
            .drops(Reason::TcpNoFlow)
            .outside(Packet::tcp(VISITOR, PUBLIC_SSH, RST))
            .drops(Reason::TcpNoFlow)
            .outside(Packet::tcp(VISITOR, PUBLIC_SSH, SYN | ACK))
            .drops(Reason::TcpNoFlow),
        Case::new("rule_first_inbound_ttl_and_checksum", rule_first())
            .outside(Packet::tcp(VISITOR, PUBLIC_SSH, SYN).ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_OUTSIDE), Reason::TtlExceeded)
            .outside_patched(Packet::tcp(VISITOR, PUBLIC_SSH, SYN), &[(24, &[0x00, 0x01])])
            .drops(Reason::BadChecksum)
            .accepts(),
        Case::new(
            "rule_first_no_place_and_nobody_outside_hears_it",
            World { guaranteed: 2, on_refusal: 1, ..rule_first() },
        )
        .accepts()
        .outside(Packet::udp(VISITOR, (PUBLIC, 53)))
        .drops(Reason::TableShare)
        .change("grant.0.udp.refused_table", 1),
    ]
}

/// A visitor that comes again from the same port, which only it chooses.
fn again() -> Vec<Case> {
    let syn = Packet::tcp(VISITOR, PUBLIC_SSH, SYN);
    vec![
        Case::new("rule_first_inbound_reopens_after_a_close", rule_first())
            .accepts()
            .comes(Packet::tcp(VISITOR, PUBLIC_SSH, FIN | ACK), SSH)
            .answers(Packet::tcp(SSH, VISITOR, FIN | ACK))
            .ticks(3)
            .comes(syn.clone(), SSH)
            .anew("tcp")
            .answers(Packet::tcp(SSH, VISITOR, SYN | ACK))
            .comes(Packet::tcp(VISITOR, PUBLIC_SSH, ACK), SSH)
            .ticks(seconds(240))
            .answers(Packet::tcp(SSH, VISITOR, ACK)),
        Case::new("rule_first_inbound_reopens_after_a_reset", rule_first())
            .accepts()
            .answers(Packet::tcp(SSH, VISITOR, RST))
            .comes(syn.clone(), SSH)
            .anew("tcp"),
        Case::new("rule_first_inbound_reopens_when_idle_for_too_long", rule_first())
            .comes(Packet::udp(VISITOR, (PUBLIC, 53)), (WEB, 53))
            .opens(0, "udp")
            .ticks(seconds(240) + 1)
            .comes(Packet::udp(VISITOR, (PUBLIC, 53)), (WEB, 53))
            .anew("udp")
            .answers(Packet::udp((WEB, 53), VISITOR)),
        Case::new("rule_first_idle_for_too_long_and_a_segment_that_opens_nothing", rule_first())
            .accepts()
            .ticks(seconds(240) + 1)
            .outside(Packet::tcp(VISITOR, PUBLIC_SSH, ACK))
            .drops(Reason::FlowExpired)
            .comes(syn, SSH)
            .anew("tcp"),
    ]
}
