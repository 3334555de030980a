// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is not translated: passed to the stack, or refused with its reason.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, Input, P1},
    harness::{
        World,
        world::{
            DB, FIRST_PORT, FRONTEND, GATEWAY_INSIDE, GATEWAY_OUTSIDE, SERVER, SERVER2, SILENT, STRANGER,
            UNREACHED, WEB, mac_of,
        },
    },
    packet::{ACK, End, FIN, Link, Packet, RST, SYN, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [passed(), inbound(), refused(), sides()].concat()
}

fn frame(kind: u16, rest: &[u8]) -> Input {
    let mut bytes = vec![0xff; 6];
    bytes.extend(mac_of(WEB));
    bytes.extend(kind.to_be_bytes());
    bytes.extend(rest);
    bytes.resize(60, 0);
    Input::Frame(bytes)
}

fn passed() -> Vec<Case> {
    let tagged = |tags: &[(u16, u16)]| {
        let link = Link { source: mac_of(WEB), destination: [2; 6], tags: tags.to_vec() };
        Input::Packet(Box::new(Packet::udp(CLIENT, DNS).link(link)))
    };
    vec![
        Case::new("not_ipv4", World::default())
            .at(0, frame(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]))
            .passes(Reason::NotIpv4)
            .at(0, frame(0x86dd, &[0x60; 40]))
            .passes(Reason::NotIpv4)
            .at(1, frame(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]))
            .passes(Reason::NotIpv4)
            .at(0, frame(0x88cc, &[1, 2, 3]))
            .passes(Reason::NotIpv4)
            .at(1, frame(0x0026, &[0x42; 38]))
            .passes(Reason::NotIpv4),
        Case::new("vlan_that_is_not_ours", World::default())
            .at(0, tagged(&[(0x8100, 7)]))
            .passes(Reason::OtherVlan)
            .at(0, tagged(&[(0x88a8, 7), (0x8100, 8)]))
            .passes(Reason::OtherVlan),
        Case::new("for_the_gateway_itself", World::default())
            .inside(Packet::tcp(CLIENT, (GATEWAY_INSIDE, 22), SYN))
            .passes(Reason::Local)
            .inside(Packet::ping((WEB, 1), GATEWAY_INSIDE))
            .passes(Reason::Local)
            .inside(Packet::udp(CLIENT, (GATEWAY_OUTSIDE, 53)))
            .passes(Reason::Local),
        Case::new("backend_to_backend", World::default())
            .inside(Packet::udp(CLIENT, (DB, 53)))
            .passes(Reason::NotOutbound)
            .inside(Packet::ping((WEB, 1), DB))
            .passes(Reason::NotOutbound),
        Case::new("multicast_and_broadcast", World::default())
            .inside(Packet::udp(CLIENT, ([224, 0, 0, 251], 5353)))
            .passes(Reason::Multicast)
            .inside(Packet::udp(CLIENT, ([255; 4], 67)))
            .passes(Reason::Multicast)
            .outside(Packet::udp(DNS, ([239, 1, 2, 3], 5353)))
            .passes(Reason::NotFrontend),
        Case::new("no_route_is_answered_by_the_stack", World::default())
            .inside(Packet::udp(CLIENT, (UNREACHED, 53)))
            .passes(Reason::NoRoute),
        Case::new("unresolved_neighbour_with_guard", World::default())
            .inside(Packet::udp(CLIENT, (SILENT, 53)))
            .passes(Reason::NeighbourUnresolved)
            .opens(0, "udp"),
    ]
}

