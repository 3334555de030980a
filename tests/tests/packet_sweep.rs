// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sweep, and expiry while there is no daemon to sweep.

use nat_common::{
    abi::counters::Reason,
    net::timers::{GRACE, TimerClass},
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{FRONTEND, SERVER, SERVER2, WEB},
    },
    packet::{ACK, FIN, Packet, RST, SYN},
};

fn seconds(seconds: u32) -> u32 {
    tick::from_seconds(seconds)
}

/// Opens one flow for every timer class; the class is the number of the flow's source port.
fn one_of_each(lab: &Lab) {
    let out = |packet: Packet| {
        let seen = lab.send(0, &packet).expect("one verdict");
        assert_eq!(seen.reason, Reason::TranslatedOut);
        seen.port().expect("sent")
    };
    let back = |packet: Packet| {
        assert_eq!(lab.send(1, &packet).expect("one verdict").reason, Reason::TranslatedIn);
    };
    let server = (SERVER, 80);
    for class in TimerClass::ALL.into_iter().filter(|class| *class != TimerClass::Other) {
        let client = (WEB, 1000 + class as u16);
        let tcp = |flags| Packet::tcp(client, server, flags);
        let port = match class {
            TimerClass::Udp => out(Packet::udp(client, server)),
            TimerClass::Icmp => out(Packet::ping(client, SERVER)),
            _ => out(tcp(SYN)),
        };
        let reply = |flags| Packet::tcp(server, (FRONTEND, port), flags);
        if matches!(class, TimerClass::TcpEstablished | TimerClass::TcpHalfClosed | TimerClass::TcpClosed) {
            back(reply(SYN | ACK));
            out(tcp(ACK));
        }
        if matches!(class, TimerClass::TcpHalfClosed | TimerClass::TcpClosed) {
            out(tcp(FIN | ACK));
        }
        if class == TimerClass::TcpClosed {
            back(reply(FIN | ACK));
        }
        if class == TimerClass::TcpReset {
            back(reply(RST));
        }
    }
}

#[test]
fn the_sweep_counts_what_is_alive() {
    let mut lab = Lab::new(World::default().blocks(64)).expect("lab");
    one_of_each(&lab);
    let found = lab.sweep(1000).expect("sweep");
    assert_eq!((found.visited, found.reclaimed, found.pending), (14, 0, 0));
    assert_eq!(found.live, [1, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(lab.audit().expect("audit"), 7);
}

#[test]
fn each_flow_is_reclaimed_at_its_time() {
    let mut lab = Lab::new(World::default().blocks(64)).expect("lab");
    one_of_each(&lab);
    let start = lab.now;
    // When, and how many flows are left after it: RST 15 s, handshake 30 s, ICMP 60 s, all others 240 s.
    for (timeout, left) in [(15, 6), (30, 5), (60, 4), (240, 0)] {
        lab.set_time(start + seconds(timeout) + GRACE).expect("clock");
        let early = lab.sweep(1000).expect("sweep");
        assert_eq!(early.reclaimed, 0, "{timeout} s: within its grace");
        assert!(early.pending >= 1, "{timeout} s: over, but not to be reclaimed yet");
        lab.wait(1).expect("clock");
        let found = lab.sweep(1000).expect("sweep");
        assert!(found.reclaimed >= 1);
        assert_eq!(lab.audit().expect("audit"), left, "after {timeout} s");
    }
    assert_eq!(lab.maps.table.get(&0, 0).expect("table").swept, 7);
}

#[test]
fn the_sweep_stops_at_its_limit() {
    let mut lab = Lab::new(World::default().blocks(64)).expect("lab");
    for number in 1..=20 {
        assert!(lab.open(&Packet::udp((WEB, number), (SERVER, 53))).expect("runs").is_some());
    }
    lab.wait(seconds(240) + 1 + GRACE).expect("clock");
    for (reclaimed, pending) in [(8, 12), (8, 4), (4, 0), (0, 0)] {
        let found = lab.sweep(8).expect("sweep");
        assert_eq!((found.reclaimed, found.pending), (reclaimed, pending));
        lab.audit().expect("both halves or none");
    }
}

#[test]
fn a_packet_in_either_direction_saves_both_halves() {
    let mut lab = Lab::new(World::default().blocks(64)).expect("lab");
    let out = Packet::udp((WEB, 1), (SERVER, 53));
    let port = lab.open(&out).expect("runs").expect("sent");
    let other = lab.open(&Packet::udp((WEB, 2), (SERVER2, 53))).expect("runs").expect("sent");
    for _ in 0..4 {
        lab.wait(seconds(200)).expect("clock");
        lab.send(1, &Packet::udp((SERVER, 53), (FRONTEND, port))).expect("one verdict");
        lab.send(0, &Packet::udp((WEB, 2), (SERVER2, 53))).expect("one verdict");
        assert_eq!(lab.sweep(1000).expect("sweep").live[TimerClass::Udp as usize], 2);
    }
    assert_eq!(lab.send(0, &out).expect("one verdict").reason, Reason::TranslatedOut);
    let answer = Packet::udp((SERVER2, 53), (FRONTEND, other));
    assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::TranslatedIn);
}

#[test]
fn everything_works_and_ends_without_a_daemon() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let packet = Packet::udp((WEB, 1), (SERVER, 53));
    let port = lab.open(&packet).expect("runs").expect("sent");
    let answer = Packet::udp((SERVER, 53), (FRONTEND, port));
    // No heartbeat from here on.
    let dead_at = lab.now;
    let now = |lab: &mut Lab, now: u32| {
        lab.set_time(now).expect("clock");
        lab.control(|control| control.heartbeat = dead_at).expect("control");
    };
    for round in 1..=5 {
        now(&mut lab, dead_at + round * seconds(200));
        assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::TranslatedIn);
        assert_eq!(lab.send(0, &packet).expect("one verdict").reason, Reason::TranslatedOut);
        let fresh = Packet::udp((WEB, 100 + round as u16), (SERVER2, 53));
        assert_eq!(lab.send(0, &fresh).expect("one verdict").reason, Reason::TranslatedOut, "a new flow");
    }
    let end = lab.now + seconds(240) + 1;
    now(&mut lab, end);
    assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::FlowExpired);
    now(&mut lab, end + GRACE + 4);
    for number in 1..=8 {
        let fresh = Packet::udp((WEB, 200 + number), (SERVER, 53));
        assert_eq!(lab.send(0, &fresh).expect("one verdict").reason, Reason::TranslatedOut, "flow {number}");
    }
    lab.audit().expect("both halves or none");
}
