// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[outbound_rule.timeouts]` and `[default_outbound.timeouts]`.

use std::ops::Range;

use toml::Spanned;

use super::{
    super::decode::{Key, Keys, Report, Section},
    Ports, key, required_string,
};

pub(in crate::config) struct TimeoutsSection {
    pub(in crate::config) profile: Option<Spanned<String>>,
    /// Durations by key, those that are given.
    pub(in crate::config) keys: Vec<(&'static str, Spanned<String>)>,
    pub(in crate::config) udp_refresh: Option<Spanned<String>>,
    pub(in crate::config) udp_ports: Vec<UdpPortsSection>,
}

pub(in crate::config) struct UdpPortsSection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) ports: Option<Ports>,
    pub(in crate::config) timeout: Option<Spanned<String>>,
}

const TIMERS: &[Key] = &[
    key("profile", "\"azure-lb\""),
    key("half_open", "\"30s\""),
    key("established", "\"4m\""),
    key("half_closed", "\"4m\""),
    key("after_fin", "\"4m\""),
    key("after_rst", "\"15s\""),
    key("after_idle", "\"0s\""),
    key("udp", "\"4m\""),
    key("udp_refresh", "\"either\""),
    key("udp_ports", "[{ ports = [53], timeout = \"10s\" }]"),
    key("after_udp", "\"65s\""),
    key("icmp", "\"60s\""),
    key("other", "\"4m\""),
];

/// Of a rule, and of `[default_outbound]`.
pub(super) static OF_RULE: Keys = Keys { table: "[outbound_rule.timeouts]", supported: TIMERS, planned: &[] };
pub(super) static OF_DEFAULT: Keys =
    Keys { table: "[default_outbound.timeouts]", supported: TIMERS, planned: &[] };

static UDP_PORTS: Keys = Keys {
    table: "a table of `udp_ports`",
    supported: &[key("ports", "[53]"), key("timeout", "\"10s\"")],
    planned: &[],
};

#[cfg(test)]
pub(super) static TABLES: [&Keys; 2] = [&OF_RULE, &UDP_PORTS];

pub(super) fn timeouts(
    section: &Section<'_, '_>,
    keys: &'static Keys,
    report: &mut Report,
) -> Option<TimeoutsSection> {
    let timeouts = section.table("timeouts", keys, report)?;
    let others = ["profile", "udp_refresh", "udp_ports"];
    let durations = TIMERS.iter().map(|key| key.name).filter(|name| !others.contains(name));
    let keys = durations.filter_map(|name| Some((name, timeouts.string(name, report)?))).collect();
    Some(TimeoutsSection {
        profile: timeouts.string("profile", report),
        keys,
        udp_refresh: timeouts.string("udp_refresh", report),
        udp_ports: timeouts
            .tables("udp_ports", &UDP_PORTS, report)
            .into_iter()
            .map(|entry| udp_ports(&entry, report))
            .collect(),
    })
}

fn udp_ports(entry: &Section<'_, '_>, report: &mut Report) -> UdpPortsSection {
    entry.require("ports", report);
    UdpPortsSection {
        ports: entry.ports("ports", report),
        timeout: required_string(entry, "timeout", report),
        span: entry.span.clone(),
    }
}
