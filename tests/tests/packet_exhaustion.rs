// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports: all of them, none twice, and a refusal only when there is none.

use std::collections::{BTreeSet, HashSet};

use nat_common::{
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP},
        counters::Reason,
        flow::HALF_OUTBOUND,
    },
    net::{state, timers::GRACE},
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{Backend, DB, FIRST_PORT, FRONTEND, SERVER, SERVER2, WEB},
    },
    packet::{ACK, Packet, RST, SYN},
};

/// How long a search through every port may be put off because there was one just before.
const SEARCH_PAUSE: u32 = 4;

fn udp(backend: [u8; 4], port: u16, server: [u8; 4]) -> Packet {
    Packet::udp((backend, port), (server, 53))
}

fn syn(port: u16, server: [u8; 4]) -> Packet {
    Packet::tcp((WEB, port), (server, 80), SYN)
}

/// Opens flows until one is refused; the ports they got, in order.
fn drain(lab: &Lab, packet: impl Fn(u16) -> Packet) -> Vec<u16> {
    (1..=u16::MAX).map_while(|number| lab.open(&packet(number)).expect("runs")).collect()
}

#[test]
fn eight_ports_serve_eight_flows_to_each_destination() {
    let lab = Lab::new(World::default()).expect("lab");
    let block: BTreeSet<u16> = (FIRST_PORT..FIRST_PORT + 8).collect();
    for (class, packet) in [
        (CLASS_UDP, (|port, server| udp(WEB, port, server)) as fn(u16, [u8; 4]) -> Packet),
        (CLASS_TCP, syn),
        (CLASS_ICMP, |id, server| Packet::ping((WEB, id), server)),
    ] {
        for server in [SERVER, SERVER2] {
            let mut got = BTreeSet::new();
            for number in 0..8 {
                let seen = lab.send(0, &packet(40_000 + number, server)).expect("one verdict");
                assert_eq!(seen.reason, Reason::TranslatedOut);
                assert!(got.insert(seen.port().expect("sent")), "a port twice");
            }
            assert_eq!(got, block);
            let refused = lab.grant(0, class).expect("counts")[2];
            let ninth = lab.send(0, &packet(40_008, server)).expect("one verdict");
            assert_eq!(ninth.reason, Reason::NoFreePort);
            assert_eq!(lab.grant(0, class).expect("counts")[2], refused + 1);
            // The eight go on as if nothing had happened.
            for number in 0..8 {
                let seen = lab.send(0, &packet(40_000 + number, server)).expect("one verdict");
                assert_eq!(seen.reason, Reason::TranslatedOut);
            }
        }
    }
    // The same server on another port is another destination.
    let other = Packet::udp((WEB, 40_008), (SERVER, 54));
    assert_eq!(lab.send(0, &other).expect("one verdict").reason, Reason::TranslatedOut);
    // The other backend has ports of its own.
    let got: BTreeSet<u16> = drain(&lab, |number| udp(DB, number, SERVER)).into_iter().collect();
    assert_eq!(got, (FIRST_PORT + 8..FIRST_PORT + 16).collect());
    lab.audit().expect("both halves of everything");
}

#[test]
fn ports_are_not_handed_out_in_order() {
    let lab = Lab::new(World::default().blocks(1024).table(512, 512, 0)).expect("lab");
    let got: Vec<u16> = (0..100)
        .map(|number| lab.open(&udp(WEB, 1000 + number, SERVER)).expect("runs").expect("sent"))
        .collect();
    let rising = got.windows(2).filter(|pair| pair[0] < pair[1]).count();
    // Of 99 random neighbours about half rise. 20 and 80 are six standard deviations away.
    assert!((20..80).contains(&rising), "{got:?}");
    let to_many: HashSet<u16> = (0..64)
        .map(|host| lab.open(&udp(WEB, 7, [192, 0, 2, 100 + host])).expect("runs").expect("sent"))
        .collect();
    assert!(to_many.len() > 40, "the same few ports for everyone: {to_many:?}");
}

