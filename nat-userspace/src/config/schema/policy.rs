// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes another way than through an outbound rule: deny, bypass, instance IPs.

use std::ops::Range;

use toml::Spanned;

use super::{
    super::{
        decode::{Keys, Report, Section},
        gateway::Action,
    },
    Ports, Strings, key, required_string, required_strings,
};

pub(in crate::config) struct PolicySection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) action: Action,
    pub(in crate::config) name: Option<Spanned<String>>,
    pub(in crate::config) direction: Option<Spanned<String>>,
    pub(in crate::config) pool: Option<Spanned<String>>,
    pub(in crate::config) destinations: Option<Strings>,
    pub(in crate::config) sources: Option<Strings>,
    pub(in crate::config) protocol: Option<Spanned<String>>,
    pub(in crate::config) ports: Option<Ports>,
}

pub(in crate::config) struct InstanceIpSection {
    pub(in crate::config) span: Range<usize>,
    pub(in crate::config) backend: Option<Spanned<String>>,
    pub(in crate::config) address: Option<Spanned<String>>,
}

static DENY: Keys = Keys {
    table: "[[deny]]",
    supported: &[
        key("name", "\"no-metadata\""),
        key("direction", "\"outbound\""),
        key("pool", "\"web\""),
        key("destinations", "[\"169.254.169.254\", \"192.0.2.0/24\"]"),
        key("sources", "[\"198.51.100.0/24\"]"),
        key("protocol", "\"tcp\""),
        key("ports", "[25, \"8000-8010\"]"),
    ],
    planned: &[],
};

static BYPASS: Keys = Keys {
    table: "[[bypass]]",
    supported: &[
        key("name", "\"corp\""),
        key("pool", "\"web\""),
        key("destinations", "[\"10.0.0.0/8\"]"),
        key("protocol", "\"tcp\""),
        key("ports", "[443, \"8000-8010\"]"),
    ],
    planned: &[],
};

static INSTANCE_IP: Keys = Keys {
    table: "[[instance_ip]]",
    supported: &[key("backend", "\"10.0.0.4\""), key("address", "\"203.0.113.50\"")],
    planned: &[],
};

#[cfg(test)]
pub(super) static TABLES: [&Keys; 3] = [&DENY, &BYPASS, &INSTANCE_IP];

/// The sections of one action.
pub(super) fn policies(file: &Section<'_, '_>, action: Action, report: &mut Report) -> Vec<PolicySection> {
    let (name, keys) = match action {
        Action::Deny => ("deny", &DENY),
        Action::Bypass => ("bypass", &BYPASS),
    };
    let mut policies = Vec::new();
    for section in file.tables(name, keys, report) {
        let deny = action == Action::Deny;
        policies.push(PolicySection {
            action,
            name: required_string(&section, "name", report),
            direction: if deny { section.string("direction", report) } else { None },
            pool: section.string("pool", report),
            destinations: if deny {
                section.strings("destinations", report)
            } else {
                required_strings(&section, "destinations", report)
            },
            sources: if deny { section.strings("sources", report) } else { None },
            protocol: section.string("protocol", report),
            ports: section.ports("ports", report),
            span: section.span,
        });
    }
    policies
}

pub(super) fn instance_ips(file: &Section<'_, '_>, report: &mut Report) -> Vec<InstanceIpSection> {
    let mut all = Vec::new();
    for section in file.tables("instance_ip", &INSTANCE_IP, report) {
        all.push(InstanceIpSection {
            backend: required_string(&section, "backend", report),
            address: required_string(&section, "address", report),
            span: section.span,
        });
    }
    all
}
