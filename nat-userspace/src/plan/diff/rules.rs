// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules that differ.

use std::collections::{BTreeMap, HashMap};

use nat_common::{net::timers::TimerClass, tick};
use serde::Serialize;

use super::settings::{self, Orders, Setting};
use crate::plan::{PortPlan, RuleSlot, Status};

/// Outbound rules that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// New ones.
    pub added: Vec<Rule>,
    /// Those that leave; their flows keep the timeouts they had.
    pub removed: Vec<Rule>,
    /// Those whose timeouts change, for their live flows too, or what they say beside ports.
    pub changed: Vec<Rule>,
}

/// An outbound rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Name.
    pub rule: String,
    /// Live flows that it has opened.
    pub flows: u64,
    /// Timeouts that change; empty unless the rule is in both plans.
    pub timeouts: Vec<Timeout>,
    /// Other settings that change; likewise.
    pub settings: Vec<Setting>,
}

/// An idle timeout that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeout {
    /// State of the flows it is for, as `natgw flows` names it.
    pub state: &'static str,
    /// Seconds before.
    pub before_seconds: u64,
    /// Seconds after.
    pub after_seconds: u64,
}

fn configured(plan: &PortPlan) -> BTreeMap<&str, (u32, &RuleSlot)> {
    let rules = (0..).zip(&plan.rules).filter_map(|(slot, rule)| Some((slot, rule.as_ref()?)));
    let rules = rules.filter(|(_, rule)| rule.status == Status::Configured);
    rules.map(|(slot, rule)| (rule.name.as_str(), (slot, rule))).collect()
}

pub(super) fn rules(before: &PortPlan, after: &PortPlan, flows: &HashMap<u32, u64>) -> Rules {
    let (old, new) = (configured(before), configured(after));
    let row = |name: &str, timeouts, settings| {
        let flows = before.rule_slot(name).and_then(|slot| flows.get(&slot).copied()).unwrap_or(0);
        Rule { rule: name.to_owned(), flows, timeouts, settings }
    };
    let absent = |from: &BTreeMap<&str, _>, to: &BTreeMap<&str, _>| -> Vec<Rule> {
        let names = from.keys().filter(|name| !to.contains_key(*name));
        names.map(|name| row(name, Vec::new(), Vec::new())).collect()
    };
    let orders = [before, after].map(Orders::of);
    let both = old.iter().filter_map(|(name, (was, old))| {
        let (is, new) = new.get(name)?;
        let settings = settings::of_rule((*was, old, &orders[0]), (*is, new, &orders[1]));
        Some(row(name, timeouts(old, new), settings))
    });
    let changed = both.filter(|rule| !rule.timeouts.is_empty() || !rule.settings.is_empty());
    Rules { added: absent(&new, &old), removed: absent(&old, &new), changed: changed.collect() }
}

fn timeouts(before: &RuleSlot, after: &RuleSlot) -> Vec<Timeout> {
    let differ = |class: &TimerClass| before.timeouts[*class as usize] != after.timeouts[*class as usize];
    let row = |class: TimerClass| Timeout {
        state: class.name(),
        before_seconds: tick::to_seconds(before.timeouts[class as usize]),
        after_seconds: tick::to_seconds(after.timeouts[class as usize]),
    };
    TimerClass::ALL.into_iter().filter(differ).map(row).collect()
}
