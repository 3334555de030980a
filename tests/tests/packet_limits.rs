// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits of a rule: exactly so many, refused beyond, and given back however a flow ends.

use nat_common::{
    abi::{
        counters::Reason,
        grant::{Destination, Limits, Quota, quota_index},
    },
    net::timers::GRACE,
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{Backend, DB, FIRST_PORT, FRONTEND, SERVER, SERVER2, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN},
};

const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);

fn lab(limits: Limits) -> Lab {
    let world = World { limits: Some(limits), ..World::default().blocks(64) };
    Lab::new(world).expect("lab")
}

fn reason(lab: &Lab, slot: usize, packet: &Packet) -> Reason {
    lab.send(slot, packet).expect("one verdict").reason
}

/// What becomes of a new flow.
fn udp(lab: &Lab, port: u16, to: End) -> Reason {
    reason(lab, 0, &Packet::udp((WEB, port), to))
}

fn syn(lab: &Lab, port: u16, to: End) -> Reason {
    reason(lab, 0, &Packet::tcp((WEB, port), to, SYN))
}

/// What the first backend has used up.
fn quota(lab: &Lab) -> Quota {
    lab.audit().expect("audit");
    lab.maps.quota.get(&quota_index(0, false), 0).expect("quota")
}

/// Number of destinations that are counted, and flows to all of them.
fn towards(lab: &Lab) -> (usize, u64) {
    let rows = lab.maps.towards.iter().map(|row| row.expect("towards").1.flows);
    rows.fold((0, 0), |(rows, flows), more| (rows + 1, flows + more))
}

/// Lets everything expire and removes it.
fn sweep(lab: &mut Lab) {
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    lab.sweep(10_000).expect("sweep");
    assert_eq!(quota(lab), Quota { due: quota(lab).due, ..Quota::default() });
    assert_eq!(towards(lab), (0, 0), "counted towards destinations that nobody talks to");
}

fn destination(address: [u8; 4], long: u32, reserved: u32, max_flows: u32) -> Destination {
    let mask = u32::MAX.checked_shl(32 - long).unwrap_or(0).to_be_bytes();
    Destination { address, mask, port: [0; 2], classes: 0b111, reserved, max_flows }
}

#[test]
fn max_flows_counts_every_protocol_and_is_given_back() {
    let mut lab = lab(Limits { max_flows: 4, ..Limits::default() });
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, DNS), Reason::TranslatedOut);
    assert_eq!(syn(&lab, 1, HTTP), Reason::TranslatedOut);
    assert_eq!(reason(&lab, 0, &Packet::ping((WEB, 1), SERVER)), Reason::TranslatedOut);
    for _ in 0..3 {
        assert_eq!(udp(&lab, 3, DNS), Reason::FlowLimit);
        assert_eq!(syn(&lab, 2, HTTP), Reason::FlowLimit);
    }
    assert_eq!(quota(&lab).flows, 4);
    // The living are not concerned, nor is the other backend.
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    for port in 1..=4 {
        assert_eq!(reason(&lab, 0, &Packet::udp((DB, port), DNS)), Reason::TranslatedOut);
    }
    sweep(&mut lab);
    for port in 1..=4 {
        assert_eq!(udp(&lab, port, DNS), Reason::TranslatedOut);
    }
    // Expired, not swept: each opens again in its own place.
    lab.wait(tick::from_seconds(240) + 1).expect("clock");
    assert_eq!(udp(&lab, 5, DNS), Reason::FlowLimit, "an expired flow counts until it is reclaimed");
    for port in 1..=4 {
        assert_eq!(udp(&lab, port, DNS), Reason::TranslatedOut);
    }
    assert_eq!(quota(&lab).flows, 4);
    sweep(&mut lab);
}

#[test]
fn a_reset_connection_opens_again_in_its_place() {
    let lab = lab(Limits { max_flows: 1, max_half_open: 1, max_ports: 1, ..Limits::default() });
    for round in 0..5 {
        assert_eq!(syn(&lab, 1, HTTP), Reason::TranslatedOut, "round {round}");
        assert_eq!((quota(&lab).flows, quota(&lab).half_open, towards(&lab)), (1, 1, (1, 1)));
        assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 1), HTTP, RST)), Reason::TranslatedOut);
        assert_eq!((quota(&lab).flows, quota(&lab).half_open), (1, 0));
    }
    assert_eq!(syn(&lab, 2, (SERVER, 81)), Reason::FlowLimit);
}

