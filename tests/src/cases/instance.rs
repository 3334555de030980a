// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instance IPs: one address for another, in both directions, whatever is carried.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, Expect},
    harness::{
        World,
        world::{
            Act, DB, GATEWAY_INSIDE, GATEWAY_OUTSIDE, NARROW, PUBLIC, Policy, SERVER, SERVER2, SILENT, WEB,
        },
    },
    packet::{ACK, End, FIN, PSH, Packet, RST, SYN, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
/// ESP, GRE, SCTP and a number that nobody has: no checksum of theirs covers the addresses.
const OTHERS: [u8; 4] = [50, 47, 132, 253];
/// UDP-Lite and DCCP, whose checksums do.
const COVERED: [u8; 2] = [136, 33];

impl Case {
    /// A packet of backend 0 that leaves by its instance IP.
    #[must_use]
    pub fn leaves(self, packet: Packet) -> Self {
        let port = packet.source.1;
        let sent = packet.clone().from((PUBLIC, port)).hop();
        self.inside(packet).out(sent).because(Reason::InstanceOut)
    }

    /// A packet from outside for the instance IP that reaches backend 0.
    #[must_use]
    pub fn arrives(self, packet: Packet) -> Self {
        let port = packet.destination.1;
        let sent = packet.clone().to((WEB, port)).hop();
        self.outside(packet).back(sent).because(Reason::InstanceIn)
    }

    /// An error from inside about `seen`, a packet as the backend got it, leaves from the instance IP.
    #[must_use]
    fn error_leaves(self, error: impl Fn(&Packet) -> Packet, seen: &Packet) -> Self {
        let port = seen.destination.1;
        let expected = error(&seen.clone().to((PUBLIC, port))).from((PUBLIC, 0)).hop();
        self.inside(error(seen)).out(expected).because(Reason::IcmpErrorOut)
    }
}

fn world() -> World {
    World::default().instance()
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = [transports(), forwarding(), fragments(), errors(), denied()].concat();
    cases.extend([
        conversation("instance_ip_with_tags_inside", world().tagged(0, &[(0x88a8, 3), (0x8100, 4)])),
        conversation("instance_ip_with_a_tag_outside", world().tagged(1, &[(0x8100, 4)])),
        conversation("instance_ip_one_armed", World::one_armed().instance()),
        conversation("instance_ip_without_a_rule", without_rule()),
    ]);
    cases
}

fn without_rule() -> World {
    let mut world = world();
    world.backends[0].ports = [vec![], vec![], vec![]];
    world
}

fn conversation(name: &'static str, world: World) -> Case {
    let sent = Packet::udp((PUBLIC, 40_000), DNS).ttl(9);
    let got = Packet::udp(DNS, CLIENT).ttl(9);
    Case::new(name, world)
        .leaves(Packet::tcp(CLIENT, HTTP, SYN))
        .arrives(Packet::tcp(HTTP, (PUBLIC, 40_000), SYN | ACK))
        .leaves(Packet::udp(CLIENT, DNS).fill(1))
        .arrives(Packet::other(SERVER, PUBLIC, 50))
        .error_in(|quote| Packet::error(SERVER, UNREACHABLE, 3, quote), &sent, CLIENT)
        .error_leaves(|quote| Packet::error(WEB, UNREACHABLE, 3, quote), &got)
        .inside(Packet::udp(CLIENT, DNS).ttl(1))
        .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded)
}

