// SPDX-License-Identifier: MIT OR Apache-2.0
//! `frontend_selection`, reserved and excluded ports.

use super::*;
use crate::config::{PortRange, Selection};

fn selected(selection: Selection, backends: u32, addresses: usize, ports: u32) -> Gateway {
    let mut gateway = simple(backends, addresses, ports);
    gateway.rules[0].selection = Some(selection);
    gateway
}

const fn range(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

#[test]
fn paired_backends_are_on_one_address_however_many_pieces() {
    // Six blocks fit on an address; the remaining 4,000 ports of each are not joined.
    let gateway = selected(Selection::Paired, 12, 2, 10_000);
    verify(&gateway, &first(&gateway));
    assert_eq!(
        arithmetic(&selected(Selection::Paired, 13, 3, 14_000)),
        "rule `web`: 13 backends × 14,000 ports, each backend on one address: there is room for 12; free are 64,000 of \
         203.0.113.10, 64,000 of 203.0.113.11, 64,000 of 203.0.113.12"
    );
    let mut holes = selected(Selection::Paired, 2, 1, 24_000);
    holes.frontends[0].reserved = vec![range(20_000, 20_000), range(40_000, 49_999)];
    let plan = first(&holes);
    verify(&holes, &plan);
    assert!(where_is(&plan, 1, CLASS_TCP).len() > 1, "in pieces, around what is reserved");
}

#[test]
fn paired_rules_are_packed_largest_first() {
    let mut gateway = gateway(&[("fe1", &FE[..2])]);
    for (name, backends, ports) in [("small", 0..4, 8_000), ("large", 10..12, 48_000)] {
        rule(&mut gateway, name, backends, &[0], Protocol::All, ports);
        gateway.rules.last_mut().expect("just added").selection = Some(Selection::Paired);
    }
    verify(&gateway, &first(&gateway));
    // Levelled, the two blocks of 30,000 would leave no room for the one of 60,000.
    let mut tight = super::gateway(&[("fe1", &FE[..2])]);
    rule(&mut tight, "two", 0..2, &[0], Protocol::All, 30_000);
    rule(&mut tight, "one", 2..3, &[0], Protocol::All, 60_000);
    tight.rules[0].selection = Some(Selection::Paired);
    let error = plan(&tight, None, &NoFlows);
    assert!(error.is_ok());
    tight.rules[1].selection = Some(Selection::Paired);
    verify(&tight, &first(&tight));
}

#[test]
fn paired_backends_stay_when_others_come_and_go() {
    let before = first(&selected(Selection::Paired, 6, 2, 10_000));
    let fewer = selected(Selection::Paired, 3, 2, 10_000);
    let after = next(&fewer, &before);
    verify(&fewer, &after);
    let more = selected(Selection::Paired, 12, 2, 10_000);
    let again = next(&more, &after);
    verify(&more, &again);
    for backend in 0..3 {
        assert_eq!(where_is(&before, backend, CLASS_TCP), where_is(&again, backend, CLASS_TCP));
    }
    let grown = selected(Selection::Paired, 12, 3, 16_000);
    verify(&grown, &next(&grown, &again));
}

#[test]
fn spread_blocks_are_on_all_addresses() {
    let gateway = selected(Selection::Spread, 2, 3, 1000);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(where_is(&plan, 1, CLASS_UDP), [(0, 1360, 336), (1, 1360, 336), (2, 1352, 328)]);
    let less = next(&selected(Selection::Spread, 2, 2, 1000), &plan);
    verify(&selected(Selection::Spread, 2, 2, 1000), &less);
    assert_eq!(where_is(&less, 1, CLASS_UDP)[0].1, 1360, "what can stay stays");
    // 336 on each of the first two addresses: there are enough ports, but not there.
    assert!(
        arithmetic(&selected(Selection::Spread, 191, 3, 1000)).starts_with(
            "rule `web`: 191 backends × 1,000 ports, spread over 3 addresses: free are 64,000 of"
        )
    );
    let mut short = selected(Selection::Spread, 100, 2, 1000);
    rule(&mut short, "other", 500..501, &[0], Protocol::All, 28_000);
    short.frontends[0].addresses = FE[..2].to_vec();
    verify(&short, &first(&short));
}

#[test]
fn draining_first_fills_one_address_before_the_next() {
    let gateway = selected(Selection::DrainFirst, 9, 2, 14_000);
    let plan = first(&gateway);
    verify(&gateway, &plan);
    assert_eq!(where_is(&plan, 4, CLASS_TCP), [(0, 57_024, 8_000), (1, 1024, 6_000)]);
    assert_eq!(own(&plan, 4, CLASS_TCP).flags, nat_common::abi::grant::SET_ORDERED);
    assert_eq!(where_is(&plan, 5, CLASS_TCP), [(1, 7024, 14_000)]);
    assert_eq!(own(&plan, 5, CLASS_TCP).flags, 0);
    verify(&gateway, &next(&gateway, &plan));
}

#[test]
fn pinned_backends_are_where_they_are_pinned() {
    let mut gateway = selected(Selection::Pinned, 5, 2, 16_000);
    gateway.rules[0].pins = (0..5).map(|n| (backend_address(n), FE[usize::from(n == 3)])).collect();
    let plan = first(&gateway);
    verify(&gateway, &plan);
    gateway.rules[0].pins.insert(backend_address(1), FE[1]);
    let moved = next(&gateway, &plan);
    verify(&gateway, &moved);
    for backend in [0, 2, 3, 4] {
        assert_eq!(where_is(&plan, backend, CLASS_TCP), where_is(&moved, backend, CLASS_TCP));
    }
    gateway.rules[0].pins = (0..5).map(|n| (backend_address(n), FE[0])).collect();
    assert_eq!(
        arithmetic(&gateway),
        "rule `web`: 5 backends × 16,000 ports, each on the address that it is pinned to: free are 64,000 of 203.0.113.10, \
         64,000 of 203.0.113.11"
    );
}

#[test]
fn rules_without_choice_come_before_those_with() {
    let mut gateway = simple(4, 2, 16_000);
    rule(&mut gateway, "pinned", 10..12, &[0], Protocol::All, 32_000);
    gateway.rules[1].selection = Some(Selection::Pinned);
    gateway.rules[1].pins = [(backend_address(10), FE[0]), (backend_address(11), FE[0])].into();
    verify(&gateway, &first(&gateway));
    // Also when the others were there first.
    let before = first(&simple(4, 2, 16_000));
    verify(&gateway, &next(&gateway, &before));
    gateway.rules[0].ports_per_backend = 16_008;
    assert_eq!(
        arithmetic(&gateway),
        "rules ask together for 64,032 ports (`web`: 4 × 16,008) > 64,000 tcp ports of 2 addresses (fe1) (less what is \
         reserved, or taken by rules with a `frontend_selection`)"
    );
}

#[test]
fn nobody_is_told_to_ask_for_no_ports() {
    let mut gateway = simple(7, 1, 8);
    let help = |gateway: &Gateway| {
        plan(gateway, None, &NoFlows).expect_err("it does not fit").help(gateway).expect("a way out")
    };
    // Six blocks of 8 are left for seven backends.
    gateway.frontends[0].reserved = vec![range(1024 + 48, u16::MAX)];
    assert_eq!(
        help(&gateway),
        "reserve or exclude fewer ports, have fewer backends, or add frontend addresses"
    );
    gateway.rules[0].ports_per_backend = 24;
    gateway.frontends[0].reserved = vec![range(1024 + 56, u16::MAX)];
    assert_eq!(
        help(&gateway),
        "set `ports_per_backend = 8` or less, or add frontend addresses (64,000 ports each)"
    );
}

#[test]
fn reserved_ports_take_their_blocks_and_are_not_counted() {
    let mut gateway = simple(7, 1, 9_136);
    gateway.frontends[0].reserved = vec![range(2001, 2001)];
    gateway.rules[0].excluded = vec![range(1024, 1500)];
    assert_eq!(
        arithmetic(&gateway),
        "7 backends × 9,136 ports = 63,952 > 63,512 ports of 1 address (fe1) (reserved ports not counted); at most 9,072 \
         per backend"
    );
    gateway.rules[0].ports_per_backend = 9_072;
    verify(&gateway, &first(&gateway));
    // What is reserved later is taken away, the rest of the blocks stays.
    let before = first(&simple(2, 1, 8000));
    let mut later = simple(2, 1, 8000);
    later.frontends[0].reserved = vec![range(3000, 3007)];
    let after = next(&later, &before);
    verify(&later, &after);
    assert_eq!(where_is(&after, 0, CLASS_TCP), [(0, 1024, 1976), (0, 3008, 6016), (0, 17_024, 8)]);
    assert_eq!(where_is(&after, 1, CLASS_TCP), where_is(&before, 1, CLASS_TCP));
}

#[test]
fn what_one_rule_may_not_use_another_does() {
    // Only if `free` takes exactly what `picky` must not have, both fit.
    let mut gateway = gateway(&[("fe1", &FE[..1])]);
    rule(&mut gateway, "free", 0..1, &[0], Protocol::All, 40_000);
    rule(&mut gateway, "picky", 1..2, &[0], Protocol::All, 24_000);
    gateway.rules[1].excluded = vec![range(1024, 30_000), range(54_008, 65_023)];
    verify(&gateway, &first(&gateway));
    gateway.rules[1].ports_per_backend = 24_008;
    assert!(plan(&gateway, None, &NoFlows).is_err());
}
