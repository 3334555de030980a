// SPDX-License-Identifier: MIT OR Apache-2.0

use nat_common::abi::policy::{Instance as InstanceIp, PolicyInfo};

use super::*;
use crate::{
    config,
    plan::{NoFlows, plan},
    view::example,
};

#[test]
fn an_epoch_is_never_zero() {
    assert_eq!(epoch_after(0), 1);
    assert_eq!(epoch_after(u32::MAX), 1);
}

#[test]
fn free_slots_at_the_end_are_forgotten() {
    let mut slots = vec![None, Some(1), None, None];
    trim(&mut slots, Option::is_none);
    assert_eq!(slots, [None, Some(1)]);
}

/// The tables that `plan` fills, as they are read: slots in use only, or all of them.
fn read_back(plan: &PortPlan) -> view::instance::Instance {
    let mut tables = example::instance();
    tables.control.generation = plan.generation;
    tables.control.features = plan.features;
    tables.control.on_refusal = plan.on_refusal;
    tables.meta.max_backends = plan.max_backends;
    let slots = |slot: u32| at(&plan.backends, slot).map_or_else(BackendInfo::zeroed, BackendSlot::to_abi);
    tables.backends = (0..plan.backend_slots()).map(slots).collect();
    tables.grants = plan.grants.iter().flatten().copied().collect();
    tables.sets = plan.sets.clone();
    tables.rules = (0..MAX_RULES)
        .map(|slot| at(&plan.rules, slot).map_or_else(Rule::zeroed, RuleSlot::to_abi))
        .collect();
    let frontend = |slot| {
        at(&plan.frontends, slot).map_or_else(Frontend::zeroed, |frontend| Frontend {
            address: frontend.address.octets(),
            flags: flags(&HashSet::new(), frontend),
            name: padded(&frontend.name),
            ..Frontend::zeroed()
        })
    };
    tables.frontends = (0..MAX_FRONTENDS).map(frontend).collect();
    let policy = |slot| at(&plan.policy.slots, slot).map_or_else(PolicyInfo::zeroed, PolicySlot::to_abi);
    tables.policies = (0..64).map(policy).collect();
    let instance = |(address, slot): (&Ipv4Addr, &u32)| {
        (address.octets(), InstanceIp { slot: *slot, ..InstanceIp::default() })
    };
    tables.instances = plan.policy.instances.iter().map(instance).collect();
    tables
}

#[test]
fn the_next_plan_is_made_from_what_the_tables_hold() {
    let text = r#"
[gateway]
inside = ["lan0"]
outside = ["wan0"]
[[frontend]]
name = "fe1"
addresses = ["203.0.113.10", "203.0.113.11"]
[[pool]]
name = "web"
backends = ["10.0.0.4", { name = "db1", address = "10.0.2.7" }, "10.0.0.5"]
[[outbound_rule]]
name = "web-out"
pool = "web"
frontends = ["fe1"]
"#;
    let (mut gateway, _) = config::parse("natgw.toml", text.to_owned()).expect("a valid configuration");
    let rule = &mut gateway.rules[0];
    rule.allocation = config::Allocation::Dynamic;
    rule.selection = Some(config::Selection::Paired);
    rule.limits.max_flows = 1000;
    gateway.on_refusal = config::Refusal::HostUnreachable;
    gateway.policies.push(config::Policy {
        name: "no-smtp".to_owned(),
        action: config::Action::Deny,
        direction: config::PolicyDirection::Outbound,
        pool: None,
        remotes: vec!["0.0.0.0/0".parse().expect("a prefix")],
        classes: 1,
        ports: vec![config::PortRange { first: 25, last: 25 }],
    });
    gateway.instance_ips.push(config::InstanceIp {
        backend: Ipv4Addr::new(10, 0, 2, 7),
        address: Ipv4Addr::new(203, 0, 113, 50),
    });
    let first = plan(&gateway, None, &NoFlows).expect("it fits");
    let read = plan_of(&read_back(&first));
    let PolicyPlan { slots, instances, .. } = first.policy.clone();
    let kept = PortPlan { policy: PolicyPlan { slots, instances, ..PolicyPlan::default() }, ..first.clone() };
    assert_eq!(read, kept);
    let next = plan(&gateway, Some(&read), &NoFlows).expect("it fits");
    assert_eq!(PortPlan { generation: first.generation, ..next }, first, "adopted, nothing moves");
}
