// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP-Lite, DCCP, SCTP, GRE and ESP under a rule that names them (docs/protocols.md).

use nat_common::abi::{
    counters::Reason,
    grant::protocol::{DCCP, ESP, GRE, SCTP, UDP_LITE},
};

use crate::{
    case::{Case, Expect, P1, P2, P3},
    harness::{
        World,
        world::{
            Backend, DB, FIRST_PORT, FRONTEND, GATEWAY_INSIDE, NARROW, ROUTER, SERVER, SERVER2, SILENT, WEB,
        },
    },
    packet::{End, Packet, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const PEER: End = (SERVER, 9);
const OUTER: End = (FRONTEND, P1);
const ALL: u32 = SCTP | UDP_LITE | DCCP | GRE | ESP;
/// A second address for the frontend.
const SECOND: [u8; 4] = [203, 0, 113, 11];
/// Protocols with ports of their own, and a checksum over ports and addresses.
const COVERED: [u8; 2] = [136, 33];
/// Protocols without ports.
const PORTLESS: [u8; 2] = [47, 50];

fn world() -> World {
    World { protocols: ALL, ..World::default() }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [covered(), sctp(), portless(), errors(), refused(), instances()].concat()
}

fn covered() -> Vec<Case> {
    let mut there = Case::new("udp_lite_and_dccp", world());
    let mut port = P1;
    for number in COVERED {
        let packet = |length| Packet::covered(CLIENT, PEER, number).fill(length);
        there = there.goes(packet(24), port).opens(0, "other");
        for length in [4, 5, 24, 501, 1400] {
            there = there
                .goes(packet(length), port)
                .comes(Packet::covered(PEER, (FRONTEND, port), number).fill(length), CLIENT)
                .comes(Packet::covered(PEER, (FRONTEND, port), number).fill(length).options(&[1; 8]), CLIENT);
        }
        port += 1;
    }
    let mut checksums = Case::new("checksums_that_come_out_as_zero", world());
    let mut one = world();
    one.backends[0] = Backend::paired(WEB, FIRST_PORT, 1);
    checksums.world = one;
    checksums = checksums.goes(Packet::covered(CLIENT, PEER, 136).fill(4), FIRST_PORT).opens(0, "other");
    // UDP-Lite has no checksum of zero (RFC 3828 §3.1): it leaves as 0xffff.
    let mut zeros = 0;
    for word in 0..=u16::MAX {
        let data = [word.to_be_bytes(), [0; 2]].concat();
        let packet = Packet::covered(CLIENT, PEER, 136).data(&data);
        if packet.clone().from((FRONTEND, FIRST_PORT)).packet()[26..28] == [0xff, 0xff] {
            checksums = checksums.goes(packet, FIRST_PORT);
            zeros += 1;
        }
    }
    assert!(zeros > 0, "no payload makes the checksum zero");
    vec![
        there,
        checksums,
        // Eight ports for each protocol, and one protocol's do not count against another's.
        COVERED.iter().fold(Case::new("ports_are_counted_by_protocol", eight()), |case, number| {
            let mut case = case;
            for client in 0..8 {
                case = case
                    .inside(Packet::covered((WEB, 40_000 + client), PEER, *number))
                    .passes(Reason::NeighbourUnresolved)
                    .opens(0, "other");
            }
            case.inside(Packet::covered((WEB, 41_000), PEER, *number))
                .drops(Reason::NoFreePort)
                .change("grant.0.other.refused", 1)
        }),
    ]
}

/// Nothing leaves, so no port has to be known: the neighbour is missing.
fn eight() -> World {
    World { extra: vec!["route add 192.0.2.80/32 via 198.51.100.99 dev wan0"], ..world() }
}

fn sctp() -> Vec<Case> {
    let packet = |from: [u8; 4]| Packet::sctp((from, 5000), (SERVER, 36_412));
    let answer = |to: [u8; 4]| Packet::sctp((SERVER, 36_412), (to, 5000));
    let mut two = world();
    two.frontends.push((SECOND, true));
    for backend in &mut two.backends {
        for runs in &mut backend.ports {
            runs.push((SECOND, 2000, 8));
        }
    }
    vec![
        Case::new("sctp_keeps_its_port_and_its_checksum", world())
            .goes(packet(WEB), 5000)
            .opens(0, "other")
            .comes(answer(FRONTEND), (WEB, 5000))
            .goes(packet(WEB).fill(1400), 5000)
            .comes(answer(FRONTEND).fill(0), (WEB, 5000))
            .comes(answer(FRONTEND).fill(333).options(&[1; 40]), (WEB, 5000)),
        Case::new("sctp_port_that_another_backend_has", world())
            .goes(packet(WEB), 5000)
            .opens(0, "other")
            .inside(packet(DB))
            .drops(Reason::NoFreePort)
            .change("grant.1.other.refused", 1)
            // Another destination, and another port, are free.
            .goes(packet(DB).to((SERVER2, 36_412)), 5000)
            .opens(1, "other")
            .goes(packet(DB).from((DB, 5001)), 5001)
            .opens(1, "other")
            // The first one ends, and nobody sweeps.
            .ticks(super::timers::seconds(240) + 5)
            .goes(packet(DB), 5000)
            .opens(1, "other")
            .alive(0, "other", -1)
            .change("table.taken_over", 1)
            .comes(answer(FRONTEND), (DB, 5000)),
        Case::new("sctp_takes_another_address_if_there_is_one", two)
            .goes(packet(WEB), 5000)
            .opens(0, "other")
            .inside(packet(DB))
            .out(packet(DB).from((SECOND, 5000)).hop())
            .opens(1, "other")
            .comes(answer(FRONTEND), (WEB, 5000))
            .comes(answer(SECOND), (DB, 5000)),
    ]
}

fn portless() -> Vec<Case> {
    let mut cases = Vec::new();
    let names = ["gre_has_one_flow_for_each_destination", "esp_has_one_flow_for_each_destination"];
    for (number, name) in PORTLESS.into_iter().zip(names) {
        let packet = |from, to| Packet::other(from, to, number);
        cases.push(
            Case::new(name, world())
                .goes(packet(WEB, SERVER), 0)
                .opens(0, "other")
                .goes(packet(WEB, SERVER).fill(1400), 0)
                .comes(packet(SERVER, FRONTEND), (WEB, 0))
                .comes(packet(SERVER, FRONTEND).fill(9).options(&[1; 12]), (WEB, 0))
                .inside(packet(DB, SERVER))
                .drops(Reason::NoFreePort)
                .change("grant.1.other.refused", 1)
                .goes(packet(DB, SERVER2), 0)
                .opens(1, "other")
                .comes(packet(SERVER2, FRONTEND), (DB, 0)),
        );
    }
    cases.push(
        Case::new("what_idles_too_long_is_over", world())
            .goes(Packet::other(WEB, SERVER, 50), 0)
            .opens(0, "other")
            .ticks(super::timers::seconds(240))
            .comes(Packet::other(SERVER, FRONTEND, 50), (WEB, 0))
            .ticks(super::timers::seconds(240) + 1)
            .outside(Packet::other(SERVER, FRONTEND, 50))
            .drops(Reason::FlowExpired)
            .goes(Packet::other(WEB, SERVER, 50), 0)
            .change("grant.0.other.opened", 1),
    );
    cases.push(
        Case::new("a_router_s_duties_for_other_protocols", world())
            .inside(Packet::other(WEB, SERVER, 50).ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::other(WEB, NARROW, 47).fill(981).df())
            .then(Expect::Answered(UNREACHABLE, 4, [0, 0, 3, 232], GATEWAY_INSIDE), Reason::TooBig)
            .inside(Packet::covered(CLIENT, (SILENT, 9), 136))
            .passes(Reason::NeighbourUnresolved)
            .opens(0, "other")
            .inside_patched(Packet::sctp(CLIENT, PEER), &[(24, &[0, 1])])
            .drops(Reason::BadChecksum),
    );
    cases
}

fn errors() -> Vec<Case> {
    let unreachable = |quote: &Packet| Packet::error(ROUTER, UNREACHABLE, 2, quote);
    let answer = |quote: &Packet| Packet::error(WEB, UNREACHABLE, 3, quote);
    let mut case = Case::new("errors_that_quote_other_protocols", world());
    for (number, port) in COVERED.into_iter().zip([P1, P2]) {
        let (sent, got) = (
            Packet::covered((FRONTEND, port), PEER, number).ttl(7),
            Packet::covered(PEER, CLIENT, number).ttl(9),
        );
        case = case.goes(Packet::covered(CLIENT, PEER, number), port).opens(0, "other");
        for keep in [24, 28, 31, usize::MAX] {
            case = case.error_in(|quote| unreachable(quote).keep(keep), &sent, CLIENT).error_out(
                |quote| answer(quote).keep(keep),
                &got,
                (FRONTEND, port),
            );
        }
    }
    let (sent, got) = (Packet::sctp((FRONTEND, 40_000), PEER), Packet::sctp(PEER, CLIENT));
    case = case.goes(Packet::sctp(CLIENT, PEER), 40_000).opens(0, "other");
    for keep in [24, 28, usize::MAX] {
        case = case.error_in(|quote| unreachable(quote).keep(keep), &sent, CLIENT).error_out(
            |quote| answer(quote).keep(keep),
            &got,
            (FRONTEND, 40_000),
        );
    }
    for number in PORTLESS {
        let (sent, got) = (Packet::other(FRONTEND, SERVER, number), Packet::other(SERVER, WEB, number));
        case = case.goes(Packet::other(WEB, SERVER, number), 0).opens(0, "other");
        for keep in [20, 24, 28, usize::MAX] {
            case = case.error_in(|quote| unreachable(quote).keep(keep), &sent, (WEB, 0)).error_out(
                |quote| answer(quote).keep(keep),
                &got,
                (FRONTEND, 0),
            );
        }
    }
    vec![
        case,
        Case::new("errors_about_other_protocols_without_a_flow", world())
            .goes(Packet::covered(CLIENT, PEER, 136), P1)
            .opens(0, "other")
            .outside(unreachable(&Packet::covered(OUTER, PEER, 33)))
            .passes(Reason::HostTraffic)
            .inside(answer(&Packet::covered(PEER, CLIENT, 33)))
            .drops(Reason::IcmpErrorNoFlow)
            .outside(unreachable(&Packet::other(FRONTEND, SERVER, 50)))
            .passes(Reason::HostTraffic),
    ]
}

fn refused() -> Vec<Case> {
    let every = |world, name| {
        [136, 33, 132, 47, 50, 51, 94].into_iter().fold(Case::new(name, world), |case, number| {
            case.inside(Packet::covered(CLIENT, PEER, number))
                .drops(Reason::ProtocolUnsupported)
                .outside(Packet::covered(PEER, (FRONTEND, FIRST_PORT), number))
                .passes(Reason::HostTraffic)
        })
    };
    vec![
        every(World::default(), "protocols_that_no_rule_names"),
        Case::new("only_what_the_rule_names", World { protocols: UDP_LITE, ..World::default() })
            .inside(Packet::covered(CLIENT, PEER, 33))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::other(WEB, SERVER, 50))
            .drops(Reason::ProtocolUnsupported)
            .goes(Packet::covered(CLIENT, PEER, 136), P1)
            .opens(0, "other"),
        // AH (51) covers the addresses; what is shorter than its header has no ports; and nobody outside opens anything.
        Case::new("protocols_that_no_rule_can_have", world())
            .inside(Packet::other(WEB, SERVER, 51))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::covered(CLIENT, PEER, 33).fill(3))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::sctp(CLIENT, PEER).fill(0).options(&[1; 4]))
            .out(Packet::sctp((FRONTEND, 40_000), PEER).fill(0).options(&[1; 4]).hop())
            .opens(0, "other")
            .inside(Packet::other(WEB, SERVER, 132).fill(11))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::other(WEB, SERVER, 47).fill(3))
            .drops(Reason::ProtocolUnsupported)
            .outside(Packet::covered(PEER, (FRONTEND, FIRST_PORT), 136))
            .passes(Reason::HostTraffic)
            .outside(Packet::sctp((SERVER2, 9), (FRONTEND, 40_000)))
            .passes(Reason::HostTraffic),
        Case::new(
            "other_protocols_to_a_frontend_that_the_host_does_not_own",
            World { frontends: vec![(FRONTEND, false)], ..world() },
        )
        .goes(Packet::covered(CLIENT, PEER, 136), P1)
        .opens(0, "other")
        .comes(Packet::covered(PEER, OUTER, 136), CLIENT)
        .outside(Packet::covered((SERVER2, 9), OUTER, 136))
        .drops(Reason::ProtocolUnsupported)
        .outside(Packet::other(SERVER, FRONTEND, 47))
        .drops(Reason::ProtocolUnsupported),
        Case::new("the_wrong_side_with_other_protocols", world())
            .goes(Packet::other(WEB, SERVER, 47), 0)
            .opens(0, "other")
            .outside(Packet::other(WEB, SERVER, 47))
            .drops(Reason::WrongSide)
            .inside(Packet::other(SERVER, FRONTEND, 47))
            .drops(Reason::WrongSide),
    ]
}

/// An instance IP takes every protocol as it is, whichever has precedence.
fn instances() -> Vec<Case> {
    let first = World { rule_first: true, ..world().instance() };
    let public = crate::harness::world::PUBLIC;
    let case = |name, world| {
        COVERED.into_iter().fold(Case::new(name, world), |case, number| {
            let packet = Packet::covered(CLIENT, PEER, number);
            let sent = packet.clone().from((public, CLIENT.1)).hop();
            let back = Packet::covered(PEER, (public, CLIENT.1), number);
            case.inside(packet)
                .out(sent)
                .because(Reason::InstanceOut)
                .outside(back.clone())
                .back(back.to(CLIENT).hop())
                .because(Reason::InstanceIn)
        })
    };
    vec![
        case("an_instance_ip_takes_other_protocols", world().instance()),
        case("an_instance_ip_takes_other_protocols_also_when_the_rule_is_first", first)
            .goes(Packet::udp(CLIENT, (SERVER, 53)), P3)
            .opens(0, "udp"),
    ]
}
