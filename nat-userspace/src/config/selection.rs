// SPDX-License-Identifier: MIT OR Apache-2.0
//! `frontend_selection` and `pins`: which of a rule's addresses a backend leaves from.

use std::{collections::BTreeMap, net::Ipv4Addr};

use toml::Spanned;

use super::{
    decode::Report,
    gateway::{OutboundRule, Pool, Selection},
    references::{Among, members},
    schema::{Pins as PinList, RuleSection},
    validate::{Objects, Places, first_known, word},
    values::{address, grouped},
};

/// Frontend address by backend.
type Pins = BTreeMap<Ipv4Addr, Ipv4Addr>;

/// Names that a list in an error has at most.
const FEW: usize = 4;

/// How `rule`, whose pool and frontends are known, chooses among its addresses.
pub(super) fn selection(
    section: &RuleSection,
    rule: &OutboundRule,
    objects: &Objects,
    report: &mut Report,
) -> (Option<Selection>, Pins) {
    let words = [
        ("paired", Selection::Paired),
        ("spread", Selection::Spread),
        ("drain-first", Selection::DrainFirst),
        ("pinned", Selection::Pinned),
    ];
    let selection = match &section.frontend_selection {
        None => None,
        Some(value) => match word("frontend_selection", value, &words, &[], report) {
            None => return (None, Pins::new()),
            known => known,
        },
    };
    match (selection, &section.pins) {
        (Some(Selection::Pinned), Some(list)) => {
            (selection, pins(list, &objects.pools[rule.pool], rule, objects, report))
        }
        (Some(Selection::Pinned), None) => {
            let place = section.frontend_selection.as_ref().map_or(section.span.clone(), Spanned::span);
            report
                .error(place, "`frontend_selection = \"pinned\"` needs `pins`")
                .help("for example `pins = [{ backend = \"10.0.0.4\", frontend = \"203.0.113.10\" }]`");
            (None, Pins::new())
        }
        (_, Some(list)) => {
            let error = report.error(list.span.clone(), "`pins` needs `frontend_selection = \"pinned\"`");
            if let Some(value) = &section.frontend_selection {
                error.also(value.span(), "not pinned here");
            }
            error.help("set it, or remove `pins`");
            (None, Pins::new())
        }
        (_, None) => (selection, Pins::new()),
    }
}

fn pins(list: &PinList, pool: &Pool, rule: &OutboundRule, objects: &Objects, report: &mut Report) -> Pins {
    let what = format!("pool `{}`", pool.name);
    let known = std::slice::from_ref(&objects.backend_places[rule.pool]);
    let among = Among { backends: &pool.backends, places: known, what: &what };
    let mut pins = Pins::new();
    let mut places = Places::new();
    let mut complete = list.complete;
    for entry in &list.entries {
        let frontend = frontend(&entry.frontend, rule, objects, report);
        let backends = members(&entry.backend, &among, report);
        complete &= frontend.is_some() && !backends.is_empty();
        if let Some((backend, first)) = first_known(&backends, &places) {
            complete = false;
            report
                .error(entry.backend.span(), format!("backend {backend} is pinned twice"))
                .also(first, "first here")
                .help("each backend has one pin: remove one, or pin smaller prefixes");
            continue;
        }
        places.extend(backends.iter().map(|backend| (*backend, entry.backend.span())));
        pins.extend(backends.into_iter().filter_map(|backend| Some((backend, frontend?))));
    }
    // With a faulty pin, those missing may only follow from it.
    if complete {
        name_missing(list, pool, &pins, report);
    }
    pins
}

fn frontend(
    wanted: &Spanned<String>,
    rule: &OutboundRule,
    objects: &Objects,
    report: &mut Report,
) -> Option<Ipv4Addr> {
    let found = match address(wanted.get_ref()) {
        Ok(found) => found,
        Err(fault) => {
            report.error(wanted.span(), fault.message).help(fault.help);
            return None;
        }
    };
    let known: Vec<Ipv4Addr> = rule
        .frontends
        .iter()
        .flat_map(|frontend| objects.frontends[*frontend].addresses.iter().copied())
        .collect();
    if known.contains(&found) {
        return Some(found);
    }
    let some: Vec<String> = known.iter().take(FEW).map(Ipv4Addr::to_string).collect();
    let more = if known.len() > FEW { format!(" and {} more", known.len() - FEW) } else { String::new() };
    report
        .error(wanted.span(), format!("{found} is no address of the rule's frontends"))
        .help(format!("it has {}{more}", some.join(", ")));
    None
}

fn name_missing(list: &PinList, pool: &Pool, pins: &Pins, report: &mut Report) {
    let missing: Vec<String> = pool
        .backends
        .iter()
        .filter(|backend| !pins.contains_key(&backend.address))
        .map(|backend| backend.name.clone().unwrap_or_else(|| backend.address.to_string()))
        .collect();
    if missing.is_empty() {
        return;
    }
    let few = missing.iter().take(FEW).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = missing.len().saturating_sub(FEW) as u64;
    let more = if more > 0 { format!(" and {} more", grouped(more)) } else { String::new() };
    let verb = if missing.len() == 1 { "is" } else { "are" };
    report
        .error(list.span.clone(), format!("{few}{more} of pool `{}` {verb} not pinned", pool.name))
        .help("pin every backend of the pool: a prefix pins all that are in it");
}