fn transports() -> Vec<Case> {
    let mut tcp = Case::new("instance_ip_tcp", world());
    // No flow is kept: any segment, in any order.
    for flags in [SYN, ACK, PSH | ACK, FIN | ACK, RST, SYN | ACK, 0] {
        tcp = tcp
            .leaves(Packet::tcp(CLIENT, HTTP, flags).fill(33))
            .arrives(Packet::tcp(HTTP, (PUBLIC, 22), flags).tcp_options(&[1; 8]).fill(4));
    }
    let mut udp = Case::new("instance_ip_udp", world());
    for length in 0..40 {
        let (out, back) = (Packet::udp(CLIENT, DNS).fill(length), Packet::udp(DNS, (PUBLIC, 7)).fill(length));
        udp = udp
            .leaves(out.clone())
            .leaves(out.no_checksum())
            .arrives(back.clone())
            .arrives(back.clone().no_checksum())
            .arrives(back.padded());
    }
    let icmp = Case::new("instance_ip_icmp", world())
        .leaves(Packet::ping((WEB, 77), SERVER).fill(31))
        .arrives(Packet::pong(SERVER, (PUBLIC, 77)).fill(31))
        .arrives(Packet::ping((SERVER, 9), PUBLIC))
        .leaves(Packet::pong(WEB, (SERVER, 9)))
        .leaves(Packet::icmp(WEB, SERVER, 13, 0))
        .arrives(Packet::icmp(SERVER, PUBLIC, 14, 0));
    let mut others = Case::new("instance_ip_other_protocols", world());
    for protocol in OTHERS {
        others = others
            .leaves(Packet::other(WEB, SERVER, protocol).fill(77))
            .leaves(Packet::other(WEB, SERVER, protocol).fill(0))
            .arrives(Packet::other(SERVER, PUBLIC, protocol).options(&[1; 8]).fill(3));
    }
    let mut covered = Case::new("instance_ip_checksums_over_addresses", world());
    for protocol in COVERED {
        for length in [0, 1, 24, 501] {
            covered = covered
                .leaves(Packet::covered(CLIENT, (SERVER, 9), protocol).fill(length))
                .arrives(Packet::covered((SERVER, 9), (PUBLIC, 8), protocol).fill(length));
        }
    }
    vec![tcp, udp, icmp, others, covered, zero_checksums()]
}

/// Payloads for which the new checksum comes out as zero, which is "none": it has to be sent as 0xffff.
fn zero_checksums() -> Case {
    let mut case = Case::new("instance_ip_no_checksum_becomes_none", world());
    for word in 0..=u16::MAX {
        let data = word.to_be_bytes();
        let udp = Packet::udp(CLIENT, DNS).data(&data);
        let lite = Packet::covered(CLIENT, DNS, 136).data(&data);
        for (packet, last) in [(udp, 27), (lite, 27)] {
            let sent = packet.clone().from((PUBLIC, CLIENT.1)).packet();
            if sent[last - 1..=last] == [0xff, 0xff] {
                case = case.leaves(packet);
            }
        }
    }
    case
}

