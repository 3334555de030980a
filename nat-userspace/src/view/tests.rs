// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joining, filtering, ordering, and port use, over the example tables.

use nat_common::{
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP},
        grant::grant_slot,
    },
    net::{state, timers::TimerClass},
};

use super::{
    example::{self, BACKEND, DB1, FRONTEND, SECOND, SERVER, Spec, TCP},
    flows::{Destination, Filter, Flow, Flows, Join, Sort, State},
    instance::{Endpoint, Instance},
    life::Life,
    ports::PortUse,
};

fn endpoint(address: [u8; 4], port: u16) -> Endpoint {
    Endpoint { address, port: port.to_be_bytes() }
}

fn count(filter: &Filter) -> usize {
    example::joined(&example::instance(), filter).flows.len()
}

fn flow_of(instance: &Instance, spec: Spec) -> Flow {
    let filter = Filter { expired: true, ..Filter::default() };
    let mut join = Join::new(instance, &filter);
    spec.halves().iter().for_each(|(key, entry)| join.add(key, entry));
    let flows = join.finish().flows;
    assert_eq!(flows.len(), 1);
    flows[0]
}

#[test]
fn halves_become_flows_in_whatever_order_they_come() {
    let instance = example::instance();
    let filter = Filter { expired: true, ..Filter::default() };
    let halves = example::halves(&example::specs());
    let joined = |order: &mut dyn Iterator<Item = &(_, _)>| {
        let mut join = Join::new(&instance, &filter);
        order.for_each(|(key, entry)| join.add(key, entry));
        let mut flows = join.finish();
        flows.arrange(Sort::Idle, None);
        flows
    };
    let forwards = joined(&mut halves.iter());
    let backwards = joined(&mut halves.iter().rev());
    assert_eq!(forwards.flows.len(), example::specs().len());
    assert_eq!(forwards.flows, backwards.flows);
    assert!(forwards.unpaired.is_empty());
}

