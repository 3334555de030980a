// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies and instance IPs beyond single packets: under living flows, and on the way out of the stack.

use nat_common::abi::counters::Reason;
use nat_tests::{
    case::{arriving, leaving},
    harness::{
        Lab, World,
        world::{Act, DB, FRONTEND, PUBLIC, Policy, SERVER, SERVER2, SILENT, STRANGER, WEB},
    },
    ledger::Ledger,
    packet::{ACK, FIN, Link, PSH, Packet, RST, SYN, UNREACHABLE, diff::diff},
};

const OK: u32 = 0;
const SHOT: u32 = 2;
const CLIENT: ([u8; 4], u16) = (WEB, 40_000);

fn reason(lab: &Lab, slot: usize, packet: &Packet) -> Reason {
    lab.send(slot, packet).expect("one verdict").reason
}

fn framed(lab: &Lab, packet: &Packet) -> Vec<u8> {
    packet.clone().link(leaving(&lab.world, 1, packet)).frame()
}

/// The guard's decision about a packet that the stack forwards from inside, its frame, and what was counted.
fn forwarded(lab: &Lab, packet: &Packet) -> (u32, Vec<u8>, Ledger) {
    let inside = lab.namespace.index("lan0").expect("lan0");
    let before = Ledger::read(lab).expect("ledger");
    let (action, frame) = lab.guard(1, inside, &framed(lab, packet)).expect("runs");
    (action, frame, Ledger::read(lab).expect("ledger").since(&before))
}

fn gets_out_as(lab: &Lab, packet: &Packet, expected: &Packet, counted: &[(&str, i64)]) {
    let (action, frame, change) = forwarded(lab, packet);
    assert_eq!(action, OK, "{packet:?}");
    let expected = framed(lab, expected);
    assert_eq!(frame, expected, "{}", diff(&expected, &frame));
    assert_eq!(change.0.iter().map(|(row, by)| (row.as_str(), *by)).collect::<Vec<_>>(), counted);
}

fn is_stopped(lab: &Lab, packet: &Packet) {
    let (action, _, change) = forwarded(lab, packet);
    assert_eq!(action, SHOT, "{packet:?}");
    assert_eq!((change.get("guard_dropped"), change.0.len()), (1, 1), "{change:?}");
}

/// Everything that a bypass of all protocols lets out.
fn all_kinds(destination: [u8; 4]) -> Vec<Packet> {
    vec![
        Packet::udp(CLIENT, (destination, 53)),
        Packet::tcp(CLIENT, (destination, 80), SYN),
        Packet::tcp(CLIENT, (destination, 80), ACK),
        Packet::ping((WEB, 1), destination),
        Packet::icmp(WEB, destination, 13, 0),
        Packet::error(WEB, UNREACHABLE, 3, &Packet::udp((destination, 53), CLIENT)),
        Packet::other(WEB, destination, 50),
        Packet::other(WEB, destination, 47).fill(3),
        Packet::udp(CLIENT, (destination, 53)).fill(64).fragment(true, 0),
        Packet::other(WEB, destination, 17).fragment(false, 9),
        Packet::udp((STRANGER, 1), (destination, 53)),
    ]
}

