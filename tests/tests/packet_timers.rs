// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a port rests after its flow, and what a reload does to timers.

use std::collections::BTreeSet;

use nat_common::{
    Tick,
    abi::{
        config::banked,
        counters::Reason,
        grant::{PortTimer, RULE_UDP_BOTH},
    },
    net::{
        profiles::{PROFILES, Timers},
        timers::{GRACE, TimerClass},
    },
    tick::from_seconds,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{FRONTEND, SERVER, SERVER2, WEB},
    },
    packet::{ACK, FIN, Packet, RST, SYN},
};

fn world(timers: &Timers) -> World {
    World {
        timeouts: timers.timeout_ticks(),
        rests: timers.rest_ticks(),
        rule_flags: timers.refresh.flags(),
        ..World::default()
    }
}

/// A packet that opens a flow which the class's timer governs, or will after [`advance`].
fn opener(class: TimerClass, number: u16, server: [u8; 4]) -> Packet {
    match class {
        TimerClass::Udp => Packet::udp((WEB, number), (server, 53)),
        TimerClass::Icmp => Packet::ping((WEB, number), server),
        _ => Packet::tcp((WEB, number), (server, 80), SYN),
    }
}

/// Brings a TCP flow that has just been opened on `port` into the state of its class.
fn advance(lab: &Lab, class: TimerClass, number: u16, port: u16) {
    let (client, server) = ((WEB, number), (SERVER, 80));
    let out = |flags| assert!(lab.open(&Packet::tcp(client, server, flags)).expect("runs").is_some());
    let back = |flags| {
        let seen = lab.send(1, &Packet::tcp(server, (FRONTEND, port), flags)).expect("one verdict");
        assert_eq!(seen.reason, Reason::TranslatedIn);
    };
    if matches!(class, TimerClass::TcpEstablished | TimerClass::TcpHalfClosed | TimerClass::TcpClosed) {
        back(SYN | ACK);
        out(ACK);
    }
    if matches!(class, TimerClass::TcpHalfClosed | TimerClass::TcpClosed) {
        out(FIN | ACK);
    }
    match class {
        TimerClass::TcpClosed => back(FIN | ACK),
        TimerClass::TcpReset => back(RST),
        _ => {}
    }
}

const CLASSES: [TimerClass; 7] = [
    TimerClass::TcpHandshake,
    TimerClass::TcpEstablished,
    TimerClass::TcpHalfClosed,
    TimerClass::TcpClosed,
    TimerClass::TcpReset,
    TimerClass::Udp,
    TimerClass::Icmp,
];

/// Fills all 8 ports towards one destination with flows of a class; their ports.
fn fill(lab: &Lab, class: TimerClass) -> BTreeSet<u16> {
    let ports: BTreeSet<u16> = (1..=8)
        .map(|number| {
            let port = lab.open(&opener(class, number, SERVER)).expect("runs").expect("a port");
            advance(lab, class, number, port);
            port
        })
        .collect();
    assert_eq!(ports.len(), 8);
    ports
}

/// For every profile and every way to end: until its rest is over a port goes to nobody else for the same destination, but
/// to another destination at once; then it is found, without a sweep.
#[test]
fn a_port_rests_for_exactly_as_long_as_its_profile_says() {
    for (name, timers) in PROFILES {
        let mut lab = Lab::new(world(&timers)).expect("lab");
        for class in CLASSES {
            let what = format!("{name}, {}", class.name());
            lab.reset().expect("clean maps");
            fill(&lab, class);
            let index = class as usize;
            let ends = from_seconds(timers.timeouts[index]) + from_seconds(timers.rests[index]).max(GRACE);
            lab.wait(ends).expect("clock");
            let seen = lab.send(0, &opener(class, 100, SERVER)).expect("one verdict");
            assert_eq!(seen.reason, Reason::NoFreePort, "{what}: too early");
            assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 0, "{what}: swept too early");
            let elsewhere = lab.open(&opener(class, 101, SERVER2)).expect("runs");
            assert!(elsewhere.is_some(), "{what}: another destination");
            lab.wait(1).expect("clock");
            let free = lab.open(&opener(class, 102, SERVER)).expect("runs");
            assert!(free.is_some(), "{what}: free by now");
            assert_eq!(lab.maps.table.get(&0, 0).expect("table").taken_over, 1, "{what}");
            assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 7, "{what}: so are the others");
            assert_eq!(lab.audit().expect("audit"), 2, "{what}");
        }
    }
}

