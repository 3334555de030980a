// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever is configured, and whatever was before.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// A rule of [`generated`]: pool members as bits, frontends as bits, protocol, 8-port blocks per backend.
type RuleSpec = (u16, u8, u8, u32);

/// Frontends: `fe0` with two addresses, `fe1` and `fe2` with one each. Rule `n` is for backends `16 n` … `16 n + 15`;
/// of a TCP or UDP rule the next one with the other protocol shares the backends.
fn generated(specs: &[RuleSpec]) -> Gateway {
    let mut gateway = gateway(&[("fe0", &FE[..2]), ("fe1", &FE[2..3]), ("fe2", &FE[3..])]);
    for (number, (members, frontends, protocol, blocks)) in (0..).zip(specs) {
        let backends = (0..16).filter(|bit| members >> bit & 1 == 1).map(|bit| number * 16 + bit);
        let frontends: Vec<usize> = (0..3).filter(|bit| frontends >> bit & 1 == 1).collect();
        let backends: Vec<u32> = backends.collect();
        if backends.is_empty() || frontends.is_empty() {
            continue;
        }
        match protocol {
            0 => rule(&mut gateway, &format!("r{number}"), backends, &frontends, Protocol::All, blocks * 8),
            1 => rule(&mut gateway, &format!("r{number}"), backends, &frontends, Protocol::Tcp, blocks * 8),
            _ => {
                rule(
                    &mut gateway,
                    &format!("r{number}"),
                    backends.clone(),
                    &frontends,
                    Protocol::Tcp,
                    blocks * 8,
                );
                rule(&mut gateway, &format!("u{number}"), backends, &frontends[..1], Protocol::Udp, 64);
            }
        }
    }
    gateway
}

fn specs(blocks: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = Vec<RuleSpec>> {
    prop::collection::vec((any::<u16>(), 1u8..8, 0u8..3, blocks), 1..4)
}

/// That the rules of an over-commitment do ask for more than they can have.
fn check_refusal(gateway: &Gateway, error: &PlanError) {
    match error {
        PlanError::OverCommitted { rules, .. } => {
            let addresses: HashSet<_> =
                rules.iter().flat_map(|rule| gateway.addresses_of(&gateway.rules[*rule])).collect();
            let supply = addresses.len() as u64 * u64::from(STATIC_PORTS);
            let demand = |class: u32| -> u64 {
                let of_class = rules.iter().map(|rule| &gateway.rules[*rule]);
                of_class
                    .filter(|rule| rule.protocol.classes().contains(&class))
                    .map(|rule| gateway.backends_of(rule).len() as u64 * u64::from(rule.ports_per_backend))
                    .sum()
            };
            assert!((0..3).any(|class| demand(class) > supply), "{error}");
        }
        other => panic!("with four addresses nothing else can be wrong: {other}"),
    }
}

fn check_step(gateway: &Gateway, previous: &PortPlan, live: &Live) -> Result<PortPlan, PlanError> {
    let planned = plan(gateway, Some(previous), live);
    assert_eq!(planned, plan(gateway, Some(previous), live), "same input, same plan");
    assert_eq!(planned.is_ok(), plan(gateway, None, &NoFlows).is_ok(), "history does not decide what fits");
    let planned = planned?;
    verify(gateway, &planned);
    for (slot, before) in (0..).zip(&previous.backends) {
        let Some(before) = before else { continue };
        let now = planned.backend_slot(before.address);
        let configured = gateway.pools.iter().flat_map(|pool| &pool.backends);
        if configured.clone().any(|backend| backend.address == before.address)
            || live.backends.contains(&slot)
        {
            assert_eq!(now, Some(slot), "{} keeps its slot", before.address);
        } else {
            assert_eq!(now, None);
        }
    }
    assert_eq!(planned.generation, previous.generation + 1);
    Ok(planned)
}

/// That no backend lost a port that it could have kept.
fn check_nothing_moved(gateway: &Gateway, previous: &PortPlan, planned: &PortPlan) {
    for rule in &gateway.rules {
        let addresses: HashSet<_> = gateway.addresses_of(rule).map(|address| address.octets()).collect();
        for backend in gateway.backends_of(rule) {
            let Some(before) = previous.backend_slot(backend.address) else { continue };
            let slot = planned.backend_slot(backend.address).expect("every backend has a slot") as usize;
            for class in rule.protocol.classes() {
                let ports = |plan: &PortPlan, slot: usize| -> Vec<([u8; 4], u16)> {
                    let Some(set) = plan.own(slot, *class as usize) else { return Vec::new() };
                    let of_segment = |s: &Segment| {
                        let address = s.address;
                        (s.first..s.first + s.count).map(move |port| (address, port))
                    };
                    segments(set).iter().flat_map(of_segment).collect()
                };
                let allowed = ports(previous, before as usize).into_iter();
                let allowed: Vec<_> = allowed.filter(|(address, _)| addresses.contains(address)).collect();
                let kept: HashSet<_> = ports(planned, slot).into_iter().collect();
                for port in allowed.iter().take(rule.ports_per_backend as usize) {
                    assert!(kept.contains(port), "{} keeps {port:?}", backend.address);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn plans_keep_their_promises_or_are_refused_for_a_reason(specs in specs(1..=4000)) {
        let gateway = generated(&specs);
        match plan(&gateway, None, &NoFlows) {
            Ok(plan) => verify(&gateway, &plan),
            Err(error) => check_refusal(&gateway, &error),
        }
    }

    #[test]
    fn any_history_leads_to_a_right_plan(
        steps in prop::collection::vec((specs(1..=2500), any::<u64>()), 1..8)
    ) {
        let mut previous = PortPlan::default();
        for (specs, live) in steps {
            let gateway = generated(&specs);
            let live = Live {
                backends: (0..64).filter(|bit| live >> bit & 1 == 1).collect(),
                rules: (0..64).filter(|bit| live >> (63 - bit) & 1 == 1).collect(),
                ..Live::default()
            };
            match check_step(&gateway, &previous, &live) {
                Ok(planned) => previous = planned,
                Err(error) => check_refusal(&gateway, &error),
            }
        }
    }

    #[test]
    fn with_room_to_spare_nothing_moves(steps in prop::collection::vec(specs(1..=60), 2..12)) {
        let mut previous = PortPlan::default();
        for specs in steps {
            let gateway = generated(&specs);
            let live = Live::default();
            let planned = check_step(&gateway, &previous, &live).expect("a fraction of the ports");
            check_nothing_moved(&gateway, &previous, &planned);
            previous = planned;
        }
    }
}
