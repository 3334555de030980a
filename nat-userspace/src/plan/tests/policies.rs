// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of policies say what a plain look at every policy says.

use ipnet::Ipv4Net;
use nat_common::abi::config::{CLASS_OTHER, FEATURE_INSTANCE, FEATURE_POLICY, FEATURE_RULE_FIRST};
use proptest::prelude::*;

use super::*;
use crate::config::{Action, InstanceIp, Policy, PolicyDirection, PortRange};

fn policy(name: &str, remotes: &[&str]) -> Policy {
    Policy {
        name: name.to_owned(),
        action: Action::Deny,
        direction: PolicyDirection::Outbound,
        pool: None,
        remotes: remotes.iter().map(|net| net.parse().expect("a prefix")).collect(),
        classes: 0xf,
        ports: Vec::new(),
    }
}

/// What the data path finds: the intersection of what each of its look-ups gives.
fn looked_up(plan: &PortPlan, backend: Option<Ipv4Addr>, remote: Ipv4Addr, class: u32, port: u16) -> u64 {
    let tables = &plan.policy;
    let longest = tables.prefixes.iter().filter(|(net, _)| net.contains(&remote));
    let by_prefix = longest.max_by_key(|(net, _)| net.prefix_len()).map_or(0, |(_, mask)| *mask);
    let by_port = match tables.ports.get(class as usize) {
        Some(ports) => *ports.range(..=port).next_back().expect("from port 0 on").1,
        None => tables.masks.portless,
    };
    let by_backend = backend.map_or(tables.masks.any_backend, |backend| {
        tables.of_backend(plan.backend_slot(backend).expect("a known backend"))
    });
    by_prefix & by_port & tables.masks.classes[class as usize] & by_backend
}

/// What the configuration means.
fn meant(gateway: &Gateway, plan: &PortPlan, backend: Option<Ipv4Addr>, to: (Ipv4Addr, u32, u16)) -> u64 {
    let (remote, class, port) = to;
    let applies = |policy: &&Policy| {
        let in_pool =
            |pool: usize| gateway.pools[pool].backends.iter().any(|member| Some(member.address) == backend);
        let has_port = policy.ports.iter().any(|range| (range.first..=range.last).contains(&port));
        policy.remotes.iter().any(|net| net.contains(&remote))
            && policy.classes >> class & 1 == 1
            && (policy.ports.is_empty() || class <= CLASS_UDP && has_port)
            && policy.pool.is_none_or(in_pool)
    };
    let slot = |policy: &Policy| {
        let named = |slot: &Option<PolicySlot>| slot.as_ref().is_some_and(|slot| slot.name == policy.name);
        plan.policy.slots.iter().position(named).expect("every policy has a slot")
    };
    gateway.policies.iter().filter(applies).fold(0, |mask, policy| mask | 1 << slot(policy))
}

fn any_policy() -> impl Strategy<Value = (u8, u32, u8, u32, Vec<(u16, u16)>, bool)> {
    let ports = prop::collection::vec((0u16..40, 0u16..8), 0..3);
    (0u8..=32, any::<u32>(), 0u8..3, 1u32..16, ports, any::<bool>())
}

proptest! {
    #[test]
    fn masks_agree_with_a_plain_look(
        histories in prop::collection::vec(prop::collection::vec((0u8..70, any_policy()), 0..20), 1..4),
        packets in prop::collection::vec((0u32..5, any::<u32>(), 0u32..4, 0u16..50), 64),
    ) {
        let mut gateway = simple(2, 1, 1024);
        rule(&mut gateway, "mail", 2..4, &[0], Protocol::All, 1024);
        let mut previous = PortPlan::default();
        for specs in histories {
            gateway.policies.clear();
            for (number, (length, bits, pool, classes, ports, bypass)) in specs {
                let name = format!("p{number}");
                if gateway.policies.iter().any(|policy| policy.name == name) {
                    continue;
                }
                // Few addresses, so that prefixes meet.
                let net = Ipv4Net::new(Ipv4Addr::from(bits & 0xc000_00c3), length).expect("a length");
                gateway.policies.push(Policy {
                    action: if bypass { Action::Bypass } else { Action::Deny },
                    remotes: vec![net],
                    pool: (pool < 2).then_some(pool.into()),
                    classes,
                    ports: ports.iter().map(|(first, more)| PortRange { first: *first, last: first + more }).collect(),
                    ..policy(&name, &[])
                });
            }
            let planned = next(&gateway, &previous);
            for (backend, remote, class, port) in &packets {
                let backend = (*backend < 4).then(|| backend_address(*backend));
                let remote = Ipv4Addr::from(remote & 0xc000_00c3);
                prop_assert_eq!(
                    looked_up(&planned, backend, remote, *class, *port),
                    meant(&gateway, &planned, backend, (remote, *class, *port))
                );
            }
            for (slot, before) in previous.policy.slots.iter().enumerate() {
                let Some(before) = before else { continue };
                if gateway.policies.iter().any(|policy| policy.name == before.name) {
                    let now = planned.policy.slots[slot].as_ref().map(|policy| &policy.name);
                    prop_assert_eq!(now, Some(&before.name), "a policy keeps its slot");
                }
            }
            previous = planned;
        }
    }
}

