// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw check`: is the configuration right, and which ports would each backend get.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    io::{self, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
};

use nat_common::abi::{config::CLASS_NAMES, grant::Segment};
use serde::Serialize;

use super::host;
use crate::{
    config::{self, Allocation, Backend, Gateway, OutboundRule, grouped},
    daemon::facts,
    plan::{self, CLASS_COUNT, DYNAMIC_PORTS, NoFlows, PortPlan, STATIC_PORTS, segments},
};

/// Check a configuration and print its port plan
///
/// Needs no root and touches nothing. Errors point at the text they are about. Without errors the plan that a
/// first start would use is printed: which ports of which frontend address each backend gets. A running gateway
/// may have its blocks elsewhere, because blocks stay where they are when the configuration changes. Frontends that are
/// addresses of this host leave it the ports that `host_ports` says.
///
/// Exit codes: 0 the configuration is right, 1 the plan could not be printed, 2 the configuration is wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/natgw/natgw.toml")]
    pub config: PathBuf,
    /// Print the plan as JSON: [{rule, backend, name, frontend, frontend_name, protocol, range, ports, shared, backends}]
    #[arg(long)]
    pub json: bool,
    /// For another machine: leave out which ports this host would keep for itself
    #[arg(long)]
    pub other_host: bool,
}

/// Checks the configuration; prints warnings and errors to standard error, the plan to standard output.
///
/// # Errors
///
/// The output cannot be written. A wrong configuration is exit code 2, not an error: what there is to say has been
/// said.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut gateway, warnings) = match config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            host::say(&error.to_string())?;
            return Ok(ExitCode::from(2));
        }
    };
    for warning in warnings {
        host::say(&warning.to_string())?;
    }
    let kept = if args.other_host { Vec::new() } else { host::keep_ports(&mut gateway, None)? };
    let plan = match plan::plan(&gateway, None, &NoFlows).map_err(|error| facts::explained(error, &kept)) {
        Ok(plan) => plan,
        Err(error) => {
            host::say(&format!("not on this host: {error:#}"))?;
            return Ok(ExitCode::from(2));
        }
    };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows(&gateway, &plan))?;
        writeln!(out)?;
    } else {
        out.write_all(text(&gateway, &plan).as_bytes())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// One piece of a backend's ports of one protocol, or of those that backends share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row<'a> {
    /// Outbound rule.
    pub rule: &'a str,
    /// Address of the backend; `null`: shared ports.
    pub backend: Option<Ipv4Addr>,
    /// Its configured name.
    pub name: Option<&'a str>,
    /// Frontend address.
    pub frontend: Ipv4Addr,
    /// Name of the frontend that the address belongs to.
    pub frontend_name: &'a str,
    /// `tcp`, `udp` or `icmp`; in the table for people `all` where all three are alike.
    pub protocol: &'static str,
    /// First and last port.
    pub range: [u16; 2],
    /// Number of ports.
    pub ports: u16,
    /// Whether backends share them.
    pub shared: bool,
    /// How many backends may use them.
    pub backends: u64,
}

/// The plan, one entry for each piece and protocol, in the order of rules and their backends.
#[must_use]
pub fn rows<'a>(gateway: &'a Gateway, plan: &PortPlan) -> Vec<Row<'a>> {
    let printer = Printer::new(gateway, plan);
    printer.collect(|row, segments_by_class, rows| {
        for (class, segments) in segments_by_class {
            rows.extend(
                segments.iter().map(|segment| printer.row(row, CLASS_NAMES[*class as usize], segment)),
            );
        }
    })
}

/// As [`rows`], with one entry where the protocols of an `all` rule are alike.
fn collapsed<'a>(gateway: &'a Gateway, plan: &PortPlan) -> Vec<Row<'a>> {
    let printer = Printer::new(gateway, plan);
    printer.collect(|row, segments_by_class, rows| {
        let alike = segments_by_class.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let (shown, protocol) = match segments_by_class {
            [first, ..] if alike && segments_by_class.len() == CLASS_COUNT => {
                (std::slice::from_ref(first), Some("all"))
            }
            all => (all, None),
        };
        for (class, segments) in shown {
            let protocol = protocol.unwrap_or(CLASS_NAMES[*class as usize]);
            rows.extend(segments.iter().map(|segment| printer.row(row, protocol, segment)));
        }
    })
}

struct Printer<'a, 'p> {
    gateway: &'a Gateway,
    plan: &'p PortPlan,
    frontend_names: HashMap<Ipv4Addr, &'a str>,
}

/// Rule; backend, or how many share.
type Whose<'a> = (&'a OutboundRule, Result<&'a Backend, u64>);

