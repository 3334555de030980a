// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file as typed: keys and types are right, values are not yet judged.

mod objects;
mod policy;
mod rule;
mod timeouts;

use toml::{Spanned, de::DeTable};

pub(super) use self::{
    objects::{BackendEntry, FrontendSection, GatewaySection, PoolSection},
    policy::{InstanceIpSection, PolicySection},
    rule::{DefaultSection, DestinationSection, LimitsSection, Pins, RuleSection},
    timeouts::{TimeoutsSection, UdpPortsSection},
};
use super::{
    decode::{Key, Keys, PortEntry, Report, Section},
    gateway::Action,
};

pub(super) struct File {
    pub(super) gateway: Option<GatewaySection>,
    pub(super) frontends: Vec<FrontendSection>,
    pub(super) pools: Vec<PoolSection>,
    pub(super) rules: Vec<RuleSection>,
    pub(super) default: Option<DefaultSection>,
    pub(super) denies: Vec<PolicySection>,
    pub(super) bypasses: Vec<PolicySection>,
    pub(super) instance_ips: Vec<InstanceIpSection>,
}

pub(super) type Strings = Spanned<Vec<Spanned<String>>>;
pub(super) type Ports = Spanned<Vec<Spanned<PortEntry>>>;

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

static FILE: Keys = Keys {
    table: "the file",
    supported: &[
        key("gateway", ""),
        key("frontend", ""),
        key("pool", ""),
        key("outbound_rule", ""),
        key("default_outbound", ""),
        key("deny", ""),
        key("bypass", ""),
        key("instance_ip", ""),
    ],
    planned: &[
        ("rule", "remove it; natgw has outbound rules only, so far: `[[outbound_rule]]`"),
        ("inbound_nat_rule", "remove it; natgw has outbound rules only, so far: `[[outbound_rule]]`"),
        ("probe", "remove it; outbound rules need no probes"),
    ],
};

/// Reads `document`, reporting every key and type that is wrong. What is reported is left out.
pub(super) fn read(document: &Spanned<DeTable<'_>>, report: &mut Report) -> File {
    let file = Section::new(document.get_ref(), 0..0, &FILE, report);
    File {
        gateway: objects::gateway(&file, report),
        frontends: objects::frontends(&file, report),
        pools: objects::pools(&file, report),
        rules: rule::rules(&file, report),
        default: rule::default(&file, report),
        denies: policy::policies(&file, Action::Deny, report),
        bypasses: policy::policies(&file, Action::Bypass, report),
        instance_ips: policy::instance_ips(&file, report),
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

/// Every key of every section.
#[cfg(test)]
pub(super) fn all_keys() -> impl Iterator<Item = &'static str> {
    let tables = objects::TABLES.iter().chain(&rule::TABLES).chain(&policy::TABLES).chain(&timeouts::TABLES);
    tables.flat_map(|keys| keys.supported.iter().map(|key| key.name))
}