fn forwarding() -> Vec<Case> {
    let answered = |address| Expect::Answered(TIME_EXCEEDED, 0, [0; 4], address);
    let too_big =
        |mtu: u16, address| Expect::Answered(UNREACHABLE, 4, [0, 0, (mtu >> 8) as u8, mtu as u8], address);
    let stack = |packet: &Packet| Expect::PassedAs(Box::new(packet.clone().to((WEB, packet.destination.1))));
    let waiting = [
        Packet::udp(DNS, (PUBLIC, 7)),
        Packet::tcp(HTTP, (PUBLIC, 22), SYN),
        Packet::ping((SERVER, 9), PUBLIC),
        Packet::other(SERVER, PUBLIC, 50),
        Packet::covered(DNS, (PUBLIC, 7), 33),
    ];
    let unresolved = world().extra(&["neigh del 10.0.0.4 dev lan0"]);
    let unresolved =
        waiting.iter().fold(Case::new("instance_ip_unresolved_backend", unresolved), |case, packet| {
            case.outside(packet.clone()).then(stack(packet), Reason::TranslatedToStack)
        });
    vec![
        unresolved,
        Case::new("instance_ip_unresolved_next_hop", world())
            .inside(Packet::udp(CLIENT, (SILENT, 53)))
            .passes(Reason::NeighbourUnresolved)
            .inside(Packet::other(WEB, SILENT, 50))
            .passes(Reason::NeighbourUnresolved),
        Case::new("instance_ip_unresolved_without_guard", World { guarded: false, ..world() })
            .inside(Packet::udp(CLIENT, (SILENT, 53)))
            .drops(Reason::NotConfigured),
        Case::new("instance_ip_ttl", world())
            .inside(Packet::udp(CLIENT, DNS).ttl(1))
            .then(answered(GATEWAY_INSIDE), Reason::TtlExceeded)
            .outside(Packet::tcp(HTTP, (PUBLIC, 22), SYN).ttl(1))
            .then(answered(GATEWAY_OUTSIDE), Reason::TtlExceeded)
            .inside(Packet::other(WEB, SERVER, 50).ttl(1))
            .then(answered(GATEWAY_INSIDE), Reason::TtlExceeded)
            // Fewer than the eight bytes that have to be quoted.
            .inside(Packet::other(WEB, SERVER, 50).ttl(1).fill(7))
            .drops(Reason::TtlExceededSilent)
            .inside(Packet::udp(CLIENT, DNS).ttl(1).fill(64).fragment(true, 0))
            .then(answered(GATEWAY_INSIDE), Reason::TtlExceeded)
            .inside(Packet::other(WEB, SERVER, 17).ttl(1).fragment(false, 9))
            .drops(Reason::TtlExceededSilent)
            .leaves(Packet::udp(CLIENT, DNS).ttl(2)),
        Case::new("instance_ip_mtu", world().mtu(0, 1280))
            .inside(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 27).df())
            .then(too_big(1000, GATEWAY_INSIDE), Reason::TooBig)
            .inside(Packet::other(WEB, NARROW, 50).fill(1000 - 19).df())
            .then(too_big(1000, GATEWAY_INSIDE), Reason::TooBig)
            .outside(Packet::tcp(HTTP, (PUBLIC, 22), ACK).fill(1241).df())
            .then(too_big(1280, GATEWAY_OUTSIDE), Reason::TooBig)
            .outside(Packet::tcp(HTTP, (PUBLIC, 22), ACK).fill(1241))
            .then(
                Expect::PassedAs(Box::new(Packet::tcp(HTTP, (WEB, 22), ACK).fill(1241))),
                Reason::TranslatedToStack,
            )
            .inside(Packet::udp(CLIENT, (NARROW, 53)).fill(1000 - 27))
            .passes(Reason::TooBigToStack)
            .arrives(Packet::tcp(HTTP, (PUBLIC, 22), ACK).fill(1240).df()),
        Case::new("instance_ip_wrong_header_checksum", world())
            .inside_patched(Packet::udp(CLIENT, DNS), &[(24, &[0x00, 0x01])])
            .drops(Reason::BadChecksum)
            .inside_patched(Packet::other(WEB, SERVER, 50), &[(24, &[0x00, 0x01])])
            .drops(Reason::BadChecksum)
            .leaves(Packet::udp(CLIENT, DNS)),
        Case::new("instance_ip_is_one_backend_s", world())
            .goes(Packet::udp((DB, 40_000), DNS), crate::case::P1)
            .opens(1, "udp")
            .inside(Packet::udp(CLIENT, (DB, 53)))
            .passes(Reason::NotOutbound)
            .leaves(Packet::udp(CLIENT, DNS)),
    ]
}

/// Only the first fragment has a transport header.
fn fragments() -> Vec<Case> {
    let first = Packet::udp(CLIENT, DNS).fill(64).fragment(true, 0);
    let middle = Packet::other(WEB, SERVER, 17).fill(64).fragment(true, 9);
    let last = Packet::other(WEB, SERVER, 17).fill(13).fragment(false, 17);
    let back = |packet: &Packet| {
        let (from, to) = ((SERVER, packet.source.1), (PUBLIC, packet.destination.1));
        packet.clone().from(from).to(to)
    };
    let tcp = Packet::tcp(CLIENT, HTTP, ACK).fill(28).fragment(true, 0);
    let mut case = Case::new("instance_ip_fragments", world());
    for packet in [first, middle, last, tcp] {
        case = case.arrives(back(&packet)).leaves(packet);
    }
    // Cut before the TCP checksum: there is none to change.
    let tiny = Packet::other(WEB, SERVER, 6).fill(16).fragment(true, 0);
    let late = Packet::other(WEB, SERVER, 6).fill(24).fragment(true, 2);
    let pieces = Case::new("instance_ip_tiny_fragments", world()).leaves(tiny).leaves(late);
    vec![case, pieces]
}