#[test]
fn a_flow_that_is_taken_over_gives_back() {
    let limits = Limits { max_flows: 100, max_ports: 100, ..Limits::default() };
    let mut world = World { limits: Some(limits), ..World::default() };
    world.backends = vec![Backend::paired(WEB, FIRST_PORT, 1), Backend::paired(DB, FIRST_PORT + 8, 8)];
    let mut lab = Lab::new(world).expect("lab");
    for round in 0..5 {
        assert_eq!(udp(&lab, 10 + round, DNS), Reason::TranslatedOut);
        assert_eq!(udp(&lab, 30 + round, DNS), Reason::NoFreePort);
        assert_eq!((quota(&lab).flows, towards(&lab)), (1, (1, 1)), "round {round}");
        lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    }
    assert_eq!(lab.maps.table.get(&0, 0).expect("table").taken_over, 4);
}

#[test]
fn what_is_refused_later_is_given_back() {
    let limits = Limits { max_flows: 100, max_half_open: 100, max_ports: 100, ..Limits::default() };
    let world = World { limits: Some(limits), ..World::default() };
    let lab = Lab::new(world.clone()).expect("lab");
    for port in 1..=8 {
        assert_eq!(syn(&lab, port, HTTP), Reason::TranslatedOut);
    }
    assert_eq!(syn(&lab, 9, HTTP), Reason::NoFreePort);
    assert_eq!((quota(&lab).flows, quota(&lab).half_open, towards(&lab)), (8, 8, (1, 8)));
    let lab = Lab::new(World { guaranteed: 3, ..world }).expect("lab");
    for port in 1..=3 {
        assert_eq!(syn(&lab, port, HTTP), Reason::TranslatedOut);
    }
    assert_eq!(syn(&lab, 4, HTTP), Reason::TableShare);
    assert_eq!((quota(&lab).flows, quota(&lab).half_open, towards(&lab)), (3, 3, (1, 3)));
    let limits = Limits { max_half_open: 100, max_flows: 1, max_ports: 100, ..Limits::default() };
    let lab = Lab::new(World { limits: Some(limits), ..World::default() }).expect("lab");
    assert_eq!(syn(&lab, 1, HTTP), Reason::TranslatedOut);
    assert_eq!(syn(&lab, 2, HTTP), Reason::FlowLimit);
    assert_eq!((quota(&lab).flows, quota(&lab).half_open, towards(&lab)), (1, 1, (1, 1)));
}

/// A flood of SYNs ends at its own backend, and every end of a handshake makes room for exactly one more.
#[test]
fn unfinished_handshakes() {
    let mut lab = lab(Limits { max_half_open: 4, ..Limits::default() });
    let outer = |port| lab.open(&Packet::tcp((WEB, port), HTTP, SYN)).expect("runs").expect("sent");
    let outers: Vec<u16> = (1..=4).map(outer).collect();
    for port in 5..60 {
        assert_eq!(syn(&lab, port, HTTP), Reason::HalfOpenLimit);
    }
    assert_eq!(reason(&lab, 0, &Packet::tcp((DB, 1), HTTP, SYN)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    // A retransmission opens nothing.
    assert_eq!(syn(&lab, 1, HTTP), Reason::TranslatedOut);
    let comes = |index: usize, flags| {
        let packet = Packet::tcp(HTTP, (FRONTEND, outers[index]), flags);
        assert_eq!(reason(&lab, 1, &packet), Reason::TranslatedIn);
    };
    let goes = |port, flags| {
        assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, port), HTTP, flags)), Reason::TranslatedOut);
    };
    let room = |port| {
        assert_eq!(quota(&lab).half_open, 3);
        assert_eq!(syn(&lab, port, HTTP), Reason::TranslatedOut);
        assert_eq!(syn(&lab, port + 1, HTTP), Reason::HalfOpenLimit);
        assert_eq!(quota(&lab).half_open, 4);
    };
    comes(0, SYN | ACK);
    assert_eq!(quota(&lab).half_open, 4, "half a handshake is not a whole one");
    goes(1, ACK);
    room(100);
    comes(0, FIN | ACK);
    goes(1, FIN | ACK);
    goes(1, RST);
    assert_eq!(quota(&lab).half_open, 4, "its handshake was over long ago");
    comes(1, RST | ACK);
    room(110);
    goes(3, FIN | ACK);
    assert_eq!(quota(&lab).half_open, 4, "a FIN that answers nothing ends no handshake");
    goes(4, RST);
    room(130);
    lab.wait(tick::from_seconds(30) + 1 + GRACE).expect("clock");
    lab.sweep(10_000).expect("sweep");
    assert_eq!(quota(&lab).half_open, 0, "handshakes that never ended");
    sweep(&mut lab);
}

