// SPDX-License-Identifier: MIT OR Apache-2.0
//! What rules and the gateway say beside ports and timeouts, in the words of the configuration.

use std::{collections::HashMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nat_common::abi::{
    config::FEATURE_RULE_FIRST,
    grant::{Destination, Limits, RULE_RESET_CHECK, RULE_RESET_IDLE, RULE_RESET_PACKET, SET_ORDERED},
};
use serde::Serialize;

use super::options;
use crate::{
    config::{Refusal, class_names},
    plan::{PortPlan, RuleSlot, model::segments},
};

/// A setting that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Key, as in configuration.
    pub setting: &'static str,
    /// What is in force; `None`: nothing.
    pub before: Option<Value>,
    /// What takes its place.
    pub after: Option<Value>,
}

/// Value of a [`Setting`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A word.
    Word(&'static str),
    /// Another text.
    Text(String),
    /// A list, in order.
    List(Vec<String>),
}

/// Settings by key; a key without a value is not there.
pub(super) type Settings = Vec<(&'static str, Option<Value>)>;

fn differences(before: Settings, after: Settings) -> Vec<Setting> {
    // Both lists name the same keys in the same order.
    let pairs = before.into_iter().zip(after).filter(|(before, after)| before.1 != after.1);
    pairs.map(|((setting, before), (_, after))| Setting { setting, before, after }).collect()
}

fn refusal(number: u32) -> Option<Value> {
    Refusal::ALL.into_iter().find(|(_, refusal)| *refusal as u32 == number).map(|(name, _)| Value::Word(name))
}

fn tcp_reset(flags: u32) -> Value {
    Value::Word(match (flags & RULE_RESET_IDLE != 0, flags & RULE_RESET_PACKET != 0) {
        (false, false) => "off",
        (true, false) => "on-idle",
        (false, true) => "on-packet",
        (true, true) => "both",
    })
}

fn rst_check(flags: u32) -> Value {
    Value::Word(if flags & RULE_RESET_CHECK == 0 { "none" } else { "in-window" })
}

/// What `[gateway]` says, as far as a reload puts it in force.
pub(super) fn of_gateway(before: &PortPlan, after: &PortPlan) -> Vec<Setting> {
    let settings = |plan: &PortPlan| {
        let order = if plan.features & FEATURE_RULE_FIRST == 0 {
            ["instance-ip", "outbound-rule"]
        } else {
            ["outbound-rule", "instance-ip"]
        };
        let order = Value::List(order.map(str::to_owned).to_vec());
        vec![("on_refusal", refusal(plan.on_refusal)), ("precedence", Some(order))]
    };
    differences(settings(before), settings(after))
}

/// In which order the backends of ordered sets use addresses, by rule slot.
pub(super) struct Orders(HashMap<u32, Vec<String>>);

impl Orders {
    pub(super) fn of(plan: &PortPlan) -> Self {
        let mut orders = HashMap::new();
        for grant in plan.grants.iter().flatten() {
            let sets = [grant.own, grant.shared].into_iter().filter_map(|set| plan.set(set));
            for set in sets.filter(|set| set.flags & SET_ORDERED != 0) {
                orders.entry(grant.rule).or_insert_with(|| {
                    let mut addresses: Vec<Ipv4Addr> =
                        segments(set).iter().map(|segment| segment.address.into()).collect();
                    addresses.dedup();
                    addresses.iter().map(Ipv4Addr::to_string).collect()
                });
            }
        }
        Self(orders)
    }

    fn value(&self, slot: u32) -> Option<Value> {
        self.0.get(&slot).cloned().map(Value::List)
    }
}

/// What a rule says.
pub(super) fn of_rule(before: (u32, &RuleSlot, &Orders), after: (u32, &RuleSlot, &Orders)) -> Vec<Setting> {
    let settings = |(slot, rule, orders): (u32, &RuleSlot, &Orders)| {
        let limits = &rule.limits;
        let number = |number: u64| (number > 0).then_some(Value::Number(number));
        let destinations: Vec<String> =
            limits.destinations.iter().filter(|to| to.classes != 0).map(destination).collect();
        let mut settings = vec![
            ("drain-first", orders.value(slot)),
            ("on_refusal", refusal(rule.on_refusal)),
            ("tcp_reset", Some(tcp_reset(rule.flags))),
            ("rst_check", Some(rst_check(rule.flags))),
            ("max_ports", number(limits.max_ports.into())),
            ("max_flows", number(limits.max_flows.into())),
            ("max_half_open", number(limits.max_half_open.into())),
            ("new_flows_per_second", number(rate(limits))),
            ("new_flow_burst", number(limits.tolerance.checked_div(limits.interval).unwrap_or(0))),
            ("destinations", (!destinations.is_empty()).then_some(Value::List(destinations))),
        ];
        settings.extend(options::of_rule(rule));
        settings
    };
    differences(settings(before), settings(after))
}

/// The roundest rate that has this interval: intervals are whole nanoseconds.
fn rate(limits: &Limits) -> u64 {
    const NANOSECONDS: u64 = 1_000_000_000;
    let Some(most) = NANOSECONDS.checked_div(limits.interval) else { return 0 };
    let mut step = NANOSECONDS;
    loop {
        let rounded = most / step * step;
        if rounded > 0 && NANOSECONDS / rounded == limits.interval || step == 1 {
            return rounded;
        }
        step /= 10;
    }
}

/// `192.0.2.10 tcp 5432: reserved 500, at most 800`.
fn destination(to: &Destination) -> String {
    let (address, mask) = (Ipv4Addr::from(to.address), u32::from(Ipv4Addr::from(to.mask)));
    let net = Ipv4Net::new(address, u8::try_from(mask.leading_ones()).unwrap_or(32)).unwrap_or_default();
    let mut text = if net.prefix_len() == 32 { address.to_string() } else { net.to_string() };
    for name in class_names(to.classes.into()) {
        text.push(' ');
        text.push_str(name);
    }
    let port = u16::from_be_bytes(to.port);
    if port != 0 {
        text.push_str(&format!(" {port}"));
    }
    let kept = (to.reserved > 0).then(|| format!("reserved {}", to.reserved));
    let most = (to.max_flows > 0).then(|| format!("at most {}", to.max_flows));
    text + ": " + &kept.into_iter().chain(most).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_as_it_was_configured() {
        for wanted in [1, 7, 50, 999, 1000, 12_345, 31_000, 70_000, 250_000, 1_000_000] {
            let limits = Limits { interval: 1_000_000_000 / wanted, ..Limits::default() };
            assert_eq!(rate(&limits), wanted);
        }
        assert_eq!(rate(&Limits::default()), 0);
    }

    #[test]
    fn a_destination_is_said_in_words() {
        let to = Destination {
            address: [192, 0, 2, 0],
            mask: [255, 255, 255, 0],
            port: 5432u16.to_be_bytes(),
            classes: 1,
            reserved: 500,
            max_flows: 800,
        };
        assert_eq!(destination(&to), "192.0.2.0/24 tcp 5432: reserved 500, at most 800");
        let all = Destination { mask: [255; 4], port: [0; 2], classes: 15, reserved: 0, ..to };
        assert_eq!(destination(&all), "192.0.2.0 all: at most 800");
    }
}
