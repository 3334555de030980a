// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports that backends share: exact at any size, and what must not go together with what.

use std::collections::{BTreeSet, HashSet};

use nat_common::{
    abi::{
        counters::Reason,
        flow::{FlowEntry, FlowKey, HALF_INBOUND},
    },
    net::{state, timers::GRACE},
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{Backend, DB, FRONTEND, Pool, SERVER, SERVER2, WEB},
    },
    packet::{Packet, RST, SYN},
};

const FIRST: u16 = 1024;
/// Ports of an address: 1024–65535.
const ALL: u16 = 64_512;

fn udp(backend: [u8; 4], port: u16, server: [u8; 4]) -> Packet {
    Packet::udp((backend, port), (server, 53))
}

fn address(number: u8) -> [u8; 4] {
    [203, 0, 113, 10 + number]
}

/// Backends without ports of their own that draw on `runs`.
fn world(runs: Vec<([u8; 4], u16, u16)>, max_flows: u32) -> World {
    let none = |address| Backend { address, ports: [vec![], vec![], vec![]] };
    World {
        backends: vec![none(WEB), none(DB)],
        frontends: runs.iter().map(|(address, ..)| (*address, false)).collect(),
        pools: vec![Pool { runs, ordered: false, backends: vec![WEB, DB] }],
        ..World::default().table(max_flows, max_flows / 2, 0)
    }
}

/// Sends packets of both backends until one of each is refused; what each got.
fn fill(lab: &Lab, server: [u8; 4]) -> [Vec<u16>; 2] {
    let mut got = [Vec::new(), Vec::new()];
    let mut more = [true, true];
    for number in 1..=u16::MAX {
        for (backend, address) in [WEB, DB].into_iter().enumerate() {
            if more[backend] {
                match lab.open(&udp(address, number, server)).expect("runs") {
                    Some(port) => got[backend].push(port),
                    None => more[backend] = false,
                }
            }
        }
        if more == [false; 2] {
            break;
        }
    }
    got
}

#[test]
fn a_whole_address_is_shared_to_the_last_port() {
    let mut lab = Lab::new(world(vec![(FRONTEND, FIRST, ALL)], 262_144)).expect("lab");
    let got = fill(&lab, SERVER);
    let distinct: BTreeSet<u16> = got.iter().flatten().copied().collect();
    assert_eq!(got[0].len() + got[1].len(), usize::from(ALL), "{} and {}", got[0].len(), got[1].len());
    assert_eq!(distinct, (FIRST..=u16::MAX).collect());
    assert!(got.iter().all(|ports| ports.len() > 32_000), "who asks as often gets as much");
    for backend in [WEB, DB] {
        let seen = lab.send(0, &udp(backend, 65_535, SERVER)).expect("one verdict");
        assert_eq!(seen.reason, Reason::NoFreePort);
    }
    // Another destination has all of them again.
    for number in 1..100 {
        assert!(lab.open(&udp(WEB, number, SERVER2)).expect("runs").is_some());
    }
    assert_eq!(lab.audit().expect("audit"), usize::from(ALL) + 99);
    // One flow ends: exactly one new one is possible, whoever comes first.
    lab.wait(tick::from_seconds(200)).expect("clock");
    for number in 2..=u16::MAX {
        for (backend, address) in [WEB, DB].into_iter().enumerate() {
            if usize::from(number) <= got[backend].len() {
                lab.run(0, &keep(&lab, address, number)).expect("runs");
            }
        }
    }
    lab.wait(tick::from_seconds(60) + GRACE).expect("clock");
    let ended = BTreeSet::from([got[0][0], got[1][0]]);
    // Without a sweep: a look at 4,096 ports in each tick finds them, from where the last one ended.
    let mut again = BTreeSet::new();
    let searches = |lab: &Lab| lab.maps.sum_counters().expect("counters").searches;
    for number in 60_001..60_040 {
        match lab.open(&udp(DB, number, SERVER)).expect("runs") {
            Some(port) => assert!(again.insert(port)),
            None => {
                let before = searches(&lab);
                assert_eq!(lab.open(&udp(DB, number, SERVER)).expect("runs"), None);
                assert_eq!(searches(&lab), before, "one walk in a tick");
            }
        }
        lab.wait(1).expect("clock");
    }
    assert_eq!(again, ended);
    assert_eq!(lab.send(0, &udp(WEB, 60_003, SERVER)).expect("one verdict").reason, Reason::NoFreePort);
}

