// SPDX-License-Identifier: MIT OR Apache-2.0
//! One backend does its worst; the other one must not notice.

use nat_common::abi::{counters::Reason, grant::Limits};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World,
        world::{Backend, DB, FIRST_PORT, FRONTEND, Pool, SERVER, SERVER2, WEB},
    },
    packet::{ACK, Packet, SYN},
};

/// Places in the table that each backend may always have.
const GUARANTEED: u16 = 600;
/// Flows of the victim that are open before the attack.
const OPEN: u16 = 200;
/// Packets of the attacker between two of the victim.
const BETWEEN: u32 = 8;

struct Victim {
    /// Packets of the open flows.
    established: Vec<Vec<u8>>,
    next: u16,
}

impl Victim {
    /// Opens its flows, to the server that the attacker attacks, too.
    fn new(lab: &Lab) -> Self {
        let packet = |number, flags| Packet::tcp((DB, number), (SERVER, 80), flags);
        for number in 1..=OPEN {
            assert!(lab.open(&packet(number, SYN)).expect("runs").is_some(), "flow {number}");
        }
        let established = (1..=OPEN).map(|number| frame(lab, &packet(number, ACK))).collect();
        Self { established, next: OPEN }
    }

    /// Sends a packet of an open flow and opens another one; both have to succeed.
    fn goes_on(&mut self, lab: &Lab, turn: u32) {
        let frame = &self.established[turn as usize % self.established.len()];
        assert_eq!(
            lab.run(0, frame).expect("runs").action,
            Action::Redirect,
            "an established flow, turn {turn}"
        );
        if self.next < GUARANTEED {
            self.next += 1;
            let server = if turn.is_multiple_of(2) { SERVER } else { SERVER2 };
            let syn = Packet::tcp((DB, self.next), (server, 80), SYN);
            assert!(lab.open(&syn).expect("runs").is_some(), "a new flow, turn {turn}");
        }
    }
}

fn frame(lab: &Lab, packet: &Packet) -> Vec<u8> {
    packet.clone().link(arriving(&lab.world, 0, packet)).frame()
}

/// 3,000 turns of `attack(n)` against a victim; the reasons for which the attacker's packets were dropped are those in
/// `refused`, and there were some.
fn attack(world: World, attack: impl Fn(u32) -> Packet, refused: &[Reason]) {
    let lab = Lab::new(world).expect("lab");
    let mut victim = Victim::new(&lab);
    for turn in 0..3000 {
        for number in 0..BETWEEN {
            lab.run(0, &frame(&lab, &attack(turn * BETWEEN + number))).expect("runs");
        }
        victim.goes_on(&lab, turn);
    }
    assert_eq!(victim.next, GUARANTEED, "the victim has opened all that it is guaranteed");
    let counters = lab.maps.sum_counters().expect("counters");
    let sent = counters.packets[Reason::TranslatedOut as usize];
    let dropped: u64 = refused.iter().map(|reason| counters.packets[*reason as usize]).sum();
    assert!(dropped > 1000, "the attack was not refused: {dropped}");
    assert_eq!(sent + dropped, counters.seen, "other verdicts than {refused:?}");
    lab.audit().expect("audit");
}

/// Own blocks; a table of which half is guaranteed and half is for whoever comes first.
fn blocks() -> World {
    World::default().blocks(1024).table(
        4 * u32::from(GUARANTEED),
        u32::from(GUARANTEED),
        2 * u32::from(GUARANTEED),
    )
}

/// A common pool with 512 ports guaranteed to each.
fn pool() -> World {
    let mut world = blocks();
    world.backends = vec![Backend::paired(WEB, FIRST_PORT, 512), Backend::paired(DB, FIRST_PORT + 512, 512)];
    let runs = vec![(FRONTEND, FIRST_PORT + 1024, 64)];
    world.pools = vec![Pool { runs, ordered: false, backends: vec![WEB, DB] }];
    world
}

fn syn_flood(number: u32) -> Packet {
    let [.., high, low] = number.to_be_bytes();
    Packet::tcp((WEB, 1024 + (number % 50_000) as u16), ([10, 201, high, low], 80), SYN)
}

fn port_scan(number: u32) -> Packet {
    Packet::tcp((WEB, 40_000), (SERVER, 1 + (number % 65_535) as u16), SYN)
}

fn hammer(number: u32) -> Packet {
    Packet::tcp((WEB, 1 + (number % 65_535) as u16), (SERVER, 80), SYN)
}

#[test]
fn a_syn_flood() {
    attack(blocks(), syn_flood, &[Reason::TableShare]);
    attack(pool(), syn_flood, &[Reason::TableShare]);
}

#[test]
fn a_port_scan() {
    attack(blocks(), port_scan, &[Reason::TableShare]);
}

#[test]
fn a_destination_that_has_no_ports_left() {
    attack(blocks(), hammer, &[Reason::NoFreePort]);
    attack(pool(), hammer, &[Reason::NoFreePort]);
}

#[test]
fn a_flood_within_limits() {
    let limits = Limits { max_half_open: 100, ..Limits::default() };
    let world = World { limits: Some(limits), ..blocks() };
    let lab = Lab::new(world).expect("lab");
    let mut refused = 0;
    for number in 0..2000 {
        let outcome = lab.send(0, &syn_flood(number)).expect("one verdict");
        refused += u32::from(outcome.reason == Reason::HalfOpenLimit);
    }
    assert_eq!(refused, 1900);
    for number in 1..=100 {
        assert!(lab.open(&Packet::tcp((DB, number), (SERVER, 80), SYN)).expect("runs").is_some());
    }
    lab.audit().expect("audit");
}
