// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments in any order, through XDP and the program on TC ingress; floods of them; and what the stack makes of
//! packets that are too large.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use nat_common::abi::{
    counters::Reason,
    fragment::{DATAGRAMS_IN_ALL, DATAGRAMS_PER_TICK, HELD_TICKS, HELD_WINDOW},
    names::delay::FRAGMENT_TAKEN,
};
use nat_tests::{
    case::{arriving, leaving},
    harness::{
        Action, Lab, World, together,
        world::{DB, FRONTEND, NARROW, SERVER, SILENT, WEB},
    },
    netns::sniff::Sniffer,
    packet::{
        ACK, Packet, SYN,
        pieces::{join, split},
        verify::verify,
    },
};

const OK: u32 = 0;
const SHOT: u32 = 2;
/// `TC_ACT_UNSPEC`: not this program's business.
const NEXT: i32 = -1;
const CLIENT: ([u8; 4], u16) = (WEB, 40_000);
const DNS: ([u8; 4], u16) = (SERVER, 53);

/// A lab whose interfaces are listened at: what XDP would send is returned by it, what the TC program sends is heard.
struct Wire {
    lab: Lab,
    heard: [Sniffer; 2],
}

impl Wire {
    fn new(world: World) -> Self {
        let lab = Lab::new(world).expect("lab");
        let heard = ["lan0p", "wan0p"].map(|name| Sniffer::start(&lab.namespace, name).expect("sniffer"));
        Self { lab, heard }
    }

    /// An IP packet arrives at port `slot`: what XDP sends of it, if it does not leave it to the TC program.
    fn arrives(&self, slot: usize, packet: &Packet, piece: &[u8]) -> Option<Vec<u8>> {
        through(&self.lab, slot, &framed(&self.lab, slot, packet, piece))
    }

    /// IP packets that the TC program has sent: inside, outside.
    fn finish(self) -> [Vec<Vec<u8>>; 2] {
        let Self { lab, heard } = self;
        let frames = heard.map(|sniffer| sniffer.finish().expect("nothing lost"));
        drop(lab);
        frames
    }
}

/// The frame that brings a fragment of `packet`.
fn framed(lab: &Lab, slot: usize, packet: &Packet, piece: &[u8]) -> Vec<u8> {
    let whole = packet.clone().link(arriving(&lab.world, slot, packet)).frame();
    [&whole[..14], piece].concat()
}

fn through(lab: &Lab, slot: usize, frame: &[u8]) -> Option<Vec<u8>> {
    let outcome = lab.run(slot, frame).expect("runs");
    match outcome.action {
        Action::Redirect | Action::Tx => Some(outcome.frame),
        Action::Pass => {
            assert_eq!(outcome.frame, frame, "left to the stack, and changed");
            assert_eq!(lab.hold(slot, frame).expect("runs"), SHOT.cast_signed(), "the stack gets to see it");
            None
        }
        action => panic!("{action:?}"),
    }
}

fn id_of(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[4], packet[5]])
}

/// Orders of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Every order of three fragments, in both directions, of every protocol: each fragment leaves once, and together they
/// are what the whole packet would have become.
#[test]
fn every_order_of_three_fragments() {
    let wire = Wire::new(World::default());
    let ping = Packet::ping((WEB, 77), SERVER);
    let mut cases = Vec::new();
    for (out, back) in [
        (Packet::udp(CLIENT, DNS), Packet::udp(DNS, (FRONTEND, 0))),
        (Packet::tcp(CLIENT, (SERVER, 80), SYN), Packet::tcp((SERVER, 80), (FRONTEND, 0), SYN | ACK)),
        (ping, Packet::pong(SERVER, (FRONTEND, 0))),
    ] {
        let (client, out) = (out.source, out.fill(500));
        let port = wire.lab.open(&out).expect("runs").expect("sent");
        let back = back.to((FRONTEND, port)).fill(500);
        cases.push((0, out.clone(), out.from((FRONTEND, port)).hop()));
        cases.push((1, back.clone(), back.to(client).hop()));
    }
    let mut direct = [Vec::new(), Vec::new()];
    let mut expected = BTreeMap::new();
    for (slot, packet, becomes) in cases {
        for (number, order) in (0u16..).zip(ORDERS) {
            let packet = packet.clone().id(0x100 + number);
            let pieces = split(&packet.packet(), 192);
            assert_eq!(pieces.len(), 3);
            for at in order {
                direct[1 - slot].extend(wire.arrives(slot, &packet, &pieces[at]));
            }
            // Identifications are one after the other for a pair of addresses and a protocol.
            *expected.entry((1 - slot, becomes.clone().id(0).packet())).or_insert(0) += 1;
        }
    }
    let counters = wire.lab.maps.sum_counters().expect("counters");
    assert_eq!((counters.fragments_lost, counters.fragments_expired), (0, 0));
    assert_eq!(counters.fragments_held, counters.fragments_released);
    // Of six orders, four have later ones before the first: 1 + 2 + 1 + 2.
    assert_eq!(counters.fragments_held, 6 * 6);
    let [inside, outside] = wire.finish();
    for (frame, to) in inside.iter().map(|frame| (frame, 0)).chain(outside.iter().map(|frame| (frame, 1))) {
        direct[to].push(frame.clone());
    }
    let mut found = BTreeMap::new();
    for (to, frames) in direct.iter().enumerate() {
        let mut datagrams: BTreeMap<(u8, u16), Vec<Vec<u8>>> = BTreeMap::new();
        for frame in frames {
            let packet = verify(frame).expect("a valid fragment").packet;
            datagrams.entry((packet[9], id_of(&packet))).or_default().push(packet);
        }
        for ((_, id), pieces) in datagrams {
            let mut whole = join(&pieces).unwrap_or_else(|error| panic!("{id:#06x}: {error}"));
            whole[4..6].fill(0);
            // The header's checksum goes with the identification; the transport's is as it is.
            let frame = [&frames[0][..14], &with_checksum(&whole)[..]].concat();
            verify(&frame).expect("a valid packet");
            *found.entry((to, with_checksum(&whole))).or_insert(0) += 1;
        }
    }
    assert_eq!(found, expected);
}

