// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of an instance at a glance.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::SystemTime,
};

use nat_common::{
    abi::{
        config::{PortConfig, ROLE_OUTSIDE, name_of},
        counters::Reason,
        flow::table_bytes,
    },
    tick,
};
use serde::Serialize;

use super::{
    destinations::DestinationRow,
    flows::{Flow, State},
    instance::{Instance, address, mac, role_name},
    ports::PortUse,
    rules::{self, RuleSummary},
    stats::Stats,
};
use crate::{
    clock,
    daemon::{
        status::{DaemonStatus, Logged},
        sweep,
    },
    datapath::tables::{Attachment, AttachmentKind},
};

/// Verdicts that an operator should know about when there are any.
pub const ATTENTION: [Reason; 17] = [
    Reason::NoFreePort,
    Reason::PortCap,
    Reason::SearchCut,
    Reason::FlowLimit,
    Reason::HalfOpenLimit,
    Reason::RateLimit,
    Reason::DestinationLimit,
    Reason::TableFull,
    Reason::TableShare,
    Reason::NoOutboundRule,
    Reason::NoRoute,
    Reason::ForwardingOff,
    Reason::Fragment,
    Reason::FragmentLimit,
    Reason::TooBigSilent,
    Reason::TableError,
    Reason::NotConfigured,
];

/// What `natgw status` is made from.
pub struct Sources<'a> {
    /// Tables.
    pub instance: &'a Instance,
    /// Every flow, expired ones included.
    pub flows: &'a [Flow],
    /// Halves that have lost their counterpart.
    pub unpaired: usize,
    /// Counters.
    pub stats: &'a Stats,
    /// Mode of the program by interface index, as the kernel tells; absent: nothing attached, or not known.
    pub modes: &'a HashMap<u32, &'static str>,
    /// Pinned links.
    pub attachments: &'a [Attachment],
    /// What the daemon says; `None`: it is not running.
    pub daemon: Option<&'a DaemonStatus>,
    /// Time of day of the reading.
    pub time: SystemTime,
}

/// The document of `natgw status`. Times of day are RFC 3339 in UTC.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Instance.
    pub name: String,
    /// Whether packets are being translated on every configured interface.
    pub translating: bool,
    /// Since when.
    pub since: String,
    /// The same in seconds.
    pub uptime_seconds: u64,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// The daemon.
    pub daemon: Daemon,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Rules.
    pub rules: Vec<RuleSummary>,
    /// Flow table.
    pub flows: FlowSummary,
    /// Backend and destination that are nearest to exhaustion; `null` without flows.
    pub worst_port_use: Option<DestinationRow>,
    /// The last sweep.
    pub sweep: Sweep,
    /// Non-zero counts of verdicts that an operator should know about.
    pub attention: BTreeMap<&'static str, u64>,
    /// Whether the verdicts add up.
    pub integrity: super::stats::Integrity,
    /// Errors of the daemon, oldest first; empty while it is down.
    pub errors: Vec<Line>,
    /// What the data path reported, oldest first; empty while the daemon is down.
    pub events: Vec<Line>,
}

/// Whether there is a daemon.
#[derive(Clone, Debug, Serialize)]
pub struct Daemon {
    /// It answers.
    pub running: bool,
    /// Process.
    pub pid: Option<u32>,
    /// Its version.
    pub version: Option<String>,
    /// Its configuration file.
    pub config: Option<String>,
    /// Since when it runs.
    pub started: Option<String>,
    /// Seconds since its last sign of life in the tables.
    pub heartbeat_seconds: u64,
}

/// A configured interface.
#[derive(Clone, Debug, Serialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// `inside`, `outside` or `both`.
    pub role: &'static str,
    /// `native`, `generic` or `absent`; `null`: not known.
    pub mode: Option<String>,
    /// VLAN numbers, outermost first.
    pub vlans: Vec<u16>,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Bytes.
    pub mtu: u16,
    /// Where ICMP errors come from; `null`: none are sent.
    pub address: Option<Ipv4Addr>,
    /// The program is attached.
    pub attached: bool,
    /// The guard is attached; always false for interfaces that are only inside.
    pub guarded: bool,
}