impl<'a, 'p> Printer<'a, 'p> {
    fn new(gateway: &'a Gateway, plan: &'p PortPlan) -> Self {
        let named = |frontend: &'a config::Frontend| {
            frontend.addresses.iter().map(|address| (*address, frontend.name.as_str()))
        };
        Self { gateway, plan, frontend_names: gateway.frontends.iter().flat_map(named).collect() }
    }

    /// Calls `each` with every backend of every rule and its segments by class.
    fn collect(&self, each: impl Fn(Whose<'a>, &[(u32, &'p [Segment])], &mut Vec<Row<'a>>)) -> Vec<Row<'a>> {
        let slots: HashMap<Ipv4Addr, usize> = self
            .plan
            .backends
            .iter()
            .enumerate()
            .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
            .collect();
        let mut rows = Vec::new();
        for rule in &self.gateway.rules {
            let classes = rule.protocol.classes();
            let mut sharing: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
            for backend in self.gateway.backends_of(rule) {
                let Some(slot) = slots.get(&backend.address) else { continue };
                let grants = &self.plan.grants[*slot];
                let of_class = |class: &u32| (*class, self.segments(grants[*class as usize].own));
                let by_class: Vec<_> = classes.iter().map(of_class).collect();
                each((rule, Ok(backend)), &by_class, &mut rows);
                let shared = classes.iter().map(|class| grants[*class as usize].shared).collect();
                *sharing.entry(shared).or_default() += 1;
            }
            for (sets, backends) in sharing {
                let by_class: Vec<_> =
                    classes.iter().zip(sets).map(|(class, set)| (*class, self.segments(set))).collect();
                each((rule, Err(backends)), &by_class, &mut rows);
            }
        }
        rows
    }

    fn segments(&self, set: u32) -> &'p [Segment] {
        self.plan.set(set).map(segments).unwrap_or_default()
    }

    fn row(&self, (rule, whose): Whose<'a>, protocol: &'static str, segment: &Segment) -> Row<'a> {
        let frontend = Ipv4Addr::from(segment.address);
        let backend = whose.ok();
        Row {
            rule: &rule.name,
            backend: backend.map(|backend| backend.address),
            name: backend.and_then(|backend| backend.name.as_deref()),
            frontend,
            frontend_name: self.frontend_names.get(&frontend).copied().unwrap_or_default(),
            protocol,
            range: [segment.first, segment.first + (segment.count - 1)],
            ports: segment.count,
            shared: backend.is_none(),
            backends: whose.err().unwrap_or(1),
        }
    }
}

/// Columns that a name may take, so that a line has at most 100.
const RULE_WIDTH: usize = 20;
const BACKEND_WIDTH: usize = 30;

/// The plan for people.
fn text(gateway: &Gateway, plan: &PortPlan) -> String {
    let rows = collapsed(gateway, plan);
    let table = rows.iter().map(|row| {
        let backend = match (row.backend, row.name) {
            (Some(backend), Some(name)) => format!("{backend} ({name})"),
            (Some(backend), None) => backend.to_string(),
            (None, _) if row.backends == 1 => "1 backend".to_owned(),
            (None, _) => format!("{} backends share", grouped(row.backends)),
        };
        vec![
            shortened(row.rule, RULE_WIDTH),
            shortened(&backend, BACKEND_WIDTH),
            row.frontend.to_string(),
            row.protocol.to_owned(),
            format!("{}-{}", row.range[0], row.range[1]),
            grouped(row.ports),
        ]
    });
    let backends = plan.backends.iter().flatten().count();
    let addresses = plan.frontends.len();
    let mut out = format!(
        "gateway `{}`: outbound rules: {}, backends: {}, frontend addresses: {}\n",
        gateway.name,
        gateway.rules.len(),
        grouped(backends as u64),
        addresses
    );
    if !rows.is_empty() {
        out.push('\n');
        aligned(&mut out, &["RULE", "BACKEND", "FRONTEND", "PROTOCOL", "RANGE", "PORTS"], 5, table);
    }
    out.push('\n');
    let headings = ["FRONTEND", "ADDRESS", "TCP", "UDP", "ICMP"];
    aligned(&mut out, &headings, 2, totals(gateway, plan).into_iter());
    out
}

/// Per frontend address, the ports of each class that are committed.
fn totals(gateway: &Gateway, plan: &PortPlan) -> Vec<Vec<String>> {
    let mut committed: HashMap<[u8; 4], [u32; CLASS_COUNT]> = HashMap::new();
    let numbers = plan.grants.iter().flat_map(|grants| {
        let with_ports = grants.iter().take(CLASS_COUNT).enumerate();
        with_ports.flat_map(|(class, grant)| [(class, grant.own), (class, grant.shared)])
    });
    let sets: HashSet<(usize, u32)> = numbers.collect();
    let known = sets.into_iter().filter_map(|(class, set)| Some((class, plan.set(set)?)));
    for (class, set) in known {
        for segment in segments(set) {
            committed.entry(segment.address).or_default()[class] += u32::from(segment.count);
        }
    }
    let mut dynamic: HashMap<Ipv4Addr, [bool; CLASS_COUNT]> = HashMap::new();
    for rule in gateway.rules.iter().filter(|rule| rule.allocation == Allocation::Dynamic) {
        for address in gateway.addresses_of(rule) {
            rule.protocol.classes().iter().for_each(|class| {
                dynamic.entry(address).or_default()[*class as usize] = true;
            });
        }
    }
    let mut lines = Vec::new();
    for frontend in &gateway.frontends {
        for address in &frontend.addresses {
            let mut line = vec![shortened(&frontend.name, RULE_WIDTH), address.to_string()];
            let counts = committed.get(&address.octets()).copied().unwrap_or_default();
            let dynamic = dynamic.get(address).copied().unwrap_or_default();
            line.extend(counts.iter().zip(dynamic).map(|(count, dynamic)| {
                let all = if dynamic { DYNAMIC_PORTS } else { STATIC_PORTS };
                format!("{} of {}", grouped(*count), grouped(all))
            }));
            lines.push(line);
        }
    }
    lines
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Appends lines with columns two spaces apart, those from `right` on to the right.
fn aligned(out: &mut String, headings: &[&str], right: usize, lines: impl Iterator<Item = Vec<String>>) {
    let mut all = vec![headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>()];
    all.extend(lines);
    let width = |column: usize| all.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    for line in &all {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a string does not fail.
            let _infallible = if column >= right {
                write!(text, "{gap}{cell:>width$}")
            } else {
                write!(text, "{gap}{cell:<width$}")
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
