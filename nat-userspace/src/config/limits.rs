// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each backend of a rule may use up: in all, and towards certain destinations.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::{Range, RangeInclusive},
};

use ipnet::Ipv4Net;
use nat_common::abi::grant::MAX_DESTINATIONS;
use toml::Spanned;

use super::{
    classes::{TCP_UDP, classes},
    decode::Report,
    gateway::{DestinationLimit, Gateway, Limits, Protocol},
    ports::{DESTINATIONS, port},
    schema::{DestinationSection, LimitsSection, RuleSection},
    validate::{MOST_FLOWS, within},
    values::{grouped, prefix},
};
use crate::plan::table_shares;

/// No table has more flows.
const COUNTS: RangeInclusive<u32> = 1..=MOST_FLOWS;

/// `[outbound_rule.limits]` of a rule for `protocol`.
pub(super) fn limits(section: Option<&LimitsSection>, protocol: Protocol, report: &mut Report) -> Limits {
    let Some(section) = section else { return Limits::default() };
    let mut count = |key, value: &Option<Spanned<i64>>| {
        within(key, value.as_ref(), COUNTS, "; left out, there is no limit", report).unwrap_or_default()
    };
    let mut limits = Limits {
        max_flows: count("max_flows", &section.max_flows),
        max_half_open: count("max_half_open", &section.max_half_open),
        new_flows_per_second: count("new_flows_per_second", &section.new_flows_per_second),
        new_flow_burst: count("new_flow_burst", &section.new_flow_burst),
    };
    if let (Some(value), Protocol::Udp) = (&section.max_half_open, protocol) {
        report
            .warning(value.span(), "`max_half_open` has no effect on a rule for udp")
            .help("it limits TCP handshakes: remove it");
    }
    match (&section.new_flow_burst, &section.new_flows_per_second) {
        (Some(burst), None) => {
            report
                .error(burst.span(), "`new_flow_burst` needs `new_flows_per_second`")
                .help("set the rate too, or remove the burst");
        }
        (None, Some(_)) => limits.new_flow_burst = limits.new_flows_per_second,
        _ => {}
    }
    limits
}

/// A destination that has been read.
struct Placed<'a> {
    limit: DestinationLimit,
    section: &'a DestinationSection,
    place: Range<usize>,
}

/// `[[outbound_rule.destination]]` of a rule for `protocol`.
pub(super) fn destinations(
    section: &RuleSection,
    protocol: Protocol,
    report: &mut Report,
) -> Vec<DestinationLimit> {
    if let Some(beyond) = section.destinations.get(MAX_DESTINATIONS) {
        report
            .error(beyond.span.clone(), format!("{} destinations in one rule", section.destinations.len()))
            .help(format!("at most {MAX_DESTINATIONS} are possible"));
    }
    let placed: Vec<Placed<'_>> =
        section.destinations.iter().filter_map(|entry| destination(entry, report)).collect();
    let mask = protocol.classes().iter().fold(0, |mask, class| mask | 1 << class);
    for (index, later) in placed.iter().enumerate() {
        if later.limit.classes & mask == 0 {
            report
                .warning(
                    later.place.clone(),
                    format!("no packet of a rule for {} is to this destination", protocol.name()),
                )
                .help("remove it, or change `protocol` here or of the rule");
        } else if let Some(earlier) =
            placed[..index].iter().find(|earlier| covers(&earlier.limit, &later.limit, mask))
        {
            report
                .warning(later.place.clone(), "this destination is never reached")
                .also(earlier.place.clone(), "all of it is here already")
                .help("the first destination that matches counts: put the narrower one first");
        }
    }
    check_sum(section, &placed, report);
    placed.into_iter().map(|placed| placed.limit).collect()
}

fn destination<'a>(entry: &'a DestinationSection, report: &mut Report) -> Option<Placed<'a>> {
    let classes = classes(entry.protocol.as_ref(), false, report);
    let mut prefix_of = |text: &Spanned<String>| prefix_at(text, report);
    let prefix = entry.address.as_ref().and_then(&mut prefix_of);
    let mut count = |key, value: &Option<Spanned<i64>>| {
        within(key, value.as_ref(), COUNTS, "", report).unwrap_or_default()
    };
    let reserved = count("reserved_flows", &entry.reserved_flows);
    let max_flows = count("max_flows", &entry.max_flows);
    if entry.reserved_flows.is_none() && entry.max_flows.is_none() {
        report
            .error(
                entry.span.clone(),
                "a destination without `reserved_flows` and `max_flows` limits nothing",
            )
            .help("set at least one of the two");
    }
    if let (Some(most), Some(least)) = (&entry.max_flows, &entry.reserved_flows)
        && reserved > max_flows
        && max_flows > 0
    {
        report
            .error(
                least.span(),
                format!("`reserved_flows = {reserved}` is more than `max_flows = {max_flows}`"),
            )
            .also(most.span(), "`max_flows`")
            .help("a backend can always have its reserved flows: lower them, or raise `max_flows`");
    }
    let port = entry.port.as_ref().map(|value| port_at(value, entry.protocol.as_ref(), classes?, report));
    let mut classes = classes?;
    if port.is_some() {
        classes &= TCP_UDP;
    }
    let limit = DestinationLimit { prefix: prefix?, port: port.flatten(), classes, reserved, max_flows };
    let place = entry.address.as_ref().map_or(entry.span.clone(), Spanned::span);
    Some(Placed { limit, section: entry, place })
}