/// The flow table.
#[derive(Clone, Debug, Serialize)]
pub struct FlowSummary {
    /// Alive.
    pub live: u64,
    /// Room.
    pub max: u32,
    /// Alive by state.
    pub by_state: BTreeMap<&'static str, u64>,
    /// Over, not yet reclaimed.
    pub expired: u64,
    /// Kernel memory of the table in bytes; reserved from the start.
    pub table_bytes: u64,
    /// Halves without counterpart: other than 0 is a defect.
    pub unpaired_halves: u64,
}

/// The last pass of the idle sweep that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// Passes since the daemon started; `null` while it is down.
    pub passes: Option<u64>,
    /// Seconds since it ended; `null`: there has been none.
    pub seconds_ago: Option<u64>,
    /// CPU time.
    pub milliseconds: f64,
    /// From its begin to its end, rests included.
    pub wall_milliseconds: f64,
    /// Slices that it was done in.
    pub slices: u32,
    /// CPU time of the slice that took most of it.
    pub longest_slice_milliseconds: f64,
    /// Why it hurried: `table_nearly_full`, `refusals`.
    pub pressed_by: Vec<&'static str>,
    /// Entries it looked at, both halves.
    pub visited: u64,
    /// Flows it reclaimed.
    pub reclaimed: u64,
    /// Expired flows it left to the next one.
    pub pending: u64,
    /// Of these, TCP flows whose ends are still to be told; the others' ports rest.
    pub untold: u64,
}

/// Something that was logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When.
    pub at: String,
    /// What.
    pub text: String,
}

impl Status {
    /// Puts the sources together.
    #[must_use]
    pub fn new(from: &Sources<'_>) -> Self {
        let Sources { instance, flows, unpaired, stats, daemon, time, .. } = *from;
        let interfaces = interfaces(from);
        let since = clock::time_of(instance.meta.created, instance.now, time);
        let mut status = Self {
            name: instance.name.clone(),
            translating: !interfaces.is_empty() && interfaces.iter().all(|interface| interface.attached),
            since: clock::rfc3339(since),
            uptime_seconds: tick::to_seconds(instance.now.saturating_sub(instance.meta.created)),
            problems: Vec::new(),
            daemon: Daemon::new(instance, daemon),
            interfaces,
            rules: rules::summaries(instance, flows),
            flows: FlowSummary::new(instance, flows, unpaired),
            worst_port_use: PortUse::of(instance, flows).worst(),
            sweep: Sweep::new(instance, daemon),
            attention: attention(stats),
            integrity: stats.integrity,
            errors: daemon.map_or_else(Vec::new, |daemon| lines(&daemon.errors)),
            events: daemon.map_or_else(Vec::new, |daemon| lines(&daemon.events)),
        };
        status.problems = status.find_problems();
        status.problems.extend(super::refusals::problem(instance));
        status
    }

    fn find_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.interfaces.is_empty() {
            problems.push("no interface is configured: the start was not finished".to_owned());
        }
        for interface in &self.interfaces {
            let name = &interface.name;
            if !interface.attached {
                problems.push(format!("the program is not attached to `{name}`: start `natgw run` again"));
            } else if interface.role != "inside" && !interface.guarded {
                problems.push(format!(
                    "no guard on `{name}`: packets to next hops without a MAC address are lost until it is there"
                ));
            }
        }
        if !self.daemon.running {
            let seconds = self.daemon.heartbeat_seconds;
            problems.push(format!(
                "the daemon is not running (last sign of life {seconds} s ago): nothing is swept or reloaded until \
                 `natgw run` is started again"
            ));
        }
        if let Some(worst) = self.worst_port_use.as_ref().filter(|worst| worst.binding) {
            let who = match worst.backend {
                Some(backend) => format!("{backend} has"),
                None => format!("the backends of rule `{}` have", worst.rule),
            };
            problems.push(format!(
                "{who} no {} port left for {}: {} of {} in use",
                worst.protocol, worst.destination, worst.used, worst.allocated
            ));
        }
        if self.flows.unpaired_halves != 0 {
            problems.push(format!(
                "{} halves of flows have no counterpart: a defect",
                self.flows.unpaired_halves
            ));
        }
        if !self.integrity.consistent {
            problems.push(format!("{} packets have no verdict: a defect", self.integrity.unaccounted));
        }
        problems
    }
}