fn with_checksum(packet: &[u8]) -> Vec<u8> {
    let mut header = etherparse::Ipv4Header::from_slice(packet).expect("a header").0;
    header.header_checksum = header.calc_header_checksum();
    let mut out = header.to_bytes().to_vec();
    out.extend(&packet[20..]);
    out
}

/// One CPU brings the first fragment at the moment at which another keeps a later one.
#[test]
fn the_first_and_a_later_one_at_once() {
    // All in one tick: no more than may be held back in it.
    const ROUNDS: u16 = 250;
    let wire = Wire::new(World { delay: FRAGMENT_TAKEN, ..World::default() });
    let packet = Packet::udp(CLIENT, DNS).fill(200);
    wire.lab.open(&packet).expect("runs").expect("sent");
    let frames: Vec<[Vec<u8>; 2]> = (0..ROUNDS)
        .map(|round| {
            let packet = packet.clone().id(round);
            let pieces = split(&packet.packet(), 128);
            [0, 1].map(|at| framed(&wire.lab, 0, &packet, &pieces[at]))
        })
        .collect();
    let turns = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let sent: Vec<Vec<u8>> = together(&wire.lab, 2, |thread| {
        let mut sent = Vec::new();
        for (number, pair) in frames.iter().enumerate() {
            turns[thread].store(number + 1, Ordering::Release);
            // Not for ever: the other one may have failed.
            for spins in 0..20_000 {
                if turns[1 - thread].load(Ordering::Acquire) > number {
                    break;
                }
                if spins > 2000 {
                    std::thread::yield_now();
                }
            }
            // The first one sometimes comes a little later: when the other is being kept.
            let start = Instant::now();
            while thread == 0
                && start.elapsed() < Duration::from_micros(4) * (u32::try_from(number % 32).expect("small"))
            {
            }
            sent.extend(through(&wire.lab, 0, &pair[thread]));
        }
        sent
    })
    .concat();
    let counters = wire.lab.maps.sum_counters().expect("counters");
    assert_eq!(counters.packets.iter().sum::<u64>(), counters.seen);
    assert_eq!((counters.fragments_held, counters.fragments_lost), (counters.fragments_released, 0));
    let [inside, outside] = wire.finish();
    assert!(inside.is_empty());
    let mut datagrams: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in sent.iter().chain(&outside) {
        let packet = verify(frame).expect("a valid fragment").packet;
        datagrams.entry(id_of(&packet)).or_default().push(packet);
    }
    assert_eq!(datagrams.len(), usize::from(ROUNDS));
    for pieces in datagrams.values() {
        join(pieces).expect("both fragments, each once");
    }
}

/// What nobody takes with it is overwritten after its time, and never sent.
#[test]
fn what_is_held_is_not_held_for_long() {
    let mut wire = Wire::new(World::default());
    let packet = Packet::udp(CLIENT, DNS).fill(200);
    let pieces = split(&packet.packet(), 128);
    assert_eq!(wire.arrives(0, &packet, &pieces[1]), None);
    wire.lab.wait(HELD_TICKS + 1).expect("time");
    // The first one comes too late: it is sent, what was held is not.
    assert_eq!(wire.arrives(0, &packet, &pieces[0]), None);
    let counters = wire.lab.maps.sum_counters().expect("counters");
    assert_eq!((counters.fragments_held, counters.fragments_expired, counters.fragments_released), (1, 1, 0));
    let [_, outside] = wire.finish();
    assert_eq!(outside.len(), 1);
}