#[test]
fn a_living_flow_does_not_meet_a_new_policy() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let server = (SERVER, 25);
    let port = lab.open(&Packet::tcp(CLIENT, server, SYN)).expect("runs").expect("sent");
    let mut world = lab.world.clone();
    world.policies = vec![Policy::new(Act::DenyOutbound, &[([0; 4], 0)]).only(1, &[25])];
    lab.rewrite_policies(world).expect("policies");
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 40_001), server, SYN)), Reason::Denied);
    let answer = Packet::tcp(server, (FRONTEND, port), SYN | ACK);
    assert_eq!(reason(&lab, 1, &answer), Reason::TranslatedIn);
    assert_eq!(reason(&lab, 0, &Packet::tcp(CLIENT, server, ACK)), Reason::TranslatedOut);
    let error = Packet::error(SERVER2, UNREACHABLE, 1, &Packet::tcp((FRONTEND, port), server, ACK));
    assert_eq!(reason(&lab, 1, &error), Reason::IcmpErrorIn);
    // Nor a bypass.
    let mut world = lab.world.clone();
    world.policies = vec![Policy::new(Act::Bypass, &[(SERVER, 32)])];
    lab.rewrite_policies(world).expect("policies");
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 40_001), server, SYN)), Reason::Bypassed);
    assert_eq!(reason(&lab, 0, &Packet::tcp(CLIENT, server, ACK)), Reason::TranslatedOut);
    // And none is met when there is none any more.
    let mut world = lab.world.clone();
    world.policies.clear();
    lab.rewrite_policies(world).expect("policies");
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 40_001), server, SYN)), Reason::TranslatedOut);
    assert_eq!(lab.audit().expect("audit"), 2);
}

/// A tuple that is still in the table is no way round a policy that a reload has brought.
#[test]
fn what_opens_a_flow_again_meets_the_policies() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let (http, dns) = ((SERVER, 80), (SERVER, 53));
    let syn = Packet::tcp(CLIENT, http, SYN);
    let port = lab.open(&syn).expect("runs").expect("sent");
    assert!(lab.open(&Packet::udp(CLIENT, dns)).expect("runs").is_some());
    assert_eq!(reason(&lab, 1, &Packet::tcp(http, (FRONTEND, port), RST | ACK)), Reason::TranslatedIn);
    let mut world = lab.world.clone();
    world.policies = vec![Policy::new(Act::DenyOutbound, &[(SERVER, 32)])];
    lab.rewrite_policies(world.clone()).expect("policies");
    assert_eq!(reason(&lab, 0, &syn), Reason::Denied);
    lab.wait(nat_common::tick::from_seconds(240) + 1).expect("clock");
    assert_eq!(reason(&lab, 0, &Packet::udp(CLIENT, dns)), Reason::Denied);
    world.policies = vec![Policy::new(Act::Bypass, &[(SERVER, 32)])];
    lab.rewrite_policies(world.clone()).expect("policies");
    assert_eq!(reason(&lab, 0, &Packet::udp(CLIENT, dns)), Reason::Bypassed);
    // Nor does the guard find the old flow and translate what is to be left as it is.
    assert_eq!(lab.audit().expect("audit"), 1);
    let udp = Packet::udp(CLIENT, dns).hop();
    gets_out_as(&lab, &udp, &udp, &[]);
    world.policies.clear();
    lab.rewrite_policies(world).expect("policies");
    assert_eq!(lab.open(&syn).expect("runs"), Some(port), "the same port again");
    lab.audit().expect("audit");
}

#[test]
fn the_rule_s_style_answers_what_is_refused_to_its_backends() {
    let policy = Policy::new(Act::DenyOutbound, &[(SERVER, 32)]);
    let world = World { guaranteed: 0, ..World::default().policies(&[policy]) };
    let mut lab = Lab::new(world).expect("lab");
    let said = |lab: &Lab, to| {
        let seen = lab.send(0, &Packet::udp(CLIENT, (to, 53))).expect("one verdict");
        seen.sent.and_then(|sent| sent.icmp).map(|(kind, code, _)| (kind, code))
    };
    lab.control(|control| control.on_refusal = 2).expect("control");
    assert_eq!((said(&lab, SERVER), said(&lab, SERVER2)), (None, None));
    let mut rule = lab.maps.rules.get(&0, 0).expect("rule");
    rule.on_refusal = 1;
    lab.maps.rules.set(0, rule, 0).expect("rule");
    lab.control(|control| control.on_refusal = 0).expect("control");
    assert_eq!((said(&lab, SERVER), said(&lab, SERVER2)), (Some((3, 13)), Some((3, 13))));
}

