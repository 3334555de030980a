// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP queries other than echo (RFC 5508 §3.1): the identifier is what echo's is.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, P1},
    harness::{
        World,
        world::{FIRST_PORT, FRONTEND, ROUTER, SERVER, SERVER2, SILENT, WEB},
    },
    packet::{End, Packet, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 77);
const ASKED: End = (SERVER, 0);
const OUTER: End = (FRONTEND, P1);
/// Timestamp, address mask: what asks, and what answers.
const QUERIES: [(u8, u8); 2] = [(13, 14), (17, 18)];

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        there_and_back(),
        quoted(),
        wrong_way(),
        timers(),
        Case::new("icmp_query_waits_for_a_neighbour", World::default())
            .inside(Packet::query(CLIENT, (SILENT, 0), 13))
            .passes(Reason::NeighbourUnresolved)
            .opens(0, "icmp"),
    ];
    cases.extend(refused());
    cases
}

fn there_and_back() -> Case {
    let mut case = Case::new("icmp_queries", World::default());
    for ((asks, answers), number) in QUERIES.into_iter().zip(0u8..) {
        let (client, server) = ((WEB, 70 + u16::from(number)), ([192, 0, 2, 70 + number], 0));
        let port = P1 + u16::from(number);
        case = case
            .goes(Packet::query(client, server, asks), port)
            .opens(0, "icmp")
            .comes(Packet::query(server, (FRONTEND, port), answers), client)
            .goes(Packet::query(client, server, asks).fill(0), port)
            .comes(Packet::query(server, (FRONTEND, port), answers).fill(33).options(&[1; 8]), client)
            .goes(Packet::query(client, server, asks).padded(), port);
    }
    case
}

fn quoted() -> Case {
    let sent = Packet::query(OUTER, ASKED, 13).ttl(3);
    let got = Packet::query(ASKED, CLIENT, 14).ttl(9);
    Case::new("icmp_queries_quoted", World::default())
        .goes(Packet::query(CLIENT, ASKED, 13), P1)
        .opens(0, "icmp")
        .error_in(|quote| Packet::error(ROUTER, TIME_EXCEEDED, 0, quote), &sent, CLIENT)
        .error_in(|quote| Packet::error(ROUTER, UNREACHABLE, 13, quote).keep(28), &sent, CLIENT)
        .error_out(|quote| Packet::error(WEB, UNREACHABLE, 3, quote), &got, OUTER)
        .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::query(OUTER, (SERVER2, 0), 13)))
        .drops(Reason::IcmpErrorNoFlow)
}

/// A mapping is open for answers, not for questions.
fn wrong_way() -> Case {
    let mut case = Case::new("icmp_queries_from_the_wrong_side", World::default())
        .goes(Packet::query(CLIENT, ASKED, 13), P1)
        .opens(0, "icmp");
    for (asks, answers) in QUERIES {
        // What asks from outside has its identifier where what answers from inside has it: no flow's.
        case = case
            .outside(Packet::query((SERVER, FIRST_PORT), (FRONTEND, 0), asks))
            .passes(Reason::HostTraffic)
            .inside(Packet::query((WEB, 0), (SERVER, 77), answers))
            .drops(Reason::IcmpUnsupported)
            .outside(Packet::query((SERVER2, 0), OUTER, answers))
            .drops(Reason::NoMapping);
    }
    case
}

fn timers() -> Case {
    let seconds = super::timers::seconds;
    Case::new("icmp_query_lives_for_its_timer", World::default())
        .goes(Packet::query(CLIENT, ASKED, 17), P1)
        .opens(0, "icmp")
        .ticks(seconds(59))
        .comes(Packet::query(ASKED, OUTER, 18), CLIENT)
        .ticks(seconds(60) + 1)
        .outside(Packet::query(ASKED, OUTER, 18))
        .drops(Reason::FlowExpired)
        .goes(Packet::query(CLIENT, ASKED, 17), P1)
        .change("grant.0.icmp.opened", 1)
}

fn refused() -> Vec<Case> {
    let mut types = Case::new("icmp_types_that_are_not_translated", World::default())
        .goes(Packet::ping((WEB, 1), SERVER), P1)
        .opens(0, "icmp");
    // Source quench, redirect, router advertisement and solicitation, and what has no meaning at all.
    for kind in [1, 4, 5, 9, 10, 19, 30, 40, 42, 255] {
        types = types
            .inside(Packet::icmp(WEB, SERVER, kind, 0))
            .drops(Reason::IcmpUnsupported)
            .outside(Packet::icmp(SERVER, FRONTEND, kind, 0))
            .passes(Reason::HostTraffic);
    }
    let quoted = Packet::ping((FRONTEND, P1), SERVER);
    vec![
        types,
        Case::new("source_quench_and_redirect_about_a_flow", World::default())
            .goes(Packet::ping((WEB, 1), SERVER), P1)
            .opens(0, "icmp")
            .outside(Packet::error(ROUTER, 4, 0, &quoted))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, 5, 1, &quoted).rest([198, 51, 100, 9]))
            .passes(Reason::HostTraffic)
            .inside(Packet::error(WEB, 4, 0, &Packet::pong(SERVER, (WEB, 1))))
            .drops(Reason::IcmpUnsupported)
            .inside(Packet::error(WEB, 5, 1, &Packet::pong(SERVER, (WEB, 1))))
            .drops(Reason::IcmpUnsupported),
        Case::new(
            "source_quench_to_a_frontend_that_the_host_does_not_own",
            World { frontends: vec![(FRONTEND, false)], ..World::default() },
        )
        .goes(Packet::ping((WEB, 1), SERVER), P1)
        .opens(0, "icmp")
        .outside(Packet::error(ROUTER, 4, 0, &quoted))
        .drops(Reason::IcmpUnsupported)
        .outside(Packet::error(ROUTER, 5, 1, &quoted))
        .drops(Reason::IcmpUnsupported),
    ]
}
