// SPDX-License-Identifier: MIT OR Apache-2.0
//! Azure's numbers, stability, and what happens when room is short.

mod dynamic;
mod histories;
mod policies;
mod properties;
mod selection;
mod slots;
mod verify;

use std::{collections::HashSet, net::Ipv4Addr, time::Instant};

use nat_common::abi::{
    config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP, MIN_BACKENDS},
    grant::{PortSet, Segment},
};

use self::verify::verify;
use super::*;
use crate::config::{
    Backend, Frontend, InstanceIp, OutboundRule, Pool, Precedence, Protocol, Refusal, XdpMode,
};

/// A gateway without rules.
fn gateway(frontends: &[(&str, &[Ipv4Addr])]) -> Gateway {
    let frontend = |(name, addresses): &(&str, &[Ipv4Addr])| Frontend {
        name: (*name).to_owned(),
        addresses: addresses.to_vec(),
        ..Frontend::default()
    };
    Gateway {
        name: "default".to_owned(),
        inside: vec!["lan0".to_owned()],
        outside: vec!["wan0".to_owned()],
        xdp_mode: XdpMode::Auto,
        max_flows: 1024,
        assign_frontends: true,
        frontends: frontends.iter().map(frontend).collect(),
        pools: Vec::new(),
        rules: Vec::new(),
        max_backends: None,
        precedence: Precedence::default(),
        on_refusal: Refusal::default(),
        policies: Vec::new(),
        instance_ips: Vec::new(),
    }
}

/// Adds a pool with backends of these numbers and a rule of the same name for it.
fn rule(
    gateway: &mut Gateway,
    name: &str,
    backends: impl IntoIterator<Item = u32>,
    frontends: &[usize],
    protocol: Protocol,
    ports_per_backend: u32,
) {
    let backend = |number| Backend { name: None, address: backend_address(number) };
    gateway.pools.push(Pool { name: name.to_owned(), backends: backends.into_iter().map(backend).collect() });
    gateway.rules.push(OutboundRule {
        name: name.to_owned(),
        pool: gateway.pools.len() - 1,
        frontends: frontends.to_vec(),
        protocol,
        ports_per_backend,
        ports_explicit: true,
        ..OutboundRule::default()
    });
}

fn backend_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

const FE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
    Ipv4Addr::new(203, 0, 113, 12),
    Ipv4Addr::new(203, 0, 113, 13),
];

/// One rule `web` for backends 0 … `backends`, on the first `addresses` addresses.
fn simple(backends: u32, addresses: usize, ports: u32) -> Gateway {
    let mut gateway = gateway(&[("fe1", &FE[..addresses])]);
    rule(&mut gateway, "web", 0..backends, &[0], Protocol::All, ports);
    gateway
}

fn first(gateway: &Gateway) -> PortPlan {
    plan(gateway, None, &NoFlows).expect("it fits")
}

fn next(gateway: &Gateway, previous: &PortPlan) -> PortPlan {
    plan(gateway, Some(previous), &NoFlows).expect("it fits")
}

fn own(plan: &PortPlan, backend: u32, class: u32) -> &PortSet {
    let slot = plan.backend_slot(backend_address(backend)).expect("a known backend");
    plan.own(slot as usize, class as usize).expect("ports of its own")
}

/// Without what is different in every plan.
fn timeless(plan: &PortPlan) -> PortPlan {
    PortPlan { generation: 0, ..plan.clone() }
}

/// Segments as (address index in [`FE`], first port, ports).
fn where_is(plan: &PortPlan, backend: u32, class: u32) -> Vec<(usize, u16, u16)> {
    let index = |segment: &Segment| FE.iter().position(|address| address.octets() == segment.address);
    segments(own(plan, backend, class))
        .iter()
        .map(|segment| (index(segment).expect("one of ours"), segment.first, segment.count))
        .collect()
}

fn arithmetic(gateway: &Gateway) -> String {
    plan(gateway, None, &NoFlows).expect_err("it does not fit").to_string()
}

