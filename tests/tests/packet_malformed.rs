// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets that contradict themselves, and noise: each has one verdict, none gets out with a private address.

use nat_common::abi::{counters::Reason, grant::Limits};
use nat_tests::{
    case::{arriving, leaving},
    harness::{
        Action, Lab, World,
        world::{Act, FRONTEND, GATEWAY_INSIDE, PUBLIC, Policy, SERVER, WEB},
    },
    ledger::Ledger,
    packet::{ACK, Packet, SYN, UNREACHABLE, diff::hex},
};

const CLIENT: ([u8; 4], u16) = (WEB, 40_000);
const DNS: ([u8; 4], u16) = (SERVER, 53);

/// Packets of living flows and new ones, with the port slot they arrive at.
fn samples(lab: &Lab) -> Vec<(usize, Packet)> {
    let open = |packet: &Packet| lab.open(packet).expect("runs").expect("sent");
    let udp = open(&Packet::udp(CLIENT, DNS));
    let tcp = open(&Packet::tcp(CLIENT, (SERVER, 80), SYN));
    let ping = open(&Packet::ping((WEB, 7), SERVER));
    vec![
        (0, Packet::udp(CLIENT, DNS).fill(9)),
        (0, Packet::udp((WEB, 41_000), DNS).fill(9)),
        (0, Packet::tcp(CLIENT, (SERVER, 80), ACK).tcp_options(&[1; 12]).fill(3)),
        (0, Packet::tcp((WEB, 41_000), (SERVER, 80), SYN).options(&[1; 8])),
        (0, Packet::ping((WEB, 7), SERVER)),
        (0, Packet::udp(CLIENT, DNS).ttl(1).options(&[1; 40])),
        (0, Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT).options(&[1; 4]))),
        (1, Packet::udp(DNS, (FRONTEND, udp)).fill(9)),
        (1, Packet::tcp((SERVER, 80), (FRONTEND, tcp), SYN | ACK).tcp_options(&[1; 40])),
        (1, Packet::pong(SERVER, (FRONTEND, ping))),
        (1, Packet::error(SERVER, UNREACHABLE, 1, &Packet::udp((FRONTEND, udp), DNS).options(&[1; 8]))),
        (0, Packet::other(WEB, SERVER, 50)),
        (0, Packet::udp(CLIENT, DNS).fill(64).fragment(true, 0)),
        (1, Packet::tcp((SERVER, 5555), (PUBLIC, 22), SYN)),
        (1, Packet::other(SERVER, PUBLIC, 50)),
        (1, Packet::error(SERVER, UNREACHABLE, 1, &Packet::pong(PUBLIC, (SERVER, 7)))),
        (1, Packet::error(SERVER, 11, 0, &Packet::tcp((FRONTEND, tcp), (SERVER, 80), SYN)).keep(28)),
    ]
}

fn framed(lab: &Lab, slot: usize, packet: &Packet) -> Vec<u8> {
    packet.clone().link(arriving(&lab.world, slot, packet)).frame()
}

/// One verdict, and no private address on the wire outside.
fn survives(lab: &Lab, slot: usize, frame: &[u8]) {
    let before = lab.maps.sum_counters().expect("counters");
    let outcome = lab.run(slot, frame).expect("runs");
    let after = lab.maps.sum_counters().expect("counters");
    let sum = |counters: &nat_common::abi::counters::Counters| counters.packets.iter().sum::<u64>();
    assert_eq!(after.seen, before.seen + 1, "{}", hex(frame));
    assert_eq!(sum(&after), sum(&before) + 1, "{}", hex(frame));
    assert_ne!(outcome.action, Action::Aborted, "{}", hex(frame));
    let wan = lab.world.ports.len() - 1;
    let sent = matches!(outcome.action, Action::Redirect | Action::Tx);
    let outside = if outcome.action == Action::Tx { slot == wan } else { slot != wan };
    if sent && outside {
        let tags = lab.world.ports[wan].tags.len() * 4;
        let (source, destination) = (outcome.frame[26 + tags], outcome.frame[30 + tags]);
        // With one arm, answers to backends leave by the same interface, and the gateway's own come from its one address.
        let own = outcome.frame[26 + tags..30 + tags] == GATEWAY_INSIDE;
        assert!(
            source != 10 || destination == 10 || own,
            "a private address leaves: {} for {}",
            hex(&outcome.frame),
            hex(frame)
        );
    }
}

