// SPDX-License-Identifier: MIT OR Apache-2.0
//! Endpoint-independent mappings: exact exhaustion, what outlives what, and races.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nat_common::{
    abi::{
        counters::Reason,
        flow::{HALF_OUTBOUND, ZONE_MAPPING},
        grant::{Limits, RULE_FILTER_ADDRESS, RULE_FILTER_NONE, RULE_PARITY},
        names::delay::MAPPING_JUDGED,
    },
    net::timers::GRACE,
    tick,
};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World, together,
        world::{Backend, DB, FIRST_PORT, FRONTEND, SERVER, SERVER2, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN, verify::verify},
};

const THREADS: usize = 4;

fn open() -> World {
    World::default().mapped(RULE_FILTER_NONE)
}

fn dns(host: u8) -> End {
    ([192, 0, 2, host], 53)
}

/// Mappings in the table: protocol and inner end, and the port.
fn mappings(lab: &Lab) -> BTreeMap<(u8, End), u16> {
    let flows = lab.maps.all_flows().expect("flows");
    let number = u16::from_be_bytes;
    flows
        .iter()
        .filter(|(key, entry)| key.zone[0] == ZONE_MAPPING && entry.half & HALF_OUTBOUND != 0)
        .map(|(key, entry)| ((key.protocol, (key.source, number(key.source_port))), number(entry.port)))
        .collect()
}

fn refusal(lab: &Lab, packet: &Packet) -> Reason {
    lab.send(0, packet).expect("one verdict").reason
}

#[test]
fn eight_ports_serve_eight_inner_ends() {
    let mut lab = Lab::new(open()).expect("lab");
    let mut ports = BTreeSet::new();
    for client in 0..8 {
        let got: BTreeSet<u16> = (1..=4)
            .map(|host| {
                lab.open(&Packet::udp((WEB, 40_000 + client), dns(host))).expect("runs").expect("sent")
            })
            .collect();
        assert_eq!(got.len(), 1, "one port for every destination: {got:?}");
        assert!(ports.insert(*got.first().expect("one")), "a port for two inner ends");
    }
    assert_eq!(ports, (FIRST_PORT..FIRST_PORT + 8).collect());
    for host in 1..=8 {
        assert_eq!(refusal(&lab, &Packet::udp((WEB, 40_008), dns(host))), Reason::NoFreePort);
    }
    // Another protocol and another backend have ports of their own; those who have one go on.
    assert!(lab.open(&Packet::tcp((WEB, 40_008), (SERVER, 80), SYN)).expect("runs").is_some());
    assert!(lab.open(&Packet::udp((DB, 40_008), dns(1))).expect("runs").is_some());
    assert!(lab.open(&Packet::udp((WEB, 40_003), dns(9))).expect("runs").is_some());
    assert_eq!(lab.audit().expect("audit"), 8 + 8 * 4 + 1 + 2 + 2);
    // One of them ends. It takes a sweep for its sessions, and one more for itself.
    lab.wait(tick::from_seconds(200)).expect("clock");
    for client in 1..8 {
        assert!(lab.open(&Packet::udp((WEB, 40_000 + client), dns(1))).expect("runs").is_some());
    }
    lab.wait(tick::from_seconds(41) + GRACE).expect("clock");
    for _ in 0..2 {
        lab.sweep(1000).expect("sweep");
    }
    lab.audit().expect("audit");
    assert!(lab.open(&Packet::udp((WEB, 40_008), dns(1))).expect("runs").is_some());
    assert_eq!(refusal(&lab, &Packet::udp((WEB, 40_009), dns(1))), Reason::NoFreePort);
}

/// Nobody sweeps, so what is left of sessions is still in the table when their mapping goes.
#[test]
fn without_a_sweep_ports_come_back_when_no_session_can_live() {
    let mut lab = Lab::new(open()).expect("lab");
    let client = |number: u16| (WEB, 40_000 + number);
    for number in 0..8 {
        for host in 1..=3 {
            assert!(lab.open(&Packet::udp(client(number), dns(host))).expect("runs").is_some());
        }
    }
    lab.wait(tick::from_seconds(240)).expect("clock");
    assert_eq!(refusal(&lab, &Packet::udp(client(8), dns(1))), Reason::NoFreePort);
    lab.wait(1 + GRACE + tick::from_seconds(30)).expect("clock");
    // Others take the ports over, to the same destinations.
    for number in 8..16 {
        for host in 1..=3 {
            let packet = Packet::udp(client(number), dns(host));
            assert!(lab.open(&packet).expect("runs").is_some(), "{number} to {host}");
        }
    }
    assert_eq!(refusal(&lab, &Packet::udp(client(16), dns(1))), Reason::NoFreePort);
    // What the old ones have left is in nobody's way, and in nobody's count.
    assert!(lab.open(&Packet::udp(client(8), dns(4))).expect("runs").is_some());
    lab.audit().expect("audit");
    lab.sweep(1000).expect("sweep");
    lab.audit().expect("audit");
    let now: Vec<u16> = mappings(&lab).keys().map(|(_, (_, port))| *port).collect();
    assert_eq!(now, (40_008..40_016).collect::<Vec<_>>());
}

