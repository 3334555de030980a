// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLANs: tags come off, go on, and decide which interface a frame belongs to. And both networks on one interface.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, Expect, Input, P1, P2},
    harness::{
        World,
        world::{DB, FIRST_PORT, FRONTEND, GATEWAY_INSIDE, GATEWAY_OUTSIDE, SERVER, WEB, mac_of},
    },
    packet::{ACK, End, Link, Packet, SYN, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);
const CUSTOMER: (u16, u16) = (0x8100, 10);
const CUSTOMER_B: (u16, u16) = (0x8100, 20);
const SERVICE: (u16, u16) = (0x88a8, 300);

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        conversation("tag_inside_none_outside", World::default().tagged(0, &[CUSTOMER])),
        conversation("none_inside_tag_outside", World::default().tagged(1, &[CUSTOMER])),
        conversation("tag_on_both_sides", World::default().tagged(0, &[CUSTOMER]).tagged(1, &[CUSTOMER_B])),
        conversation("two_tags_inside_none_outside", World::default().tagged(0, &[SERVICE, CUSTOMER])),
        conversation("none_inside_two_tags_outside", World::default().tagged(1, &[SERVICE, CUSTOMER])),
        conversation(
            "two_tags_inside_one_outside",
            World::default().tagged(0, &[SERVICE, CUSTOMER]).tagged(1, &[CUSTOMER_B]),
        ),
        conversation(
            "two_tags_on_both_sides",
            World::default().tagged(0, &[SERVICE, CUSTOMER]).tagged(1, &[(0x8100, 5), (0x8100, 6)]),
        ),
        conversation("two_vlans_of_one_device", on_one_device()),
        conversation("one_armed", World::one_armed()),
    ];
    cases.extend(strangers());
    cases.push(one_armed_refusals());
    cases
}

/// A device that carries the inside as one VLAN and the outside as another.
fn on_one_device() -> World {
    let mut world = World::default().tagged(0, &[CUSTOMER]).tagged(1, &[CUSTOMER_B]);
    world.ports[1].lower = "lan0";
    world
}

/// A bit of everything: TCP, UDP, echo, errors both ways, TTL.
fn conversation(name: &'static str, world: World) -> Case {
    let outside = world.ports.len() - 1;
    let from_outside = if outside == 0 { GATEWAY_INSIDE } else { GATEWAY_OUTSIDE };
    let sent = Packet::udp(OUTER, DNS).ttl(9);
    let got = Packet::udp(DNS, CLIENT).ttl(9);
    Case::new(name, world)
        .goes(Packet::udp(CLIENT, DNS), P1)
        .opens(0, "udp")
        .comes(Packet::udp(DNS, OUTER).fill(1), CLIENT)
        .error_in(|quote| Packet::error(SERVER, UNREACHABLE, 3, quote), &sent, CLIENT)
        .error_out(|quote| Packet::error(WEB, UNREACHABLE, 3, quote), &got, OUTER)
        .goes(Packet::tcp(CLIENT, HTTP, SYN).options(&[1; 8]), P2)
        .opens(0, "tcp")
        .comes(Packet::tcp(HTTP, (FRONTEND, P2), SYN | ACK).fill(900), CLIENT)
        .inside(Packet::udp(CLIENT, DNS).ttl(1))
        .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded)
        .outside(Packet::udp(DNS, OUTER).ttl(1))
        .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], from_outside), Reason::TtlExceeded)
}

fn strangers() -> Vec<Case> {
    let tagged = |tags: &[(u16, u16)]| {
        let link = Link { source: mac_of(WEB), destination: [2; 6], tags: tags.to_vec() };
        Input::Packet(Box::new(Packet::udp(CLIENT, DNS).link(link)))
    };
    let one = World::default().tagged(0, &[CUSTOMER]);
    let two = World::default().tagged(0, &[SERVICE, CUSTOMER]);
    // Priority 5: part of the tag, not of the VLAN's number. The priority does not survive routing.
    let urgent = (0x8100, 5 << 13 | CUSTOMER.1);
    vec![
        Case::new("trunk_frames_of_other_vlans", one.clone())
            .at(0, tagged(&[]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[CUSTOMER_B]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[CUSTOMER, CUSTOMER]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[urgent]))
            .out(Packet::udp((FRONTEND, P1), DNS).hop())
            .opens(0, "udp"),
        Case::new("trunk_frames_with_other_stacks", two)
            .at(0, tagged(&[SERVICE]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[SERVICE, CUSTOMER_B]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[SERVICE, CUSTOMER, CUSTOMER]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[SERVICE, CUSTOMER]))
            .out(Packet::udp((FRONTEND, P1), DNS).hop())
            .opens(0, "udp"),
        Case::new("a_tag_is_no_way_round_the_sides", on_one_device())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::udp(CLIENT, DNS))
            .drops(Reason::WrongSide)
            .inside(Packet::udp(DNS, OUTER))
            .drops(Reason::WrongSide),
    ]
}

fn one_armed_refusals() -> Case {
    Case::new("one_armed_refusals", World::one_armed())
        .inside(Packet::udp(CLIENT, (DB, 53)))
        .passes(Reason::NotOutbound)
        .inside(Packet::udp(CLIENT, (GATEWAY_INSIDE, 53)))
        .passes(Reason::Local)
        .outside(Packet::udp(DNS, (FRONTEND, FIRST_PORT)))
        .drops(Reason::NoMapping)
        .outside(Packet::udp(DNS, (FRONTEND, 53)))
        .passes(Reason::HostTraffic)
        .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
        .opens(0, "tcp")
        .outside(Packet::tcp(HTTP, OUTER, ACK).from((DB, 80)))
        .drops(Reason::NoMapping)
}