#[test]
fn every_packet_cut_at_every_length() {
    for world in [World::default(), World::default().tagged(0, &[(0x88a8, 3), (0x8100, 4)])] {
        let mut lab = Lab::new(world).expect("lab");
        lab.reset().expect("reset");
        for (slot, packet) in samples(&lab) {
            let frame = framed(&lab, slot, &packet);
            for length in 14..frame.len() {
                let seen = lab.send_frame(slot, &frame[..length]).expect("one verdict");
                // Of a frame that ends within its tags nobody knows whose it was.
                let expected = [Reason::Malformed, Reason::OtherVlan];
                assert!(expected.contains(&seen.reason), "{length} of {packet:?}: {:?}", seen.reason);
            }
        }
        lab.audit().expect("both halves of everything");
    }
}

#[test]
fn lengths_that_lie() {
    let lab = Lab::new(World::default()).expect("lab");
    let udp = Packet::udp(CLIENT, DNS).fill(30);
    let tcp = Packet::tcp(CLIENT, (SERVER, 80), SYN).fill(30);
    let ping = Packet::ping((WEB, 7), SERVER).fill(30);
    let total = |length: u16| length.to_be_bytes().to_vec();
    let lies: Vec<(&str, &Packet, usize, Vec<u8>)> = vec![
        ("version 6", &udp, 14, vec![0x65]),
        ("version 0", &udp, 14, vec![0x05]),
        ("header of 0 bytes", &udp, 14, vec![0x40]),
        ("header of 16 bytes", &udp, 14, vec![0x44]),
        ("header longer than the total length", &udp, 16, total(19)),
        ("total length 0", &udp, 16, total(0)),
        ("total length beyond the frame", &udp, 16, total(59)),
        ("total length 65,535", &udp, 16, total(65_535)),
        ("UDP beyond the total length", &udp, 16, total(27)),
        ("UDP length 0", &udp, 38, total(0)),
        ("UDP length 7", &udp, 38, total(7)),
        ("UDP length beyond the packet", &udp, 38, total(39)),
        ("UDP length 65,535", &udp, 38, total(65_535)),
        ("TCP beyond the total length", &tcp, 16, total(39)),
        ("TCP header of 0 bytes", &tcp, 46, vec![0x00]),
        ("TCP header of 16 bytes", &tcp, 46, vec![0x40]),
        ("TCP header beyond the packet", &tcp, 46, vec![0xf0]),
        ("ICMP of 7 bytes", &ping, 16, total(27)),
        ("ICMP of 0 bytes", &ping, 16, total(20)),
    ];
    let before = Ledger::read(&lab).expect("ledger");
    for (lie, packet, at, bytes) in &lies {
        let mut frame = framed(&lab, 0, packet);
        frame[*at..at + bytes.len()].copy_from_slice(bytes);
        let seen = lab.send_frame(0, &frame).expect(lie);
        assert_eq!(seen.reason, Reason::Malformed, "{lie}");
        // The same from the other side, where it would match nothing.
        assert_eq!(lab.send_frame(1, &frame).expect(lie).reason, Reason::Malformed, "{lie}, outside");
    }
    let change = Ledger::read(&lab).expect("ledger").since(&before);
    assert_eq!(change.packets(Reason::Malformed), 2 * i64::try_from(lies.len()).expect("few"));
    assert_eq!(change.get("entries"), 0);
}