#[test]
fn the_guard_lets_a_bypass_out_and_nothing_else() {
    let policies = [
        Policy::new(Act::Bypass, &[([192, 0, 2, 0], 24), (SILENT, 32)]),
        Policy::new(Act::DenyOutbound, &[(SERVER2, 32)]),
    ];
    let lab = Lab::new(World::default().policies(&policies)).expect("lab");
    for destination in [SERVER, SILENT] {
        for packet in all_kinds(destination) {
            assert_eq!(reason(&lab, 0, &packet), Reason::Bypassed, "{packet:?}");
            let packet = packet.hop();
            gets_out_as(&lab, &packet, &packet, &[]);
        }
    }
    for packet in all_kinds(SERVER2).into_iter().chain(all_kinds([192, 0, 3, 1])) {
        is_stopped(&lab, &packet);
    }
}

#[test]
fn the_guard_does_not_guess_the_port_of_a_fragment() {
    let policies = [Policy::new(Act::Bypass, &[(SERVER, 32)]).only(1, &[80])];
    let lab = Lab::new(World::default().policies(&policies)).expect("lab");
    let packet = Packet::tcp(CLIENT, (SERVER, 80), ACK).fill(64);
    gets_out_as(&lab, &packet, &packet, &[]);
    is_stopped(&lab, &packet.clone().fragment(true, 0));
    is_stopped(&lab, &Packet::other(WEB, SERVER, 6).fragment(false, 9));
    is_stopped(&lab, &Packet::tcp(CLIENT, (SERVER, 81), ACK));
    is_stopped(&lab, &Packet::udp(CLIENT, (SERVER, 80)));
}

#[test]
fn the_guard_gives_what_waited_the_instance_ip() {
    let lab = Lab::new(World::default().instance()).expect("lab");
    for packet in [
        Packet::udp(CLIENT, (SILENT, 53)),
        Packet::udp(CLIENT, (SILENT, 53)).no_checksum().fill(7),
        Packet::udp(CLIENT, (SILENT, 53)).fill(64).fragment(true, 0),
        Packet::tcp(CLIENT, (SILENT, 80), SYN).tcp_options(&[2, 4, 5, 180]),
        Packet::tcp(CLIENT, (SILENT, 80), ACK).options(&[1; 12]).fill(5),
        Packet::ping((WEB, 77), SILENT).fill(31),
        Packet::pong(WEB, (SILENT, 77)),
        Packet::icmp(WEB, SILENT, 13, 0),
        Packet::other(WEB, SILENT, 50),
        Packet::other(WEB, SILENT, 47).fill(3),
        Packet::other(WEB, SILENT, 17).fragment(false, 9),
        Packet::covered(CLIENT, (SILENT, 9), 136),
        Packet::covered(CLIENT, (SILENT, 9), 33).options(&[1; 4]),
    ] {
        assert_eq!(reason(&lab, 0, &packet), Reason::NeighbourUnresolved, "{packet:?}");
        let packet = packet.hop();
        let expected = packet.clone().from((PUBLIC, packet.source.1));
        gets_out_as(&lab, &packet, &expected, &[("guard_translated", 1)]);
    }
    // An error quotes the private address: it waits for the next one.
    let error = Packet::error(WEB, UNREACHABLE, 3, &Packet::udp((SILENT, 53), CLIENT));
    assert_eq!(reason(&lab, 0, &error), Reason::NeighbourUnresolved);
    is_stopped(&lab, &error);
    is_stopped(&lab, &error.fragment(true, 0));
    // What has the instance IP already, and what has no instance IP.
    let own = Packet::udp((PUBLIC, 1), (SERVER, 53));
    gets_out_as(&lab, &own, &own, &[]);
    is_stopped(&lab, &Packet::other([10, 0, 0, 5], SILENT, 50));
    is_stopped(&lab, &Packet::other(STRANGER, SILENT, 50));
}

