// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules: what they refer to and how they behave.

use std::{collections::HashSet, ops::Range};

use nat_common::abi::config::MAX_RULES;
use toml::Spanned;

use super::{
    allocation::{few_addresses, share, tier_ports},
    claims::{Claims, Users},
    decode::Report,
    gateway::{Allocation, OutboundRule, Protocol, Refusal},
    limits::{destinations, limits},
    options::{RstCheck, TcpReset, options},
    ports::given_ports,
    references::{frontends, pool},
    schema::RuleSection,
    selection::selection,
    timeouts::timers,
    validate::{Objects, choice, refusal, text_of, unique_names},
};

/// Bytes of a rule's or policy's name in the data path's tables.
pub(super) const LONG_NAME_BYTES: usize = 48;

/// A rule and where its port count is decided.
pub(super) struct PlacedRule {
    pub(super) rule: OutboundRule,
    pub(super) ports_place: Range<usize>,
}

/// What rules have been found to use.
#[derive(Default)]
pub(super) struct Used {
    pub(super) claims: Claims,
    pub(super) users: Users,
    /// Indices of frontends.
    pub(super) frontends: HashSet<usize>,
    /// Indices of pools.
    pub(super) pools: HashSet<usize>,
}

/// The rules that refer to existing pools and frontends. `on_refusal` is that of rules without one of their own.
pub(super) fn rules(
    sections: &[RuleSection],
    on_refusal: Refusal,
    objects: &Objects,
    used: &mut Used,
    report: &mut Report,
) -> Vec<PlacedRule> {
    let names = sections.iter().map(|section| section.name.as_ref());
    unique_names("rule", names, LONG_NAME_BYTES, report);
    if let Some(beyond) = sections.get(MAX_RULES as usize) {
        report
            .error(beyond.span.clone(), format!("{} outbound rules", sections.len()))
            .help(format!("at most {MAX_RULES} are possible"));
    }
    sections.iter().filter_map(|section| rule(section, on_refusal, objects, used, report)).collect()
}

fn rule(
    section: &RuleSection,
    on_refusal: Refusal,
    objects: &Objects,
    used: &mut Used,
    report: &mut Report,
) -> Option<PlacedRule> {
    let protocol = words(section, report);
    let pool = pool(section.pool.as_ref(), objects, report);
    let frontends = frontends(section.frontends.as_ref(), objects, report);
    used.pools.extend(pool);
    used.frontends.extend(frontends.iter().map(|(frontend, _)| *frontend));
    for_tcp_only(section, protocol, report);
    let share = share(section, report);
    let limits = limits(section.limits.as_ref(), protocol, report);
    let options = options(section, protocol, report);
    let mut rule = OutboundRule {
        name: text_of(section.name.as_ref()),
        frontends: frontends.iter().map(|(frontend, _)| *frontend).collect(),
        protocol,
        timers: timers(
            section.idle_timeout.as_ref(),
            section.timeouts.as_ref(),
            protocol,
            options.protocols != 0,
            report,
        ),
        options,
        excluded: section.excluded_ports.as_ref().map(|list| given_ports(list, report)).unwrap_or_default(),
        limits,
        destinations: destinations(section, protocol, report),
        on_refusal: refusal(section.on_refusal.as_ref(), report).unwrap_or(on_refusal),
        tcp_reset: choice("tcp_reset", section.tcp_reset.as_ref(), &TcpReset::ALL, &[], report),
        rst_check: choice("rst_check", section.rst_check.as_ref(), &RstCheck::ALL, &[], report),
        ..OutboundRule::default()
    };
    let pool = pool.filter(|_| !frontends.is_empty())?;
    rule.pool = pool;
    used.claims.add(&rule, section, objects, report);
    (rule.selection, rule.pins) = selection(section, &rule, objects, report);
    let share = share?;
    rule.allocation = share.allocation;
    used.users.add(&rule, &frontends, objects, report);
    let count_place = match share.allocation {
        Allocation::Static => {
            rule.ports_explicit = share.ports != 0;
            let given = Some(share.ports).filter(|ports| *ports != 0);
            rule.ports_per_backend = given.or_else(|| tier_ports(&rule, section, objects, report))?;
            section.ports_per_backend.as_ref().map(Spanned::span)
        }
        Allocation::Dynamic => {
            rule.ports_per_backend = share.ports;
            rule.max_ports = share.max_ports;
            few_addresses(&rule, section.frontends.as_ref(), objects, report);
            section.min_ports.as_ref().map(Spanned::span)
        }
    };
    Some(PlacedRule { rule, ports_place: count_place.unwrap_or(section.span.clone()) })
}

/// Checks the keys that take one of a few words and decide nothing but themselves; the only one with a choice is the
/// protocol.
fn words(section: &RuleSection, report: &mut Report) -> Protocol {
    let protocols = [("all", Protocol::All), ("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    choice("protocol", section.protocol.as_ref(), &protocols, &[], report)
}

/// Warns of keys that decide nothing on a rule without TCP.
fn for_tcp_only(section: &RuleSection, protocol: Protocol, report: &mut Report) {
    if protocol != Protocol::Udp {
        return;
    }
    for (key, value) in [("tcp_reset", &section.tcp_reset), ("rst_check", &section.rst_check)] {
        if let Some(value) = value {
            report
                .warning(value.span(), format!("`{key}` has no effect on a rule for udp"))
                .help("only TCP connections are reset");
        }
    }
}