/// A walk that found nothing writes down when to look again: rests count there, too.
#[test]
fn a_refusal_during_the_rest_does_not_postpone_its_end() {
    let mut world = World::default().blocks(64);
    world.rests[TimerClass::Udp as usize] = from_seconds(65);
    let mut lab = Lab::new(world).expect("lab");
    for number in 1..=64 {
        assert!(lab.open(&opener(TimerClass::Udp, number, SERVER)).expect("runs").is_some());
    }
    let end: Tick = from_seconds(240) + from_seconds(65);
    let start = lab.now;
    for at in (1..=end).step_by(7).chain([end]) {
        lab.set_time(start + at).expect("clock");
        let seen = lab.send(0, &opener(TimerClass::Udp, 1000, SERVER)).expect("one verdict");
        assert_eq!(seen.reason, Reason::NoFreePort, "after {at} ticks of {end}");
    }
    lab.set_time(start + end + 1).expect("clock");
    for number in 2000..2064 {
        assert!(lab.open(&opener(TimerClass::Udp, number, SERVER)).expect("runs").is_some(), "{number}");
    }
    lab.audit().expect("audit");
}

/// Answers alone do not keep a flow of which both directions count: its port is found at its time, also by a walk.
#[test]
fn a_flow_that_one_direction_has_left_gives_its_port_back() {
    let world = World { rule_flags: RULE_UDP_BOTH, ..World::default() };
    let mut lab = Lab::new(world).expect("lab");
    let ports = fill(&lab, TimerClass::Udp);
    for _ in 0..8 {
        lab.wait(from_seconds(30)).expect("clock");
        for port in &ports {
            let answer = Packet::udp((SERVER, 53), (FRONTEND, *port));
            assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::TranslatedIn);
        }
    }
    let over = from_seconds(240) + 1 - 8 * from_seconds(30).min(from_seconds(240) / 8);
    lab.wait(over + GRACE).expect("clock");
    assert!(lab.open(&opener(TimerClass::Udp, 100, SERVER)).expect("runs").is_some());
}

/// The sweep leaves a flow that rests where it is, and counts it as pending.
#[test]
fn the_sweep_waits_for_the_rest() {
    let mut world = World::default();
    world.rests[TimerClass::Udp as usize] = from_seconds(65);
    let mut lab = Lab::new(world).expect("lab");
    fill(&lab, TimerClass::Udp);
    lab.wait(from_seconds(240) + 1 + GRACE).expect("clock");
    let resting = lab.sweep(1000).expect("sweep");
    assert_eq!((resting.reclaimed, resting.pending, resting.live[TimerClass::Udp as usize]), (0, 8, 0));
    lab.wait(from_seconds(65) - GRACE).expect("clock");
    assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 8);
    assert_eq!(lab.audit().expect("audit"), 0);
}

/// Timers are those of the rule as it is now: a reload applies to flows that live.
#[test]
fn other_timers_apply_to_living_flows() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let port = lab.open(&opener(TimerClass::Udp, 1, SERVER)).expect("runs").expect("sent");
    let answer = Packet::udp((SERVER, 53), (FRONTEND, port));
    let verdict = |lab: &Lab| lab.send(1, &answer).expect("one verdict").reason;
    let change = |lab: &mut Lab, timeout: u32| {
        let mut rule = lab.maps.rules.get(&banked(0, 0), 0).expect("rule");
        rule.udp_ports[0] = PortTimer { first: 53, last: 53, timeout: from_seconds(timeout) };
        lab.maps.rules.set(banked(0, 0), rule, 0).expect("rule");
        lab.control(|control| control.generation += 1).expect("control");
    };
    lab.wait(from_seconds(30)).expect("clock");
    change(&mut lab, 10);
    assert_eq!(verdict(&lab), Reason::FlowExpired);
    change(&mut lab, 60);
    assert_eq!(verdict(&lab), Reason::TranslatedIn);
}