fn inbound() -> Vec<Case> {
    vec![
        Case::new("not_for_a_frontend", World::default())
            .outside(Packet::udp(DNS, (GATEWAY_OUTSIDE, 22)))
            .passes(Reason::NotFrontend)
            .outside(Packet::tcp(HTTP, ([203, 0, 113, 77], 22), SYN))
            .passes(Reason::NotFrontend),
        Case::new("unsolicited_to_a_granted_port", World::default())
            .outside(Packet::tcp(HTTP, (FRONTEND, FIRST_PORT), SYN))
            .drops(Reason::NoMapping)
            .outside(Packet::tcp(HTTP, (FRONTEND, FIRST_PORT + 15), ACK))
            .drops(Reason::NoMapping)
            .outside(Packet::udp(DNS, (FRONTEND, FIRST_PORT + 8)))
            .drops(Reason::NoMapping)
            .outside(Packet::pong(SERVER, (FRONTEND, FIRST_PORT)))
            .drops(Reason::NoMapping),
        Case::new("to_the_host_on_a_port_nobody_was_granted", World::default())
            .outside(Packet::tcp(HTTP, (FRONTEND, 22), SYN))
            .passes(Reason::HostTraffic)
            .outside(Packet::udp(DNS, (FRONTEND, FIRST_PORT + 16)))
            .passes(Reason::HostTraffic)
            .outside(Packet::ping((SERVER, FIRST_PORT), FRONTEND))
            .passes(Reason::HostTraffic),
        Case::new(
            "to_a_frontend_that_the_host_does_not_own",
            World { frontends: vec![(FRONTEND, false)], ..World::default() },
        )
        .outside(Packet::tcp(HTTP, (FRONTEND, 22), SYN))
        .drops(Reason::NoMapping)
        .outside(Packet::ping((SERVER, 1), FRONTEND))
        .drops(Reason::NoMapping),
        Case::new("only_the_destination_may_answer", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::udp((SERVER2, 53), (FRONTEND, P1)))
            .drops(Reason::NoMapping)
            .outside(Packet::udp((SERVER, 54), (FRONTEND, P1)))
            .drops(Reason::NoMapping)
            .outside(Packet::tcp(DNS, (FRONTEND, P1), SYN | ACK))
            .drops(Reason::NoMapping),
        Case::new("answer_to_a_ping_nobody_sent", World::default())
            .goes(Packet::ping((WEB, 77), SERVER), P1)
            .opens(0, "icmp")
            .outside(Packet::pong(SERVER2, (FRONTEND, P1)))
            .drops(Reason::NoMapping),
    ]
}

