// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kind of rule in any order: whatever was before, what fits is laid out right.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::config::{Allocation, PortRange, Selection};

/// Pool members as bits, frontends as bits, protocol, 8-port blocks per backend, what kind of rule, one excluded port.
type RuleSpec = (u16, u8, u8, u32, u8, Option<u16>);

/// Reserved ports of each frontend, and rules.
type Spec = ([Option<(u16, u16)>; 3], Vec<RuleSpec>);

const SELECTIONS: [Option<Selection>; 5] = [
    None,
    Some(Selection::Paired),
    Some(Selection::Pinned),
    Some(Selection::Spread),
    Some(Selection::DrainFirst),
];

/// Frontends: `fe0` with two addresses, `fe1` and `fe2` with one each for static rules; `d0` … with three each, one for
/// each dynamic rule. Rule `n` is for backends `16 n` … `16 n + 15`.
fn generated((reserved, rules): &Spec) -> Gateway {
    let pool: Vec<Ipv4Addr> = (0..12).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    let mut gateway = gateway(&[
        ("fe0", &FE[..2]),
        ("fe1", &FE[2..3]),
        ("fe2", &FE[3..]),
        ("d0", &pool[..3]),
        ("d1", &pool[3..6]),
        ("d2", &pool[6..9]),
        ("d3", &pool[9..]),
    ]);
    for (frontend, reserved) in gateway.frontends.iter_mut().zip(reserved.iter().cycle()) {
        frontend.reserved = reserved
            .iter()
            .map(|(first, more)| PortRange { first: *first, last: first.saturating_add(*more) })
            .collect();
    }
    for (number, (members, frontends, protocol, blocks, kind, excluded)) in (0..).zip(rules) {
        let backends: Vec<u32> =
            (0..16).filter(|bit| members >> bit & 1 == 1).map(|bit| number * 16 + bit).collect();
        let selection = SELECTIONS[usize::from(kind % 5)];
        let dynamic = *kind >= 5;
        let frontends = if dynamic {
            vec![3 + number as usize]
        } else {
            (0..3).filter(|bit| frontends >> bit & 1 == 1).collect()
        };
        if backends.is_empty() || frontends.is_empty() {
            continue;
        }
        let protocol = [Protocol::All, Protocol::Tcp, Protocol::Udp][usize::from(*protocol)];
        let ports = if dynamic { blocks % 65 * 8 } else { (blocks + 1) * 8 };
        rule(&mut gateway, &format!("r{number}"), backends.clone(), &frontends, protocol, ports);
        let addresses: Vec<Ipv4Addr> =
            gateway.addresses_of(gateway.rules.last().expect("just added")).collect();
        let rule = gateway.rules.last_mut().expect("just added");
        rule.selection = selection;
        rule.allocation = if dynamic { Allocation::Dynamic } else { Allocation::Static };
        rule.excluded = excluded.iter().map(|port| PortRange { first: *port, last: *port }).collect();
        if selection == Some(Selection::Pinned) {
            let pin =
                |number: &u32| (backend_address(*number), addresses[*number as usize % addresses.len()]);
            rule.pins = backends.iter().map(pin).collect();
        }
    }
    gateway
}

fn spec(blocks: std::ops::Range<u32>) -> impl Strategy<Value = Spec> {
    let reserved = prop::option::of((1024u16.., 0u16..30_000));
    let excluded = prop::option::of(any::<u16>());
    let rule = (any::<u16>(), 1u8..8, 0u8..3, blocks, 0u8..10, excluded);
    (prop::array::uniform3(reserved), prop::collection::vec(rule, 1..5))
}

/// What names what, over a whole history.
#[derive(Default)]
struct Names {
    lists: HashMap<u32, (u32, Vec<Segment>)>,
}

impl Names {
    fn check(&mut self, previous: &PortPlan, planned: &PortPlan) {
        let list = |set: &PortSet| (set.flags, segments(set).to_vec());
        let before: HashMap<_, u32> =
            previous.sets.iter().filter(|set| set.ports > 0).map(|set| (list(set), set.id)).collect();
        for set in planned.sets.iter().filter(|set| set.ports > 0) {
            assert_eq!(
                *self.lists.entry(set.id).or_insert(list(set)),
                list(set),
                "a number names one list for ever"
            );
            assert!(before.get(&list(set)).is_none_or(|id| *id == set.id), "a list keeps its number");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_fits_is_right_after_any_history(
        steps in prop::collection::vec((prop_oneof![spec(0..80), spec(0..1500)], any::<u64>()), 1..7)
    ) {
        let mut previous = PortPlan::default();
        let mut names = Names::default();
        for (spec, live) in steps {
            let gateway = generated(&spec);
            let live = Live {
                backends: (0..64).filter(|bit| live >> bit & 1 == 1).collect(),
                rules: (0..64).filter(|bit| live >> (63 - bit) & 1 == 1).collect(),
                frontends: HashSet::new(),
            };
            let alone = plan(&gateway, None, &NoFlows);
            match plan(&gateway, Some(&previous), &live) {
                Ok(planned) => {
                    verify(&gateway, &planned);
                    names.check(&previous, &planned);
                    let again = plan(&gateway, Some(&planned), &live).expect("it fits as it is");
                    prop_assert_eq!(timeless(&again), timeless(&planned), "nothing has changed");
                    previous = planned;
                }
                Err(error) => {
                    prop_assert!(alone.is_err(), "history decides: {error}");
                    prop_assert!(!error.to_string().is_empty());
                    let _help = error.help(&gateway);
                }
            }
            if let Ok(alone) = alone {
                verify(&gateway, &alone);
            }
        }
    }
}
