// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the data path reports, in an operator's words, and not more often than an operator can read.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant, SystemTime},
};

use nat_common::abi::{
    config::{CLASS_NAMES, CLASSES},
    counters::Reason,
    event::{EVENT_NEIGHBOUR, EVENT_REFUSED, Event},
};

use super::{hops::Hop, status::Logged};
use crate::plan::PortPlan;

/// At most one line for a backend and reason in this time.
const QUIET: Duration = Duration::from_secs(10);
/// Backends and reasons remembered for that; beyond it the oldest are forgotten.
const REMEMBERED: usize = 4096;

/// Turns records into lines.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    said: HashMap<(u32, u32), Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    suppressed: u64,
}

/// What a record calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A line for the log.
    Line(String),
    /// A neighbour to resolve.
    Neighbour(Hop),
    /// Nothing: said already.
    Nothing,
}

impl Reporter {
    /// Judges one record; `plan` tells who the slots in it are.
    pub(super) fn report(&mut self, event: &Event, plan: &PortPlan, now: Instant) -> Report {
        match event.kind {
            EVENT_NEIGHBOUR => Report::Neighbour((event.ifindex, Ipv4Addr::from(event.address))),
            EVENT_REFUSED => self.refused(event, plan, now),
            _ => Report::Nothing,
        }
    }

    fn refused(&mut self, event: &Event, plan: &PortPlan, now: Instant) -> Report {
        let key = (event.grant, event.reason);
        let suppressed = match self.said.get_mut(&key) {
            Some(said) if now.duration_since(said.at) < QUIET => {
                said.suppressed += 1;
                return Report::Nothing;
            }
            Some(said) => said.suppressed,
            None => 0,
        };
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, said| now.duration_since(said.at) < QUIET);
        }
        if self.said.len() >= REMEMBERED {
            return Report::Nothing;
        }
        self.said.insert(key, Said { at: now, suppressed: 0 });
        let mut line = describe(event, plan);
        if suppressed > 0 {
            line.push_str(&format!(" ({suppressed} more like this since the last line)"));
        }
        Report::Line(line)
    }
}

fn describe(event: &Event, plan: &PortPlan) -> String {
    let (backend, class) = (event.grant / CLASSES, (event.grant % CLASSES) as usize);
    let protocol = CLASS_NAMES.get(class).copied().unwrap_or("other");
    let who = plan.backends.get(backend as usize).and_then(Option::as_ref);
    let source = Ipv4Addr::from(event.key.source);
    let who = who
        .filter(|who| !who.name.is_empty())
        .map_or_else(|| format!("backend {source}"), |who| format!("backend {} ({})", who.name, who.address));
    let grant = plan.grants.get(backend as usize).and_then(|classes| classes.get(class));
    let rule = grant.and_then(|grant| plan.rules.get(grant.rule as usize)?.as_ref());
    let rule = rule.map_or_else(String::new, |rule| format!(", rule {}", rule.name));
    let destination = Ipv4Addr::from(event.key.destination);
    let port = u16::from_be_bytes(event.key.destination_port);
    let destination = match port {
        0 => destination.to_string(),
        _ => SocketAddrV4::new(destination, port).to_string(),
    };
    let reason = Reason::from_number(event.reason);
    let (name, help) =
        reason.map_or(("unknown", "a newer data path"), |reason| (reason.name(), reason.help()));
    format!("new {protocol} flow refused: {who}{rule}, to {destination}: {name}: {help}")
}

/// The last lines of a log, with their times.
#[derive(Debug)]
pub(super) struct Recent {
    lines: VecDeque<Logged>,
    room: usize,
}

impl Recent {
    /// Keeps the last `room` lines.
    #[must_use]
    pub(super) const fn new(room: usize) -> Self {
        Self { lines: VecDeque::new(), room }
    }

    /// Adds one.
    pub(super) fn push(&mut self, text: String) {
        if self.lines.len() == self.room {
            self.lines.pop_front();
        }
        self.lines.push_back(Logged { at: seconds(SystemTime::now()), text });
    }

    /// The last one.
    #[must_use]
    pub(super) fn last(&self) -> Option<&str> {
        self.lines.back().map(|line| line.text.as_str())
    }

    /// All of them, oldest first.
    #[must_use]
    pub(super) fn list(&self) -> Vec<Logged> {
        self.lines.iter().cloned().collect()
    }
}

/// Seconds since 1970-01-01 UTC.
#[must_use]
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BackendSlot, RuleSlot, Status};
    use nat_common::abi::{
        flow::FlowKey,
        grant::{Grant, Limits},
    };

    fn plan() -> PortPlan {
        let backend = BackendSlot {
            address: Ipv4Addr::new(10, 0, 2, 7),
            name: "db1".to_owned(),
            pool: "web".to_owned(),
            status: Status::Configured,
        };
        let rule = RuleSlot {
            name: "web-out".to_owned(),
            timeouts: [0; 8],
            status: Status::Configured,
            on_refusal: 0,
            flags: 0,
            limits: Limits::default(),
            rests: [0; 8],
            udp_ports: Default::default(),
            segment_size: 0,
            protocols: 0,
        };
        PortPlan {
            backends: vec![Some(backend)],
            rules: vec![Some(rule)],
            grants: vec![[Grant::default(); 4]],
            ..PortPlan::default()
        }
    }

    fn refused(reason: Reason) -> Event {
        Event {
            kind: EVENT_REFUSED,
            reason: reason as u32,
            key: FlowKey {
                source: [10, 0, 2, 7],
                destination: [198, 51, 100, 1],
                destination_port: 443u16.to_be_bytes(),
                protocol: 6,
                ..FlowKey::default()
            },
            ..Event::default()
        }
    }

    #[test]
    fn a_refusal_says_who_whereto_and_why() {
        let report = Reporter::default().report(&refused(Reason::NoFreePort), &plan(), Instant::now());
        let expected = "new tcp flow refused: backend db1 (10.0.2.7), rule web-out, to 198.51.100.1:443: \
                        no_free_port: every port of the backend is taken for this destination";
        assert_eq!(report, Report::Line(expected.to_owned()));
    }

    #[test]
    fn the_same_is_said_once_in_ten_seconds_and_counted() {
        let (mut reporter, plan, start) = (Reporter::default(), plan(), Instant::now());
        let event = refused(Reason::NoFreePort);
        assert!(matches!(reporter.report(&event, &plan, start), Report::Line(_)));
        assert_eq!(reporter.report(&event, &plan, start + QUIET / 2), Report::Nothing);
        let other = refused(Reason::TableFull);
        assert!(matches!(reporter.report(&other, &plan, start + QUIET / 2), Report::Line(_)));
        let Report::Line(line) = reporter.report(&event, &plan, start + QUIET) else { panic!("time is up") };
        assert!(line.ends_with("(1 more like this since the last line)"), "{line}");
    }

    #[test]
    fn a_missing_neighbour_is_to_be_resolved() {
        let event = Event { kind: EVENT_NEIGHBOUR, ifindex: 3, address: [192, 0, 2, 1], ..Event::default() };
        let report = Reporter::default().report(&event, &plan(), Instant::now());
        assert_eq!(report, Report::Neighbour((3, Ipv4Addr::new(192, 0, 2, 1))));
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut recent = Recent::new(2);
        for line in ["a", "b", "c"] {
            recent.push(line.to_owned());
        }
        let texts: Vec<String> = recent.list().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["b", "c"]);
    }
}
