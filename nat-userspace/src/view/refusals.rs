// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends that were refused by something that somebody has configured, or left out.

use nat_common::abi::{
    config::{CLASSES, name_of},
    grant::BackendInfo,
};

use super::instance::{Instance, address};

/// Backends named in one line, at most.
const NAMED: usize = 5;

/// A sentence for each kind of refusal that there has been.
#[must_use]
pub fn problems(instance: &Instance) -> Vec<String> {
    let state = |slot: usize| instance.backend_states.get(slot).copied().unwrap_or_default();
    let limits = |slot: usize| {
        let first = slot * CLASSES as usize;
        let states = instance.grant_states.get(first..first + CLASSES as usize).unwrap_or_default();
        states.iter().map(|state| state.refused_limit).sum()
    };
    let sentences = [
        sentence(instance, "packets", "no outbound rule covers it", |slot| state(slot).refused_rule),
        sentence(instance, "packets", "a policy is against it", |slot| state(slot).refused_policy),
        sentence(instance, "new flows", "a limit of its rule", limits),
    ];
    sentences.into_iter().flatten().collect()
}

fn sentence(instance: &Instance, what: &str, why: &str, count: impl Fn(usize) -> u64) -> Option<String> {
    let mut refused: Vec<(u64, &BackendInfo)> = instance
        .backends
        .iter()
        .enumerate()
        .filter(|(_, backend)| backend.status == 1)
        .map(|(slot, backend)| (count(slot), backend))
        .filter(|(count, _)| *count > 0)
        .collect();
    refused.sort_by_key(|(count, backend)| (std::cmp::Reverse(*count), backend.address));
    let total: u64 = refused.iter().map(|(count, _)| count).sum();
    let mut names: Vec<String> = refused.iter().take(NAMED).map(|(_, backend)| named(backend)).collect();
    let backends = if refused.len() == 1 { "backend" } else { "backends" };
    if refused.len() > NAMED {
        names.push(format!("{} more", refused.len() - NAMED));
    }
    (total > 0).then(|| format!("{total} {what} of {backends} {} refused: {why}", names.join(", ")))
}

fn named(backend: &BackendInfo) -> String {
    let address = address(backend.address);
    match name_of(&backend.name) {
        "" => address.to_string(),
        name => format!("{name} ({address})"),
    }
}
