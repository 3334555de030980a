// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every promise about a plan that does not need its history.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::*;
use crate::config::{Allocation, Selection};

/// 8-port blocks of an address and class: who has them.
type Blocks = HashMap<([u8; 4], usize), Vec<Option<Holder>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Own { slot: usize },
    Shared { set: u32 },
}

pub(super) fn verify(gateway: &Gateway, plan: &PortPlan) {
    let mut blocks = Blocks::new();
    let mut granted = HashSet::new();
    for rule in &gateway.rules {
        let rule_slot = plan.rule_slot(&rule.name).expect("every rule has a slot");
        for class in rule.protocol.classes().iter().map(|class| *class as usize) {
            let mut shared = BTreeSet::new();
            for backend in gateway.backends_of(rule) {
                let slot = plan.backend_slot(backend.address).expect("every backend has a slot") as usize;
                let grant = &plan.grants[slot][class];
                assert!(granted.insert((slot, class)));
                assert!(!grant.is_none(), "every backend has ports");
                assert_eq!((grant.rule, grant.reserved), (rule_slot, 0));
                let own = plan.own(slot, class);
                assert_eq!(own.map_or(0, |set| set.ports), rule.ports_per_backend);
                if let Some(own) = own {
                    check_set(gateway, rule, own);
                    take(&mut blocks, own, class, Holder::Own { slot });
                }
                shared.extend((grant.shared != 0).then_some(grant.shared));
                check_selection(gateway, plan, rule, slot, class);
            }
            assert!(rule.allocation == Allocation::Dynamic || shared.is_empty());
            for set in shared {
                let shared = plan.set(set).expect("a set that is there");
                check_set(gateway, rule, shared);
                let ordered = rule.selection == Some(Selection::DrainFirst);
                assert_eq!(shared.flags & nat_common::abi::grant::SET_ORDERED != 0, ordered);
                take(&mut blocks, shared, class, Holder::Shared { set });
            }
        }
    }
    let all = plan.grants.iter().flatten().filter(|grant| !grant.is_none()).count();
    assert_eq!(all, granted.len(), "nobody has ports without a rule");
    check_sets(plan);
    check_claimed(plan, &blocks);
}

fn check_set(gateway: &Gateway, rule: &OutboundRule, set: &PortSet) {
    let addresses: HashSet<_> = gateway.addresses_of(rule).map(|address| address.octets()).collect();
    let end = 1024 + if rule.allocation == Allocation::Dynamic { DYNAMIC_PORTS } else { STATIC_PORTS };
    assert_eq!(segments(set).iter().map(|s| u32::from(s.count)).sum::<u32>(), set.ports);
    assert!(set.segments[set.segment_count as usize..].iter().all(|s| s.count == 0));
    for segment in segments(set) {
        assert!(addresses.contains(&segment.address), "an address of the rule");
        let (first, count) = (u32::from(segment.first), u32::from(segment.count));
        assert!(count > 0 && count.is_multiple_of(8) && first.is_multiple_of(8));
        assert!(first >= 1024 && first + count <= end);
        let frontend = gateway.frontends.iter().find(|fe| fe.addresses.contains(&segment.address.into()));
        let reserved = frontend.expect("a frontend").reserved_of(segment.address.into());
        for range in reserved.iter().chain(&rule.excluded) {
            let (from, to) = (u32::from(range.first) / 8 * 8, u32::from(range.last) / 8 * 8 + 8);
            assert!(first + count <= from || first >= to, "{range:?} is in {segment:?}");
        }
    }
}

fn take(blocks: &mut Blocks, set: &PortSet, class: usize, holder: Holder) {
    for segment in segments(set) {
        let of_address = blocks.entry((segment.address, class)).or_insert(vec![None; 8192]);
        let first = usize::from(segment.first) / 8;
        for block in &mut of_address[first..first + usize::from(segment.count) / 8] {
            assert_eq!(block.replace(holder), None, "no block twice");
        }
    }
}

fn check_selection(gateway: &Gateway, plan: &PortPlan, rule: &OutboundRule, slot: usize, class: usize) {
    let addresses: Vec<[u8; 4]> = gateway.addresses_of(rule).map(|address| address.octets()).collect();
    let who = plan.backends[slot].as_ref().expect("taken").address;
    let used: BTreeSet<[u8; 4]> = rule
        .protocol
        .classes()
        .iter()
        .flat_map(|class| [plan.own(slot, *class as usize), plan.shared(slot, *class as usize)])
        .flatten()
        .flat_map(|set| segments(set).iter().map(|segment| segment.address))
        .collect();
    match rule.selection {
        Some(Selection::Paired) => assert_eq!(used.len(), 1, "{who} leaves from one address"),
        Some(Selection::Pinned) => assert_eq!(used, BTreeSet::from([rule.pins[&who].octets()])),
        Some(Selection::Spread) if rule.allocation == Allocation::Static => {
            let own = plan.own(slot, class).expect("a block");
            let mut counts: HashMap<[u8; 4], u32> = HashMap::new();
            for segment in segments(own) {
                *counts.entry(segment.address).or_default() += u32::from(segment.count);
            }
            let counts: Vec<u32> =
                addresses.iter().map(|address| counts.get(address).copied().unwrap_or(0)).collect();
            assert!(
                counts.is_sorted_by(|a, b| a >= b) && counts[0] - counts[counts.len() - 1] <= 8,
                "{counts:?}"
            );
        }
        _ => {}
    }
}

fn check_sets(plan: &PortPlan) {
    let mut lists = HashSet::new();
    let mut ids = HashSet::new();
    let used: HashSet<u32> =
        plan.grants.iter().flatten().flat_map(|grant| [grant.own, grant.shared]).collect();
    for (number, set) in (1..).zip(&plan.sets) {
        assert_eq!(set.ports > 0, used.contains(&number), "a set that nobody uses is no set");
        if set.ports > 0 {
            assert!(set.id != 0 && ids.insert(set.id));
            assert!(lists.insert((set.flags, segments(set).to_vec())), "one set for one list");
        }
    }
    assert!(plan.sets.last().is_none_or(|set| set.ports > 0));
}

fn check_claimed(plan: &PortPlan, blocks: &Blocks) {
    let claimed = plan.claimed();
    assert_eq!(claimed.len(), plan.frontends.len());
    for (frontend, claimed) in plan.frontends.iter().zip(claimed) {
        let address = frontend.as_ref().map_or([0; 4], |frontend| frontend.address.octets());
        for (class, bitmap) in claimed.iter().enumerate() {
            let bits = (0..8192).map(|block| bitmap[block / 8] & (1 << (block % 8)) != 0);
            match blocks.get(&(address, class)) {
                Some(blocks) => assert!(bits.eq(blocks.iter().map(Option::is_some))),
                None => assert_eq!(bits.filter(|bit| *bit).count(), 0),
            }
        }
    }
}