#[test]
fn errors_that_quote_rubbish() {
    let lab = Lab::new(World::default()).expect("lab");
    let port = lab.open(&Packet::udp(CLIENT, DNS)).expect("runs").expect("sent");
    let error = Packet::error(SERVER, UNREACHABLE, 1, &Packet::udp((FRONTEND, port), DNS).fill(8));
    assert_eq!(lab.send(1, &error).expect("one verdict").reason, Reason::IcmpErrorIn);
    let good = framed(&lab, 1, &error);
    // The quoted header starts at 14 + 20 + 8 = 42.
    for (what, at, bytes) in [
        ("version", 42, vec![0x65]),
        ("header length 0", 42, vec![0x40]),
        ("header length 60", 42, vec![0x4f]),
        ("protocol", 51, vec![47]),
        ("later fragment", 48, vec![0x00, 0x10]),
        ("header checksum", 52, vec![0xde, 0xad]),
    ] {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(&bytes);
        let reason = lab.send_frame(1, &frame).expect(what).reason;
        assert!(
            matches!(reason, Reason::IcmpErrorNoFlow | Reason::HostTraffic | Reason::Malformed),
            "{what}: {reason:?}"
        );
        survives(&lab, 1, &frame);
    }
}

/// A small generator of its own, with a fixed seed: the same noise in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below the bound")
    }
}

/// An instance IP, policies of every kind, limits that are never reached, and audible refusals.
fn with_everything(world: World) -> World {
    let policies = [
        Policy::new(Act::DenyOutbound, &[([192, 0, 2, 0], 28), ([0; 4], 1)]).only(0b0011, &[25, 53, 80]),
        Policy::new(Act::DenyInbound, &[([192, 0, 2, 64], 27)]).only(0b1000, &[]),
        Policy::new(Act::Bypass, &[([192, 0, 2, 128], 25)]).only(0b0110, &[]),
    ];
    let limits = Limits { max_flows: 10_000, max_half_open: 10_000, max_ports: 10_000, ..Limits::default() };
    World { limits: Some(limits), on_refusal: 3, ..world.instance().policies(&policies) }
}

#[test]
fn noise() {
    for world in [
        World::default(),
        World::default().tagged(0, &[(0x8100, 10)]).tagged(1, &[(0x88a8, 300), (0x8100, 20)]),
        World::one_armed(),
        World { rule_first: true, ..with_everything(World::default()) },
        World { rule_first: true, ..with_everything(World::one_armed()) },
        with_everything(World::default().tagged(1, &[(0x8100, 20)])),
    ] {
        let mut lab = Lab::new(world).expect("lab");
        lab.reset().expect("reset");
        let samples: Vec<_> = samples(&lab)
            .iter()
            .map(|(slot, packet)| ((*slot).min(lab.world.ports.len() - 1), packet.clone()))
            .collect();
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for _ in 0..6000 {
            let (slot, packet) = &samples[noise.below(samples.len())];
            let mut frame = framed(&lab, *slot, packet);
            for _ in 0..=noise.below(4) {
                let at = 12 + noise.below(frame.len() - 12);
                frame[at] = u8::try_from(noise.below(256)).expect("a byte");
            }
            if noise.below(4) == 0 {
                frame.truncate(14 + noise.below(frame.len() - 13));
            }
            survives(&lab, *slot, &frame);
        }
        lab.audit().expect("both halves of everything");
        // And the living go on living, or at least nothing else became of them.
        let fresh = Packet::udp((WEB, 9), ([192, 0, 2, 99], 53));
        let sent = lab.send(0, &fresh).expect("one verdict");
        let by_instance = !lab.world.instances.is_empty() && !lab.world.rule_first;
        assert_eq!(sent.reason, if by_instance { Reason::InstanceOut } else { Reason::TranslatedOut });
        let wan = lab.world.ports.len() - 1;
        assert_eq!(sent.sent.expect("sent").destination_mac, leaving(&lab.world, wan, &fresh).destination);
    }
}