fn keep(lab: &Lab, backend: [u8; 4], number: u16) -> Vec<u8> {
    let packet = udp(backend, number, SERVER);
    let link = nat_tests::case::arriving(&lab.world, 0, &packet);
    packet.link(link).frame()
}

/// Takes every port of `runs` towards the server but those in `free`, behind the data path's back: nothing of it is
/// recorded.
fn occupy(lab: &mut Lab, runs: &[([u8; 4], u16, u16)], free: &HashSet<([u8; 4], u16)>) {
    for (address, first, count) in runs {
        for port in (*first..=first + (count - 1)).filter(|port| !free.contains(&(*address, *port))) {
            let key = FlowKey {
                source: SERVER,
                destination: *address,
                source_port: 53u16.to_be_bytes(),
                destination_port: port.to_be_bytes(),
                protocol: 17,
                zone: [0; 3],
            };
            let entry = FlowEntry {
                identity: key.fold(),
                state: state::SYN_OUT,
                half: HALF_INBOUND,
                touched: lab.now,
                address: WEB,
                port: port.to_be_bytes(),
                ..FlowEntry::default()
            };
            lab.maps.flows.insert(key, entry, 0).expect("room");
        }
    }
}

#[test]
fn sixteen_addresses_are_searched_to_the_last_port_in_bounded_pieces() {
    let runs: Vec<_> = (0..16).map(|number| (address(number), FIRST, ALL)).collect();
    let mut lab = Lab::new(world(runs.clone(), 1_048_576)).expect("lab");
    let free = HashSet::from([(address(3), 50_001), (address(15), 65_535)]);
    occupy(&mut lab, &runs, &free);
    let mut got = HashSet::new();
    let mut cut = 0;
    // 1,032,192 ports, nothing known about any: at most 8,192 are tried for one packet, and none twice.
    for attempt in 0..300 {
        let seen = lab.send(0, &udp(WEB, 1, SERVER)).expect("one verdict");
        match seen.reason {
            Reason::TranslatedOut => {
                let sent = seen.sent.expect("sent");
                got.insert(sent.source);
                break;
            }
            Reason::SearchCut => cut += 1,
            reason => panic!("attempt {attempt}: {reason:?}"),
        }
    }
    for _ in 0..300 {
        match lab.send(0, &udp(WEB, 2, SERVER)).expect("one verdict") {
            seen if seen.reason == Reason::TranslatedOut => {
                got.insert(seen.sent.expect("sent").source);
                break;
            }
            seen => assert_eq!(seen.reason, Reason::SearchCut),
        }
        cut += 1;
    }
    assert_eq!(got, free);
    assert!(cut <= 1_032_192 / 8192 + 4, "{cut} packets found nothing before the last port was");
    assert!(cut > 2, "a search of a million ports for one packet");
    let reasons: HashSet<Reason> =
        (0..260).map(|_| lab.send(0, &udp(DB, 3, SERVER)).expect("one verdict").reason).collect();
    assert!(
        reasons.contains(&Reason::NoFreePort) && !reasons.contains(&Reason::TranslatedOut),
        "{reasons:?}"
    );
}

#[test]
fn the_next_address_is_used_when_the_one_before_is_full() {
    let runs = vec![(address(0), 2048, 16), (address(1), 1024, 1600), (address(2), 4096, 8)];
    let mut ordered = world(runs.clone(), 8192);
    ordered.pools[0].ordered = true;
    let lab = Lab::new(ordered).expect("lab");
    let mut order = Vec::new();
    for number in 1..=1624 {
        let seen = lab.send(0, &udp(WEB, number, SERVER)).expect("one verdict");
        order.push(seen.sent.expect("a free port").source.0);
    }
    let expected: Vec<_> =
        runs.iter().flat_map(|(address, _, count)| vec![*address; usize::from(*count)]).collect();
    assert_eq!(order, expected);
    assert_eq!(lab.send(0, &udp(DB, 1, SERVER)).expect("one verdict").reason, Reason::NoFreePort);
}

