// SPDX-License-Identifier: MIT OR Apache-2.0
//! What keeps its slot or number, and for how long.

use std::collections::HashSet;

use super::*;

#[test]
fn slots_are_kept_until_their_flows_have_ended() {
    let before = first(&simple(3, 1, 1024));
    let mut changed = gateway(&[("fe1", &FE[..1])]);
    rule(&mut changed, "mail", [0, 7], &[0], Protocol::All, 1024);
    let live = Live { backends: HashSet::from([1]), rules: HashSet::from([0]), ..Live::default() };
    let draining = plan(&changed, Some(&before), &live).expect("it fits");
    verify(&changed, &draining);
    let status = |plan: &PortPlan, slot: usize| plan.backends[slot].as_ref().map(|backend| backend.status);
    assert_eq!(status(&draining, 0), Some(Status::Configured));
    assert_eq!(status(&draining, 1), Some(Status::Draining));
    assert_eq!(draining.backend_slot(backend_address(7)), Some(2), "slot 2 had no flows");
    assert_eq!(draining.rules[0].as_ref().map(|rule| rule.status), Some(Status::Draining));
    assert_eq!(draining.rule_slot("mail"), Some(1));
    assert!(draining.grants[1][0].is_none(), "no new flows");
    let drained = plan(&changed, Some(&draining), &NoFlows).expect("it fits");
    assert_eq!(status(&drained, 1), None);
    assert_eq!(drained.rule_slot("mail"), Some(1), "a slot is kept");
}

