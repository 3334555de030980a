// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a name in one section refers to in another.

use std::{collections::HashMap, net::Ipv4Addr, ops::Range};

use toml::Spanned;

use super::{
    decode::Report,
    gateway::Backend,
    names::did_you_mean,
    schema::Strings,
    validate::{Objects, Places},
    values::prefix,
};

/// Index of the pool that `wanted` names.
pub(super) fn pool(
    wanted: Option<&Spanned<String>>,
    objects: &Objects,
    report: &mut Report,
) -> Option<usize> {
    let wanted = wanted?;
    let found = objects.pools.iter().position(|pool| pool.name == *wanted.get_ref());
    if found.is_none() {
        let known = objects.pools.iter().map(|pool| pool.name.as_str());
        undefined("pool", wanted, known, report);
    }
    found
}

/// Indices of the frontends that `list` names, and where it does.
pub(super) fn frontends(
    list: Option<&Strings>,
    objects: &Objects,
    report: &mut Report,
) -> Vec<(usize, Range<usize>)> {
    let Some(list) = list else { return Vec::new() };
    if list.get_ref().is_empty() {
        report.error(list.span(), "`frontends` is empty").help("name at least one `[[frontend]]`");
    }
    let mut frontends = Vec::new();
    let mut places: HashMap<usize, Range<usize>> = HashMap::new();
    for wanted in list.get_ref() {
        let found = objects.frontends.iter().position(|frontend| frontend.name == *wanted.get_ref());
        let Some(found) = found else {
            let known = objects.frontends.iter().map(|frontend| frontend.name.as_str());
            undefined("frontend", wanted, known, report);
            continue;
        };
        if let Some(first) = places.get(&found) {
            report
                .error(wanted.span(), format!("frontend `{}` is given twice", wanted.get_ref()))
                .also(first.clone(), "first here")
                .help("remove one");
            continue;
        }
        places.insert(found, wanted.span());
        frontends.push((found, wanted.span()));
    }
    frontends
}

/// Backends among which one is named.
pub(super) struct Among<'a> {
    pub(super) backends: &'a [Backend],
    /// The same by address, in one or several maps.
    pub(super) places: &'a [Places],
    /// What they are: `pool `web``, `any pool`.
    pub(super) what: &'a str,
}

/// The addresses that `wanted` stands for: a name, an address or a prefix. None if that is reported.
pub(super) fn members(wanted: &Spanned<String>, among: &Among<'_>, report: &mut Report) -> Vec<Ipv4Addr> {
    let (text, Among { backends, places, what }) = (wanted.get_ref(), among);
    // Names are never addresses.
    let fault = match prefix(text) {
        Ok(net) => {
            let found: Vec<Ipv4Addr> = if net.prefix_len() == 32 {
                let known = places.iter().any(|places| places.contains_key(&net.addr()));
                known.then_some(net.addr()).into_iter().collect()
            } else {
                backends
                    .iter()
                    .map(|backend| backend.address)
                    .filter(|address| net.contains(address))
                    .collect()
            };
            if found.is_empty() {
                let verb = if net.prefix_len() == 32 { "is not" } else { "has no backend" };
                report
                    .error(wanted.span(), format!("`{text}` {verb} in {what}"))
                    .help("add it to the `backends` of a `[[pool]]`, or name one that is there");
            }
            return found;
        }
        Err(fault) => fault,
    };
    let named = |backend: &&Backend| backend.name.as_ref() == Some(text);
    if let Some(backend) = backends.iter().find(named) {
        return vec![backend.address];
    }
    if text.contains(['/', ':']) {
        report.error(wanted.span(), fault.message).help(fault.help);
    } else {
        let help = did_you_mean(text, backends.iter().filter_map(|backend| backend.name.as_deref()));
        report.error(wanted.span(), format!("no backend of {what} is named `{text}`")).help(
            help.unwrap_or_else(|| {
                "give its address, or name it: `{ name = \"db1\", address = \"10.0.2.7\" }`".to_owned()
            }),
        );
    }
    Vec::new()
}

fn undefined<'a>(
    kind: &str,
    wanted: &Spanned<String>,
    known: impl Iterator<Item = &'a str> + Clone,
    report: &mut Report,
) {
    let help = did_you_mean(wanted.get_ref(), known.clone()).unwrap_or_else(|| {
        let all: Vec<String> =
            known.filter(|name| !name.is_empty()).take(8).map(|name| format!("`{name}`")).collect();
        if all.is_empty() {
            format!("define it: `[[{kind}]]` with `name = \"{}\"`", wanted.get_ref())
        } else {
            format!("defined: {}", all.join(", "))
        }
    });
    report.error(wanted.span(), format!("{kind} `{}` is not defined", wanted.get_ref())).help(help);
}