/// An inner end that comes back has another mapping, while sessions of the one before are still in the table.
#[test]
fn what_a_mapping_left_behind_is_not_counted_out_of_the_next() {
    let mut lab = Lab::new(open()).expect("lab");
    let client = |number: u16| (WEB, 40_000 + number);
    for number in 0..8 {
        for host in 1..=3 {
            assert!(lab.open(&Packet::udp(client(number), dns(host))).expect("runs").is_some());
        }
    }
    lab.wait(tick::from_seconds(280)).expect("clock");
    assert!(lab.open(&Packet::udp(client(8), dns(9))).expect("runs").is_some());
    let left = mappings(&lab);
    let gone = (0..8).find(|number| !left.contains_key(&(17, client(*number)))).expect("one made room");
    for host in [9, 10] {
        assert!(lab.open(&Packet::udp(client(gone), dns(host))).expect("runs").is_some());
    }
    lab.audit().expect("audit");
    lab.sweep(1000).expect("sweep");
    lab.audit().expect("audit");
    assert_eq!(mappings(&lab).len(), 2);
}

#[test]
fn a_connection_keeps_its_mapping_until_it_has_rested() {
    let mut lab = Lab::new(open()).expect("lab");
    let (client, server) = ((WEB, 40_000), (SERVER, 80));
    let port = lab.open(&Packet::tcp(client, server, SYN)).expect("runs").expect("sent");
    let back = |flags| Packet::tcp(server, (FRONTEND, port), flags);
    lab.send(1, &back(SYN | ACK)).expect("one verdict");
    lab.send(0, &Packet::tcp(client, server, ACK)).expect("one verdict");
    // Longer than the mapping's own timer: it lives by its session.
    lab.wait(tick::from_seconds(200)).expect("clock");
    lab.sweep(1000).expect("sweep");
    assert_eq!(mappings(&lab).len(), 1);
    lab.send(0, &Packet::tcp(client, server, FIN | ACK)).expect("one verdict");
    lab.send(1, &back(FIN | ACK)).expect("one verdict");
    lab.wait(tick::from_seconds(240)).expect("clock");
    lab.sweep(1000).expect("sweep");
    assert_eq!(mappings(&lab).len(), 1, "its port rests");
    let again = lab.open(&Packet::tcp(client, (SERVER2, 80), SYN)).expect("runs");
    assert_eq!(again, Some(port), "the same inner end has the same port");
    lab.audit().expect("audit");
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    for _ in 0..2 {
        lab.sweep(1000).expect("sweep");
    }
    assert_eq!(lab.audit().expect("audit"), 0, "nothing is left");
}

#[test]
fn parity_is_kept_while_there_are_such_ports() {
    let lab = Lab::new(World::default().mapped(RULE_PARITY).blocks(512).table(8192, 8192, 0)).expect("lab");
    let mut taken = BTreeSet::new();
    let mut map = |number: u16| {
        let port = lab.open(&Packet::udp((WEB, number), dns(1))).expect("runs").expect("sent");
        assert!(taken.insert(port));
        port
    };
    for number in 1..=256 {
        assert_eq!(map(2 * number) % 2, 0, "{number}");
    }
    // No even port is left: the odd ones serve as well, to the last.
    for number in 257..=512 {
        assert_eq!(map(2 * number) % 2, 1, "{number}");
    }
    assert_eq!(refusal(&lab, &Packet::udp((WEB, 1), dns(1))), Reason::NoFreePort);
    assert_eq!(lab.audit().expect("audit"), 2 * 512);
}

