// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules with their limits, and `[default_outbound]`.

use std::ops::Range;

use toml::Spanned;

use super::{
    super::decode::{Keys, Report, Section, WordOrNumber},
    Ports, Strings, TimeoutsSection, key, required_string, required_strings,
    timeouts::{OF_DEFAULT, OF_RULE, timeouts},
};

pub(in crate::config) struct RuleSection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) name: Option<Spanned<String>>,
    pub(in crate::config) pool: Option<Spanned<String>>,
    pub(in crate::config) frontends: Option<Strings>,
    pub(in crate::config) protocol: Option<Spanned<String>>,
    pub(in crate::config) allocation: Option<Spanned<String>>,
    pub(in crate::config) ports_per_backend: Option<Spanned<i64>>,
    pub(in crate::config) min_ports: Option<Spanned<i64>>,
    pub(in crate::config) max_ports: Option<Spanned<i64>>,
    pub(in crate::config) frontend_selection: Option<Spanned<String>>,
    pub(in crate::config) pins: Option<Pins>,
    pub(in crate::config) excluded_ports: Option<Ports>,
    pub(in crate::config) idle_timeout: Option<Spanned<String>>,
    pub(in crate::config) on_refusal: Option<Spanned<String>>,
    pub(in crate::config) tcp_reset: Option<Spanned<String>>,
    pub(in crate::config) rst_check: Option<Spanned<String>>,
    pub(in crate::config) mapping: Option<Spanned<String>>,
    pub(in crate::config) filtering: Option<Spanned<String>>,
    pub(in crate::config) port_parity: Option<Spanned<bool>>,
    pub(in crate::config) mss_clamp: Option<Spanned<WordOrNumber>>,
    pub(in crate::config) ip_id: Option<Spanned<String>>,
    pub(in crate::config) other_protocols: Option<Strings>,
    pub(in crate::config) timeouts: Option<TimeoutsSection>,
    pub(in crate::config) limits: Option<LimitsSection>,
    pub(in crate::config) destinations: Vec<DestinationSection>,
}

pub(in crate::config) struct Pins {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) entries: Vec<PinEntry>,
    /// Whether none was left out.
    pub(in crate::config) complete: bool,
}

pub(in crate::config) struct PinEntry {
    /// Address, prefix or name.
    pub(in crate::config) backend: Spanned<String>,
    /// Address.
    pub(in crate::config) frontend: Spanned<String>,
}

pub(in crate::config) struct LimitsSection {
    pub(in crate::config) max_flows: Option<Spanned<i64>>,
    pub(in crate::config) max_half_open: Option<Spanned<i64>>,
    pub(in crate::config) new_flows_per_second: Option<Spanned<i64>>,
    pub(in crate::config) new_flow_burst: Option<Spanned<i64>>,
}

pub(in crate::config) struct DestinationSection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) address: Option<Spanned<String>>,
    pub(in crate::config) port: Option<Spanned<i64>>,
    pub(in crate::config) protocol: Option<Spanned<String>>,
    pub(in crate::config) reserved_flows: Option<Spanned<i64>>,
    pub(in crate::config) max_flows: Option<Spanned<i64>>,
}

pub(in crate::config) struct DefaultSection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) frontends: Option<Strings>,
    pub(in crate::config) idle_timeout: Option<Spanned<String>>,
    pub(in crate::config) timeouts: Option<TimeoutsSection>,
    pub(in crate::config) on_refusal: Option<Spanned<String>>,
}

static RULE: Keys = Keys {
    table: "[[outbound_rule]]",
    supported: &[
        key("name", "\"web-out\""),
        key("pool", "\"web\""),
        key("frontends", "[\"fe1\"]"),
        key("protocol", "\"all\""),
        key("allocation", "\"static\""),
        key("ports_per_backend", "1024"),
        key("min_ports", "64"),
        key("max_ports", "4096"),
        key("frontend_selection", "\"paired\""),
        key("pins", "[{ backend = \"10.0.0.4\", frontend = \"203.0.113.10\" }]"),
        key("excluded_ports", "[5060, \"6000-6063\"]"),
        key("idle_timeout", "\"4m\""),
        key("on_refusal", "\"silent\""),
        key("tcp_reset", "\"off\""),
        key("rst_check", "\"none\""),
        key("mapping", "\"address-and-port-dependent\""),
        key("filtering", "\"address-dependent\""),
        key("port_parity", "true"),
        key("mss_clamp", "\"auto\""),
        key("ip_id", "\"fragments\""),
        key("other_protocols", "[\"gre\"]"),
        key("timeouts", "{ profile = \"azure-nat\" }"),
        key("limits", "{ max_flows = 10000 }"),
        key("destination", "[{ address = \"192.0.2.10\", max_flows = 800 }]"),
    ],
    planned: &[],
};

