// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file as typed: keys and types are right, values are not yet judged.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::decode::{Key, Keys, Report, Section, type_name};

pub(super) struct File {
    pub(super) gateway: Option<GatewaySection>,
    pub(super) frontends: Vec<FrontendSection>,
    pub(super) pools: Vec<PoolSection>,
    pub(super) rules: Vec<RuleSection>,
}

pub(super) type Strings = Spanned<Vec<Spanned<String>>>;

pub(super) struct GatewaySection {
    pub(super) name: Option<Spanned<String>>,
    pub(super) inside: Option<Strings>,
    pub(super) outside: Option<Strings>,
    pub(super) xdp_mode: Option<Spanned<String>>,
    pub(super) max_flows: Option<Spanned<i64>>,
    pub(super) assign_frontends: Option<bool>,
}

pub(super) struct FrontendSection {
    pub(super) name: Option<Spanned<String>>,
    pub(super) addresses: Option<Strings>,
}

pub(super) struct PoolSection {
    pub(super) name: Option<Spanned<String>>,
    pub(super) backends: Option<Spanned<Vec<BackendEntry>>>,
}

pub(super) struct BackendEntry {
    pub(super) name: Option<Spanned<String>>,
    /// Address or prefix.
    pub(super) address: Spanned<String>,
}

pub(super) struct RuleSection {
    pub(super) span: Range<usize>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) pool: Option<Spanned<String>>,
    pub(super) frontends: Option<Strings>,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) allocation: Option<Spanned<String>>,
    pub(super) ports_per_backend: Option<Spanned<i64>>,
    pub(super) idle_timeout: Option<Spanned<String>>,
    pub(super) tcp_reset: Option<Spanned<String>>,
    pub(super) mapping: Option<Spanned<String>>,
}

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

static FILE: Keys = Keys {
    table: "the file",
    supported: &[key("gateway", ""), key("frontend", ""), key("pool", ""), key("outbound_rule", "")],
    planned: &[
        (
            "instance_ip",
            "remove it; an `[[outbound_rule]]` with a frontend of its own gives a backend an address that no other uses",
        ),
        ("rule", "remove it; natgw has outbound rules only, so far: `[[outbound_rule]]`"),
        ("inbound_nat_rule", "remove it; natgw has outbound rules only, so far: `[[outbound_rule]]`"),
        ("probe", "remove it; outbound rules need no probes"),
        (
            "deny",
            "remove it; filter with nftables where the packets enter, or leave the backend out of the pools",
        ),
    ],
};

static GATEWAY: Keys = Keys {
    table: "[gateway]",
    supported: &[
        key("name", "\"default\""),
        key("inside", "[\"lan0\"]"),
        key("outside", "[\"wan0\"]"),
        key("xdp_mode", "\"auto\""),
        key("max_flows", "1048576"),
        key("assign_frontends", "true"),
    ],
    planned: &[("metrics", "remove it; `natgw stats --json` and `natgw ports --json` give the counters")],
};

static FRONTEND: Keys = Keys {
    table: "[[frontend]]",
    supported: &[key("name", "\"fe1\""), key("addresses", "[\"203.0.113.10\", \"198.51.100.0/30\"]")],
    planned: &[],
};

static POOL: Keys = Keys {
    table: "[[pool]]",
    supported: &[
        key("name", "\"web\""),
        key("backends", "[\"10.0.0.4\", \"10.0.1.0/28\", { name = \"db1\", address = \"10.0.2.7\" }]"),
    ],
    planned: &[],
};

static BACKEND: Keys = Keys {
    table: "a backend",
    supported: &[key("name", "\"db1\""), key("address", "\"10.0.2.7\"")],
    planned: &[],
};

static RULE: Keys = Keys {
    table: "[[outbound_rule]]",
    supported: &[
        key("name", "\"web-out\""),
        key("pool", "\"web\""),
        key("frontends", "[\"fe1\"]"),
        key("protocol", "\"all\""),
        key("allocation", "\"static\""),
        key("ports_per_backend", "1024"),
        key("idle_timeout", "\"4m\""),
        key("tcp_reset", "\"off\""),
        key("mapping", "\"address-and-port-dependent\""),
    ],
    planned: &[(
        "timeouts",
        "remove it; `idle_timeout` sets the timer of established TCP connections, the others are those of Azure",
    )],
};