fn prefix_at(text: &Spanned<String>, report: &mut Report) -> Option<Ipv4Net> {
    match prefix(text.get_ref()) {
        Ok(prefix) => Some(prefix),
        Err(fault) => {
            report.error(text.span(), fault.message).help(fault.help);
            None
        }
    }
}

/// A port of a destination whose protocols are `classes`.
fn port_at(
    value: &Spanned<i64>,
    protocol: Option<&Spanned<String>>,
    classes: u32,
    report: &mut Report,
) -> Option<u16> {
    if let Some(protocol) = protocol.filter(|_| classes & TCP_UDP == 0) {
        report
            .error(value.span(), format!("`port` has no meaning for {}", protocol.get_ref()))
            .also(protocol.span(), "protocol here")
            .help("ports are those of `tcp`, `udp` or `all`");
        return None;
    }
    match port(*value.get_ref(), &DESTINATIONS) {
        Ok(port) => Some(port),
        Err(fault) => {
            report.error(value.span(), fault.message).help(fault.help);
            None
        }
    }
}

/// Whether `earlier` matches all that `later` does, among the classes in `mask`.
fn covers(earlier: &DestinationLimit, later: &DestinationLimit, mask: u32) -> bool {
    earlier.prefix.contains(&later.prefix)
        && (earlier.port.is_none() || earlier.port == later.port)
        && later.classes & mask & !earlier.classes == 0
}

/// Reports reserved flows that a backend cannot have, as it may have fewer in all.
fn check_sum(section: &RuleSection, placed: &[Placed<'_>], report: &mut Report) {
    let Some(most) = section.limits.as_ref().and_then(|limits| limits.max_flows.as_ref()) else { return };
    let Some(limit) = u64::try_from(*most.get_ref()).ok().filter(|limit| *limit > 0) else { return };
    let mut sum = 0u64;
    for placed in placed {
        sum += u64::from(placed.limit.reserved);
        let Some(reserved) = placed.section.reserved_flows.as_ref().filter(|_| sum > limit) else { continue };
        report
            .error(
                reserved.span(),
                format!("{} reserved flows up to here, {} in all are allowed", grouped(sum), grouped(limit)),
            )
            .also(most.span(), "`max_flows` of each backend")
            .help("lower `reserved_flows`, or raise `max_flows` in `[outbound_rule.limits]`");
        return;
    }
}

/// Refuses rules that reserve more than the table guarantees a backend: it could not be set aside.
pub(super) fn check_table(sections: &[RuleSection], gateway: &Gateway, report: &mut Report) {
    let backends: HashSet<Ipv4Addr> =
        gateway.pools.iter().flat_map(|pool| &pool.backends).map(|backend| backend.address).collect();
    let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
    let (guaranteed, _) = table_shares(gateway.max_flows, count);
    let mut reserved: HashMap<Ipv4Addr, u64> = HashMap::new();
    for (section, rule) in sections.iter().zip(&gateway.rules) {
        let sum: u64 = rule.destinations.iter().map(|limit| u64::from(limit.reserved)).sum();
        let Some(first) = section.destinations.first().filter(|_| sum > 0) else { continue };
        let most = gateway.backends_of(rule).iter().map(|backend| {
            let all = reserved.entry(backend.address).or_default();
            *all += sum;
            *all
        });
        let most = most.max().unwrap_or(0);
        if most <= u64::from(guaranteed) {
            continue;
        }
        let message = format!(
            "{} flows are reserved for each backend of rule `{}`, all its rules together, of which the table guarantees {}: \
             {} flows / 2 / {} backends",
            grouped(most),
            rule.name,
            grouped(guaranteed),
            grouped(gateway.max_flows),
            grouped(count)
        );
        let needed = most * 2 * u64::from(count);
        let help = if needed <= u64::from(MOST_FLOWS) {
            format!("lower `reserved_flows`, or set `gateway.max_flows = {needed}` or more")
        } else {
            "lower `reserved_flows`".to_owned()
        };
        report.error(first.span.clone(), message).help(help);
    }
}
