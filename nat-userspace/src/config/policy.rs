// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[[deny]]`, `block_smtp` and `[[bypass]]`.

use std::{collections::HashSet, ops::Range};

use ipnet::Ipv4Net;
use nat_common::abi::policy::{MAX_POLICIES, MAX_POLICY_PREFIXES};
use toml::Spanned;

use super::{
    classes::{TCP, TCP_UDP, classes},
    decode::Report,
    gateway::{Action, Policy, PolicyDirection, PortRange},
    ports::{DESTINATIONS, ports},
    references::pool,
    rules::{LONG_NAME_BYTES, Used},
    schema::{File, PolicySection, Strings},
    validate::{Objects, choice, text_of, unique_names},
    values::{grouped, prefix},
};

/// The preset's name and key.
const BLOCK_SMTP: &str = "block_smtp";

/// All policies: denials first, as they win.
pub(super) fn policies(file: &File, objects: &Objects, used: &mut Used, report: &mut Report) -> Vec<Policy> {
    let sections = || file.denies.iter().chain(&file.bypasses);
    let preset = file.gateway.as_ref().and_then(|gateway| gateway.block_smtp.as_ref());
    let preset = preset.filter(|value| *value.get_ref());
    check_names(file, report);
    if let Some(preset) = preset {
        name_is_free(file, preset.span(), report);
    }
    let count = sections().count() + usize::from(preset.is_some());
    if count > MAX_POLICIES as usize {
        let last = sections().map(|section| section.span.clone()).max_by_key(|span| span.start);
        let with = if preset.is_some() { ", `block_smtp` included" } else { "" };
        report
            .error(last.unwrap_or(0..0), format!("{count} policies up to here{with}"))
            .help(format!("at most {MAX_POLICIES} are possible, `[[deny]]` and `[[bypass]]` together"));
    }
    bound_prefixes(sections(), preset.is_some(), report);
    let instance_ips = !file.instance_ips.is_empty();
    let mut policies = Vec::new();
    for section in &file.denies {
        policies.extend(policy(section, instance_ips, objects, used, report));
    }
    if preset.is_some() {
        policies.push(Policy {
            name: BLOCK_SMTP.to_owned(),
            action: Action::Deny,
            direction: PolicyDirection::Outbound,
            pool: None,
            remotes: vec![Ipv4Net::default()],
            classes: TCP,
            ports: vec![PortRange { first: 25, last: 25 }],
        });
    }
    for section in &file.bypasses {
        policies.extend(policy(section, instance_ips, objects, used, report));
    }
    policies
}

fn check_names(file: &File, report: &mut Report) {
    let mut names: Vec<_> =
        file.denies.iter().chain(&file.bypasses).filter_map(|section| section.name.as_ref()).collect();
    names.sort_by_key(|name| name.span().start);
    unique_names("policy", names.into_iter().map(Some), LONG_NAME_BYTES, report);
}

/// Reports the first prefix that the data path's table has no room for.
fn bound_prefixes<'a>(sections: impl Iterator<Item = &'a PolicySection>, preset: bool, report: &mut Report) {
    // Policies without prefixes, the preset among them, are about everywhere.
    let mut distinct: HashSet<Ipv4Net> = preset.then(Ipv4Net::default).into_iter().collect();
    for section in sections {
        let lists: Vec<&Strings> = [&section.destinations, &section.sources].into_iter().flatten().collect();
        if lists.is_empty() {
            distinct.insert(Ipv4Net::default());
        }
        for entry in lists.into_iter().flat_map(|list| list.get_ref()) {
            distinct.extend(prefix(entry.get_ref()).ok());
            if distinct.len() > MAX_POLICY_PREFIXES as usize {
                let more =
                    format!("more than {} different prefixes in policies", grouped(MAX_POLICY_PREFIXES));
                report.error(entry.span(), more).help("larger prefixes cover the same with fewer");
                return;
            }
        }
    }
}

fn name_is_free(file: &File, preset: Range<usize>, report: &mut Report) {
    for name in file.denies.iter().chain(&file.bypasses).filter_map(|section| section.name.as_ref()) {
        if name.get_ref() == BLOCK_SMTP {
            report
                .error(name.span(), "`block_smtp` is the name of the preset")
                .also(preset.clone(), "preset on here")
                .help("choose another name, or turn the preset off");
        }
    }
}

