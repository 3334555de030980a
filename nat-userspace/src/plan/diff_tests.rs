// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole plans from configurations, compared.

use std::fmt::Write as _;

use super::*;
use crate::{
    config,
    plan::{self, LiveSlots, NoFlows},
};

/// `frontends`, `backends` (as TOML) and `ports` for a rule `web-out` on all of them.
fn planned(previous: Option<&PortPlan>, frontends: &[&str], backends: &str, ports: u32) -> PortPlan {
    ruled(previous, frontends, backends, &format!("ports_per_backend = {ports}"), &NoFlows)
}

fn ruled(
    previous: Option<&PortPlan>,
    frontends: &[&str],
    backends: &str,
    rule: &str,
    live: &dyn LiveSlots,
) -> PortPlan {
    let mut text = "[gateway]\ninside = [\"lan0\"]\noutside = [\"wan0\"]\n".to_owned();
    let addresses = format!("{frontends:?}");
    let _infallible = write!(
        text,
        "[[frontend]]\nname = \"fe1\"\naddresses = {addresses}\n[[pool]]\nname = \"web\"\nbackends = [{backends}]\n\
         [[outbound_rule]]\nname = \"web-out\"\npool = \"web\"\nfrontends = [\"fe1\"]\n{rule}\n"
    );
    let (gateway, _) = config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}"));
    plan::plan(&gateway, previous, live).expect("it fits")
}

const A: &str = "203.0.113.10";
const B: &str = "203.0.113.11";
const TWO: &str = r#""10.0.0.4", { name = "db1", address = "10.0.0.5" }"#;
const TCP: u32 = 0;
const UDP: u32 = 1;

fn place(plan: &PortPlan, backend: &str, class: u32, frontend: &str, port: u16) -> FlowPlace {
    let slot = plan.backend_slot(backend.parse().expect("an address")).expect("a known backend");
    FlowPlace {
        grant: grant_slot(slot, class),
        rule: 0,
        frontend: frontend.parse().expect("an address"),
        port,
    }
}

fn block<'a>(diff: &'a PlanDiff, backend: &str, protocol: &str) -> &'a Block {
    let wanted = |block: &&Block| block.backend.to_string() == backend && block.protocol == protocol;
    diff.blocks.iter().find(wanted).expect("a block")
}

fn run(frontend: &str, first: u16, last: u16) -> Run {
    Run { frontend: frontend.parse().expect("an address"), range: [first, last], shared: false }
}

#[test]
fn the_same_plan_changes_nothing() {
    let plan = planned(None, &[A], TWO, 64);
    let flows = FlowCounts::from_iter([place(&plan, "10.0.0.4", TCP, A, 1024)]);
    let found = diff(&plan, &planned(Some(&plan), &[A], TWO, 64), &flows);
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(found.totals.blocks, BTreeMap::from([(Change::Kept, 6)]));
    assert_eq!((found.totals.flows, found.totals.flows_draining, found.totals.backends_changed), (1, 0, 0));
}

#[test]
fn without_a_plan_before_everything_is_new() {
    let found = diff(&PortPlan::default(), &planned(None, &[A], TWO, 64), &FlowCounts::default());
    assert!(!found.is_empty());
    assert_eq!(found.totals.blocks, BTreeMap::from([(Change::New, 6)]));
    let db1 = block(&found, "10.0.0.5", "tcp");
    assert_eq!((db1.name.as_deref(), &db1.before, db1.rule_before.as_deref()), (Some("db1"), &vec![], None));
    assert_eq!((&db1.after, db1.rule_after.as_deref()), (&vec![run(A, 1088, 1151)], Some("web-out")));
    assert_eq!(found.backends.added.len(), 2);
    assert_eq!(found.frontends.added[0].name_after.as_deref(), Some("fe1"));
    assert_eq!(found.rules.added[0].rule, "web-out");
}

#[test]
fn a_smaller_block_drains_the_flows_on_the_rest() {
    let before = planned(None, &[A], TWO, 64);
    let flows = FlowCounts::from_iter([
        place(&before, "10.0.0.4", TCP, A, 1055),
        place(&before, "10.0.0.4", TCP, A, 1056),
        place(&before, "10.0.0.4", TCP, A, 1056),
        place(&before, "10.0.0.4", UDP, A, 1087),
        place(&before, "10.0.0.5", TCP, A, 1100),
    ]);
    let found = diff(&before, &planned(Some(&before), &[A], TWO, 32), &flows);
    let tcp = block(&found, "10.0.0.4", "tcp");
    assert_eq!(
        (tcp.change, &tcp.before, &tcp.after),
        (Change::Shrunk, &vec![run(A, 1024, 1087)], &vec![run(A, 1024, 1055)])
    );
    assert_eq!((tcp.flows, tcp.flows_draining), (3, 2));
    assert_eq!(block(&found, "10.0.0.4", "udp").flows_draining, 1);
    assert_eq!(block(&found, "10.0.0.5", "tcp").flows_draining, 0);
    let totals = &found.totals;
    assert_eq!((totals.flows, totals.flows_draining, totals.flows_draining_already), (5, 3, 0));
    assert_eq!(totals.backends_changed, 2);
}