fn refused() -> Vec<Case> {
    vec![
        Case::new("no_outbound_rule", World::default())
            .inside(Packet::udp((STRANGER, 40_000), DNS))
            .drops(Reason::NoOutboundRule)
            .inside(Packet::tcp((STRANGER, 40_000), HTTP, SYN))
            .drops(Reason::NoOutboundRule)
            .inside(Packet::ping((STRANGER, 1), SERVER))
            .drops(Reason::NoOutboundRule),
        Case::new("rule_for_tcp_only", {
            let mut world = World::default();
            world.backends[0].ports[1].clear();
            world.backends[0].ports[2].clear();
            world
        })
        .inside(Packet::udp(CLIENT, DNS))
        .drops(Reason::NoOutboundRule)
        .change("backend.0.refused_rule", 1)
        .inside(Packet::ping((WEB, 1), SERVER))
        .drops(Reason::NoOutboundRule)
        .change("backend.0.refused_rule", 1)
        .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
        .opens(0, "tcp"),
        Case::new("segments_that_open_nothing", World::default())
            .inside(Packet::tcp(CLIENT, HTTP, ACK))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, SYN | ACK))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, RST))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, FIN | ACK))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, SYN | FIN))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, SYN | RST))
            .drops(Reason::TcpNoFlow)
            .inside(Packet::tcp(CLIENT, HTTP, 0))
            .drops(Reason::TcpNoFlow),
        Case::new("other_protocols", World::default())
            .inside(Packet::other(WEB, SERVER, 47))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::other(WEB, SERVER, 132))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::other(WEB, DB, 47))
            .passes(Reason::NotOutbound),
        Case::new("other_icmp_messages", World::default())
            .inside(Packet::icmp(WEB, SERVER, 4, 0))
            .drops(Reason::IcmpUnsupported)
            .inside(Packet::icmp(WEB, SERVER, 5, 1))
            .drops(Reason::IcmpUnsupported)
            .inside(Packet::icmp(WEB, GATEWAY_INSIDE, 13, 0))
            .passes(Reason::Local),
        Case::new("fragments", World::default())
            .inside(Packet::other(WEB, SERVER, 50).fragment(true, 0))
            .drops(Reason::Fragment)
            .inside(Packet::icmp(WEB, SERVER, 5, 1).fragment(true, 0))
            .drops(Reason::Fragment)
            .inside(Packet::other(WEB, SERVER, 50).fragment(false, 185))
            .drops(Reason::Fragment)
            .inside(Packet::other(STRANGER, SERVER, 17).fragment(false, 185))
            .drops(Reason::NoOutboundRule)
            .inside(Packet::other(WEB, DB, 17).fragment(true, 185))
            .passes(Reason::NotOutbound)
            .outside(Packet::udp(DNS, (FRONTEND, FIRST_PORT)).fill(64).fragment(true, 0))
            .drops(Reason::NoMapping),
        Case::new("wrong_header_checksum_opens_nothing", World::default())
            .inside_patched(Packet::udp(CLIENT, DNS), &[(24, &[0x00, 0x01])])
            .drops(Reason::BadChecksum)
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp"),
        Case::new("lengths_that_contradict_each_other", World::default())
            .inside_patched(Packet::udp(CLIENT, DNS), &[(14, &[0x44])])
            .drops(Reason::Malformed)
            .inside_patched(Packet::udp(CLIENT, DNS), &[(38, &[0xff, 0xff])])
            .drops(Reason::Malformed)
            .inside_patched(Packet::tcp(CLIENT, HTTP, SYN), &[(46, &[0x40])])
            .drops(Reason::Malformed),
        Case::new("impossible_sources", World::default())
            .inside(Packet::udp(([0, 0, 0, 0], 68), DNS))
            .drops(Reason::InvalidSource)
            .inside(Packet::udp(([127, 0, 0, 1], 68), DNS))
            .drops(Reason::InvalidSource)
            .inside(Packet::udp(([224, 0, 0, 1], 68), DNS))
            .drops(Reason::InvalidSource)
            .inside(Packet::udp(([255; 4], 68), DNS))
            .drops(Reason::InvalidSource),
        Case::new("forwarding_is_off", World { forwarding: false, ..World::default() })
            .inside(Packet::udp(CLIENT, DNS))
            .passes(Reason::ForwardingOff),
        Case::new(
            "unresolved_neighbour_without_guard_leaks_nothing",
            World { guarded: false, ..World::default() },
        )
        .inside(Packet::udp((STRANGER, 1), (SILENT, 53)))
        .drops(Reason::NoOutboundRule)
        .inside(Packet::udp(CLIENT, (SILENT, 53)))
        .drops(Reason::NotConfigured),
    ]
}

fn sides() -> Vec<Case> {
    let granted = Packet::udp((FRONTEND, FIRST_PORT), DNS);
    let foreign = Packet::udp((FRONTEND, 53), DNS);
    vec![
        Case::new("a_flow_s_packet_from_the_wrong_side", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::udp(CLIENT, DNS))
            .drops(Reason::WrongSide)
            .inside(Packet::udp(DNS, (FRONTEND, P1)))
            .drops(Reason::WrongSide),
        Case::new("a_backend_does_not_answer_pings_by_a_mapping", World::default())
            .goes(Packet::ping((WEB, 77), SERVER), P1)
            .opens(0, "icmp")
            .outside(Packet::ping((SERVER, P1), FRONTEND))
            .passes(Reason::HostTraffic),
        // A request and a reply have the same tuple when the identifier is zero. They are not the same.
        Case::new("an_answer_is_no_question", World::default())
            .goes(Packet::ping((WEB, 0), SERVER), P1)
            .opens(0, "icmp")
            .inside(Packet::pong(WEB, (SERVER, 0)))
            .drops(Reason::WrongSide),
        Case::new("an_error_about_nothing_of_ours", World::default())
            .outside(Packet::error(SERVER, UNREACHABLE, 1, &granted))
            .drops(Reason::IcmpErrorNoFlow)
            .outside(Packet::error(SERVER, UNREACHABLE, 1, &foreign))
            .passes(Reason::HostTraffic)
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)))
            .drops(Reason::IcmpErrorNoFlow),
    ]
}
