// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[default_outbound]`: the last way out, as rules of their own.

use std::collections::HashSet;

use nat_common::abi::config::MAX_RULES;
use toml::Spanned;

use super::{
    allocation::few_addresses,
    decode::Report,
    gateway::{Allocation, Backend, InstanceIp, OutboundRule, Protocol, Refusal},
    references::frontends,
    rules::{PlacedRule, Used},
    schema::DefaultSection,
    timeouts::timers,
    validate::{Objects, refusal},
};

/// A dynamic rule for each protocol, for the backends that `rules`, which `used` knows, do not cover.
pub(super) fn rules(
    section: &DefaultSection,
    on_refusal: Refusal,
    rules: usize,
    instance_ips: &[InstanceIp],
    objects: &Objects,
    used: &mut Used,
    report: &mut Report,
) -> Vec<PlacedRule> {
    let frontends = frontends(section.frontends.as_ref(), objects, report);
    used.frontends.extend(frontends.iter().map(|(frontend, _)| *frontend));
    let template = OutboundRule {
        frontends: frontends.iter().map(|(frontend, _)| *frontend).collect(),
        allocation: Allocation::Dynamic,
        timers: timers(
            section.idle_timeout.as_ref(),
            section.timeouts.as_ref(),
            Protocol::All,
            false,
            report,
        ),
        on_refusal: refusal(section.on_refusal.as_ref(), report).unwrap_or(on_refusal),
        ..OutboundRule::default()
    };
    few_addresses(&template, section.frontends.as_ref(), objects, report);
    let mut placed = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        let mut backends = uncovered(protocol, objects, used);
        // The last resort: whichever comes first of the others, an instance IP comes before it.
        backends.retain(|backend| instance_ips.iter().all(|ip| ip.backend != backend.address));
        if backends.is_empty() {
            continue;
        }
        let name = format!("default-outbound/{}", protocol.name());
        let rule = OutboundRule { name, protocol, default_for: Some(backends), ..template.clone() };
        used.users.add(&rule, &frontends, objects, report);
        let ports_place = section.frontends.as_ref().map_or(section.span.clone(), Spanned::span);
        placed.push(PlacedRule { rule, ports_place });
    }
    let all = rules + placed.len();
    if placed.is_empty() {
        report
            .warning(
                section.span.clone(),
                "no backend is left for `[default_outbound]`: rules cover all, for every protocol",
            )
            .help("remove it, or list backends that no rule covers in a pool");
    } else if rules <= MAX_RULES as usize && all > MAX_RULES as usize {
        report
            .error(
                section.span.clone(),
                format!("{all} outbound rules with those of `[default_outbound]`, one for each protocol"),
            )
            .help(format!("at most {MAX_RULES} are possible"));
    }
    placed
}

/// Backends of all pools, each once, that no rule gives ports of `protocol`.
fn uncovered(protocol: Protocol, objects: &Objects, used: &Used) -> Vec<Backend> {
    let mut seen = HashSet::new();
    let backends = objects.pools.iter().flat_map(|pool| &pool.backends);
    let uncovered = backends.filter(|backend| {
        let covered = protocol.classes().iter().all(|class| used.claims.covers(backend.address, *class));
        !covered && seen.insert(backend.address)
    });
    uncovered.cloned().collect()
}
