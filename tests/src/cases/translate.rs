// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP, UDP and echo, there and back.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, P1, P2, returned, rewritten},
    harness::{
        World,
        world::{DB, FRONTEND, NEAR, SERVER, SERVER2, WEB},
    },
    packet::{ACK, End, FIN, PSH, Packet, RST, SYN},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);

impl Case {
    /// A segment or datagram from inside that leaves with its source replaced by the frontend and `port`.
    #[must_use]
    pub fn goes(self, packet: Packet, port: u16) -> Self {
        let sent = rewritten(&packet, FRONTEND, port);
        self.inside(packet).out(sent)
    }

    /// A packet from outside that reaches the backend's endpoint.
    #[must_use]
    pub fn comes(self, packet: Packet, backend: End) -> Self {
        let sent = returned(&packet, backend.0, backend.1);
        self.outside(packet).back(sent)
    }

    /// Three-way handshake of backend 0 from `client` to `server` on the port that `port` stands for.
    #[must_use]
    pub fn handshake(self, client: End, server: End, port: u16) -> Self {
        self.goes(Packet::tcp(client, server, SYN), port)
            .opens(0, "tcp")
            .comes(Packet::tcp(server, (FRONTEND, port), SYN | ACK), client)
            .goes(Packet::tcp(client, server, ACK), port)
    }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("tcp_connection", World::default())
            .handshake(CLIENT, HTTP, P1)
            .goes(Packet::tcp(CLIENT, HTTP, PSH | ACK).fill(100), P1)
            .comes(Packet::tcp(HTTP, OUTER, PSH | ACK).fill(1400), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1),
        Case::new("tcp_reset", World::default())
            .handshake(CLIENT, HTTP, P1)
            .comes(Packet::tcp(HTTP, OUTER, RST), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, RST | ACK), P1),
        Case::new("tcp_simultaneous_open", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, SYN | ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, ACK), CLIENT),
        Case::new("tcp_syn_again", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1),
        Case::new("tcp_options_and_odd_data", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN).tcp_options(&[2, 4, 5, 180, 1, 1, 4, 2]).fill(1), P1)
            .opens(0, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK).tcp_options(&[2, 4, 5, 180]).fill(33), CLIENT),
        Case::new("udp_there_and_back", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .goes(Packet::udp(CLIENT, DNS).fill(1), P1)
            .comes(Packet::udp(DNS, OUTER).fill(511), CLIENT),
        Case::new("udp_without_checksum_keeps_none", World::default())
            .goes(Packet::udp(CLIENT, DNS).no_checksum(), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER).no_checksum().fill(7), CLIENT),
        Case::new("udp_without_payload", World::default())
            .goes(Packet::udp(CLIENT, DNS).fill(0), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER).fill(0), CLIENT),
        Case::new("udp_port_zero", World::default())
            .goes(Packet::udp((WEB, 0), DNS), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER), (WEB, 0)),
        Case::new("ping", World::default())
            .goes(Packet::ping((WEB, 77), SERVER), P1)
            .opens(0, "icmp")
            .comes(Packet::pong(SERVER, OUTER), (WEB, 77))
            .goes(Packet::ping((WEB, 77), SERVER).fill(57), P1)
            .comes(Packet::pong(SERVER, OUTER).fill(57), (WEB, 77)),
        Case::new("ping_with_identifier_zero", World::default())
            .goes(Packet::ping((WEB, 0), SERVER), P1)
            .opens(0, "icmp")
            .comes(Packet::pong(SERVER, OUTER), (WEB, 0)),
        Case::new("padding_stays", World::default())
            .goes(Packet::udp(CLIENT, DNS).fill(3).padded(), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER).fill(2).padded(), CLIENT)
            .goes(Packet::ping((WEB, 7), SERVER).fill(5).padded(), P2)
            .opens(0, "icmp")
            .comes(Packet::pong(SERVER, (FRONTEND, P2)).fill(5).padded(), (WEB, 7)),
        Case::new("ip_options", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN).options(&[1, 1, 1, 0]), P1)
            .opens(0, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK).options(&[7, 7, 4, 0, 0, 0, 0, 0]), CLIENT)
            .goes(Packet::udp(CLIENT, DNS).options(&[1; 40]), P2)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, (FRONTEND, P2)).options(&[1; 40]), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK).options(&[1; 36]).tcp_options(&[1; 40]).fill(3), P1),
        Case::new("type_of_service_and_df_stay", World::default())
            .goes(Packet { tos: 0xb9, ..Packet::udp(CLIENT, DNS).df() }, P1)
            .opens(0, "udp")
            .comes(Packet { tos: 0x03, id: 0, ..Packet::udp(DNS, OUTER).df() }, CLIENT),
        Case::new("destination_on_the_link", World::default())
            .goes(Packet::udp(CLIENT, (NEAR, 53)), P1)
            .opens(0, "udp")
            .comes(Packet::udp((NEAR, 53), OUTER), CLIENT),
        Case::new("two_backends_same_tuple", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .goes(Packet::udp((DB, 40_000), DNS), P2)
            .opens(1, "udp")
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .comes(Packet::udp(DNS, (FRONTEND, P2)), (DB, 40_000)),
        Case::new("other_destination_is_another_flow", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .goes(Packet::udp(CLIENT, (SERVER2, 53)), P2)
            .opens(0, "udp")
            .comes(Packet::udp((SERVER2, 53), (FRONTEND, P2)), CLIENT)
            .comes(Packet::udp(DNS, OUTER), CLIENT),
        Case::new("same_numbers_in_every_protocol", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .goes(Packet::tcp(CLIENT, DNS, SYN), P2)
            .opens(0, "tcp")
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .comes(Packet::tcp(DNS, (FRONTEND, P2), SYN | ACK), CLIENT),
        Case::new("ttl_two_goes_out_with_one", World::default())
            .goes(Packet::udp(CLIENT, DNS).ttl(2), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER).ttl(2), CLIENT)
            .goes(Packet::udp(CLIENT, DNS).ttl(255), P1),
    ];
    cases.push(lengths());
    cases.extend([Case::new("unresolved_backend_is_left_to_the_stack_translated", unresolved_backend())
        .goes(Packet::udp(CLIENT, DNS), P1)
        .opens(0, "udp")
        .outside(Packet::udp(DNS, OUTER))
        .then(crate::case::Expect::PassedAs(Box::new(Packet::udp(DNS, CLIENT))), Reason::TranslatedToStack)]);
    cases
}

/// Every payload length from 0 to 70 on one flow in both directions: odd ones, and those around 60-byte padding.
fn lengths() -> Case {
    let mut case = Case::new("every_length", World::default())
        .goes(Packet::udp(CLIENT, DNS), P1)
        .opens(0, "udp")
        .handshake(CLIENT, HTTP, P2);
    for length in 0..=70 {
        case = case
            .goes(Packet::udp(CLIENT, DNS).fill(length), P1)
            .comes(Packet::udp(DNS, OUTER).fill(length), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK).fill(length), P2)
            .comes(Packet::tcp(HTTP, (FRONTEND, P2), ACK).fill(length), CLIENT);
    }
    case
}

fn unresolved_backend() -> World {
    World::default().extra(&["neigh del 10.0.0.4 dev lan0"])
}