#[test]
fn seven_times_ten_thousand_is_refused() {
    assert_eq!(
        arithmetic(&simple(7, 1, 10_000)),
        "7 backends × 10,000 ports = 70,000 > 64,000 ports of 1 address (fe1); at most 9,136 per backend"
    );
    verify(&simple(7, 1, 9_136), &first(&simple(7, 1, 9_136)));
}

#[test]
fn ten_machines_get_6400_each() {
    let gateway = simple(10, 1, 6_400);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert!(plan.sets.iter().all(|set| set.segment_count == 1), "in one piece each");
    assert_eq!(plan.sets.len(), 10, "one for all protocols of a backend");
    assert!(arithmetic(&simple(10, 1, 6_408)).ends_with("at most 6,400 per backend"));
}

#[test]
fn a_pair_gets_32_000_each() {
    let gateway = simple(2, 1, 32_000);
    verify(&gateway, &first(&gateway));
    assert!(plan(&simple(2, 1, 32_008), None, &NoFlows).is_err());
}

#[test]
fn several_addresses_are_used_at_once() {
    let plan = first(&simple(4, 3, 1024));
    let firsts: Vec<usize> = (0..4).map(|backend| where_is(&plan, backend, CLASS_TCP)[0].0).collect();
    assert_eq!(firsts, [0, 1, 2, 0]);
}

#[test]
fn all_protocols_get_the_same_block() {
    let plan = first(&simple(3, 2, 1024));
    for backend in 0..3 {
        let tcp = where_is(&plan, backend, CLASS_TCP);
        assert_eq!(tcp, where_is(&plan, backend, CLASS_UDP));
        assert_eq!(tcp, where_is(&plan, backend, CLASS_ICMP));
    }
}

#[test]
fn tcp_and_udp_have_inventories_of_their_own() {
    let mut gateway = gateway(&[("fe1", &FE[..1])]);
    rule(&mut gateway, "tcp", 0..2, &[0], Protocol::Tcp, 32_000);
    rule(&mut gateway, "udp", 0..4, &[0], Protocol::Udp, 16_000);
    verify(&gateway, &first(&gateway));
    rule(&mut gateway, "other", 9..10, &[0], Protocol::Tcp, 8);
    assert_eq!(
        arithmetic(&gateway),
        "rules ask together for 64,008 ports (`tcp`: 2 × 32,000, `other`: 1 × 8) > 64,000 tcp ports of 1 address (fe1)"
    );
}

#[test]
fn a_block_is_split_only_where_it_must_be() {
    let gateway = simple(9, 2, 14_000);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    let pieces: Vec<usize> = (0..9).map(|backend| where_is(&plan, backend, CLASS_TCP).len()).collect();
    assert_eq!(pieces, [1, 1, 1, 1, 1, 1, 1, 1, 2]);
}

#[test]
fn one_backend_may_have_whole_addresses() {
    let gateway = simple(1, 4, 256_000);
    verify(&gateway, &first(&gateway));
}

#[test]
fn too_small_leftovers_are_avoided_by_closer_packing() {
    // Four whole blocks leave 768 ports on each of 64 addresses; a 257th block would need 21 pieces of those.
    let addresses: Vec<Ipv4Addr> = (0..64).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    let mut gateway = gateway(&[("fe1", &addresses)]);
    rule(&mut gateway, "web", 0..258, &[0], Protocol::All, 15_808);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert!(plan.sets.iter().all(|set| set.segment_count <= 2));
}

#[test]
fn rules_that_share_addresses_leave_room_for_each_other() {
    // `any` is first and could use any address, but `second` and `third` can each use one only.
    let mut gateway = gateway(&[("fe1", &FE[..1]), ("fe2", &FE[1..2]), ("fe3", &FE[2..3])]);
    rule(&mut gateway, "any", 0..1, &[0, 1, 2], Protocol::All, 64_000);
    rule(&mut gateway, "second", 1..2, &[0, 1], Protocol::All, 64_000);
    rule(&mut gateway, "third", 2..3, &[0, 2], Protocol::All, 64_000);
    verify(&gateway, &first(&gateway));
}

