// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timers beside the idle timeouts, and what a rule does with its flows, in the words of the configuration.

use nat_common::{
    abi::{
        flow::{FLOW_CLAMP, FLOW_IDENTIFY},
        grant::{
            PortTimer, RULE_FILTER_ADDRESS, RULE_FILTER_NONE, RULE_FLOW_SHIFT, RULE_KEEP_ID, RULE_MAPPED,
            RULE_PARITY,
        },
    },
    net::timers::{Refresh, TimerClass},
    tick,
};

use super::settings::{Settings, Value};
use crate::{config::PROTOCOLS, plan::RuleSlot};

/// What `rule` says about them.
pub(super) fn of_rule(rule: &RuleSlot) -> Settings {
    let rest = |class: TimerClass| Some(Value::Text(duration(rule.rests[class as usize])));
    let udp_ports: Vec<String> =
        rule.udp_ports.iter().filter(|timer| timer.last != 0).map(port_timer).collect();
    let others: Vec<String> = PROTOCOLS
        .iter()
        .filter(|(_, bit)| rule.protocols & bit != 0)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let list = |entries: Vec<String>| (!entries.is_empty()).then_some(Value::List(entries));
    let mapped = rule.flags & RULE_MAPPED != 0;
    let is = |flag: u32| mapped.then_some(Value::Word(if rule.flags & flag != 0 { "true" } else { "false" }));
    vec![
        ("after_idle", rest(TimerClass::TcpEstablished)),
        ("after_udp", rest(TimerClass::Udp)),
        ("udp_refresh", Some(Value::Word(refresh(rule.flags)))),
        ("udp_ports", list(udp_ports)),
        (
            "mapping",
            Some(Value::Word(if mapped { "endpoint-independent" } else { "address-and-port-dependent" })),
        ),
        ("filtering", mapped.then_some(Value::Word(filtering(rule.flags)))),
        ("port_parity", is(RULE_PARITY)),
        ("mss_clamp", Some(clamp(rule))),
        ("ip_id", Some(Value::Word(identification(rule.flags)))),
        ("other_protocols", list(others)),
    ]
}

const fn of_flow(flags: u32, flag: u8) -> bool {
    flags >> RULE_FLOW_SHIFT & flag as u32 != 0
}

fn refresh(flags: u32) -> &'static str {
    let found = Refresh::of_flags(flags);
    Refresh::ALL.into_iter().find(|(_, refresh)| *refresh == found).map_or("either", |(name, _)| name)
}

const fn filtering(flags: u32) -> &'static str {
    if flags & RULE_FILTER_NONE != 0 {
        "endpoint-independent"
    } else if flags & RULE_FILTER_ADDRESS != 0 {
        "address-dependent"
    } else {
        "address-and-port-dependent"
    }
}

fn clamp(rule: &RuleSlot) -> Value {
    match rule.segment_size {
        _ if !of_flow(rule.flags, FLOW_CLAMP) => Value::Word("off"),
        0 => Value::Word("auto"),
        size => Value::Number(size.into()),
    }
}

const fn identification(flags: u32) -> &'static str {
    if of_flow(flags, FLOW_IDENTIFY) {
        "all"
    } else if flags & RULE_KEEP_ID != 0 {
        "keep"
    } else {
        "fragments"
    }
}

/// `53: 10s`.
fn port_timer(timer: &PortTimer) -> String {
    let timeout = duration(timer.timeout);
    if timer.first == timer.last {
        format!("{}: {timeout}", timer.first)
    } else {
        format!("{}-{}: {timeout}", timer.first, timer.last)
    }
}

/// As in configuration: `65s`.
fn duration(ticks: nat_common::Tick) -> String {
    format!("{}s", tick::to_seconds(ticks))
}