#[test]
fn the_guard_gives_no_instance_ip_to_what_is_denied() {
    let policies = [Policy::new(Act::DenyOutbound, &[(SILENT, 32)]).only(0b1010, &[])];
    let lab = Lab::new(World::default().instance().policies(&policies)).expect("lab");
    is_stopped(&lab, &Packet::udp(CLIENT, (SILENT, 53)));
    is_stopped(&lab, &Packet::other(WEB, SILENT, 50));
    let tcp = Packet::tcp(CLIENT, (SILENT, 80), SYN);
    gets_out_as(&lab, &tcp, &tcp.clone().from((PUBLIC, CLIENT.1)), &[("guard_translated", 1)]);
}

/// The flow decides, not the precedence.
#[test]
fn the_guard_keeps_a_flow_s_address_with_an_instance_ip() {
    let world = World { rule_first: true, ..World::default().instance() };
    let lab = Lab::new(world).expect("lab");
    let (out, visitor) = (Packet::udp(CLIENT, (SILENT, 53)), (SILENT, 5555));
    assert_eq!(reason(&lab, 0, &out), Reason::NeighbourUnresolved);
    let flows = lab.maps.all_flows().expect("flows");
    let (_, half) = flows.iter().find(|(key, _)| key.source == WEB).expect("the flow was opened");
    let port = u16::from_be_bytes(half.port);
    gets_out_as(&lab, &out, &out.clone().from((FRONTEND, port)), &[("guard_translated", 1)]);
    assert_eq!(reason(&lab, 1, &Packet::tcp(visitor, (PUBLIC, 22), SYN)), Reason::TranslatedIn);
    let answer = Packet::tcp((WEB, 22), visitor, SYN | ACK);
    assert_eq!(reason(&lab, 0, &answer), Reason::NeighbourUnresolved);
    gets_out_as(&lab, &answer, &answer.clone().from((PUBLIC, 22)), &[("guard_translated", 1)]);
    lab.audit().expect("audit");
}

/// An instance IP: who outside pretends to be inside, and a segment that opens although it does not look so.
#[test]
fn an_instance_ip_is_no_way_in_for_neighbours_addresses_or_odd_segments() {
    let policy = Policy::new(Act::DenyInbound, &[([0; 4], 0)]).only(1, &[22]);
    let world =
        World { instances: vec![(WEB, PUBLIC)], ..World::default().policies(std::slice::from_ref(&policy)) };
    let lab = Lab::new(world).expect("lab");
    for source in [DB, WEB, [127, 0, 0, 1], [0, 0, 0, 1], [224, 0, 0, 1]] {
        let packet = Packet::udp((source, 53), (PUBLIC, 53));
        assert_eq!(reason(&lab, 1, &packet), Reason::InvalidSource, "{source:?}");
    }
    let ssh = (PUBLIC, 22);
    for flags in [SYN, SYN | FIN, SYN | PSH] {
        assert_eq!(reason(&lab, 1, &Packet::tcp((SERVER, 5000), ssh, flags)), Reason::Denied, "{flags:#x}");
    }
    for flags in [ACK, SYN | ACK, FIN | ACK, RST] {
        assert_eq!(
            reason(&lab, 1, &Packet::tcp((SERVER, 5000), ssh, flags)),
            Reason::InstanceIn,
            "{flags:#x}"
        );
    }
}

/// What was sent to another router on the same link is not ours to answer.
#[test]
fn a_frame_for_another_address_is_not_answered() {
    for style in [1, 3] {
        let lab = Lab::new(World { guaranteed: 0, on_refusal: style, ..World::default() }).expect("lab");
        let packet = Packet::tcp(CLIENT, (SERVER, 80), SYN);
        let link = arriving(&lab.world, 0, &packet);
        assert!(lab.send(0, &packet).expect("one verdict").sent.is_some());
        for destination in [[2, 0, 0, 0, 0, 0x77], [0xff; 6]] {
            let seen =
                lab.send(0, &packet.clone().link(Link { destination, ..link.clone() })).expect("one verdict");
            assert_eq!((seen.reason, seen.sent.is_some()), (Reason::TableShare, false));
        }
    }
}