#[test]
fn every_port_of_a_large_block_exactly_once() {
    for count in [1024, 2048, 64_000] {
        let world = World::default().blocks(count).table(65_536, 65_536, 0);
        let mut world = World { backends: world.backends[..1].to_vec(), ..world };
        world.backends[0] = Backend::paired(WEB, FIRST_PORT, count);
        let lab = Lab::new(world).expect("lab");
        let got = drain(&lab, |number| udp(WEB, number, SERVER));
        let distinct: BTreeSet<u16> = got.iter().copied().collect();
        assert_eq!(got.len(), usize::from(count), "flows before the refusal");
        assert_eq!(
            distinct,
            (FIRST_PORT..FIRST_PORT + (count - 1)).chain([FIRST_PORT + (count - 1)]).collect()
        );
        let seen = lab.send(0, &udp(WEB, u16::MAX, SERVER)).expect("one verdict");
        assert_eq!(seen.reason, Reason::NoFreePort, "of {count}");
        assert_eq!(lab.audit().expect("both halves of everything"), usize::from(count));
    }
}

#[test]
fn ports_on_several_addresses_are_all_used() {
    const OTHER: [u8; 4] = [203, 0, 113, 11];
    let runs = vec![(FRONTEND, 1024, 8), (OTHER, 4096, 16), (FRONTEND, 65_528, 8)];
    let backend = Backend { address: WEB, ports: [runs.clone(), runs.clone(), runs] };
    let world = World {
        backends: vec![backend],
        frontends: vec![(FRONTEND, true), (OTHER, false)],
        ..World::default()
    };
    let lab = Lab::new(world).expect("lab");
    let mut got = BTreeSet::new();
    for number in 1..=32 {
        let seen = lab.send(0, &udp(WEB, number, SERVER)).expect("one verdict");
        assert!(got.insert(seen.sent.expect("sent").source), "an endpoint twice");
    }
    assert_eq!(got.iter().filter(|(address, _)| *address == OTHER).count(), 16);
    assert!(got.contains(&(FRONTEND, 65_535)));
    assert_eq!(lab.send(0, &udp(WEB, 99, SERVER)).expect("one verdict").reason, Reason::NoFreePort);
    for end in got {
        let answer = Packet::udp((SERVER, 53), end);
        assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::TranslatedIn);
    }
}

#[test]
fn an_expired_flow_s_port_is_found_without_a_sweep() {
    for count in [8, 1024, 2048] {
        let mut lab = Lab::new(World::default().blocks(count).table(4096, 4096, 0)).expect("lab");
        assert_eq!(drain(&lab, |number| syn(number, SERVER)).len(), usize::from(count));
        // One of them is reset and rests 15 s; the others have 30 s for their handshake.
        let reset = Packet::tcp((WEB, 5), (SERVER, 80), RST | ACK);
        let freed = lab.send(0, &reset).expect("one verdict").port().expect("sent");
        lab.wait(tick::from_seconds(15)).expect("clock");
        assert_eq!(lab.open(&syn(50_000, SERVER)).expect("runs"), None, "still resting");
        lab.wait(1 + GRACE + SEARCH_PAUSE).expect("clock");
        assert_eq!(lab.open(&syn(50_000, SERVER)).expect("runs"), Some(freed), "of {count}");
        assert_eq!(lab.open(&syn(50_001, SERVER)).expect("runs"), None, "only one was free");
        assert_eq!(lab.maps.table.get(&0, 0).expect("table").taken_over, 1);
        lab.audit().expect("both halves of everything");
        // Later all of them.
        lab.wait(tick::from_seconds(30) + 1 + GRACE + SEARCH_PAUSE).expect("clock");
        let again = drain(&lab, |number| syn(10_000 + number, SERVER));
        assert_eq!(again.len(), usize::from(count), "all ports again");
        lab.audit().expect("both halves of everything");
    }
}