#[test]
fn what_is_refused_leaves_no_mapping() {
    // Room for three flows: a mapping with two sessions.
    let lab = Lab::new(open().table(3, 256, 0)).expect("lab");
    let client = (WEB, 40_000);
    for host in 1..=2 {
        assert!(lab.open(&Packet::udp(client, dns(host))).expect("runs").is_some());
    }
    assert_eq!(refusal(&lab, &Packet::udp(client, dns(3))), Reason::TableFull);
    assert_eq!(refusal(&lab, &Packet::udp((WEB, 40_001), dns(1))), Reason::TableFull);
    assert_eq!(lab.audit().expect("audit"), 3);
    // Room for a mapping, not for its session.
    let lab = Lab::new(open().table(4, 256, 0)).expect("lab");
    for host in 1..=2 {
        assert!(lab.open(&Packet::udp(client, dns(host))).expect("runs").is_some());
    }
    assert_eq!(refusal(&lab, &Packet::udp((WEB, 40_001), dns(1))), Reason::TableFull);
    assert_eq!(lab.audit().expect("audit"), 3, "the mapping is gone with its session");
    // Limits are for sessions, not for mappings.
    let limits = Limits { max_flows: 2, ..Limits::default() };
    let lab = Lab::new(World { limits: Some(limits), ..open() }).expect("lab");
    for client in 0..2 {
        assert!(lab.open(&Packet::udp((WEB, 40_000 + client), dns(1))).expect("runs").is_some());
    }
    assert_eq!(refusal(&lab, &Packet::udp((WEB, 40_003), dns(1))), Reason::FlowLimit);
    assert_eq!(mappings(&lab).len(), 2);
    lab.audit().expect("audit");
}

#[test]
fn a_port_that_leaves_the_grant_goes_with_its_last_session() {
    let mut lab = Lab::new(open()).expect("lab");
    let (busy, idle) = ((WEB, 40_000), (WEB, 40_001));
    let kept = lab.open(&Packet::udp(busy, dns(1))).expect("runs").expect("sent");
    let left = lab.open(&Packet::tcp(idle, (SERVER, 80), SYN)).expect("runs").expect("sent");
    lab.send(1, &Packet::tcp((SERVER, 80), (FRONTEND, left), RST)).expect("one verdict");
    let moved = World {
        backends: vec![Backend::paired(WEB, FIRST_PORT + 64, 8), Backend::paired(DB, FIRST_PORT + 72, 8)],
        ..open()
    };
    lab.rewrite_backends(moved).expect("reload");
    // One mapping for an inner end, as long as it has sessions.
    assert_eq!(lab.open(&Packet::udp(busy, dns(2))).expect("runs"), Some(kept));
    // Nothing from outside opens a session on it any more.
    let stranger = Packet::udp(dns(3), (FRONTEND, kept));
    assert_eq!(lab.send(1, &stranger).expect("one verdict").reason, Reason::NoMapping);
    lab.wait(tick::from_seconds(15) + 1 + GRACE).expect("clock");
    lab.sweep(1).expect("sweep");
    let new = lab.open(&Packet::tcp(idle, (SERVER2, 80), SYN)).expect("runs").expect("sent");
    assert!(new >= FIRST_PORT + 64, "{new}, had {left}");
}

#[test]
fn everyone_opens_sessions_of_one_inner_end() {
    const ENDS: u16 = 300;
    let lab = Lab::new(open().blocks(1024).table(16_384, 16_384, 0)).expect("lab");
    let results = together(&lab, THREADS, |thread| {
        let host = 1 + u8::try_from(thread).expect("small");
        let ends = 1..=ENDS;
        ends.map(|port| lab.open(&Packet::udp((WEB, port), dns(host))).expect("runs")).collect::<Vec<_>>()
    });
    let mut lost = 0;
    for end in 0..usize::from(ENDS) {
        let got: BTreeSet<u16> = results.iter().filter_map(|ports| ports[end]).collect();
        assert_eq!(got.len(), 1, "inner end {end} got {got:?}");
        lost += results.iter().filter(|ports| ports[end].is_none()).count();
    }
    let counters = lab.maps.sum_counters().expect("counters");
    assert_eq!(lost as u64, counters.packets[Reason::FlowRace as usize], "lost for no other reason");
    assert_eq!(lab.audit().expect("audit"), usize::from(ENDS) * (1 + THREADS) - lost);
    assert_eq!(mappings(&lab).len(), usize::from(ENDS));
}

#[test]
fn everyone_opens_the_same_sessions() {
    const ENDS: u16 = 2000;
    let lab = Lab::new(World::default().mapped(RULE_FILTER_ADDRESS).blocks(4096).table(16_384, 16_384, 0))
        .expect("lab");
    together(&lab, THREADS, |_| {
        for port in 1..=ENDS {
            lab.open(&Packet::udp((WEB, port), (SERVER, 53))).expect("runs");
        }
    });
    assert_eq!(lab.audit().expect("audit"), 2 * usize::from(ENDS));
    assert_eq!(mappings(&lab).len(), usize::from(ENDS));
}