fn errors() -> Vec<Case> {
    let unreachable = |quote: &Packet| Packet::error(SERVER2, UNREACHABLE, 1, quote);
    let answer = |quote: &Packet| Packet::error(WEB, UNREACHABLE, 3, quote);
    let mut case = Case::new("instance_ip_errors", world());
    let quoted = |own: [u8; 4]| {
        let end = (own, 40_000);
        vec![
            Packet::udp(end, DNS).fill(9),
            Packet::udp(end, DNS).no_checksum(),
            Packet::tcp(end, HTTP, SYN).fill(9),
            Packet::ping((own, 77), SERVER),
            Packet::pong(own, (SERVER, 78)),
            Packet::other(own, SERVER, 50),
            Packet::udp(end, DNS).fill(64).fragment(true, 0),
            Packet::other(own, SERVER, 17).fill(24).fragment(false, 9),
            Packet::other(own, SERVER, 1).fill(24).fragment(true, 9),
            Packet::other(own, SERVER, 50).options(&[1; 12]),
        ]
    };
    for packet in quoted(PUBLIC) {
        let inner = (WEB, packet.source.1);
        let short = |quote: &Packet| unreachable(quote).keep(28 + packet.options.len());
        case = case.error_in(unreachable, &packet, inner).error_in(short, &packet, inner);
    }
    for packet in quoted(WEB) {
        // What the backend got: the same, the other way round.
        let (own, other) = (packet.source, packet.destination);
        let got = packet.from(other).to(own);
        case = case
            .error_leaves(answer, &got)
            .error_leaves(|quote| answer(quote).keep(28 + got.options.len()), &got);
    }
    let from_router = |quote: &Packet| Packet::error([10, 0, 0, 99], TIME_EXCEEDED, 0, quote);
    vec![
        case,
        Case::new("instance_ip_errors_hide_inside_routers", world())
            .error_leaves(from_router, &Packet::udp(DNS, CLIENT)),
        Case::new("instance_ip_errors_that_expire_here", world())
            .outside(unreachable(&Packet::udp((PUBLIC, 1), DNS)).ttl(1))
            .drops(Reason::TtlExceededSilent)
            .inside(answer(&Packet::udp(DNS, CLIENT)).ttl(1))
            .drops(Reason::TtlExceededSilent),
    ]
}

fn denied() -> Vec<Case> {
    let deny = |remotes: &[([u8; 4], u8)]| Policy::new(Act::DenyInbound, remotes);
    let refuse = |case: Case, packet: Packet, slot: usize| {
        case.outside(packet).drops(Reason::Denied).change(&format!("policy.{slot}"), 1)
    };
    let world = world().policies(&[
        deny(&[([192, 0, 2, 81], 32)]),
        deny(&[([0; 4], 0)]).only(0b0011, &[22, 3389]),
        deny(&[([0; 4], 0)]).only(0b1111, &[9]).of(DB),
        Policy::new(Act::DenyOutbound, &[(SERVER, 32)]).only(1, &[80]),
    ]);
    let case = Case::new("instance_ip_denied_from_outside", world);
    let case = refuse(case, Packet::udp((SERVER2, 53), (PUBLIC, 7)), 0);
    let case = refuse(case, Packet::tcp((SERVER2, 53), (PUBLIC, 22), SYN), 0);
    let case = refuse(case, Packet::other(SERVER2, PUBLIC, 50), 0);
    let case = refuse(case, Packet::other(SERVER2, PUBLIC, 17).fragment(false, 9), 0);
    let case = refuse(case, Packet::error(SERVER2, UNREACHABLE, 1, &Packet::udp((PUBLIC, 1), DNS)), 0);
    let case = refuse(case, Packet::tcp(HTTP, (PUBLIC, 22), SYN), 1);
    let case = refuse(case, Packet::udp(HTTP, (PUBLIC, 3389)), 1);
    // Its port cannot be seen.
    let case = refuse(case, Packet::other(SERVER, PUBLIC, 6).fragment(false, 9), 1);
    vec![
        case.arrives(Packet::tcp(HTTP, (PUBLIC, 23), SYN))
            .arrives(Packet::udp(DNS, (PUBLIC, 9)))
            .arrives(Packet::ping((SERVER, 9), PUBLIC))
            .arrives(Packet::other(SERVER, PUBLIC, 50))
            // What denies backends does not concern what comes in, nor the other way round.
            .arrives(Packet::tcp(HTTP, (PUBLIC, 80), SYN))
            .leaves(Packet::tcp(CLIENT, (SERVER2, 22), SYN))
            .inside(Packet::tcp(CLIENT, HTTP, SYN))
            .drops(Reason::Denied)
            .change("policy.3", 1)
            .change("backend.0.refused_policy", 1),
    ]
}