#[test]
fn several_addresses_are_used_at_once() {
    let runs = vec![(address(0), 1024, 4096), (address(1), 1024, 4096)];
    let lab = Lab::new(world(runs, 8192)).expect("lab");
    let mut on_first = 0;
    for number in 1..=400 {
        let seen = lab.send(0, &udp(WEB, number, SERVER)).expect("one verdict");
        on_first += u32::from(seen.sent.expect("a free port").source.0 == address(0));
    }
    // Of 400 coins 200 fall on one side; 140 and 260 are six standard deviations away.
    assert!((140..260).contains(&on_first), "{on_first} of 400");
}

#[test]
fn what_is_guaranteed_is_nobody_else_s() {
    let mut world = world(vec![(FRONTEND, 1056, 64)], 1024);
    world.backends[0] = Backend::paired(WEB, 1024, 16);
    world.backends[1] = Backend::paired(DB, 1040, 16);
    let lab = Lab::new(world).expect("lab");
    let take = |backend, number| {
        let seen = lab.send(0, &udp(backend, number, SERVER)).expect("one verdict");
        seen.sent.map(|sent| sent.source.1)
    };
    // DB first takes its own 16, then the 64 that are common; then there is no more for it.
    let own: BTreeSet<u16> = (1..=16).map_while(|number| take(DB, number)).collect();
    assert_eq!(own, (1040..1056).collect());
    let common: BTreeSet<u16> = (17..=80).map_while(|number| take(DB, number)).collect();
    assert_eq!(common, (1056..1120).collect());
    assert_eq!(take(DB, 81), None);
    let guaranteed: BTreeSet<u16> = (1..=16).map_while(|number| take(WEB, number)).collect();
    assert_eq!(guaranteed, (1024..1040).collect());
    assert_eq!(take(WEB, 17), None);
    lab.audit().expect("audit");
}

/// A set shrinks and grows again: flows on ports that left it finish, and their ports are found when they are back.
#[test]
fn ports_come_back_after_a_set_has_changed() {
    const PORTS: u16 = 2048;
    let whole = world(vec![(FRONTEND, 1024, PORTS)], 8192);
    let mut lab = Lab::new(whole.clone()).expect("lab");
    let syn = |number| Packet::tcp((WEB, number), (SERVER, 80), SYN);
    let got: Vec<u16> =
        (1..=PORTS).map(|number| lab.open(&syn(number)).expect("runs").expect("free")).collect();
    assert_eq!(lab.send(0, &syn(5000)).expect("one verdict").reason, Reason::NoFreePort);
    let mut half = whole.clone();
    half.pools[0].runs[0].2 = PORTS / 2;
    lab.rewrite_backends(half).expect("reload");
    assert_eq!(lab.send(0, &syn(5000)).expect("one verdict").reason, Reason::NoFreePort);
    // Everything on the upper half ends while it belongs to nobody.
    for (number, port) in (1..).zip(&got) {
        if *port >= 1024 + PORTS / 2 {
            let rst = Packet::tcp((WEB, number), (SERVER, 80), RST);
            assert_eq!(lab.send(0, &rst).expect("one verdict").reason, Reason::TranslatedOut);
        }
    }
    lab.wait(tick::from_seconds(15) + GRACE + 1).expect("clock");
    // The others must not expire meanwhile: handshakes last 30 s.
    let swept = lab.sweep(10_000).expect("sweep");
    assert_eq!(swept.reclaimed, u64::from(PORTS / 2));
    lab.rewrite_backends(whole).expect("reload");
    let again: BTreeSet<u16> = (10_000..10_000 + PORTS / 2)
        .map(|number| lab.open(&syn(number)).expect("runs").expect("a port that came back"))
        .collect();
    assert_eq!(again, (1024 + PORTS / 2..1024 + PORTS).collect());
    assert_eq!(lab.send(0, &syn(20_000)).expect("one verdict").reason, Reason::NoFreePort);
    assert_eq!(lab.audit().expect("audit"), usize::from(PORTS));
}
