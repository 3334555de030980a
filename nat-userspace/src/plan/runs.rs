// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which ports a plan gives a backend, as runs: the only place of [`super::diff`] that knows how a plan holds them.

use std::net::Ipv4Addr;

use nat_common::abi::grant::Segment;
use serde::Serialize;

use super::model::{PortPlan, segments};

/// A run of ports on one frontend address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Run {
    /// Address.
    pub frontend: Ipv4Addr,
    /// First and last port.
    pub range: [u16; 2],
    /// Whether other backends of the rule may use them, too.
    pub shared: bool,
}

/// What becomes of the ports of a backend and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The same ports.
    Kept,
    /// Some of the ports go away, others come.
    Moved,
    /// The same ports, of which others are shared than before.
    Shared,
    /// All it had, and more.
    Grown,
    /// Part of what it had.
    Shrunk,
    /// It had none.
    New,
    /// It gets none.
    Gone,
}

/// What a backend has for a protocol.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Rule that it comes from.
    pub(super) rule: Option<String>,
    /// In order, adjacent runs joined: equal ports are equal runs.
    pub(super) runs: Vec<Run>,
    /// As [`Self::runs`], whether shared or not.
    places: Vec<Run>,
}

impl Ports {
    /// Whether `port` of `frontend` is among them.
    pub(super) fn contains(&self, frontend: Ipv4Addr, port: u16) -> bool {
        self.places.iter().any(|run| run.covers(&Run { frontend, range: [port, port], shared: false }))
    }

    fn covers(&self, other: &Self) -> bool {
        // As places are joined, one lies in one of them or in none.
        other.places.iter().all(|inner| self.places.iter().any(|outer| outer.covers(inner)))
    }

    /// What becomes of them if `after` takes their place.
    pub(super) fn compare(&self, after: &Self) -> Change {
        match (self.runs.is_empty(), after.runs.is_empty()) {
            _ if self.runs == after.runs => Change::Kept,
            (true, _) => Change::New,
            (_, true) => Change::Gone,
            _ if self.places == after.places => Change::Shared,
            _ if after.covers(self) => Change::Grown,
            _ if self.covers(after) => Change::Shrunk,
            _ => Change::Moved,
        }
    }
}

impl Run {
    fn covers(&self, inner: &Self) -> bool {
        let ([first, last], [start, end]) = (self.range, inner.range);
        self.frontend == inner.frontend && first <= start && end <= last
    }
}

/// The ports that `plan` gives the backend in `slot` for `class`.
pub(super) fn ports(plan: &PortPlan, slot: Option<u32>, class: u32) -> Ports {
    let of_backend = slot.and_then(|slot| plan.grants.get(slot as usize));
    let Some(grant) = of_backend.map(|classes| &classes[class as usize]).filter(|grant| !grant.is_none())
    else {
        return Ports::default();
    };
    let rule = plan.rules.get(grant.rule as usize).and_then(Option::as_ref);
    let of_set = |(set, shared): (u32, bool)| {
        let used = plan.set(set).map(segments).unwrap_or_default().iter();
        used.filter(|segment| segment.count > 0).map(move |segment: &Segment| Run {
            frontend: segment.address.into(),
            range: [segment.first, segment.first + (segment.count - 1)],
            shared,
        })
    };
    let runs: Vec<Run> = [(grant.own, false), (grant.shared, true)].into_iter().flat_map(of_set).collect();
    let places = runs.iter().map(|run| Run { shared: false, ..*run }).collect();
    Ports { rule: rule.map(|rule| rule.name.clone()), runs: joined(runs), places: joined(places) }
}

fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        let follows = |last: &Run| {
            (last.frontend, last.shared) == (run.frontend, run.shared)
                && u32::from(last.range[1]) + 1 == u32::from(run.range[0])
        };
        match out.last_mut().filter(|last| follows(last)) {
            Some(last) => last.range[1] = run.range[1],
            None => out.push(run),
        }
    }
    out
}
