// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules whose backends share ports.

use nat_common::abi::grant::SET_ORDERED;

use super::*;
use crate::config::{Allocation, PortRange, Selection};

fn dynamic(backends: u32, addresses: usize, min_ports: u32) -> Gateway {
    let mut gateway = simple(backends, addresses, min_ports);
    gateway.rules[0].allocation = Allocation::Dynamic;
    gateway
}

fn shared_is(plan: &PortPlan, backend: u32, class: u32) -> Vec<(usize, u16, u16)> {
    let slot = plan.backend_slot(backend_address(backend)).expect("a known backend");
    let set = plan.shared(slot as usize, class as usize).expect("shared ports");
    let index = |segment: &Segment| FE.iter().position(|address| address.octets() == segment.address);
    let place = |segment: &Segment| (index(segment).expect("one of ours"), segment.first, segment.count);
    segments(set).iter().map(place).collect()
}

#[test]
fn all_ports_of_all_addresses_are_one_set() {
    let gateway = dynamic(300, 4, 0);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(plan.sets.len(), 1, "for all backends and protocols");
    assert_eq!((plan.sets[0].ports, plan.sets[0].flags), (4 * DYNAMIC_PORTS, 0));
    assert_eq!(shared_is(&plan, 7, CLASS_ICMP)[3], (3, 1024, 64_512));
    let mut ordered = dynamic(3, 2, 0);
    ordered.rules[0].selection = Some(Selection::DrainFirst);
    assert_eq!(first(&ordered).sets[0].flags, SET_ORDERED);
    let grown = next(&dynamic(301, 4, 0), &plan);
    assert_eq!(plan.sets, grown.sets, "one more changes nothing for the others");
}

#[test]
fn guaranteed_ports_are_at_the_bottom_and_the_rest_is_shared() {
    let gateway = dynamic(5, 2, 64);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(where_is(&plan, 4, CLASS_TCP), [(0, 1152, 64)]);
    assert_eq!(shared_is(&plan, 4, CLASS_TCP), [(0, 1216, 64_320), (1, 1152, 64_384)]);
    let after = next(&dynamic(6, 2, 64), &plan);
    verify(&dynamic(6, 2, 64), &after);
    assert_eq!(shared_is(&after, 0, CLASS_TCP), [(0, 1216, 64_320), (1, 1216, 64_320)]);
    assert_eq!(where_is(&plan, 4, CLASS_TCP), where_is(&after, 4, CLASS_TCP));
}

#[test]
fn holes_among_guaranteed_ports_are_closed_when_they_are_most() {
    let before = first(&dynamic(100, 1, 64));
    let mut gateway = gateway(&[("fe1", &FE[..1])]);
    rule(&mut gateway, "web", 20..100, &[0], Protocol::All, 64);
    gateway.rules[0].allocation = Allocation::Dynamic;
    let few_holes = next(&gateway, &before);
    verify(&gateway, &few_holes);
    assert_eq!(where_is(&few_holes, 99, CLASS_TCP), where_is(&before, 99, CLASS_TCP));
    assert_eq!(shared_is(&few_holes, 99, CLASS_TCP), shared_is(&before, 99, CLASS_TCP));
    gateway.pools[0].backends.drain(..79);
    let many = next(&gateway, &few_holes);
    verify(&gateway, &many);
    assert_eq!(where_is(&many, 99, CLASS_TCP), [(0, 1024, 64)]);
}

#[test]
fn paired_backends_share_one_address() {
    let mut gateway = dynamic(4, 2, 0);
    gateway.rules[0].selection = Some(Selection::Paired);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    let homes = |plan: &PortPlan, backends: u32| -> Vec<usize> {
        (0..backends).map(|backend| shared_is(plan, backend, CLASS_TCP)[0].0).collect()
    };
    assert_eq!(homes(&plan, 4), [0, 1, 0, 1]);
    let mut more = dynamic(9, 3, 0);
    more.rules[0].selection = Some(Selection::Paired);
    let after = next(&more, &plan);
    verify(&more, &after);
    assert_eq!(homes(&after, 9), [0, 1, 0, 1, 2, 2, 0, 1, 2]);
    more.rules[0].ports_per_backend = 128;
    let with_own = next(&more, &after);
    verify(&more, &with_own);
    assert_eq!(homes(&with_own, 9), homes(&after, 9));
    let mut less = dynamic(9, 2, 128);
    less.rules[0].selection = Some(Selection::Paired);
    let fewer = next(&less, &with_own);
    verify(&less, &fewer);
    assert_eq!(homes(&fewer, 4), homes(&after, 4));
}