/// A flow that somebody is removing at this moment is his: a second remover would free the port while it is given to
/// another flow, and count everything twice.
#[test]
fn a_flow_that_is_being_removed_is_left_to_its_remover() {
    let mut lab = Lab::new(World::default().blocks(8)).expect("lab");
    assert_eq!(drain(&lab, |number| udp(WEB, number, SERVER)).len(), 8);
    lab.wait(tick::from_seconds(240) + 1 + GRACE + SEARCH_PAUSE).expect("clock");
    let flows = lab.maps.all_flows().expect("flows");
    for (key, mut entry) in flows.iter().copied().filter(|(_, entry)| entry.half & HALF_OUTBOUND != 0) {
        entry.state |= state::DEAD;
        lab.maps.flows.insert(key, entry, 0).expect("marked");
    }
    let reason = lab.send(0, &udp(WEB, 60_000, SERVER)).expect("one verdict").reason;
    assert_eq!(reason, Reason::NoFreePort);
    // A packet of such a flow does not bring it back to life either.
    let (key, _) = flows.iter().find(|(_, entry)| entry.half & HALF_OUTBOUND != 0).expect("one");
    let again = udp(WEB, u16::from_be_bytes(key.source_port), SERVER);
    let reason = lab.send(0, &again).expect("one verdict").reason;
    assert!(matches!(reason, Reason::NoFreePort | Reason::FlowRace), "{reason:?}");
    assert_eq!(lab.maps.all_flows().expect("flows").len(), 16, "both halves of all");
    assert_eq!(lab.grant(0, CLASS_UDP).expect("counts")[0], 8);
}

#[test]
fn a_swept_flow_s_port_is_found() {
    let mut lab = Lab::new(World::default()).expect("lab");
    for round in 0..5 {
        assert_eq!(drain(&lab, |number| udp(WEB, round * 100 + number, SERVER)).len(), 8, "round {round}");
        lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
        let swept = lab.sweep(100).expect("sweep");
        assert_eq!(swept.reclaimed, 8);
        assert_eq!(lab.audit().expect("audit"), 0);
    }
}

/// Just after a refusal, when nothing is searched for a while: only the record of what is taken can tell.
#[test]
fn a_port_that_the_sweep_frees_is_found_at_once() {
    for count in [8, 1024] {
        let mut lab = Lab::new(World::default().blocks(count).table(4096, 4096, 0)).expect("lab");
        assert_eq!(drain(&lab, |number| syn(number, SERVER)).len(), usize::from(count));
        let reset = Packet::tcp((WEB, 5), (SERVER, 80), RST | ACK);
        let freed = lab.send(0, &reset).expect("one verdict").port().expect("sent");
        lab.wait(tick::from_seconds(15) + GRACE).expect("clock");
        assert_eq!(lab.open(&syn(50_000, SERVER)).expect("runs"), None, "not free yet");
        lab.wait(1).expect("clock");
        assert_eq!(lab.sweep(10_000).expect("sweep").reclaimed, 1);
        assert_eq!(lab.open(&syn(50_000, SERVER)).expect("runs"), Some(freed), "of {count}");
        assert_eq!(lab.open(&syn(50_001, SERVER)).expect("runs"), None, "of {count}");
    }
}

#[test]
fn a_port_that_rests_is_not_given_away() {
    let mut lab = Lab::new(World::default()).expect("lab");
    assert_eq!(drain(&lab, |number| syn(number, SERVER)).len(), 8);
    for number in 1..=8 {
        lab.send(0, &Packet::tcp((WEB, number), (SERVER, 80), RST)).expect("one verdict");
    }
    for _ in 0..tick::from_seconds(15) {
        lab.wait(1).expect("clock");
        let seen = lab.send(0, &syn(60_000, SERVER)).expect("one verdict");
        assert_eq!(seen.reason, Reason::NoFreePort);
    }
}