#[test]
fn longer_prefixes_carry_what_shorter_ones_say() {
    let mut gateway = simple(1, 1, 1024);
    gateway.policies = vec![
        policy("all", &["0.0.0.0/0"]),
        policy("ten", &["10.0.0.0/8", "192.0.2.1/32"]),
        policy("host", &["10.1.1.1/32"]),
    ];
    let tables = first(&gateway).policy;
    let masks: Vec<(String, u64)> =
        tables.prefixes.iter().map(|(net, mask)| (net.to_string(), *mask)).collect();
    let expected = [("0.0.0.0/0", 1), ("10.0.0.0/8", 3), ("10.1.1.1/32", 7), ("192.0.2.1/32", 3)];
    assert_eq!(masks, expected.map(|(net, mask)| (net.to_owned(), mask)));
}

#[test]
fn what_is_off_costs_nothing() {
    let mut gateway = simple(2, 1, 1024);
    assert_eq!(first(&gateway).features, 0);
    gateway.policies.push(policy("smtp", &["0.0.0.0/0"]));
    gateway
        .instance_ips
        .push(InstanceIp { backend: backend_address(1), address: Ipv4Addr::new(203, 0, 113, 50) });
    gateway.on_refusal = Refusal::HostUnreachable;
    let plan = first(&gateway);
    assert_eq!((plan.features, plan.on_refusal), (FEATURE_POLICY | FEATURE_INSTANCE, 2));
    assert_eq!(plan.policy.instances, [(Ipv4Addr::new(203, 0, 113, 50), 1)].into());
    assert_eq!(plan.policy.masks.classes[CLASS_OTHER as usize], 1);
    gateway.precedence = Precedence::RuleFirst;
    assert_eq!(first(&gateway).features & FEATURE_RULE_FIRST, FEATURE_RULE_FIRST);
}

#[test]
fn kinds_have_masks_of_their_own() {
    let mut gateway = simple(1, 1, 1024);
    gateway.policies = vec![
        policy("out", &["0.0.0.0/0"]),
        Policy { direction: PolicyDirection::Inbound, ..policy("in", &["0.0.0.0/0"]) },
        Policy {
            action: Action::Bypass,
            ports: vec![PortRange { first: 25, last: 25 }],
            ..policy("by", &["0.0.0.0/0"])
        },
    ];
    let plan = first(&gateway);
    let masks = plan.policy.masks;
    assert_eq!((masks.deny_outbound, masks.deny_inbound, masks.bypass, masks.portless), (1, 2, 4, 3));
    assert_eq!(plan.policy.ports[0], [(0, 3), (25, 7), (26, 3)].into());
    let kinds: Vec<u32> = plan.policy.slots.iter().flatten().map(|slot| slot.kind).collect();
    assert_eq!(kinds, [1, 2, 3]);
    let one = Policy { classes: 1 << CLASS_UDP, ..gateway.policies[2].clone() };
    gateway.policies[2] = one;
    let udp_only = first(&gateway).policy;
    assert_eq!((udp_only.ports[0].len(), udp_only.ports[1].len()), (1, 3));
    assert_eq!(udp_only.masks.classes, [3, 7, 3, 3]);
}

#[test]
fn more_policies_than_bits_are_refused() {
    let mut gateway = simple(1, 1, 1024);
    gateway.policies = (0..65).map(|n| policy(&format!("p{n}"), &["0.0.0.0/0"])).collect();
    assert_eq!(
        arithmetic(&gateway),
        "not enough slots for policies: 65 configured, 0 removed with live flows, 64 possible"
    );
}