/// Generic cell rate: a burst at once, then one flow an interval.
#[test]
fn rate_of_new_flows() {
    const TICKS: u32 = 4;
    let interval = u64::from(TICKS) << tick::TICK_SHIFT;
    let mut lab = lab(Limits { interval, tolerance: 3 * interval, ..Limits::default() });
    let mut port = 0;
    let mut open = |lab: &Lab| {
        port += 1;
        let seen = udp(lab, port, (SERVER, 1 + port));
        assert!(matches!(seen, Reason::TranslatedOut | Reason::RateLimit), "{seen:?}");
        seen == Reason::TranslatedOut
    };
    let mut burst = |lab: &Lab| (0..20).filter(|_| open(lab)).count();
    assert_eq!(burst(&lab), 3);
    assert_eq!(reason(&lab, 0, &Packet::udp((DB, 1), DNS)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 1, (SERVER, 2)), Reason::TranslatedOut, "a living flow is not a new one");
    lab.wait(TICKS - 1).expect("clock");
    assert_eq!(burst(&lab), 0, "too early");
    for _ in 0..5 {
        lab.wait(1).expect("clock");
        assert_eq!(burst(&lab), 1);
        lab.wait(TICKS - 1).expect("clock");
        assert_eq!(burst(&lab), 0);
    }
    lab.wait(TICKS + 1).expect("clock");
    assert_eq!(burst(&lab), 2);
    lab.wait(100 * TICKS).expect("clock");
    assert_eq!(burst(&lab), 3, "quiet times add up to a burst and no more");
    lab.audit().expect("audit");
}

/// A new connection on the tuple of a reset one keeps its port, which rests, and counts as a new one.
#[test]
fn a_connection_that_opens_again_is_within_the_rate() {
    let interval = 40u64 << tick::TICK_SHIFT;
    let mut lab = lab(Limits { interval, tolerance: 2 * interval, max_half_open: 1, ..Limits::default() });
    let first = Packet::tcp((WEB, 1), HTTP, SYN);
    let port = lab.open(&first).expect("runs").expect("sent");
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 1), HTTP, RST)), Reason::TranslatedOut);
    assert_eq!(lab.open(&first).expect("runs"), Some(port), "the same port");
    assert_eq!(quota(&lab).half_open, 1);
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 1), HTTP, RST)), Reason::TranslatedOut);
    assert_eq!(reason(&lab, 0, &first), Reason::RateLimit);
    lab.wait(41).expect("clock");
    // The only unfinished handshake is another one's by now.
    assert_eq!(syn(&lab, 2, HTTP), Reason::TranslatedOut);
    lab.wait(41).expect("clock");
    assert_eq!(syn(&lab, 2, HTTP), Reason::TranslatedOut, "a retransmission");
    assert_eq!(reason(&lab, 0, &first), Reason::HalfOpenLimit);
    assert_eq!(quota(&lab).half_open, 1);
}

/// A burst under generous limits is no debt under others.
#[test]
fn a_rate_that_is_raised_counts_at_once() {
    let interval = 1000u64 << tick::TICK_SHIFT;
    let mut lab = lab(Limits { interval, tolerance: 50 * interval, ..Limits::default() });
    for port in 1..=50 {
        assert_eq!(udp(&lab, port, DNS), Reason::TranslatedOut);
    }
    assert_eq!(udp(&lab, 51, DNS), Reason::RateLimit);
    let mut rule = lab.maps.rules.get(&0, 0).expect("rule");
    (rule.limits.interval, rule.limits.tolerance) = (1 << tick::TICK_SHIFT, 4 << tick::TICK_SHIFT);
    lab.maps.rules.set(0, rule, 0).expect("rule");
    assert_eq!(udp(&lab, 51, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 52, DNS), Reason::RateLimit);
    lab.wait(1).expect("clock");
    assert_eq!(udp(&lab, 52, DNS), Reason::TranslatedOut);
}

#[test]
fn reserved_places_stay_free_for_their_destination() {
    let mut limits = Limits { max_flows: 6, reserved: 2, ..Limits::default() };
    limits.destinations[0] = destination(SERVER, 32, 2, 0);
    let mut lab = lab(limits);
    for port in 1..=4 {
        assert_eq!(udp(&lab, port, (SERVER2, 53)), Reason::TranslatedOut);
    }
    assert_eq!(udp(&lab, 5, (SERVER2, 53)), Reason::FlowLimit);
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(syn(&lab, 1, HTTP), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, DNS), Reason::FlowLimit, "beyond the reservation, as everyone");
    assert_eq!((quota(&lab).flows, quota(&lab).destinations[0]), (4, 2));
    sweep(&mut lab);
    // The other way round: the reservation first, and what it does not hold is everyone's.
    for port in 1..=6 {
        assert_eq!(udp(&lab, port, DNS), Reason::TranslatedOut);
    }
    assert_eq!(udp(&lab, 7, DNS), Reason::FlowLimit);
    assert_eq!((quota(&lab).flows, quota(&lab).destinations[0]), (4, 6));
    sweep(&mut lab);
}

