// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a router owes: TTL, MTU, and the errors it answers with.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, Expect, P1},
    harness::{
        World,
        world::{FRONTEND, GATEWAY_INSIDE, GATEWAY_OUTSIDE, NARROW, SERVER, STRANGER, WEB},
    },
    packet::{ACK, End, PSH, Packet, SYN, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);
/// Payload that makes a UDP packet of exactly 1,500 bytes.
const FULL: usize = 1500 - 28;

fn exceeded(address: [u8; 4]) -> Expect {
    Expect::Answered(TIME_EXCEEDED, 0, [0; 4], address)
}

fn too_big(mtu: u16, address: [u8; 4]) -> Expect {
    let [high, low] = mtu.to_be_bytes();
    Expect::Answered(UNREACHABLE, 4, [0, 0, high, low], address)
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [time_to_live(), size()].concat()
}

fn time_to_live() -> Vec<Case> {
    vec![
        Case::new("ttl_runs_out_on_a_new_flow", World::default())
            .inside(Packet::udp(CLIENT, (SERVER, 33_434)).ttl(1))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::ping((WEB, 1), SERVER).ttl(1).fill(33))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::tcp(CLIENT, HTTP, SYN).ttl(1).tcp_options(&[1; 12]))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::udp(CLIENT, DNS).ttl(0).fill(0))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded),
        Case::new("ttl_runs_out_on_a_flow", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .inside(Packet::udp(CLIENT, DNS).ttl(1).fill(600))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded)
            .outside(Packet::udp(DNS, OUTER).ttl(1))
            .then(exceeded(GATEWAY_OUTSIDE), Reason::TtlExceeded)
            .comes(Packet::udp(DNS, OUTER), CLIENT),
        Case::new("ttl_runs_out_with_ip_options", World::default())
            .inside(Packet::udp(CLIENT, DNS).ttl(1).options(&[1; 40]))
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::udp(CLIENT, DNS).ttl(1).options(&[7, 3, 4, 0]).padded())
            .then(exceeded(GATEWAY_INSIDE), Reason::TtlExceeded),
        Case::new("ttl_that_runs_out_is_nobody_s_business_without_a_rule", World::default())
            .inside(Packet::udp((STRANGER, 9), DNS).ttl(1))
            .drops(Reason::NoOutboundRule),
        Case::new("an_icmp_error_is_not_answered_with_one", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::error(SERVER, UNREACHABLE, 3, &Packet::udp(OUTER, DNS)).ttl(1))
            .drops(Reason::TtlExceededSilent)
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)).ttl(1))
            .drops(Reason::TtlExceededSilent),
    ]
}

fn size() -> Vec<Case> {
    vec![
        Case::new("exactly_the_mtu", World::default())
            .goes(Packet::udp(CLIENT, DNS).fill(FULL).df(), P1)
            .opens(0, "udp")
            .comes(Packet::udp(DNS, OUTER).fill(FULL).df(), CLIENT),
        Case::new("larger_than_the_route_allows", World::default())
            .inside(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 27).df())
            .then(too_big(1000, GATEWAY_INSIDE), Reason::TooBig)
            .goes(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 28).df(), P1)
            .opens(0, "udp")
            .inside(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 27).df())
            .then(too_big(1000, GATEWAY_INSIDE), Reason::TooBig)
            .inside(Packet::tcp(CLIENT, (NARROW, 80), SYN).df().fill(1300))
            .then(too_big(1000, GATEWAY_INSIDE), Reason::TooBig)
            .inside(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 27))
            .passes(Reason::TooBigToStack),
        Case::new("larger_than_the_inside_link", World::default().mtu(0, 1280))
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT)
            .outside(Packet::tcp(HTTP, OUTER, PSH | ACK).fill(1241).df())
            .then(too_big(1280, GATEWAY_OUTSIDE), Reason::TooBig)
            .outside(Packet::tcp(HTTP, OUTER, PSH | ACK).fill(1241))
            .then(
                Expect::PassedAs(Box::new(Packet::tcp(HTTP, CLIENT, PSH | ACK).fill(1241))),
                Reason::TranslatedToStack,
            )
            .comes(Packet::tcp(HTTP, OUTER, PSH | ACK).fill(1240).df(), CLIENT),
        Case::new("larger_than_the_outside_link", World::default().mtu(1, 1400))
            .inside(Packet::udp(CLIENT, DNS).fill(1400 - 27).df())
            .then(too_big(1400, GATEWAY_INSIDE), Reason::TooBig)
            .inside(Packet::udp(CLIENT, DNS).fill(1400 - 27))
            .passes(Reason::TooBigToStack)
            .opens(0, "udp")
            .goes(Packet::udp(CLIENT, DNS).fill(1400 - 28), P1),
        Case::new("too_large_to_leave_without_a_guard", {
            World { guarded: false, ..World::default().mtu(1, 1400) }
        })
        .inside(Packet::udp(CLIENT, DNS).fill(1400 - 27))
        .drops(Reason::TooBigSilent)
        .opens(0, "udp"),
    ]
}
