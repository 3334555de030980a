// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments: the first goes like a whole packet, later ones follow it, whatever does not belong is dropped.

use nat_common::abi::{
    counters::Reason,
    flow::FLOW_IDENTIFY,
    fragment::FRAGMENT_TICKS,
    grant::{RULE_FLOW_SHIFT, RULE_KEEP_ID},
};

use crate::{
    case::{Case, Expect, I1, I2, I3, P1, P2, returned, rewritten},
    harness::{
        World,
        world::{DB, FRONTEND, GATEWAY_INSIDE, NARROW, ROUTER, SERVER, SILENT, STRANGER, WEB},
    },
    packet::{ACK, End, PSH, Packet, SYN, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);
/// A port that no backend holds.
const HOST: End = (FRONTEND, 53);

impl Case {
    /// A fragment from inside that leaves from the frontend, and `port` if it is the first, with identification `id`.
    #[must_use]
    pub fn piece_goes(self, piece: Packet, port: u16, id: u16) -> Self {
        let sent = rewritten(&piece, FRONTEND, port).id(id);
        self.inside(piece).out(sent)
    }

    /// A fragment from outside that reaches `backend`.
    #[must_use]
    pub fn piece_comes(self, piece: Packet, backend: End, id: u16) -> Self {
        let sent = returned(&piece, backend.0, backend.1).id(id);
        self.outside(piece).back(sent)
    }
}

/// The first fragment of a datagram.
fn first(packet: Packet) -> Packet {
    packet.fill(64).fragment(true, 0)
}

/// A fragment behind it.
fn middle(from: [u8; 4], to: [u8; 4], protocol: u8) -> Packet {
    Packet::other(from, to, protocol).fill(64).fragment(true, 9)
}

/// The last one.
fn last(from: [u8; 4], to: [u8; 4], protocol: u8) -> Packet {
    Packet::other(from, to, protocol).fill(13).fragment(false, 17)
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [in_order(), early(), harmful(), reused(), identified(), large(), hosts(), quoted()].concat()
}

/// Both directions of a flow, by protocol.
fn both_ways(name: &'static str, out: Packet, back: Packet, class: &str) -> Case {
    let (protocol, client) = (if class == "udp" { 17 } else { u8::from(class == "icmp") }, out.source);
    let protocol = if class == "tcp" { 6 } else { protocol };
    Case::new(name, World::default())
        .piece_goes(first(out.clone()), P1, I1)
        .opens(0, class)
        .piece_goes(middle(WEB, SERVER, protocol), 0, I1)
        .piece_goes(last(WEB, SERVER, protocol), 0, I1)
        .piece_comes(first(back.clone()), client, I2)
        .piece_comes(last(SERVER, FRONTEND, protocol), (WEB, 0), I2)
        .piece_comes(middle(SERVER, FRONTEND, protocol), (WEB, 0), I2)
        // The next datagram is told apart from the last.
        .piece_goes(first(out).id(0x1235), P1, I3)
        .piece_goes(last(WEB, SERVER, protocol).id(0x1235), 0, I3)
        .piece_goes(last(WEB, SERVER, protocol), 0, I1)
}

fn in_order() -> Vec<Case> {
    let with_options = |packet: Packet| packet.options(&[1; 12]);
    vec![
        both_ways("udp_in_fragments", Packet::udp(CLIENT, DNS), Packet::udp(DNS, OUTER), "udp"),
        both_ways(
            "tcp_in_fragments",
            Packet::tcp(CLIENT, HTTP, SYN),
            Packet::tcp(HTTP, OUTER, SYN | ACK).tcp_options(&[2, 4, 5, 180]),
            "tcp",
        ),
        both_ways("ping_in_fragments", Packet::ping((WEB, 77), SERVER), Packet::pong(SERVER, OUTER), "icmp"),
        Case::new("fragments_with_ip_options", World::default())
            .piece_goes(with_options(first(Packet::udp(CLIENT, DNS))), P1, I1)
            .opens(0, "udp")
            .piece_goes(with_options(last(WEB, SERVER, 17)), 0, I1),
        Case::new(
            "fragments_with_vlan_tags",
            World::default().tagged(0, &[(0x8100, 10)]).tagged(1, &[(0x88a8, 300), (0x8100, 20)]),
        )
        .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
        .opens(0, "udp")
        .piece_goes(last(WEB, SERVER, 17), 0, I1)
        .piece_comes(first(Packet::udp(DNS, OUTER)), CLIENT, I2)
        .piece_comes(last(SERVER, FRONTEND, 17), (WEB, 0), I2),
        // A checksum of zero stays none, and a later fragment is not touched where a checksum would be.
        Case::new("fragments_without_a_checksum", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)).no_checksum(), P1, I1)
            .opens(0, "udp")
            .piece_goes(middle(WEB, SERVER, 17).data(&[0; 64]), 0, I1),
        Case::new("fragments_expire_like_packets", World::default())
            .inside(first(Packet::udp(CLIENT, DNS)).ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(last(WEB, SERVER, 17))
            .drops(Reason::FragmentOrphan)
            .piece_goes(first(Packet::udp(CLIENT, DNS)).id(7), P1, I1)
            .opens(0, "udp")
            .inside(last(WEB, SERVER, 17).id(7).ttl(1))
            .drops(Reason::TtlExceededSilent),
        // The backends number their packets alike.
        Case::new("two_backends_with_one_identification", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .piece_goes(first(Packet::udp((DB, 40_000), DNS)), P2, I2)
            .opens(1, "udp")
            .piece_goes(last(WEB, SERVER, 17), 0, I1)
            .piece_goes(last(DB, SERVER, 17), 0, I2),
    ]
}

/// Those that come before the first are left to the program on TC ingress (`packet_fragments`).
fn early() -> Vec<Case> {
    vec![
        Case::new("the_last_fragment_first", World::default())
            .inside(last(WEB, SERVER, 17))
            .passes(Reason::FragmentHeld)
            .inside(first(Packet::udp(CLIENT, DNS)))
            .passes(Reason::FragmentHeld)
            .opens(0, "udp")
            // XDP knows the ports by now.
            .piece_goes(middle(WEB, SERVER, 17), 0, I1),
        Case::new("the_last_fragment_first_from_outside", World::default())
            .goes(Packet::ping((WEB, 7), SERVER), P1)
            .opens(0, "icmp")
            .outside(last(SERVER, FRONTEND, 1))
            .passes(Reason::FragmentHeld)
            .outside(first(Packet::pong(SERVER, OUTER)))
            .passes(Reason::FragmentHeld)
            .piece_comes(middle(SERVER, FRONTEND, 1), (WEB, 0), I1),
        Case::new("fragments_that_nothing_waits_for", World::default())
            .inside(last(STRANGER, SERVER, 17))
            .drops(Reason::NoOutboundRule)
            .inside(last(WEB, DB, 17))
            .passes(Reason::NotOutbound)
            .inside(last(WEB, SERVER, 50))
            .drops(Reason::Fragment)
            .inside(last(WEB, SERVER, 17).fill(2100))
            .drops(Reason::FragmentLimit),
        Case::new("fragments_behind_one_that_was_refused", World::default())
            .inside(last(WEB, SERVER, 6))
            .passes(Reason::FragmentHeld)
            .inside(first(Packet::tcp(CLIENT, HTTP, ACK)))
            .drops(Reason::TcpNoFlow)
            .inside(middle(WEB, SERVER, 6))
            .drops(Reason::FragmentOrphan)
            .outside(first(Packet::udp(DNS, (FRONTEND, 1030))))
            .drops(Reason::NoMapping)
            .outside(last(SERVER, FRONTEND, 17))
            .drops(Reason::FragmentOrphan),
    ]
}

/// RFC 1858 and RFC 3128.
fn harmful() -> Vec<Case> {
    let bytes = |protocol, length| Packet::other(WEB, SERVER, protocol).fill(length).fragment(true, 0);
    let mut tiny = Case::new("tiny_fragments", World::default());
    for packet in [bytes(6, 8), bytes(6, 16), bytes(17, 0), bytes(1, 0)] {
        tiny = tiny.inside(packet.clone()).drops(Reason::FragmentTiny);
        let from_outside = packet.from((SERVER, 0)).to((FRONTEND, 0));
        tiny = tiny.outside(from_outside).drops(Reason::FragmentTiny);
    }
    // The header says that it goes on behind the fragment's end; or is shorter than a header.
    let tcp = first(Packet::tcp(CLIENT, HTTP, SYN).tcp_options(&[1; 4])).fill(0);
    vec![
        tiny.inside_patched(tcp.clone(), &[(46, &[0xf0])])
            .drops(Reason::FragmentTiny)
            .inside_patched(tcp, &[(46, &[0x40])])
            .drops(Reason::FragmentTiny),
        Case::new("tcp_fragments_that_overwrite_the_flags", World::default())
            .piece_goes(first(Packet::tcp(CLIENT, HTTP, SYN)), P1, I1)
            .opens(0, "tcp")
            .inside(Packet::other(WEB, SERVER, 6).fill(16).fragment(true, 1))
            .drops(Reason::FragmentTiny)
            .inside(Packet::other(WEB, SERVER, 6).fill(16).fragment(false, 1).id(9))
            .drops(Reason::FragmentTiny)
            .outside(Packet::other(SERVER, FRONTEND, 6).fill(16).fragment(false, 1))
            .drops(Reason::FragmentTiny),
        // What overlaps otherwise is the receiver's business: only headers are rewritten.
        Case::new("overlapping_fragments", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .piece_goes(Packet::other(WEB, SERVER, 17).fill(64).fragment(true, 5), 0, I1)
            .piece_goes(Packet::other(WEB, SERVER, 17).fill(8).fragment(false, 1), 0, I1),
    ]
}

fn reused() -> Vec<Case> {
    vec![
        Case::new("a_duplicate_looks_like_the_original", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .ticks(1)
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .ticks(3)
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I2)
            .piece_goes(last(WEB, SERVER, 17), 0, I2),
        Case::new("an_identification_again_for_other_ports", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .piece_goes(first(Packet::udp((WEB, 40_001), DNS)), P2, I2)
            .opens(0, "udp")
            .piece_goes(last(WEB, SERVER, 17), 0, I2),
        Case::new("nothing_is_known_after_30_seconds", World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .ticks(FRAGMENT_TICKS)
            .piece_goes(last(WEB, SERVER, 17), 0, I1)
            .ticks(1)
            .inside(last(WEB, SERVER, 17))
            .passes(Reason::FragmentHeld),
        Case::new("later_fragments_open_nothing", World::default())
            .piece_goes(first(Packet::ping((WEB, 7), SERVER)), P1, I1)
            .opens(0, "icmp")
            // The flow is over and has left the table, the datagram is still known.
            .ticks(20)
            .piece_goes(last(WEB, SERVER, 1), 0, I1),
    ]
}

fn identified() -> Vec<Case> {
    let flags = |rule_flags| World { rule_flags, ..World::default() };
    let all = FLOW_IDENTIFY;
    let renamed = |packet: &Packet, id| rewritten(packet, FRONTEND, P1).id(id);
    let packet = Packet::udp(CLIENT, DNS);
    vec![
        Case::new("identifications_kept", flags(RULE_KEEP_ID))
            .piece_goes(first(packet.clone()), P1, 0x1234)
            .opens(0, "udp")
            .piece_goes(last(WEB, SERVER, 17), 0, 0x1234)
            .piece_comes(first(Packet::udp(DNS, OUTER)), CLIENT, 0x1234)
            .piece_comes(last(SERVER, FRONTEND, 17), (WEB, 0), 0x1234),
        Case::new("identifications_of_every_packet", flags(u32::from(all) << RULE_FLOW_SHIFT))
            .inside(packet.clone())
            .out(renamed(&packet, I1))
            .opens(0, "udp")
            .inside(packet.clone())
            .out(renamed(&packet, I2))
            // One that is never fragmented needs none (RFC 6864 §4.1).
            .goes(packet.clone().df(), P1)
            .goes(packet.clone().df().id(0), P1)
            .piece_goes(first(packet.clone()), P1, I3)
            .piece_goes(last(WEB, SERVER, 17), 0, I3),
        Case::new("identifications_of_whole_packets_stay", World::default())
            .goes(packet.clone(), P1)
            .opens(0, "udp")
            .goes(packet, P1),
    ]
}

/// RFC 4787 REQ-13, and what the guard needs to know for it (`packet_fragments`).
fn large() -> Vec<Case> {
    let large = |port| Packet::udp(CLIENT, (NARROW, port)).fill(1000 - 27);
    vec![
        Case::new("larger_than_the_route_and_not_to_be_dropped", World::default())
            .inside(large(53))
            .passes(Reason::TooBigToStack)
            .opens(0, "udp")
            .inside(first(Packet::udp(CLIENT, (NARROW, 53))).fill(1200).id(7))
            .passes(Reason::TooBigToStack)
            // This one fits, and goes its own way with the same identification.
            .piece_goes(last(WEB, NARROW, 17).id(7), 0, I1),
        Case::new("fragments_wait_for_a_neighbour", World::default())
            .inside(first(Packet::udp(CLIENT, (SILENT, 53))))
            .passes(Reason::NeighbourUnresolved)
            .opens(0, "udp")
            .inside(last(WEB, SILENT, 17))
            .passes(Reason::NeighbourUnresolved),
        Case::new("fragments_that_need_fragmenting_inbound", World::default().mtu(0, 576))
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .outside(Packet::tcp(HTTP, OUTER, PSH | ACK).fill(640).fragment(true, 0))
            .then(
                Expect::PassedAs(Box::new(
                    Packet::tcp(HTTP, CLIENT, PSH | ACK).fill(640).fragment(true, 0).id(I1),
                )),
                Reason::TranslatedToStack,
            ),
    ]
}

/// The host's own.
fn hosts() -> Vec<Case> {
    vec![
        Case::new("fragments_for_the_host", World::default())
            .outside(first(Packet::udp(DNS, HOST)))
            .passes(Reason::HostTraffic)
            .outside(last(SERVER, FRONTEND, 17))
            .passes(Reason::HostTraffic)
            .outside(Packet::other(SERVER, FRONTEND, 47).fragment(true, 0))
            .passes(Reason::HostTraffic)
            .outside(last(SERVER, FRONTEND, 17).id(7))
            .passes(Reason::FragmentHeld),
        // Longer than what is kept of one: the stack can wait for the others.
        Case::new("fragments_for_the_host_that_are_not_kept", World::default())
            .outside(Packet::other(SERVER, FRONTEND, 17).fill(2_100).fragment(false, 185))
            .passes(Reason::HostTraffic),
        Case::new(
            "fragments_that_are_not_kept",
            World { frontends: vec![(FRONTEND, false)], ..World::default() },
        )
        .outside(Packet::other(SERVER, FRONTEND, 17).fill(2_100).fragment(false, 185))
        .drops(Reason::FragmentLimit),
        Case::new("fragments_for_nobody", World { frontends: vec![(FRONTEND, false)], ..World::default() })
            .outside(first(Packet::udp(DNS, HOST)))
            .drops(Reason::NoMapping)
            .outside(last(SERVER, FRONTEND, 17))
            .drops(Reason::FragmentOrphan)
            .outside(Packet::other(SERVER, FRONTEND, 47).fragment(true, 0))
            .drops(Reason::Fragment),
    ]
}

/// Quoted fragments get back the identification they came with, and later ones find the flow of the first.
fn quoted() -> Vec<Case> {
    let unreachable = |quote: &Packet| Packet::error(ROUTER, UNREACHABLE, 1, quote);
    let time = |quote: &Packet| Packet::error(SERVER, TIME_EXCEEDED, 1, quote);
    let answer = |quote: &Packet| Packet::error(WEB, UNREACHABLE, 3, quote);
    let opened = |name| {
        Case::new(name, World::default())
            .piece_goes(first(Packet::udp(CLIENT, DNS)), P1, I1)
            .opens(0, "udp")
            .piece_comes(first(Packet::udp(DNS, OUTER)).id(0x4321), CLIENT, I2)
    };
    let sent = first(Packet::udp(OUTER, DNS)).ttl(50).id(I1);
    let sent_later = last(FRONTEND, SERVER, 17).ttl(50).id(I1);
    let got = first(Packet::udp(DNS, CLIENT)).ttl(50).id(I2);
    let got_later = middle(SERVER, WEB, 17).ttl(50).id(I2);
    let inbound = |case: Case, error: &dyn Fn(&Packet) -> Packet, seen: &Packet, inner: End| {
        let expected = error(&seen.clone().from(inner).id(0x1234)).hop();
        case.outside(error(seen)).back(expected).because(Reason::IcmpErrorIn)
    };
    let outbound = |case: Case, error: &dyn Fn(&Packet) -> Packet, seen: &Packet, outer: End| {
        let expected = error(&seen.clone().to(outer).id(0x4321)).from((FRONTEND, 0)).hop();
        case.inside(error(seen)).out(expected).because(Reason::IcmpErrorOut)
    };
    let mut errors = opened("quoted_fragments");
    for error in [&unreachable as &dyn Fn(&Packet) -> Packet, &time, &|quote| unreachable(quote).keep(28)] {
        errors = inbound(errors, error, &sent, CLIENT);
        errors = inbound(errors, error, &sent_later, (WEB, 0));
    }
    errors = outbound(errors, &answer, &got, OUTER);
    errors = outbound(errors, &answer, &got_later, (FRONTEND, 0));
    // A last fragment may be shorter than eight bytes.
    errors = inbound(errors, &unreachable, &sent_later.clone().fill(3), (WEB, 0));
    vec![
        errors,
        opened("quoted_fragments_that_nobody_sent")
            .outside(unreachable(&sent_later.clone().id(0x7777)))
            .passes(Reason::HostTraffic)
            .outside(unreachable(&last(FRONTEND, ROUTER, 17).id(I1)))
            .passes(Reason::HostTraffic)
            .inside(answer(&got_later.id(0x7777)))
            .drops(Reason::IcmpErrorNoFlow),
    ]
}