static PIN: Keys = Keys {
    table: "a pin",
    supported: &[key("backend", "\"10.0.0.4\""), key("frontend", "\"203.0.113.10\"")],
    planned: &[],
};

static LIMITS: Keys = Keys {
    table: "[outbound_rule.limits]",
    supported: &[
        key("max_flows", "10000"),
        key("max_half_open", "500"),
        key("new_flows_per_second", "1000"),
        key("new_flow_burst", "2000"),
    ],
    planned: &[],
};

static DESTINATION: Keys = Keys {
    table: "[[outbound_rule.destination]]",
    supported: &[
        key("address", "\"192.0.2.10\""),
        key("port", "5432"),
        key("protocol", "\"tcp\""),
        key("reserved_flows", "500"),
        key("max_flows", "800"),
    ],
    planned: &[],
};

static DEFAULT: Keys = Keys {
    table: "[default_outbound]",
    supported: &[
        key("frontends", "[\"fe-default\"]"),
        key("idle_timeout", "\"4m\""),
        key("timeouts", "{ profile = \"azure-nat\" }"),
        key("on_refusal", "\"silent\""),
    ],
    planned: &[],
};

#[cfg(test)]
pub(super) static TABLES: [&Keys; 5] = [&RULE, &PIN, &LIMITS, &DESTINATION, &DEFAULT];

pub(super) fn rules(file: &Section<'_, '_>, report: &mut Report) -> Vec<RuleSection> {
    let sections = file.tables("outbound_rule", &RULE, report);
    sections.into_iter().map(|section| rule(section, report)).collect()
}

fn rule(section: Section<'_, '_>, report: &mut Report) -> RuleSection {
    RuleSection {
        name: required_string(&section, "name", report),
        pool: required_string(&section, "pool", report),
        frontends: required_strings(&section, "frontends", report),
        protocol: section.string("protocol", report),
        allocation: section.string("allocation", report),
        ports_per_backend: section.integer("ports_per_backend", report),
        min_ports: section.integer("min_ports", report),
        max_ports: section.integer("max_ports", report),
        frontend_selection: section.string("frontend_selection", report),
        pins: pins(&section, report),
        excluded_ports: section.ports("excluded_ports", report),
        idle_timeout: section.string("idle_timeout", report),
        on_refusal: section.string("on_refusal", report),
        tcp_reset: section.string("tcp_reset", report),
        rst_check: section.string("rst_check", report),
        mapping: section.string("mapping", report),
        filtering: section.string("filtering", report),
        port_parity: section.boolean("port_parity", report),
        mss_clamp: section.word_or_number("mss_clamp", "a word or a number of bytes", report),
        ip_id: section.string("ip_id", report),
        other_protocols: section.strings("other_protocols", report),
        timeouts: timeouts(&section, &OF_RULE, report),
        limits: limits(&section, report),
        destinations: section
            .tables("destination", &DESTINATION, report)
            .into_iter()
            .map(|entry| destination(entry, report))
            .collect(),
        span: section.span,
    }
}

fn pins(section: &Section<'_, '_>, report: &mut Report) -> Option<Pins> {
    let span = section.place("pins")?;
    let sections = section.tables("pins", &PIN, report);
    let mut entries = Vec::new();
    for entry in &sections {
        let backend = required_string(entry, "backend", report);
        let frontend = required_string(entry, "frontend", report);
        if let (Some(backend), Some(frontend)) = (backend, frontend) {
            entries.push(PinEntry { backend, frontend });
        }
    }
    let complete = section.length("pins") == Some(entries.len());
    Some(Pins { span, entries, complete })
}

fn limits(section: &Section<'_, '_>, report: &mut Report) -> Option<LimitsSection> {
    let limits = section.table("limits", &LIMITS, report)?;
    Some(LimitsSection {
        max_flows: limits.integer("max_flows", report),
        max_half_open: limits.integer("max_half_open", report),
        new_flows_per_second: limits.integer("new_flows_per_second", report),
        new_flow_burst: limits.integer("new_flow_burst", report),
    })
}

fn destination(entry: Section<'_, '_>, report: &mut Report) -> DestinationSection {
    DestinationSection {
        address: required_string(&entry, "address", report),
        port: entry.integer("port", report),
        protocol: entry.string("protocol", report),
        reserved_flows: entry.integer("reserved_flows", report),
        max_flows: entry.integer("max_flows", report),
        span: entry.span,
    }
}

pub(super) fn default(file: &Section<'_, '_>, report: &mut Report) -> Option<DefaultSection> {
    let section = file.table("default_outbound", &DEFAULT, report)?;
    Some(DefaultSection {
        frontends: required_strings(&section, "frontends", report),
        idle_timeout: section.string("idle_timeout", report),
        timeouts: timeouts(&section, &OF_DEFAULT, report),
        on_refusal: section.string("on_refusal", report),
        span: section.span,
    })
}
