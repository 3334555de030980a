// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[gateway]`, frontends and pools.

use toml::{Spanned, de::DeValue};

use super::{
    super::decode::{Keys, Report, Section, type_name},
    Ports, Strings, key, required_string, required_strings,
};

pub(in crate::config) struct GatewaySection {
    pub(in crate::config) name: Option<Spanned<String>>,
    pub(in crate::config) inside: Option<Strings>,
    pub(in crate::config) outside: Option<Strings>,
    pub(in crate::config) xdp_mode: Option<Spanned<String>>,
    pub(in crate::config) max_flows: Option<Spanned<i64>>,
    pub(in crate::config) max_backends: Option<Spanned<i64>>,
    pub(in crate::config) assign_frontends: Option<Spanned<bool>>,
    pub(in crate::config) precedence: Option<Strings>,
    pub(in crate::config) on_refusal: Option<Spanned<String>>,
    pub(in crate::config) block_smtp: Option<Spanned<bool>>,
}

pub(in crate::config) struct FrontendSection {
    pub(in crate::config) name: Option<Spanned<String>>,
    pub(in crate::config) addresses: Option<Strings>,
    pub(in crate::config) reserved_ports: Option<Ports>,
    pub(in crate::config) host_ports: Option<Spanned<String>>,
}

pub(in crate::config) struct PoolSection {
    pub(in crate::config) name: Option<Spanned<String>>,
    pub(in crate::config) backends: Option<Spanned<Vec<BackendEntry>>>,
}

pub(in crate::config) struct BackendEntry {
    pub(in crate::config) name: Option<Spanned<String>>,
    /// Address or prefix.
    pub(in crate::config) address: Spanned<String>,
}

static GATEWAY: Keys = Keys {
    table: "[gateway]",
    supported: &[
        key("name", "\"default\""),
        key("inside", "[\"lan0\"]"),
        key("outside", "[\"wan0\"]"),
        key("xdp_mode", "\"auto\""),
        key("max_flows", "1048576"),
        key("max_backends", "8192"),
        key("assign_frontends", "true"),
        key("precedence", "[\"instance-ip\", \"outbound-rule\"]"),
        key("on_refusal", "\"silent\""),
        key("block_smtp", "true"),
    ],
    planned: &[("metrics", "remove it; `natgw stats --json` and `natgw ports --json` give the counters")],
};

static FRONTEND: Keys = Keys {
    table: "[[frontend]]",
    supported: &[
        key("name", "\"fe1\""),
        key("addresses", "[\"203.0.113.10\", \"198.51.100.0/30\"]"),
        key("reserved_ports", "[8080, \"5000-5100\"]"),
        key("host_ports", "\"auto\""),
    ],
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

#[cfg(test)]
pub(super) static TABLES: [&Keys; 4] = [&GATEWAY, &FRONTEND, &POOL, &BACKEND];

pub(super) fn gateway(file: &Section<'_, '_>, report: &mut Report) -> Option<GatewaySection> {
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
        max_backends: section.integer("max_backends", report),
        assign_frontends: section.boolean("assign_frontends", report),
        precedence: section.strings("precedence", report),
        on_refusal: section.string("on_refusal", report),
        block_smtp: section.boolean("block_smtp", report),
    })
}

pub(super) fn frontends(file: &Section<'_, '_>, report: &mut Report) -> Vec<FrontendSection> {
    let sections = file.tables("frontend", &FRONTEND, report);
    let read = |section: &Section<'_, '_>| FrontendSection {
        name: required_string(section, "name", report),
        addresses: required_strings(section, "addresses", report),
        reserved_ports: section.ports("reserved_ports", report),
        host_ports: section.string("host_ports", report),
    };
    sections.iter().map(read).collect()
}

pub(super) fn pools(file: &Section<'_, '_>, report: &mut Report) -> Vec<PoolSection> {
    let sections = file.tables("pool", &POOL, report);
    let read = |section: &Section<'_, '_>| PoolSection {
        name: required_string(section, "name", report),
        backends: backends(section, report),
    };
    sections.iter().map(read).collect()
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