#[test]
fn a_larger_block_drains_nothing_and_takes_back() {
    let large = planned(None, &[A], r#""10.0.0.4""#, 64);
    let small = planned(Some(&large), &[A], r#""10.0.0.4""#, 32);
    // Left from when the block was larger, and from an address that is gone.
    let flows = FlowCounts::from_iter([
        place(&small, "10.0.0.4", TCP, A, 1080),
        place(&small, "10.0.0.4", TCP, B, 1080),
        place(&small, "10.0.0.4", TCP, A, 1030),
    ]);
    let found = diff(&small, &planned(Some(&small), &[A], r#""10.0.0.4""#, 64), &flows);
    let tcp = block(&found, "10.0.0.4", "tcp");
    assert_eq!((tcp.change, &tcp.after), (Change::Grown, &vec![run(A, 1024, 1087)]));
    assert_eq!((tcp.flows, tcp.flows_draining), (3, 0));
    assert_eq!(found.totals.flows_draining_already, 1);
}

#[test]
fn another_address_moves_blocks_and_drains_all_flows() {
    let before = planned(None, &[A], TWO, 64);
    let flows = FlowCounts::from_iter([place(&before, "10.0.0.5", UDP, A, 1090)]);
    let found = diff(&before, &planned(Some(&before), &[B], TWO, 64), &flows);
    let udp = block(&found, "10.0.0.5", "udp");
    assert_eq!((udp.change, udp.flows_draining), (Change::Moved, 1));
    assert_eq!(udp.after[0].frontend.to_string(), B);
    let [gone] = &found.frontends.removed[..] else { panic!("{found:#?}") };
    assert_eq!((gone.address.to_string().as_str(), gone.flows), (A, 1));
    assert_eq!(found.frontends.added.len(), 1);
    assert!(found.backends.removed.is_empty() && found.rules.removed.is_empty());
}

struct Alive;

impl LiveSlots for Alive {
    fn backend_slot_has_flows(&self, _: u32) -> bool {
        true
    }

    fn rule_slot_has_flows(&self, _: u32) -> bool {
        true
    }

    fn frontend_has_flows(&self, _: Ipv4Addr) -> bool {
        true
    }
}

#[test]
fn a_backend_that_leaves_keeps_its_flows_until_they_end() {
    let before = planned(None, &[A], TWO, 64);
    let flows = FlowCounts::from_iter([place(&before, "10.0.0.5", TCP, A, 1088); 4]);
    let rule = "ports_per_backend = 64";
    // Its slot is kept: that it drains is not that it stays.
    let after = ruled(Some(&before), &[A], r#""10.0.0.4""#, rule, &Alive);
    let found = diff(&before, &after, &flows);
    let [gone] = &found.backends.removed[..] else { panic!("{found:#?}") };
    assert_eq!((gone.name_before.as_deref(), gone.name_after.as_deref(), gone.flows), (Some("db1"), None, 4));
    let tcp = block(&found, "10.0.0.5", "tcp");
    assert_eq!((tcp.change, tcp.flows_draining, tcp.rule_after.as_deref()), (Change::Gone, 4, None));
    assert_eq!(found.totals.backends_changed, 1);
    // The next reload: they drain already.
    let later = diff(&after, &after, &flows);
    assert!(later.is_empty());
    assert_eq!((later.totals.flows_draining, later.totals.flows_draining_already), (0, 4));
    // It comes back.
    let back = diff(&after, &planned(Some(&after), &[A], TWO, 64), &flows);
    assert_eq!((back.backends.added.len(), back.backends.added[0].flows), (1, 4));
    assert_eq!(block(&back, "10.0.0.5", "tcp").change, Change::New);
}

#[test]
fn timeouts_and_names_change_without_ports() {
    let before = planned(None, &[A], TWO, 64);
    let flows = FlowCounts::from_iter([place(&before, "10.0.0.4", TCP, A, 1030)]);
    let rule = "ports_per_backend = 64\nidle_timeout = \"10m\"";
    let after = ruled(Some(&before), &[A], &TWO.replace("db1", "db2"), rule, &NoFlows);
    let found = diff(&before, &after, &flows);
    let [changed] = &found.rules.changed[..] else { panic!("{found:#?}") };
    assert_eq!((changed.rule.as_str(), changed.flows), ("web-out", 1));
    let established = changed.timeouts.iter().find(|timeout| timeout.state == "established");
    assert_eq!(established.map(|timeout| (timeout.before_seconds, timeout.after_seconds)), Some((240, 600)));
    let [renamed] = &found.backends.renamed[..] else { panic!("{found:#?}") };
    assert_eq!((renamed.name_before.as_deref(), renamed.name_after.as_deref()), (Some("db1"), Some("db2")));
    assert_eq!(found.totals.blocks, BTreeMap::from([(Change::Kept, 6)]));
    assert!(!found.is_empty());
}

#[test]
fn the_json_names_what_becomes_of_blocks() {
    let before = planned(None, &[A], TWO, 64);
    let found = diff(&before, &planned(Some(&before), &[A], TWO, 32), &FlowCounts::default());
    let value = serde_json::to_value(&found).expect("JSON");
    assert_eq!(value["totals"]["blocks"]["shrunk"], 6);
    assert_eq!(value["blocks"][0]["change"], "shrunk");
    assert_eq!(value["blocks"][0]["after"][0]["range"], serde_json::json!([1024, 1055]));
}