/// A host's own, and what has no MAC address yet, is given to the stack when the first has come; not before.
#[test]
fn what_is_not_to_be_sent_goes_to_the_stack() {
    let wire = Wire::new(World::default());
    let released = |wanted| {
        let counters = wire.lab.maps.sum_counters().expect("counters");
        assert_eq!((counters.fragments_released, counters.fragments_lost), (wanted, 0));
    };
    let host = Packet::udp(DNS, (FRONTEND, 53)).fill(200);
    let pieces = split(&host.packet(), 128);
    assert_eq!(wire.arrives(1, &host, &pieces[1]), None);
    released(0);
    assert_eq!(wire.arrives(1, &host, &pieces[0]), None);
    released(1);
    let unresolved = Packet::udp(CLIENT, (SILENT, 53)).fill(200);
    let pieces = split(&unresolved.packet(), 128);
    assert_eq!(wire.arrives(0, &unresolved, &pieces[1]), None);
    assert_eq!(wire.arrives(0, &unresolved, &pieces[0]), None);
    released(2);
    // Whole packets, and fragments that are not natgw's.
    let link = |packet: &Packet| packet.clone().link(arriving(&wire.lab.world, 0, packet)).frame();
    for packet in [Packet::udp(CLIENT, DNS), Packet::other(WEB, DB, 17).fragment(false, 9)] {
        assert_eq!(wire.lab.hold(0, &link(&packet)).expect("runs"), NEXT, "{packet:?}");
    }
}

/// A backend that floods with fragments takes room from itself only: its neighbour's come through in any order, and its
/// own whole packets, too.
#[test]
fn a_flood_of_fragments_is_its_sender_s_own_trouble() {
    let mut wire = Wire::new(World::default());
    let flow = Packet::udp(CLIENT, DNS).fill(200);
    let neighbour = Packet::udp((DB, 40_000), DNS).fill(200);
    for packet in [&flow, &neighbour] {
        wire.lab.open(packet).expect("runs").expect("sent");
    }
    let judged =
        |lab: &Lab, reason: Reason| lab.maps.sum_counters().expect("counters").packets[reason as usize];
    // Later ones, of datagrams that never begin.
    for id in 0..2 * u16::try_from(DATAGRAMS_PER_TICK).expect("few") {
        let packet = flow.clone().id(id);
        let frame = framed(&wire.lab, 0, &packet, &split(&packet.packet(), 128)[1]);
        if wire.lab.run(0, &frame).expect("runs").action == Action::Pass {
            wire.lab.hold(0, &frame).expect("runs");
        }
    }
    let counters = wire.lab.maps.sum_counters().expect("counters");
    assert_eq!(judged(&wire.lab, Reason::FragmentHeld), u64::from(DATAGRAMS_PER_TICK));
    assert_eq!(judged(&wire.lab, Reason::FragmentLimit), u64::from(DATAGRAMS_PER_TICK));
    assert_eq!(counters.fragments_held, u64::from(HELD_WINDOW));
    assert_eq!(counters.fragments_lost, u64::from(DATAGRAMS_PER_TICK - HELD_WINDOW));
    // First ones, of datagrams that never end.
    wire.lab.wait(1).expect("time");
    let limit = DATAGRAMS_PER_TICK + DATAGRAMS_IN_ALL;
    let frames: Vec<Vec<u8>> = (0..=u16::try_from(limit).expect("fits"))
        .map(|id| framed(&wire.lab, 0, &flow, &split(&flow.clone().id(id).packet(), 128)[0]))
        .collect();
    let limited = judged(&wire.lab, Reason::FragmentLimit);
    for frame in &frames {
        wire.lab.run(0, frame).expect("runs");
    }
    assert_eq!(judged(&wire.lab, Reason::FragmentLimit), limited + 1);
    // The neighbour, in the same tick, last fragment first; and a whole packet of the flooder.
    let pieces = split(&neighbour.packet(), 128);
    assert_eq!(wire.arrives(0, &neighbour, &pieces[1]), None);
    assert_eq!(wire.arrives(0, &neighbour, &pieces[0]), None);
    assert_eq!(wire.lab.send(0, &flow).expect("one verdict").reason, Reason::TranslatedOut);
    // In the next one, the flooder may begin again.
    wire.lab.wait(1).expect("time");
    let seen = wire.lab.send_frame(0, &frames[usize::try_from(limit).expect("fits")]).expect("one verdict");
    assert_eq!(seen.reason, Reason::TranslatedOut);
    let [_, outside] = wire.finish();
    let packets: Vec<_> = outside.iter().map(|frame| verify(frame).expect("valid").packet).collect();
    let by_neighbour: Vec<_> = packets.iter().filter(|packet| packet.len() <= 148).cloned().collect();
    join(&by_neighbour).expect("both of the neighbour's fragments");
}