impl Daemon {
    fn new(instance: &Instance, daemon: Option<&DaemonStatus>) -> Self {
        Self {
            running: daemon.is_some(),
            pid: daemon.map(|daemon| daemon.pid),
            version: daemon.map(|daemon| daemon.version.clone()),
            config: daemon.map(|daemon| daemon.config.clone()),
            started: daemon.map(|daemon| clock::rfc3339(clock::unix(daemon.started))),
            heartbeat_seconds: instance.heartbeat_age(),
        }
    }
}

fn interfaces(from: &Sources<'_>) -> Vec<Interface> {
    let Sources { instance, attachments, modes, daemon, .. } = *from;
    let attached = |kind: AttachmentKind, port: &PortConfig| {
        let on = |link: &&Attachment| link.ifindex == port.lower || link.ifindex == port.ifindex;
        attachments.iter().filter(|link| link.kind == kind && link.ifindex != 0).any(|link| on(&link))
    };
    // Kernels before 6.6 keep the guard without a link; then the daemon's word in the tables is all there is.
    let linked = attachments.iter().any(|link| link.kind == AttachmentKind::Guard);
    let guarded =
        |port: &PortConfig| attached(AttachmentKind::Guard, port) || !linked && instance.control.guarded == 1;
    let interface = |port: &PortConfig| {
        let name = name_of(&port.name);
        let known = daemon.and_then(|daemon| daemon.interfaces.iter().find(|known| known.name == name));
        let tags = &port.tags[..usize::from(port.tag_count).min(port.tags.len())];
        let mode = modes.get(&port.lower).map(|mode| (*mode).to_owned());
        Interface {
            name: name.to_owned(),
            role: role_name(port.role),
            mode: mode.or_else(|| known.map(|known| known.mode.clone())),
            vlans: tags.iter().map(|tag| u16::from_be_bytes(tag.control) & 0xfff).collect(),
            mac: mac(port.mac),
            mtu: port.mtu,
            address: (port.address != [0; 4]).then(|| address(port.address)),
            attached: attached(AttachmentKind::Program, port),
            guarded: port.role & ROLE_OUTSIDE != 0 && guarded(port),
        }
    };
    instance.interfaces.iter().filter(|port| port.role != 0).map(interface).collect()
}

impl FlowSummary {
    fn new(instance: &Instance, flows: &[Flow], unpaired: usize) -> Self {
        let mut by_state: BTreeMap<_, _> = State::all().map(|state| (state.name(), 0)).collect();
        for flow in flows {
            *by_state.entry(flow.state.name()).or_default() += 1;
        }
        let expired = by_state.remove(State::Expired.name()).unwrap_or(0);
        let max = instance.meta.max_flows;
        Self {
            live: flows.len() as u64 - expired,
            max,
            by_state,
            expired,
            table_bytes: table_bytes(max),
            unpaired_halves: unpaired as u64,
        }
    }
}

impl Sweep {
    fn new(instance: &Instance, daemon: Option<&DaemonStatus>) -> Self {
        let pass = &instance.sweep;
        let ago = tick::to_seconds(instance.now.saturating_sub(pass.ended));
        let milliseconds = |ns: u64| ns as f64 / 1e6;
        Self {
            passes: daemon.map(|daemon| daemon.sweep.passes),
            seconds_ago: (pass.ended != 0).then_some(ago),
            milliseconds: milliseconds(pass.cpu_ns),
            wall_milliseconds: milliseconds(pass.wall_ns),
            slices: pass.slices,
            longest_slice_milliseconds: milliseconds(pass.longest_ns),
            pressed_by: sweep::causes(pass.pressed),
            visited: pass.visited,
            reclaimed: pass.reclaimed,
            pending: pass.pending,
            untold: pass.untold,
        }
    }
}

fn attention(stats: &Stats) -> BTreeMap<&'static str, u64> {
    let counts = ATTENTION.iter().map(|reason| (reason.name(), stats.verdicts.of(*reason)));
    let others = [("guard_dropped", stats.guard.dropped), ("events_lost", stats.internals.events_lost)];
    counts.chain(others).filter(|(_, count)| *count != 0).collect()
}

fn lines(logged: &[Logged]) -> Vec<Line> {
    let line = |entry: &Logged| Line { at: clock::rfc3339(clock::unix(entry.at)), text: entry.text.clone() };
    logged.iter().map(line).collect()
}