/// Reads `document`, reporting every key and type that is wrong. What is reported is left out.
pub(super) fn read(document: &Spanned<DeTable<'_>>, report: &mut Report) -> File {
    let file = Section::new(document.get_ref(), 0..0, &FILE, report);
    File {
        gateway: gateway(&file, report),
        frontends: file
            .tables("frontend", &FRONTEND, report)
            .iter()
            .map(|section| FrontendSection {
                name: required_string(section, "name", report),
                addresses: required_strings(section, "addresses", report),
            })
            .collect(),
        pools: file
            .tables("pool", &POOL, report)
            .iter()
            .map(|section| PoolSection {
                name: required_string(section, "name", report),
                backends: backends(section, report),
            })
            .collect(),
        rules: file
            .tables("outbound_rule", &RULE, report)
            .into_iter()
            .map(|section| rule(section, report))
            .collect(),
    }
}

fn required_string(
    section: &Section<'_, '_>,
    key: &'static str,
    report: &mut Report,
) -> Option<Spanned<String>> {
    section.require(key, report);
    section.string(key, report)
}

fn required_strings(section: &Section<'_, '_>, key: &'static str, report: &mut Report) -> Option<Strings> {
    section.require(key, report);
    section.strings(key, report)
}

fn gateway(file: &Section<'_, '_>, report: &mut Report) -> Option<GatewaySection> {
    let Some(section) = file.table("gateway", &GATEWAY, report) else {
        if !file.has("gateway") {
            report.error(0..0, "section `[gateway]` is missing").help(
                "start with `[gateway]` and the interfaces: `inside = [\"lan0\"]`, `outside = [\"wan0\"]`",
            );
        }
        return None;
    };
    Some(GatewaySection {
        name: section.string("name", report),
        inside: required_strings(&section, "inside", report),
        outside: required_strings(&section, "outside", report),
        xdp_mode: section.string("xdp_mode", report),
        max_flows: section.integer("max_flows", report),
        assign_frontends: section.boolean("assign_frontends", report),
    })
}

fn backends(section: &Section<'_, '_>, report: &mut Report) -> Option<Spanned<Vec<BackendEntry>>> {
    section.require("backends", report);
    let array = section.array("backends", report)?;
    let span = array.span();
    let mut entries = Vec::new();
    for value in array.into_inner() {
        match value.get_ref() {
            DeValue::String(text) => entries.push(BackendEntry {
                name: None,
                address: Spanned::new(value.span(), text.clone().into_owned()),
            }),
            DeValue::Table(table) => {
                let entry = Section::new(table, value.span(), &BACKEND, report);
                let name = required_string(&entry, "name", report);
                if let Some(address) = required_string(&entry, "address", report) {
                    entries.push(BackendEntry { name, address });
                }
            }
            other => {
                report
                    .error(
                        value.span(),
                        format!("a backend must be a string or a table, found {}", type_name(other)),
                    )
                    .help("for example `\"10.0.0.4\"` or `{ name = \"db1\", address = \"10.0.2.7\" }`");
            }
        }
    }
    Some(Spanned::new(span, entries))
}

fn rule(section: Section<'_, '_>, report: &mut Report) -> RuleSection {
    RuleSection {
        name: required_string(&section, "name", report),
        pool: required_string(&section, "pool", report),
        frontends: required_strings(&section, "frontends", report),
        protocol: section.string("protocol", report),
        allocation: section.string("allocation", report),
        ports_per_backend: section.integer("ports_per_backend", report),
        idle_timeout: section.string("idle_timeout", report),
        tcp_reset: section.string("tcp_reset", report),
        mapping: section.string("mapping", report),
        span: section.span,
    }
}

/// Every key of every section.
#[cfg(test)]
pub(super) fn all_keys() -> impl Iterator<Item = &'static str> {
    let objects = [&GATEWAY, &FRONTEND, &POOL, &BACKEND, &RULE];
    objects.into_iter().flat_map(|keys| keys.supported.iter().map(|key| key.name))
}
