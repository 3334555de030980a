// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port sets: equal lists of segments are one set, and a list keeps its number from plan to plan.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use nat_common::abi::{
    config::{CLASS_OTHER, CLASS_UDP},
    grant::{Grant, PortSet},
};

use super::{
    attempts::{Laid, SetKey},
    model::{GRANT_CLASSES, PortPlan, segments},
};
use crate::config::Gateway;

/// Bits of a set's number that say which slot it had when it was new; those above, the plan that it was new in.
const SLOT_BITS: u32 = 14;
const _: () = assert!(nat_common::abi::grant::MAX_SETS == 1 << SLOT_BITS);

/// Fills in the sets and grants of `plan`, which has its slots.
pub(super) fn fill(gateway: &Gateway, previous: &PortPlan, laid: &Laid, plan: &mut PortPlan) {
    plan.grants = vec![[Grant::default(); GRANT_CLASSES]; plan.backends.len()];
    let slots: HashMap<Ipv4Addr, usize> = plan
        .backends
        .iter()
        .enumerate()
        .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
        .collect();
    let own = laid.backends.iter().flatten().flatten().filter_map(|(own, _)| own.as_ref());
    let places = place(previous, own.chain(&laid.shared), plan);
    let number = |key: &SetKey| places.get(key).map_or(0, |slot| slot + 1);
    let shared_numbers: Vec<u32> = laid.shared.iter().map(number).collect();
    let mut reserved: HashMap<Ipv4Addr, u32> = HashMap::new();
    for rule in &gateway.rules {
        let sum = rule.destinations.iter().fold(0, |sum, to| u32::saturating_add(sum, to.reserved));
        for backend in gateway.backends_of(rule).iter().filter(|_| sum > 0) {
            let all = reserved.entry(backend.address).or_default();
            *all = all.saturating_add(sum);
        }
    }
    for (rule, of_rule) in gateway.rules.iter().zip(&laid.backends) {
        let rule_slot = plan.rule_slot(&rule.name).unwrap_or_default();
        for (backend, sets) in gateway.backends_of(rule).iter().zip(of_rule) {
            let grants = &mut plan.grants[slots[&backend.address]];
            for class in rule.protocol.classes() {
                let (own, shared) = &sets[*class as usize];
                grants[*class as usize] = Grant {
                    own: own.as_ref().map_or(0, number),
                    shared: shared.map_or(0, |index| shared_numbers[index]),
                    rule: rule_slot,
                    reserved: reserved.get(&backend.address).copied().unwrap_or(0),
                };
            }
            if rule.options.protocols != 0 {
                // The key of a flow has the protocol, so each has the whole set to itself.
                grants[CLASS_OTHER as usize] = grants[CLASS_UDP as usize];
            }
        }
    }
}

fn key_of(set: &PortSet) -> SetKey {
    (set.flags, segments(set).to_vec())
}

/// Gives each list a slot, the one it had if it is not new, and its number.
fn place<'a>(
    previous: &PortPlan,
    wanted: impl Iterator<Item = &'a SetKey>,
    plan: &mut PortPlan,
) -> HashMap<&'a SetKey, u32> {
    let known: HashMap<SetKey, usize> = previous
        .sets
        .iter()
        .enumerate()
        .filter(|(_, set)| set.ports > 0)
        .map(|(slot, set)| (key_of(set), slot))
        .collect();
    let mut used: HashSet<u32> = previous.sets.iter().map(|set| set.id).collect();
    let mut places: HashMap<&SetKey, u32> = HashMap::new();
    let mut new = Vec::new();
    let mut sets: Vec<Option<PortSet>> = vec![None; previous.sets.len()];
    for key in wanted {
        if places.contains_key(key) {
            continue;
        }
        match known.get(key) {
            Some(slot) => {
                sets[*slot] = Some(previous.sets[*slot]);
                places.insert(key, *slot as u32);
            }
            None => {
                // Its slot is not known before all known ones have theirs.
                places.insert(key, 0);
                new.push(key);
            }
        }
    }
    let mut slot = 0;
    for key in new {
        while sets.get(slot).is_some_and(Option::is_some) {
            slot += 1;
        }
        if slot == sets.len() {
            sets.push(None);
        }
        let mut id = plan.generation << SLOT_BITS | slot as u32;
        // Only after 2^18 plans, when numbers begin again.
        while id == 0 || !used.insert(id) {
            id = id.wrapping_add(1 << SLOT_BITS);
        }
        sets[slot] = Some(set(key, id));
        places.insert(key, slot as u32);
    }
    while sets.last().is_some_and(Option::is_none) {
        sets.pop();
    }
    plan.sets = sets.into_iter().map(Option::unwrap_or_default).collect();
    places
}

fn set((flags, list): &SetKey, id: u32) -> PortSet {
    let mut set = PortSet { id, flags: *flags, segment_count: list.len() as u32, ..PortSet::default() };
    for (place, segment) in set.segments.iter_mut().zip(list) {
        *place = *segment;
        set.ports += u32::from(segment.count);
    }
    set
}