#[test]
fn a_flow_takes_each_side_from_its_half() {
    let instance = example::instance();
    let flow = flow_of(&instance, TCP);
    assert_eq!(flow.source, endpoint(BACKEND, 40_000));
    assert_eq!(flow.frontend, endpoint(FRONTEND, 1024));
    assert_eq!(flow.destination, endpoint(SERVER, 443));
    assert_eq!((flow.out.packets, flow.r#in.packets), (1500, 3000));
    assert_eq!((flow.out.bytes, flow.r#in.bytes), (150_000, 4_500_000));
    assert_eq!(flow.state, State::Live(TimerClass::TcpEstablished));
    // The inbound half saw the last packet, five seconds after the outbound half.
    assert_eq!(nat_common::tick::to_seconds(flow.idle), 10);
    assert_eq!(nat_common::tick::to_seconds(flow.expires), 230);
}

#[test]
fn expiry_is_judged_as_the_data_path_does() {
    let instance = example::instance();
    let timeout = instance.rules[0].timeouts[TimerClass::TcpEstablished as usize];
    let mut halves = TCP.halves();
    let mut state_after = |idle| {
        halves.iter_mut().for_each(|(_, entry)| entry.touched = instance.now - idle);
        let filter = Filter { expired: true, ..Filter::default() };
        let mut join = Join::new(&instance, &filter);
        halves.iter().for_each(|(key, entry)| join.add(key, entry));
        let flow = join.finish().flows[0];
        (flow.state, flow.expires)
    };
    assert_eq!(state_after(timeout), (State::Live(TimerClass::TcpEstablished), 0));
    assert_eq!(state_after(timeout + 1), (State::Expired, 0));
    for over in [state::DEAD, state::TOLD] {
        let flow = flow_of(&instance, Spec { bits: TCP.bits | over, ..TCP });
        assert_eq!((flow.state, flow.life, flow.expires), (State::Expired, Life::Cooling, 0));
    }
}

#[test]
fn a_fin_from_each_side_seen_by_different_halves_closes() {
    let instance = example::instance();
    let mut halves = TCP.halves();
    halves[0].1.state |= state::FIN_OUT;
    halves[1].1.state |= state::FIN_IN;
    let filter = Filter::default();
    let mut join = Join::new(&instance, &filter);
    halves.iter().for_each(|(key, entry)| join.add(key, entry));
    assert_eq!(join.finish().flows[0].state, State::Live(TimerClass::TcpClosed));
}

#[test]
fn halves_without_counterpart_are_told_apart() {
    let instance = example::instance();
    let filter = Filter::default();
    let [outbound, inbound] = TCP.halves();
    let join = |halves: &[_]| -> Flows {
        let mut join = Join::new(&instance, &filter);
        halves.iter().for_each(|(key, entry)| join.add(key, entry));
        join.finish()
    };
    for half in [outbound, inbound] {
        let flows = join(&[half]);
        assert!(flows.flows.is_empty());
        assert_eq!(flows.unpaired.len(), 1);
        let unpaired = flows.unpaired[0];
        assert!(unpaired.is_settled(instance.now));
        assert!(unpaired.is_confirmed(Some(&half.1), None));
        // It went too: the flow was being removed.
        assert!(!unpaired.is_confirmed(None, None));
        assert!(!unpaired.is_confirmed(Some(&outbound.1), Some(&inbound.1)));
        // Just being opened.
        assert!(!unpaired.is_settled(half.1.created + 1));
    }
    // The same tuple, but a later flow.
    let mut later = inbound;
    later.1.state ^= 1 << 20;
    let flows = join(&[outbound, later]);
    assert!(flows.flows.is_empty());
    assert!(flows.unpaired[0].is_confirmed(Some(&outbound.1), Some(&later.1)));
}

#[test]
fn filters_admit_what_they_say() {
    let all = Filter { expired: true, ..Filter::default() };
    let total = example::specs().len();
    assert_eq!(count(&all), total);
    assert_eq!(count(&Filter::default()), total - 2, "expired ones are not shown unless wanted");
    assert_eq!(count(&Filter { state: Some(State::Expired), ..Filter::default() }), 2);
    for (class, expected) in [(CLASS_TCP, 9), (CLASS_UDP, 8), (CLASS_ICMP, 1)] {
        assert_eq!(count(&Filter { class: Some(class), ..all.clone() }), expected);
    }
    assert_eq!(count(&Filter { backend: Some(DB1), ..all.clone() }), 2);
    assert_eq!(count(&Filter { backend: Some([9, 9, 9, 9]), ..all.clone() }), 0);
    let to = |network: &str, port| {
        let network = network.parse().expect("a network");
        count(&Filter { destination: Some(Destination { network, port }), ..all.clone() })
    };
    assert_eq!(to("198.51.100.1/32", None), 17);
    assert_eq!(to("198.51.100.0/24", Some(53)), 8);
    assert_eq!(to("8.0.0.0/8", Some(0)), 1);
    assert_eq!(to("0.0.0.0/0", None), total);
    assert_eq!(to("198.51.101.0/24", None), 0);
    let states: Vec<_> =
        State::all().map(|state| count(&Filter { state: Some(state), ..all.clone() })).collect();
    assert_eq!(states, [1, 3, 1, 1, 1, 8, 1, 0, 2]);
}

#[test]
fn a_limit_keeps_the_first_of_the_order() {
    let instance = example::instance();
    for sort in [Sort::Idle, Sort::Bytes, Sort::Packets, Sort::Created] {
        let mut all = example::joined(&instance, &Filter::default());
        all.arrange(sort, None);
        for limit in [0, 1, 5, all.flows.len(), 1000] {
            let mut few = example::joined(&instance, &Filter::default());
            few.arrange(sort, Some(limit));
            assert_eq!(few.flows[..], all.flows[..limit.min(all.flows.len())], "{sort:?} {limit}");
        }
    }
    let mut flows = example::joined(&instance, &Filter::default());
    flows.arrange(Sort::Idle, None);
    assert!(flows.flows.is_sorted_by_key(|flow| flow.idle));
    flows.arrange(Sort::Created, None);
    assert!(flows.flows.is_sorted_by_key(|flow| flow.age));
    flows.arrange(Sort::Bytes, None);
    assert!(flows.flows.is_sorted_by(|a, b| a.out.bytes + a.r#in.bytes >= b.out.bytes + b.r#in.bytes));
}

#[test]
fn ports_are_counted_once_and_held_until_released() {
    let instance = example::instance();
    let flows = example::every_flow(&instance);
    let rows = PortUse::of(&instance, &flows).rows();
    let row = |backend: [u8; 4], protocol: &str, frontend: [u8; 4], draining: bool| {
        let mut found = rows.iter().filter(|row| {
            row.backend.map(|address| address.octets()) == Some(backend)
                && row.protocol == protocol
                && row.frontend.octets() == frontend
                && row.draining == draining
        });
        let first = found.next().cloned();
        assert!(found.next().is_none());
        first.expect("a row")
    };
    // Live, handshake, half-closed, closed, reset and one whose grace is not over; not the one that is long gone.
    let tcp = row(BACKEND, "tcp", FRONTEND, false);
    assert_eq!((tcp.allocated, tcp.used, tcp.flows, tcp.refused), (8, 6, 6, 1234));
    assert_eq!((tcp.range, tcp.worst_used, tcp.allocated_total), ([1024, 1031], 6, 8));
    let udp = row(BACKEND, "udp", FRONTEND, false);
    assert_eq!((udp.used, udp.worst_destination), (8, Some(endpoint(SERVER, 53))));
    assert_eq!(row(DB1, "tcp", FRONTEND, false).used, 0);
    let second = row(DB1, "tcp", SECOND, false);
    assert_eq!((second.used, second.allocated, second.allocated_total), (1, 16, 24));
    let draining = row(BACKEND, "tcp", FRONTEND, true);
    assert_eq!((draining.allocated, draining.used, draining.range), (0, 1, [9000, 9000]));
    // Each port of a grant is in exactly one row.
    let allocated: u32 = rows.iter().map(|row| row.allocated).sum();
    assert_eq!(allocated, instance.granted().map(|(_, grant)| instance.ports(grant)).sum::<u32>());
}

#[test]
fn a_port_that_serves_two_destinations_is_one_port() {
    let instance = example::instance();
    let to = |host| Spec { destination: ([198, 51, 100, host], 443), ..TCP };
    let flows = [flow_of(&instance, to(1)), flow_of(&instance, to(2))];
    let ports = PortUse::of(&instance, &flows);
    let row = ports.rows().into_iter().find(|row| row.used > 0).expect("a row in use");
    assert_eq!((row.used, row.flows, row.worst_used), (1, 2, 1));
    assert_eq!(ports.by_destination(usize::MAX, None).len(), 2);
    assert_eq!(ports.by_destination(1, None).len(), 1);
}

#[test]
fn the_binding_destination_is_found() {
    let instance = example::instance();
    let ports = PortUse::of(&instance, &example::every_flow(&instance));
    let worst = ports.worst().expect("there are flows");
    assert_eq!(
        (worst.backend, worst.protocol, worst.destination),
        (Some(BACKEND.into()), "udp", endpoint(SERVER, 53))
    );
    assert!(worst.binding);
    assert_eq!((worst.used, worst.allocated), (8, 8));
    // The longest idle of the eight has been so for 37 of 240 seconds; two seconds of grace follow.
    assert_eq!(worst.next_release_seconds, 240 - 37 + 2);
    let least = ports.by_destination(5, None);
    assert_eq!(least.iter().filter(|row| row.binding).count(), 1);
    assert!(PortUse::new(&instance).worst().is_none());
}

#[test]
fn what_points_nowhere_is_shown_and_does_not_fail() {
    let mut instance = example::instance();
    let mut flow = flow_of(&instance, TCP);
    flow.grant = grant_slot(4000, CLASS_UDP);
    flow.rule = 200;
    let rows = PortUse::of(&instance, &[flow]).rows();
    let lost = rows.iter().find(|row| row.draining).expect("shown as draining");
    assert_eq!((lost.backend, lost.rule.as_str(), lost.used), (Some([0; 4].into()), "", 1));
    instance.rules.clear();
    assert_eq!(flow_of(&instance, TCP).state, State::Expired, "without a rule there is no time to live");
}

#[test]
fn shared_ports_run_out_for_all_together() {
    let instance = example::sharing();
    let to = |slot: u32, source: [u8; 4], port: u16, frontend| Spec {
        slot,
        source: (source, port),
        frontend,
        ..TCP
    };
    let mut specs: Vec<Spec> = (0..4).map(|n| to(0, BACKEND, 100 + n, (FRONTEND, 2048 + n))).collect();
    specs.extend((0..3).map(|n| to(1, DB1, 200 + n, (SECOND, 4096 + n))));
    // A port of its own, for the same destination.
    specs.push(to(1, DB1, 300, (FRONTEND, 1032)));
    let flows: Vec<Flow> = specs.iter().map(|spec| flow_of(&instance, *spec)).collect();
    let ports = PortUse::of(&instance, &flows);
    let shared: Vec<_> = ports.rows().into_iter().filter(|row| row.shared && row.protocol == "tcp").collect();
    let what =
        |row: &super::ports::PortRow| (row.backend, row.range, row.allocated, row.used, row.worst_used);
    assert_eq!(
        shared.iter().map(what).collect::<Vec<_>>(),
        [(Some(BACKEND.into()), [2048, 2051], 4, 4, 7), (Some(DB1.into()), [4096, 4099], 4, 3, 7),]
    );
    assert!(shared.iter().all(|row| row.allocated_total == 8));
    // Nobody uses the UDP ones.
    let unused = ports.rows().into_iter().filter(|row| row.backend.is_none());
    assert_eq!(
        unused.map(|row| (row.protocol, row.range)).collect::<Vec<_>>(),
        [("udp", [2048, 2051]), ("udp", [4096, 4099])]
    );
    let rows = ports.by_destination(5, None);
    let common = rows.iter().find(|row| row.shared).expect("shared ports in use");
    assert_eq!((common.backend, common.used, common.allocated, common.binding), (None, 7, 8, false));
    assert_eq!((common.top_backend, common.top_used), (Some(BACKEND.into()), 4));
    let own = rows.iter().find(|row| !row.shared).expect("an own port in use");
    assert_eq!((own.backend, own.used, own.top_backend), (Some(DB1.into()), 1, None));
    assert_eq!(ports.worst().as_ref(), Some(common));
    assert!(ports.by_destination(5, Some(BACKEND)).iter().all(|row| row.shared));
    assert_eq!(ports.by_destination(5, Some(DB1)).len(), 2);
    assert!(ports.by_destination(5, Some(SERVER)).is_empty());

    let last = flow_of(&instance, to(1, DB1, 400, (SECOND, 4099)));
    let full = PortUse::of(&instance, &flows.iter().copied().chain([last]).collect::<Vec<_>>());
    assert!(full.worst().expect("in use").binding);
}

#[test]
fn own_ports_beside_shared_ones_do_not_bind() {
    let instance = example::sharing();
    let flows: Vec<Flow> = (0..8)
        .map(|n| {
            flow_of(&instance, Spec { source: (BACKEND, 100 + n), frontend: (FRONTEND, 1024 + n), ..TCP })
        })
        .collect();
    let ports = PortUse::of(&instance, &flows);
    let rows = ports.by_destination(5, None);
    assert_eq!((rows.len(), rows[0].used, rows[0].allocated, rows[0].binding), (1, 8, 8, false));
    assert_eq!(ports.worst(), None);
}

#[test]
fn a_flow_on_an_instance_ip_holds_no_snat_port() {
    let instance = example::instance();
    let filter = Filter::default();
    let mut join = Join::new(&instance, &filter);
    let spec = Spec { frontend: ([203, 0, 113, 50], 22), ..TCP };
    for (key, mut entry) in spec.halves() {
        entry.half |= nat_common::abi::flow::HALF_INSTANCE;
        join.add(&key, &entry);
    }
    let flow = join.finish().flows[0];
    assert!(flow.instance && !flow_of(&instance, TCP).instance);
    assert!(PortUse::of(&instance, &[flow]).rows().iter().all(|row| row.used == 0 && !row.draining));
}

#[test]
fn who_lacks_a_rule_is_named_while_it_does() {
    let mut instance = example::instance();
    assert_eq!(super::refusals::problem(&instance), None);
    instance.backend_states[0].refused_policy = 1;
    instance.grant_states[grant_slot(0, CLASS_UDP) as usize].refused_limit = 2;
    instance.backend_states[1].refused_rule = 7;
    assert_eq!(super::refusals::problem(&instance), None, "db1 has ports of every protocol");
    let udp = grant_slot(1, CLASS_UDP) as usize;
    let before = std::mem::replace(&mut instance.grants[udp], bytemuck::Zeroable::zeroed());
    let said = super::refusals::problem(&instance);
    assert_eq!(
        said.as_deref(),
        Some("7 packets of backend db1 (10.0.2.7) refused: no outbound rule covers it")
    );
    // The third backend has ports of TCP only.
    instance.backend_states[2].refused_rule = 30;
    let said = super::refusals::problem(&instance).expect("two of them");
    assert!(said.starts_with("37 packets of backends 10.0.1.1, db1 (10.0.2.7) refused: "), "{said}");
    instance.grants[udp] = before;
    let said = super::refusals::problem(&instance).expect("one of them");
    assert!(said.starts_with("30 packets of backend 10.0.1.1 refused: "), "{said}");
}

#[test]
fn refusals_are_counted_by_backend() {
    let mut instance = example::instance();
    instance.backend_states[1].refused_rule = 7;
    instance.backend_states[1].refused_policy = 1;
    instance.grant_states[grant_slot(1, CLASS_UDP) as usize].refused_limit = 2;
    instance.grant_states[grant_slot(1, CLASS_TCP) as usize].refused_limit = 30;
    instance.grant_states[grant_slot(1, CLASS_TCP) as usize].refused_table = 5;
    let rows = super::refusals::rows(&instance);
    let counts = rows.iter().map(|row| {
        (
            row.backend,
            row.name.as_deref(),
            row.no_outbound_rule,
            row.policy,
            row.limit,
            row.no_port,
            row.table,
        )
    });
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [(BACKEND.into(), None, 0, 0, 0, 1234, 0), (DB1.into(), Some("db1"), 7, 1, 32, 0, 5)]
    );
    instance.backends[1].status = 2;
    assert_eq!(super::refusals::rows(&instance).len(), 1, "a backend that drains is not listed");
}

#[test]
fn policies_are_counted_by_name() {
    let counts = super::stats::policies(&example::instance());
    let counts: Vec<_> =
        counts.iter().map(|policy| (policy.name.as_str(), policy.kind, policy.packets)).collect();
    assert_eq!(counts, [("no-smtp", "deny", 42)]);
}