/// `None` if something is wrong with it. Everything that is gets reported.
fn policy(
    section: &PolicySection,
    instance_ips: bool,
    objects: &Objects,
    used: &mut Used,
    report: &mut Report,
) -> Option<Policy> {
    let directions = [("outbound", PolicyDirection::Outbound), ("inbound", PolicyDirection::Inbound)];
    let direction = choice("direction", section.direction.as_ref(), &directions, &[], report);
    let pool_index = pool(section.pool.as_ref(), objects, report);
    used.pools.extend(pool_index);
    let remotes = remotes(section, direction, report);
    let classes = classes(section.protocol.as_ref(), true, report);
    let ports = section.ports.as_ref().map(|list| {
        if list.get_ref().is_empty() {
            report.error(list.span(), "`ports` is empty").help("leave it out for all ports");
        }
        if let Some(protocol) =
            section.protocol.as_ref().filter(|_| classes.is_some_and(|mask| mask & TCP_UDP == 0))
        {
            report
                .error(list.span(), format!("`ports` has no meaning for {}", protocol.get_ref()))
                .also(protocol.span(), "protocol here")
                .help("ports are those of `tcp`, `udp` or `all`");
        }
        ports(list, &DESTINATIONS, report)
    });
    if let Some(value) =
        section.direction.as_ref().filter(|_| direction == PolicyDirection::Inbound && !instance_ips)
    {
        report
            .warning(value.span(), "no `[[instance_ip]]`: there is nothing inbound to deny")
            .help("connections from outside can only be to instance IPs");
    }
    let classes = if ports.is_some() { classes? & TCP_UDP } else { classes? };
    Some(Policy {
        name: text_of(section.name.as_ref()),
        action: section.action,
        direction,
        pool: pool_index,
        remotes: remotes?,
        classes,
        ports: ports.unwrap_or_default(),
    })
}

/// The far ends, from the key that goes with `direction`.
fn remotes(section: &PolicySection, direction: PolicyDirection, report: &mut Report) -> Option<Vec<Ipv4Net>> {
    let destinations = ("destinations", section.destinations.as_ref());
    let sources = ("sources", section.sources.as_ref());
    let ((key, list), (wrong, misplaced)) = match direction {
        PolicyDirection::Outbound => (destinations, sources),
        PolicyDirection::Inbound => (sources, destinations),
    };
    if let Some(misplaced) = misplaced {
        let (word, help) = match direction {
            PolicyDirection::Outbound => (
                "outbound",
                "the far ends of outbound connections are `destinations`, their sources are `pool`",
            ),
            PolicyDirection::Inbound => (
                "inbound",
                "the far ends of inbound connections are `sources`, their destinations are `pool`",
            ),
        };
        let error = report.error(misplaced.span(), format!("`{wrong}` has no meaning in an {word} deny"));
        if let Some(direction) = &section.direction {
            error.also(direction.span(), "direction here");
        }
        error.help(help);
    }
    match list {
        None => Some(vec![Ipv4Net::default()]),
        Some(list) => prefixes(key, list, report),
    }
}

fn prefixes(key: &str, list: &Strings, report: &mut Report) -> Option<Vec<Ipv4Net>> {
    if list.get_ref().is_empty() {
        report.error(list.span(), format!("`{key}` is empty")).help("for everywhere write `0.0.0.0/0`");
        return None;
    }
    let mut seen: Vec<(Ipv4Net, &Spanned<String>)> = Vec::new();
    let mut right = true;
    for entry in list.get_ref() {
        match prefix(entry.get_ref()) {
            Err(fault) => {
                right = false;
                report.error(entry.span(), fault.message).help(fault.help);
            }
            Ok(net) => {
                if let Some((_, first)) = seen.iter().find(|(other, _)| *other == net) {
                    right = false;
                    report
                        .error(entry.span(), format!("`{}` is in `{key}` twice", entry.get_ref()))
                        .also(first.span(), "first here")
                        .help("remove one");
                }
                seen.push((net, entry));
            }
        }
    }
    right.then(|| seen.into_iter().map(|(net, _)| net).collect())
}