/// However backends number their packets, no two datagrams between the same pair look alike (RFC 6864 §4.3).
#[test]
fn identifications_do_not_meet() {
    let lab = Lab::new(World::default()).expect("lab");
    let mut seen = BTreeSet::new();
    for id in 0..500u16 {
        for client in [WEB, DB] {
            let packet = Packet::udp((client, 40_000), DNS).fill(200).id(id);
            let pieces = split(&packet.packet(), 128);
            let sent: Vec<u16> = pieces
                .iter()
                .map(|piece| {
                    let outcome = lab.run(0, &framed(&lab, 0, &packet, piece)).expect("runs");
                    id_of(&outcome.frame[14..])
                })
                .collect();
            assert_eq!(sent[0], sent[1]);
            assert!(seen.insert(sent[0]), "{:#06x} a second time", sent[0]);
        }
    }
}

/// The stack fragments what XDP has left to it, and the guard translates the pieces, and only those.
#[test]
fn what_the_stack_fragments_leaves_translated() {
    let lab = Lab::new(World::default()).expect("lab");
    let inside = lab.namespace.index("lan0").expect("lan0");
    let guard = |packet: &Packet, piece: &[u8]| {
        let whole = packet.clone().link(leaving(&lab.world, 1, packet)).frame();
        lab.guard(1, inside, &[&whole[..14], piece].concat()).expect("runs")
    };
    for packet in [
        Packet::udp(CLIENT, (NARROW, 53)).fill(1300),
        Packet::udp(CLIENT, (NARROW, 54)).no_checksum().fill(1300).id(1),
        Packet::tcp(CLIENT, (NARROW, 80), SYN).fill(1300).id(2),
        Packet::ping((WEB, 7), NARROW).fill(1300).id(3),
    ] {
        assert_eq!(lab.send(0, &packet).expect("one verdict").reason, Reason::TooBigToStack);
        let forwarded = packet.clone().hop();
        let sent: Vec<Vec<u8>> = split(&forwarded.packet(), 976)
            .iter()
            .map(|piece| {
                let (action, frame) = guard(&packet, piece);
                assert_eq!(action, OK, "{packet:?}");
                verify(&frame).expect("a valid fragment").packet
            })
            .collect();
        let whole = join(&sent).expect("two fragments of one datagram");
        let (key, half) = lab
            .maps
            .all_flows()
            .expect("flows")
            .into_iter()
            .find(|(key, _)| {
                key.source == WEB
                    && key.protocol == whole[9]
                    && key.destination_port == packet.destination.1.to_be_bytes()
            })
            .expect("the flow was opened");
        assert_eq!(key.destination, NARROW);
        let expected = forwarded.from((FRONTEND, u16::from_be_bytes(half.port))).id(id_of(&whole)).packet();
        assert_eq!(whole, expected);
    }
    for stranger in [
        Packet::other(WEB, NARROW, 17).fragment(false, 9).id(77),
        Packet::udp(CLIENT, (NARROW, 53)).fill(64).fragment(true, 0).id(77),
        Packet::other(DB, NARROW, 17).fragment(false, 9),
        Packet::other(WEB, SERVER, 17).fragment(false, 9),
    ] {
        assert_eq!(guard(&stranger, &stranger.packet()).0, SHOT, "{stranger:?}");
    }
}

/// A fragment that fits goes its own way, one that does not by the stack: both with the same identification.
#[test]
fn one_way_or_the_other_it_is_one_datagram() {
    let lab = Lab::new(World::default()).expect("lab");
    let inside = lab.namespace.index("lan0").expect("lan0");
    let packet = Packet::udp(CLIENT, (NARROW, 53)).fill(1500);
    let pieces = split(&packet.packet(), 1400);
    let mut sent = Vec::new();
    assert_eq!(lab.run(0, &framed(&lab, 0, &packet, &pieces[0])).expect("runs").action, Action::Pass);
    assert_eq!(lab.hold(0, &framed(&lab, 0, &packet, &pieces[0])).expect("runs"), NEXT);
    for piece in split(&pieces[0], 976) {
        let link = packet.clone().link(leaving(&lab.world, 1, &packet)).frame();
        let (action, frame) = lab.guard(1, inside, &[&link[..14], &piece].concat()).expect("runs");
        assert_eq!(action, OK);
        sent.push(verify(&frame).expect("a valid fragment").packet);
    }
    let outcome = lab.run(0, &framed(&lab, 0, &packet, &pieces[1])).expect("runs");
    assert_eq!(outcome.action, Action::Redirect);
    sent.push(verify(&outcome.frame).expect("a valid fragment").packet);
    join(&sent).expect("three fragments of one datagram");
}