#[test]
fn a_list_of_segments_keeps_its_number_and_no_other_ever_gets_it() {
    let before = first(&simple(3, 1, 1024));
    let ids: Vec<u32> = before.sets.iter().map(|set| set.id).collect();
    assert_eq!(ids, [1 << 14, 1 << 14 | 1, 1 << 14 | 2]);
    let shrunk = next(&simple(2, 1, 1024), &before);
    assert_eq!((shrunk.generation, &shrunk.sets[..]), (2, &before.sets[..2]));
    let grown = next(&simple(3, 1, 1024), &shrunk);
    assert_eq!(grown.sets[2].segments, before.sets[2].segments);
    assert_eq!(grown.sets[2].id, 3 << 14 | 2, "what was gone is new");
    // Numbers begin again after 2^18 plans; the one in use is passed over.
    let late = PortPlan { generation: (1 << 18) + 2, ..grown.clone() };
    let mut other = simple(2, 1, 1024);
    rule(&mut other, "mail", 7..9, &[0], Protocol::All, 512);
    let mut ids: Vec<u32> = next(&other, &late).sets.iter().map(|set| set.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn a_frontend_that_left_keeps_its_slot_while_it_has_flows() {
    let both = simple(2, 2, 1024);
    let before = first(&both);
    let live = Live { frontends: HashSet::from([FE[1]]), ..Live::default() };
    let one = simple(2, 1, 1024);
    let draining = plan(&one, Some(&before), &live).expect("it fits");
    verify(&one, &draining);
    let slot = |plan: &PortPlan, slot: usize| plan.frontends.get(slot).cloned().flatten();
    assert_eq!(
        slot(&draining, 1).map(|frontend| (frontend.address, frontend.status)),
        Some((FE[1], Status::Draining))
    );
    assert_eq!(slot(&plan(&one, Some(&draining), &NoFlows).expect("it fits"), 1), None);
    let mut instance = simple(2, 1, 1024);
    instance.instance_ips.push(InstanceIp { backend: backend_address(0), address: FE[1] });
    let taken = plan(&instance, Some(&before), &live).expect("it fits");
    assert_eq!(slot(&taken, 1), None, "an instance IP is no frontend");
    assert_eq!(taken.policy.instances[&FE[1]], 0);
}

#[test]
fn backends_without_a_rule_are_known() {
    let mut gateway = simple(2, 1, 1024);
    let idle = Backend { name: None, address: backend_address(50) };
    gateway.pools.push(Pool { name: "idle".to_owned(), backends: vec![idle] });
    let plan = first(&gateway);
    verify(&gateway, &plan);
    let slot = plan.backend_slot(backend_address(50)).expect("a slot") as usize;
    assert!(plan.grants[slot].iter().all(nat_common::abi::grant::Grant::is_none));
    assert_eq!(plan.backend_slots(), 3);
}

#[test]
fn tables_are_made_for_the_next_power_of_two() {
    let size = |backends, max_backends| table_size(&Gateway { max_backends, ..simple(backends, 1, 8) });
    assert_eq!((size(3, None), size(4097, None), size(3, Some(10_000))), (4096, 8192, 10_000));
    let mut small = simple(8, 1, 1024);
    small.max_backends = Some(4);
    assert_eq!(plan(&small, None, &NoFlows), Err(PlanError::TooManyBackends { wanted: 8, limit: 4 }));
    let adopted = PortPlan { max_backends: 4, ..first(&simple(3, 1, 1024)) };
    let error = plan(&simple(5, 1, 1024), Some(&adopted), &NoFlows).expect_err("the tables are small");
    assert!(error.to_string().contains("`natgw detach`"), "{error}");
}

#[test]
fn a_drained_table_of_slots_says_so() {
    let mut all = gateway(&[("fe1", &FE[..1])]);
    rule(&mut all, "web", 0..MIN_BACKENDS, &[0], Protocol::All, 8);
    let before = first(&all);
    let mut others = gateway(&[("fe1", &FE[..1])]);
    rule(&mut others, "web", 9000..9001, &[0], Protocol::All, 8);
    let live = Live { backends: (0..MIN_BACKENDS).collect(), ..Live::default() };
    let error = plan(&others, Some(&before), &live).expect_err("no slot is free");
    assert_eq!(
        error.to_string(),
        "not enough slots for backends: 1 configured, 4096 removed with live flows, 4096 possible"
    );
}

/// Other protocols use the ports of UDP: the sets are the same, and nobody else has another.
#[test]
fn other_protocols_have_the_sets_of_udp() {
    let mut gateway = simple(3, 1, 64);
    rule(&mut gateway, "plain", [7, 8], &[0], Protocol::All, 64);
    gateway.rules[0].options.protocols = nat_common::abi::grant::protocol::GRE;
    let plan = first(&gateway);
    for number in [0, 1, 2, 7, 8] {
        let slot = plan.backend_slot(backend_address(number)).expect("configured") as usize;
        let [_, udp, _, other] = plan.grants[slot];
        assert!(if number < 3 { other == udp && !other.is_none() } else { other.is_none() }, "{number}");
    }
    // Where the blocks of TCP and UDP are not the same, theirs is that of UDP.
    let mut apart = self::gateway(&[("fe1", &FE[..1])]);
    let half = |first| vec![crate::config::PortRange { first, last: first + 31_999 }];
    for (name, protocol, backend, excluded) in
        [("tcp", Protocol::Tcp, 1, 1024), ("udp", Protocol::Udp, 2, 33_024), ("all", Protocol::All, 3, 0)]
    {
        rule(&mut apart, name, [backend], &[0], protocol, 32_000);
        if let (Some(rule), true) = (apart.rules.last_mut(), excluded > 0) {
            rule.excluded = half(excluded);
        }
    }
    apart.rules[2].options.protocols = nat_common::abi::grant::protocol::ESP;
    let found = first(&apart);
    let slot = found.backend_slot(backend_address(3)).expect("configured") as usize;
    let [tcp, udp, _, other] = found.grants[slot];
    assert!(tcp.own != udp.own && other == udp, "{:?}", found.grants[slot]);
    let without = {
        gateway.rules[0].options.protocols = 0;
        first(&gateway)
    };
    assert_eq!((plan.claimed(), &plan.sets), (without.claimed(), &without.sets));
}

#[test]
fn shares_add_up_to_the_table() {
    for (flows, backends) in [(1 << 20, 3), (1024, 1000), (65_536, 0), (100, 4096)] {
        let (guaranteed, burst) = table_shares(flows, backends);
        assert!(guaranteed >= 1);
        if backends > 0 && flows >= 2 * backends {
            assert_eq!(guaranteed * backends + burst, flows);
            assert!(burst >= flows / 2);
        }
    }
}

/// What a backend's rules have reserved is set aside for all of them together.
#[test]
fn reservations_of_all_rules_of_a_backend_add_up() {
    let mut gateway = gateway(&[("fe1", &FE[..1])]);
    rule(&mut gateway, "tcp", [0, 1], &[0], Protocol::Tcp, 64);
    rule(&mut gateway, "udp", [1, 2], &[0], Protocol::Udp, 64);
    for (rule, reserved) in gateway.rules.iter_mut().zip([5, 7]) {
        let prefix = ipnet::Ipv4Net::from(FE[1]);
        let limit =
            crate::config::DestinationLimit { prefix, port: None, classes: 15, reserved, max_flows: 0 };
        rule.destinations = vec![limit];
    }
    let plan = first(&gateway);
    let reserved = |backend, class: u32| {
        let slot = plan.backend_slot(backend_address(backend)).expect("configured") as usize;
        plan.grants[slot][class as usize].reserved
    };
    assert_eq!([reserved(0, CLASS_TCP), reserved(1, CLASS_TCP), reserved(1, CLASS_UDP)], [5, 12, 12]);
    assert_eq!(reserved(2, CLASS_UDP), 7);
}