/// Also of the backend's share of the table.
#[test]
fn reserved_places_are_kept_in_the_table() {
    let mut limits = Limits { reserved: 2, ..Limits::default() };
    limits.destinations[0] = destination(SERVER, 32, 2, 0);
    let world = World { limits: Some(limits), guaranteed: 4, ..World::default() };
    let mut lab = Lab::new(world).expect("lab");
    assert_eq!(udp(&lab, 1, (SERVER2, 53)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, (SERVER2, 53)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 3, (SERVER2, 53)), Reason::TableShare);
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 3, DNS), Reason::TableShare);
    lab.audit().expect("audit");
    // And if the reservation is used first, the others have their two places all the same.
    lab.reset().expect("reset");
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 1, (SERVER2, 53)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, (SERVER2, 53)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 3, (SERVER2, 53)), Reason::TableShare);
    lab.audit().expect("audit");
    sweep(&mut lab);
}

#[test]
fn destinations_have_bounds_of_their_own() {
    let mut limits = Limits::default();
    limits.destinations[0] =
        Destination { port: 5432u16.to_be_bytes(), classes: 1, ..destination(SERVER, 32, 0, 1) };
    limits.destinations[1] = destination([192, 0, 2, 0], 24, 0, 3);
    let mut lab = lab(limits);
    assert_eq!(syn(&lab, 1, (SERVER, 5432)), Reason::TranslatedOut);
    assert_eq!(syn(&lab, 2, (SERVER, 5432)), Reason::DestinationLimit);
    // Another port, another protocol, another address: the wider one counts.
    assert_eq!(syn(&lab, 3, HTTP), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 1, (SERVER, 5432)), Reason::TranslatedOut);
    assert_eq!(reason(&lab, 0, &Packet::ping((WEB, 1), SERVER2)), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, (SERVER2, 53)), Reason::DestinationLimit);
    assert_eq!(udp(&lab, 2, ([192, 0, 3, 1], 53)), Reason::TranslatedOut);
    let quota = quota(&lab);
    assert_eq!((quota.flows, &quota.destinations[..3]), (5, &[1, 3, 0][..]));
    sweep(&mut lab);
    assert_eq!(syn(&lab, 2, (SERVER, 5432)), Reason::TranslatedOut);
}

#[test]
fn max_ports_counts_by_destination() {
    let mut lab = lab(Limits { max_ports: 3, ..Limits::default() });
    for to in [DNS, (SERVER, 54), (SERVER2, 53)] {
        for port in 1..=3 {
            assert_eq!(udp(&lab, port, to), Reason::TranslatedOut);
        }
        assert_eq!(udp(&lab, 4, to), Reason::PortCap);
        assert_eq!(udp(&lab, 5, to), Reason::PortCap);
    }
    assert_eq!(towards(&lab), (3, 9));
    // Another protocol and another backend count for themselves.
    assert_eq!(syn(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(reason(&lab, 0, &Packet::udp((DB, 1), DNS)), Reason::TranslatedOut);
    assert_eq!(towards(&lab), (5, 11));
    assert_eq!(quota(&lab).flows, 10);
    // One of three ends: room for one.
    lab.wait(tick::from_seconds(240) + GRACE).expect("clock");
    assert_eq!(udp(&lab, 1, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 2, DNS), Reason::TranslatedOut);
    lab.wait(1).expect("clock");
    lab.sweep(10_000).expect("sweep");
    assert_eq!(towards(&lab), (1, 2));
    assert_eq!(udp(&lab, 8, DNS), Reason::TranslatedOut);
    assert_eq!(udp(&lab, 9, DNS), Reason::PortCap);
    sweep(&mut lab);
}

/// Lower limits under living flows: nothing is refused that is there, and everything is given back as it was taken.
#[test]
fn other_limits_under_living_flows() {
    let mut lab = lab(Limits { max_flows: 10, max_ports: 10, max_half_open: 10, ..Limits::default() });
    for port in 1..=5 {
        assert_eq!(syn(&lab, port, HTTP), Reason::TranslatedOut);
    }
    let mut rule = lab.maps.rules.get(&0, 0).expect("rule");
    (rule.limits.max_flows, rule.limits.max_ports) = (2, 0);
    lab.maps.rules.set(0, rule, 0).expect("rule");
    assert_eq!(syn(&lab, 6, HTTP), Reason::FlowLimit);
    assert_eq!(reason(&lab, 0, &Packet::tcp((WEB, 1), HTTP, ACK)), Reason::TranslatedOut);
    (rule.flags, rule.limits) = (0, Limits::default());
    lab.maps.rules.set(0, rule, 0).expect("rule");
    assert_eq!(syn(&lab, 6, HTTP), Reason::TranslatedOut);
    assert_eq!(quota(&lab).flows, 5, "without limits nothing is counted");
    sweep(&mut lab);
}
