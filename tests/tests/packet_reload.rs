// SPDX-License-Identifier: MIT OR Apache-2.0
//! New grants under living flows, as a reload brings them.

use std::collections::BTreeSet;

use nat_common::{abi::counters::Reason, net::timers::GRACE, tick};
use nat_tests::{
    harness::{
        Lab, World,
        world::{Backend, DB, FIRST_PORT, FRONTEND, SERVER, WEB},
    },
    packet::{ACK, Packet, RST, SYN},
};

/// Another block for the first backend.
const MOVED: u16 = 4096;

fn moved(world: &World) -> World {
    let mut world = world.clone();
    world.backends[0] = Backend::paired(WEB, MOVED, 8);
    world
}

fn syn(port: u16) -> Packet {
    Packet::tcp((WEB, port), (SERVER, 80), SYN)
}

fn reason(lab: &Lab, slot: usize, packet: &Packet) -> Reason {
    lab.send(slot, packet).expect("one verdict").reason
}

#[test]
fn living_flows_stay_and_new_ones_use_the_new_block() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let old: Vec<u16> = (1..=8).map(|port| lab.open(&syn(port)).expect("runs").expect("sent")).collect();
    let world = moved(&lab.world);
    lab.rewrite_backends(world).expect("grants");
    for (port, outer) in (1..=8).zip(&old) {
        let answer = Packet::tcp((SERVER, 80), (FRONTEND, *outer), SYN | ACK);
        assert_eq!(reason(&lab, 1, &answer), Reason::TranslatedIn);
        let seen = lab.send(0, &syn(port).flags(ACK)).expect("one verdict");
        assert_eq!(seen.port().expect("sent"), *outer, "its port is still its own");
    }
    let new: BTreeSet<u16> =
        (11..=18).map(|port| lab.open(&syn(port)).expect("runs").expect("sent")).collect();
    assert_eq!(new, (MOVED..MOVED + 8).collect());
    assert_eq!(reason(&lab, 0, &syn(19)), Reason::NoFreePort);
}

#[test]
fn a_reopened_connection_moves_to_the_new_block() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let old = lab.open(&syn(1)).expect("runs").expect("sent");
    assert!(old < FIRST_PORT + 8);
    assert_eq!(reason(&lab, 0, &syn(1).flags(RST)), Reason::TranslatedOut);
    let world = moved(&lab.world);
    lab.rewrite_backends(world).expect("grants");
    let new = lab.open(&syn(1)).expect("runs").expect("sent");
    assert!((MOVED..MOVED + 8).contains(&new), "port {new}");
    assert_eq!(lab.audit().expect("the old flow is gone wholly"), 1);
}

#[test]
fn a_removed_backend_s_flows_live_on_and_no_new_ones_start() {
    let mut lab = Lab::new(World::default()).expect("lab");
    let out = Packet::udp((DB, 1), (SERVER, 53));
    let port = lab.open(&out).expect("runs").expect("sent");
    lab.maps
        .backends
        .remove(&nat_common::abi::grant::BackendKey { address: DB, bank: 0 })
        .expect("the backend was there");
    assert_eq!(reason(&lab, 0, &out), Reason::TranslatedOut);
    assert_eq!(reason(&lab, 1, &Packet::udp((SERVER, 53), (FRONTEND, port))), Reason::TranslatedIn);
    assert_eq!(reason(&lab, 0, &Packet::udp((DB, 2), (SERVER, 53))), Reason::NoOutboundRule);
    // Once idle it does not start again either.
    lab.wait(tick::from_seconds(240) + 1).expect("clock");
    assert_eq!(reason(&lab, 0, &out), Reason::NoOutboundRule);
    lab.wait(GRACE).expect("clock");
    lab.sweep(100).expect("sweep");
    assert_eq!(lab.audit().expect("audit"), 0);
}

/// Two banks: a packet sees the old configuration or the new one.
#[test]
fn the_bank_in_force_decides() {
    use nat_common::abi::{
        config::banked,
        grant::{BackendKey, grant_slot},
    };
    let mut lab = Lab::new(World::default()).expect("lab");
    let slot = grant_slot(0, 1);
    let mut grant = lab.maps.grants.get(&banked(0, slot), 0).expect("grant");
    let mut set = lab.maps.sets.get(&banked(0, grant.own - 1), 0).expect("set");
    (set.segments[0].first, set.id) = (MOVED, 77);
    grant.own = 1;
    lab.maps.sets.set(banked(1, 0), set, 0).expect("set");
    lab.maps.grants.set(banked(1, slot), grant, 0).expect("grant");
    let key = BackendKey { address: WEB, bank: 1 };
    lab.maps.backends.insert(key, nat_common::abi::grant::BackendRef::default(), 0).expect("backend");
    let open =
        |lab: &Lab, port| lab.open(&Packet::udp((WEB, port), (SERVER, 53))).expect("runs").expect("sent");
    assert!(open(&lab, 1) < FIRST_PORT + 8);
    let rules = |lab: &mut Lab| {
        let rule = lab.maps.rules.get(&banked(0, 0), 0).expect("rule");
        lab.maps.rules.set(banked(1, 0), rule, 0).expect("rule");
    };
    rules(&mut lab);
    lab.control(|control| control.bank = 1).expect("control");
    assert!((MOVED..MOVED + 8).contains(&open(&lab, 2)));
    assert_eq!(reason(&lab, 0, &Packet::udp((DB, 1), (SERVER, 53))), Reason::NoOutboundRule);
    lab.control(|control| control.bank = 0).expect("control");
    assert!(open(&lab, 3) < FIRST_PORT + 8);
}