#[test]
fn pinned_backends_share_the_address_they_are_pinned_to() {
    let mut gateway = dynamic(3, 2, 8);
    gateway.rules[0].selection = Some(Selection::Pinned);
    gateway.rules[0].pins = (0..3).map(|n| (backend_address(n), FE[usize::from(n > 0)])).collect();
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(shared_is(&plan, 2, CLASS_UDP), [(1, 1040, 64_496)]);
}

#[test]
fn guarantees_that_do_not_fit_are_refused() {
    let gateway = dynamic(9, 1, 7_176);
    assert_eq!(
        arithmetic(&gateway),
        "9 backends × 7,176 ports = 64,584 > 64,512 ports of 1 address (fe1); at most 7,168 per backend"
    );
    let error = plan(&gateway, None, &NoFlows).expect_err("it does not fit");
    let help = error.help(&gateway).expect("a way out");
    assert_eq!(help, "set `min_ports = 7168` or less, or add frontend addresses (64,512 ports each)");
    // All guaranteed, nothing to share.
    let exact = dynamic(9, 1, 7_168);
    let plan = first(&exact);
    verify(&exact, &plan);
    assert!(plan.grants.iter().flatten().all(|grant| grant.shared == 0));
}

#[test]
fn too_many_holes_or_no_port_at_all_are_refused() {
    let mut gateway = dynamic(3, 4, 0);
    gateway.frontends[0].reserved =
        (1..4).map(|n| PortRange { first: n * 10_000, last: n * 10_000 + 10 }).collect();
    verify(&gateway, &first(&gateway));
    gateway.frontends[0].reserved.push(PortRange { first: 50_000, last: 50_000 });
    let error = plan(&gateway, None, &NoFlows).expect_err("20 pieces");
    assert!(matches!(error, PlanError::TooManyPieces { rule: [0], .. }), "{error}");
    assert!(error.help(&gateway).is_some_and(|help| help.contains("fewer frontend addresses")));
    gateway.frontends[0].reserved = vec![PortRange { first: 1, last: u16::MAX }];
    let error = plan(&gateway, None, &NoFlows).expect_err("no port");
    assert!(matches!(error, PlanError::NothingLeft { rule: [0], .. }), "{error}");
}

#[test]
fn guaranteed_ports_stay_below_what_is_reserved_at_the_top() {
    let mut gateway = dynamic(4, 1, 8);
    gateway.frontends[0].reserved = vec![PortRange { first: 65_000, last: 65_000 }];
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(shared_is(&plan, 0, CLASS_TCP), [(0, 1056, 63_944), (0, 65_008, 528)]);
}

#[test]
fn dynamic_and_static_rules_for_other_protocols_share_addresses() {
    let mut gateway = gateway(&[("fe1", &FE[..1])]);
    rule(&mut gateway, "tcp", 0..9, &[0], Protocol::Tcp, 0);
    gateway.rules[0].allocation = Allocation::Dynamic;
    rule(&mut gateway, "udp", 0..9, &[0], Protocol::Udp, 1024);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(shared_is(&plan, 3, CLASS_TCP), [(0, 1024, 64_512)]);
}

#[test]
fn as_many_backends_as_can_be_share_and_too_many_blocks_are_refused() {
    let mut gateway = dynamic(65_536, 2, 0);
    let start = Instant::now();
    let before = first(&gateway);
    let after = next(&gateway, &before);
    assert_eq!(timeless(&before), timeless(&after));
    // Seconds at most, unless something is quadratic.
    assert!(start.elapsed().as_secs() < 30, "took {:?}", start.elapsed());
    gateway.frontends[0].addresses = (0..16).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    gateway.rules[0].ports_per_backend = 8;
    let error = plan(&gateway, None, &NoFlows).expect_err("more blocks than sets");
    assert!(matches!(error, PlanError::TooManySets { .. }), "{error}");
}
