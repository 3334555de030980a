// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single packets: every case, and every verdict.

use std::collections::BTreeSet;

use nat_common::abi::counters::Reason;
use nat_tests::{
    case::run_all,
    cases::{
        self, deny, errors, forward, fragments, hairpin, icmp_queries, instance, mapping, mss, policy,
        precedence, protocols, refusal, rests, tcp, timers, translate, vlan,
    },
};

#[test]
fn translate() {
    run_all(&translate::cases());
}

#[test]
fn policy() {
    run_all(&policy::cases());
}

#[test]
fn forward() {
    run_all(&forward::cases());
}

#[test]
fn fragments() {
    run_all(&fragments::cases());
}

#[test]
fn errors() {
    run_all(&errors::cases());
}

#[test]
fn icmp_queries() {
    run_all(&icmp_queries::cases());
}

#[test]
fn mss() {
    run_all(&mss::cases());
}

#[test]
fn protocols() {
    run_all(&protocols::cases());
}

#[test]
fn timers() {
    run_all(&timers::cases());
}

#[test]
fn rests() {
    run_all(&rests::cases());
}

#[test]
fn vlan() {
    run_all(&vlan::cases());
}

#[test]
fn deny() {
    run_all(&deny::cases());
}

#[test]
fn instance() {
    run_all(&instance::cases());
}

#[test]
fn mapping() {
    run_all(&mapping::cases());
}

#[test]
fn hairpin() {
    run_all(&hairpin::cases());
}

#[test]
fn precedence() {
    run_all(&precedence::cases());
}

#[test]
fn refusal() {
    run_all(&refusal::cases());
}

#[test]
fn tcp() {
    run_all(&tcp::cases());
}

/// Verdicts that no sequence of single packets on one CPU reaches for certain, and where they are tested.
const ELSEWHERE: [(Reason, &str); 7] = [
    (Reason::RouteLost, "packet_routes"),
    (Reason::ForeignInterface, "packet_routes"),
    (Reason::TableFull, "packet_table"),
    (Reason::SearchCut, "packet_dynamic"),
    // A map update that fails for another reason needs a kernel out of memory or re-entered.
    (Reason::TableError, "cannot be brought about"),
    (Reason::FlowRace, "packet_races, where it may happen and is counted"),
    (Reason::FlowRecycled, "packet_races, where it may happen and is counted"),
];

#[test]
fn every_verdict_is_reached() {
    let cases = cases::all();
    let mut reached: BTreeSet<Reason> =
        cases.iter().flat_map(|case| case.steps.iter().map(|step| step.reason)).collect();
    for (reason, place) in ELSEWHERE {
        assert!(!reached.contains(&reason), "{reason:?} is reached by a case and listed for {place}");
        reached.insert(reason);
    }
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !reached.contains(reason)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn names_of_cases_are_unique() {
    let mut seen = BTreeSet::new();
    for case in cases::all() {
        assert!(seen.insert(case.name), "{}", case.name);
        assert!(!case.steps.is_empty(), "{}", case.name);
    }
}
