// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who gives out what: for each protocol a backend has its ports from one rule, and the addresses of a dynamic rule
//! are its own.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    ops::Range,
};

use nat_common::abi::config::CLASS_NAMES;
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{Allocation, OutboundRule},
    schema::RuleSection,
    validate::Objects,
};

/// Which rule gives each backend its ports of each class.
#[derive(Default)]
pub(super) struct Claims {
    /// Index into `rules`.
    by_backend: HashMap<(Ipv4Addr, u32), usize>,
    rules: Vec<(String, usize, Range<usize>)>,
}

impl Claims {
    /// Reports, once for each earlier rule, the first backend that both claim.
    pub(super) fn add(
        &mut self,
        rule: &OutboundRule,
        section: &RuleSection,
        objects: &Objects,
        report: &mut Report,
    ) {
        let place = section.pool.as_ref().map_or(section.span.clone(), Spanned::span);
        let this = self.rules.len();
        self.rules.push((rule.name.clone(), rule.pool, place.clone()));
        let mut reported = HashSet::new();
        for backend in &objects.pools[rule.pool].backends {
            for class in rule.protocol.classes() {
                let other = *self.by_backend.entry((backend.address, *class)).or_insert(this);
                if other == this || !reported.insert(other) {
                    continue;
                }
                let (other_name, other_pool, other_place) = &self.rules[other];
                let message = format!(
                    "backend {} has {} ports from rule `{other_name}` already",
                    backend.address, CLASS_NAMES[*class as usize]
                );
                let entries = [*other_pool, rule.pool]
                    .map(|pool| objects.backend_places[pool].get(&backend.address).cloned());
                let error = report.error(place.clone(), message);
                error
                    .also(other_place.clone(), format!("rule `{other_name}`"))
                    .help("for each protocol one rule only may give a backend ports: take it out of one pool, or set `protocol`");
                if let ([Some(there), Some(here)], true) = (entries, *other_pool != rule.pool) {
                    error
                        .also(there, format!("in pool `{}`", objects.pools[*other_pool].name))
                        .also(here, format!("in pool `{}`", objects.pools[rule.pool].name));
                }
            }
        }
    }

    /// Whether a rule gives `backend` ports of `class`.
    pub(super) fn covers(&self, backend: Ipv4Addr, class: u32) -> bool {
        self.by_backend.contains_key(&(backend, class))
    }
}

/// Which rules use each frontend for each class.
#[derive(Default)]
pub(super) struct Users {
    by_frontend: HashMap<(usize, u32), Vec<User>>,
    /// Pairs of places that have been reported: the rules of `[default_outbound]` share theirs.
    reported: HashSet<(usize, usize)>,
}

struct User {
    rule: String,
    dynamic: bool,
    place: Range<usize>,
}

impl Users {
    /// Adds `rule`, which names its frontends at `places`. Reports each frontend that is shared with a dynamic rule.
    pub(super) fn add(
        &mut self,
        rule: &OutboundRule,
        places: &[(usize, Range<usize>)],
        objects: &Objects,
        report: &mut Report,
    ) {
        let dynamic = rule.allocation == Allocation::Dynamic;
        for (frontend, place) in places {
            for class in rule.protocol.classes() {
                let users = self.by_frontend.entry((*frontend, *class)).or_default();
                let clash = users.iter().find(|user| user.dynamic || dynamic);
                if let Some(user) = clash
                    && self.reported.insert((user.place.start, place.start))
                {
                    let message = format!(
                        "frontend `{}` gives out its {} ports by rule `{}` already, and a dynamic rule shares them with no other",
                        objects.frontends[*frontend].name, CLASS_NAMES[*class as usize], user.rule
                    );
                    report
                        .error(place.clone(), message)
                        .also(user.place.clone(), format!("rule `{}`", user.rule))
                        .help("give one of the two a frontend with other addresses");
                }
                users.push(User { rule: rule.name.clone(), dynamic, place: place.clone() });
            }
        }
    }
}