/// Mappings without sessions, whose time is over, are used again and swept at the same moment.
#[test]
fn a_session_joins_while_its_mapping_is_swept() {
    const ENDS: u16 = 40;
    let world = World { delay: MAPPING_JUDGED, ..open().blocks(1024).table(2048, 2048, 0) };
    let mut lab = Lab::new(world).expect("lab");
    let syn = |end: u16, host: u8| Packet::tcp((WEB, end), ([192, 0, 2, host], 80), SYN);
    for round in 0..40 {
        for end in 1..=ENDS {
            let port = lab.open(&syn(end, 1)).expect("runs").expect("sent");
            let reset = Packet::tcp(([192, 0, 2, 1], 80), (FRONTEND, port), RST);
            lab.send(1, &reset).expect("one verdict");
        }
        // First the sessions, by what a reset leaves them; then the mappings, by their own timer.
        lab.wait(tick::from_seconds(15) + 1 + GRACE).expect("clock");
        assert_eq!(lab.sweep(u64::MAX).expect("sweep").reclaimed, u64::from(ENDS));
        lab.wait(tick::from_seconds(15) + 1 + GRACE).expect("clock");
        let opened = together(&lab, 3, |thread| {
            if thread == 0 {
                lab.sweep_again().expect("sweep");
                return 0;
            }
            let mine = (1..=ENDS).filter(|end| usize::from(end % 2) == thread - 1);
            mine.filter(|end| lab.open(&syn(*end, 2)).expect("runs").is_some()).count()
        });
        let flows = lab.audit().unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        let sessions = opened.into_iter().sum::<usize>();
        assert_eq!(flows - sessions, mappings(&lab).len(), "round {round}");
        lab.reset().expect("reset");
    }
}

/// A packet that may be hairpinned: whether it left, with which source.
fn turn(lab: &Lab, packet: &Packet) -> Option<u16> {
    let link = arriving(&lab.world, 0, packet);
    let outcome = lab.run(0, &packet.clone().link(link).frame()).expect("runs");
    let sent = matches!(outcome.action, Action::Redirect | Action::Tx);
    sent.then(|| verify(&outcome.frame).expect("valid").source.1)
}

/// Mappings are opened, used from inside, from outside and from each other, and let go of, under the sweep.
#[test]
fn sessions_come_and_go_under_the_sweep() {
    for (filter, delay) in
        [(RULE_FILTER_NONE, 0), (RULE_FILTER_ADDRESS, 0), (RULE_FILTER_NONE, MAPPING_JUDGED)]
    {
        let world = World { delay, ..World::default().mapped(filter).blocks(16).table(512, 512, 0) };
        let mut lab = Lab::new(world).expect("lab");
        for round in 0..20 {
            lab.sweep(u64::MAX).expect("sweep");
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                let lab = &lab;
                let workers: Vec<_> = (0..2u16)
                    .map(|thread| {
                        scope.spawn(move || {
                            let _entered = lab.namespace.enter().expect("the namespace");
                            for number in 0..150u16 {
                                let backend = if number % 2 == 0 { WEB } else { DB };
                                let client = (backend, 1 + (number * 7 + thread) % 23);
                                let host = 1 + u8::try_from(number % 5).expect("small");
                                let udp = lab.open(&Packet::udp(client, dns(host))).expect("runs");
                                turn(lab, &Packet::tcp(client, ([192, 0, 2, host], 80), SYN));
                                if let Some(port) = udp {
                                    let packet = Packet::udp(dns(host + 1), (FRONTEND, port));
                                    let link = arriving(&lab.world, 1, &packet);
                                    lab.run(1, &packet.link(link).frame()).expect("runs");
                                    turn(lab, &Packet::udp((WEB, 1 + number % 11), (FRONTEND, port)));
                                }
                            }
                        })
                    })
                    .collect();
                let sweeper = scope.spawn(|| {
                    let _entered = lab.namespace.enter().expect("the namespace");
                    while !done.load(Ordering::Relaxed) {
                        lab.sweep_again().expect("sweep");
                    }
                });
                for worker in workers {
                    worker.join().expect("no panic");
                }
                done.store(true, Ordering::Relaxed);
                sweeper.join().expect("no panic");
            });
            lab.audit().unwrap_or_else(|error| panic!("round {round}: {error:#}"));
            let found = mappings(&lab);
            let ports: BTreeSet<(u8, u16)> =
                found.iter().map(|((protocol, _), port)| (*protocol, *port)).collect();
            assert_eq!(ports.len(), found.len(), "a port of two mappings");
            // The next round starts among flows that have just expired, or are just about to.
            lab.wait(tick::from_seconds(if round % 2 == 0 { 30 } else { 240 }) + round % 9).expect("clock");
        }
        for _ in 0..3 {
            lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
            lab.sweep(u64::MAX).expect("sweep");
        }
        assert_eq!(lab.audit().expect("audit"), 0, "nothing is left");
    }
}