#[test]
fn growth_takes_adjacent_room_else_another_piece() {
    let small = simple(2, 1, 1024);
    let before = first(&small);
    let large = simple(2, 1, 2048);
    let after = next(&large, &before);
    verify(&large, &after);
    assert_eq!(where_is(&after, 0, CLASS_TCP), [(0, 1024, 1024), (0, 4096, 1024)]);
    assert_eq!(where_is(&after, 1, CLASS_TCP), [(0, 2048, 2048)]);
    let again = next(&simple(2, 1, 3072), &after);
    assert_eq!(where_is(&again, 0, CLASS_TCP), [(0, 1024, 1024), (0, 4096, 2048)]);
    assert_eq!(where_is(&again, 1, CLASS_TCP), [(0, 2048, 2048), (0, 6144, 1024)]);
}

#[test]
fn shrinking_keeps_the_first_part() {
    let after = next(&simple(2, 1, 512), &first(&simple(2, 1, 1024)));
    assert_eq!(where_is(&after, 0, CLASS_UDP), [(0, 1024, 512)]);
    assert_eq!(where_is(&after, 1, CLASS_UDP), [(0, 2048, 512)]);
}

#[test]
fn a_growing_pool_disturbs_nobody() {
    let before = first(&simple(10, 2, 1024));
    let after = next(&simple(40, 2, 1024), &before);
    verify(&simple(40, 2, 1024), &after);
    assert_eq!(before.grants[..], after.grants[..10]);
    assert_eq!(before.backends[..], after.backends[..10]);
}

#[test]
fn a_withdrawn_address_moves_only_its_own_blocks() {
    let before = first(&simple(4, 2, 1024));
    let after = next(&simple(4, 1, 1024), &before);
    verify(&simple(4, 1, 1024), &after);
    for (backend, moved) in [(0, false), (1, true), (2, false), (3, true)] {
        let (old, new) = (own(&before, backend, CLASS_TCP), own(&after, backend, CLASS_TCP));
        assert_eq!(old.segments != new.segments, moved, "backend {backend}");
        assert_eq!(old.id != new.id, moved, "backend {backend}");
    }
}

#[test]
fn fragments_never_make_a_fitting_configuration_fail() {
    // Every other block of 8 ports goes away; what is left free is in 4,000 pieces.
    let mut odd = gateway(&[("fe1", &FE[..1])]);
    rule(&mut odd, "web", 0..4000, &[0], Protocol::All, 8);
    let mut half = gateway(&[("fe1", &FE[..1])]);
    rule(&mut half, "web", (0..4000).filter(|number| number % 2 == 0), &[0], Protocol::All, 8);
    let mut full = gateway(&[("fe1", &FE[..1])]);
    rule(&mut full, "filler", 5000..5096, &[0], Protocol::All, 320);
    rule(&mut full, "web", 0..4000, &[0], Protocol::All, 8);
    let fragmented = next(&half, &first(&full));
    rule(&mut half, "large", 6000..6001, &[0], Protocol::All, 48_000);
    let after = next(&half, &fragmented);
    verify(&half, &after);
    verify(&odd, &next(&odd, &after));
}

#[derive(Default)]
struct Live {
    backends: HashSet<u32>,
    rules: HashSet<u32>,
    frontends: HashSet<Ipv4Addr>,
}

impl LiveSlots for Live {
    fn backend_slot_has_flows(&self, slot: u32) -> bool {
        self.backends.contains(&slot)
    }

    fn rule_slot_has_flows(&self, slot: u32) -> bool {
        self.rules.contains(&slot)
    }

    fn frontend_has_flows(&self, address: Ipv4Addr) -> bool {
        self.frontends.contains(&address)
    }
}

#[test]
fn the_largest_configuration_is_planned_quickly() {
    let addresses: Vec<Ipv4Addr> = (0..64).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    let mut gateway = gateway(&[("fe1", &addresses)]);
    rule(&mut gateway, "web", 0..MIN_BACKENDS, &[0], Protocol::All, 1000);
    let start = Instant::now();
    let before = first(&gateway);
    let after = next(&gateway, &before);
    let elapsed = start.elapsed();
    verify(&gateway, &before);
    assert_eq!(timeless(&before), timeless(&after));
    // Milliseconds when optimized; the bound only tells a slow machine from a quadratic algorithm.
    assert!(elapsed.as_secs() < 30, "took {elapsed:?}");
}
