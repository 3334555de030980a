// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw status`

use std::{collections::HashMap, io::Write, process::ExitCode, time::SystemTime};

use anyhow::Context;
use nat_common::abi::flow::{FlowEntry, FlowKey, peer_key};
use serde_json::json;

use super::{
    read::{self, ReadArgs},
    render::{self, Cell, Columns, Paint, Style},
    stats, units,
    watch::{self, Format},
};
use crate::{
    daemon::{client, netlink},
    datapath::tables::{TableError, Tables},
    view::{
        flows::{Filter, Unpaired},
        instance::Instance,
        rules::RuleSummary,
        status::{Interface, Sources, Status},
    },
};

/// Log lines shown in the table; JSON has all that the daemon keeps.
const LINES: usize = 5;

/// Halves without counterpart that are looked up again, at most.
const SUSPECTS: usize = 4096;

const EXAMPLES: &str = "\
Exit code 0: packets are being translated, with or without the daemon. 1: they are not.

Examples:
  natgw status
  natgw status --json | jq .translating
  natgw status --name lab --watch";

/// Show whether packets are being translated, since when, and what needs attention.
///
/// Reads the pinned tables, so that it works without the daemon; what only the daemon knows (errors, events) is
/// missing then. The whole flow table is read, which takes about two seconds for a million flows.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    read: ReadArgs,
}

/// Shows the state of an instance.
///
/// # Errors
///
/// When the tables cannot be read. An instance that does not translate is exit code 1.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    watch::repeat(&args.read, |out, format, _| match read(&args.read, format) {
        Ok(status) => {
            if format.json {
                render::document(out, &status, format.one_line)?;
            } else {
                print(out, format.style, &status)?;
            }
            Ok(if status.translating { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            // A program that asks whether there is translation gets an answer, not only an error.
            if let (true, Some(TableError::NoInstance { name, instances })) =
                (format.json, error.downcast_ref())
            {
                let answer = json!({ "name": name, "translating": false, "instances": instances });
                render::document(out, &answer, format.one_line)?;
            }
            Err(error)
        }
    })
}

fn read(args: &ReadArgs, format: Format) -> anyhow::Result<Status> {
    let (tables, instance, _) = args.read(format)?;
    let daemon = match client::status(&args.socket()) {
        Ok(daemon) => daemon,
        Err(error) => {
            if format.notices {
                let _closed_pipe = writeln!(std::io::stderr(), "natgw: {error:#}");
            }
            None
        }
    };
    let filter = Filter { expired: true, ..Filter::default() };
    let flows = read::flows(&tables, &instance, &filter)?;
    let unpaired = confirm(&tables, &instance, &flows.unpaired)?;
    let stats = stats::read(&tables, &instance)?;
    let attachments = tables.attachments()?;
    Ok(Status::new(&Sources {
        instance: &instance,
        flows: &flows.flows,
        unpaired,
        stats: &stats,
        attachments: &attachments,
        modes: &modes(),
        daemon: daemon.as_ref(),
        time: SystemTime::now(),
    }))
}

/// How many of the halves that had no counterpart while the table was read still have none.
fn confirm(tables: &Tables, instance: &Instance, unpaired: &[Unpaired]) -> Result<usize, TableError> {
    let suspects: Vec<_> =
        unpaired.iter().filter(|half| half.is_settled(instance.now)).take(SUSPECTS).collect();
    if suspects.is_empty() {
        return Ok(0);
    }
    let look_up = |key: &dyn Fn(&Unpaired) -> FlowKey| -> Result<Vec<Option<FlowEntry>>, TableError> {
        tables.halves(&suspects.iter().map(|half| key(half)).collect::<Vec<_>>())
    };
    // The counterpart first: a flow that goes in between is then not taken for half a flow.
    let peers = look_up(&|half| peer_key(&half.key, half.entry.address, half.entry.port, half.entry.half))?;
    let halves = look_up(&|half| half.key)?;
    let confirmed = suspects
        .iter()
        .zip(halves.iter().zip(&peers))
        .filter(|(suspect, (half, peer))| suspect.is_confirmed(half.as_ref(), peer.as_ref()));
    Ok(confirmed.count())
}

/// Mode of the XDP program by interface index, as the kernel tells; empty where it does not.
fn modes() -> HashMap<u32, &'static str> {
    let ask = || -> anyhow::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { netlink::Netlink::open()?.devices().await }).context("asking for interfaces")
    };
    let devices = ask().unwrap_or_default();
    let mode = |native| if native { "native" } else { "generic" };
    devices.iter().filter_map(|device| Some((device.index, mode(device.xdp?.1)))).collect()
}

fn print(out: &mut dyn Write, style: Style, status: &Status) -> anyhow::Result<()> {
    let daemon = if status.daemon.running { "" } else { " (daemon down)" };
    let (since, age) = (&status.since, units::duration(status.uptime_seconds));
    let (paint, what) = if status.translating {
        (Paint::Good, format!("translating{daemon}, since {since} ({age})"))
    } else {
        (Paint::Bad, format!("NOT translating{daemon}; its tables were made {since} ({age} ago)"))
    };
    let headline = format!("{}: {what}", status.name);
    writeln!(out, "{}", style.paint(paint, &headline))?;
    for problem in &status.problems {
        render::fact(out, style, "problem", &Cell(Paint::Notice, problem.clone()))?;
    }
    render::fact(out, style, "daemon", &daemon_line(status).into())?;
    flow_facts(out, style, status)?;
    writeln!(out)?;
    render::table(out, style, &interface_columns(), &status.interfaces)?;
    if !status.rules.is_empty() {
        writeln!(out)?;
        render::table(out, style, &rule_columns(), &status.rules)?;
    }
    for (title, lines) in [("error", &status.errors), ("event", &status.events)] {
        for line in lines.iter().rev().take(LINES).rev() {
            let paint = if title == "error" { Paint::Bad } else { Paint::Plain };
            render::fact(out, style, title, &Cell(paint, format!("{} {}", line.at, line.text)))?;
        }
    }
    Ok(())
}

fn daemon_line(status: &Status) -> String {
    let daemon = &status.daemon;
    match (daemon.pid, &daemon.version, &daemon.started, &daemon.config) {
        (Some(pid), Some(version), Some(started), Some(config)) => {
            format!("running, process {pid}, version {version}, since {started}, {config}")
        }
        _ => format!("not running, last sign of life {} ago", units::duration(daemon.heartbeat_seconds)),
    }
}

fn flow_facts(out: &mut dyn Write, style: Style, status: &Status) -> anyhow::Result<()> {
    let (flows, count) = (&status.flows, units::grouped);
    let live = format!(
        "{} alive of {} ({}%), {} over and waiting for the sweep; {} of kernel memory",
        count(flows.live),
        units::grouped(flows.max),
        units::percent(flows.live, flows.max.into()),
        count(flows.expired),
        units::memory(flows.table_bytes)
    );
    render::fact(out, style, "flows", &live.into())?;
    let states: Vec<_> = flows.by_state.iter().filter(|(_, number)| **number > 0).collect();
    if !states.is_empty() {
        let states: Vec<_> =
            states.iter().map(|(state, number)| format!("{} {state}", count(**number))).collect();
        render::fact(out, style, "", &states.join(", ").into())?;
    }
    if let Some(worst) = &status.worst_port_use {
        let name = worst.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let whose =
            worst.backend.map_or_else(|| format!("rule {}", worst.rule), |backend| backend.to_string());
        let text = format!(
            "{} of {} {} ports of {whose}{name} in use for {} ({}%)",
            units::grouped(worst.used),
            units::grouped(worst.allocated),
            worst.protocol,
            worst.destination,
            units::percent(worst.used.into(), worst.allocated.into())
        );
        let paint = if worst.binding { Paint::Bad } else { Paint::Plain };
        render::fact(out, style, "worst ports", &Cell(paint, text))?;
    }
    let sweep = &status.sweep;
    let swept = match sweep.seconds_ago {
        None => "none yet".to_owned(),
        Some(seconds) => {
            let untold = match sweep.untold {
                0 => String::new(),
                untold => format!(", of these {} whose ends are to be told", count(untold)),
            };
            format!(
                "{} ago: {} entries read, {} flows reclaimed, {} left for the next{untold}",
                units::duration(seconds),
                count(sweep.visited),
                count(sweep.reclaimed),
                count(sweep.pending),
            )
        }
    };
    render::fact(out, style, "last sweep", &swept.into())?;
    if sweep.seconds_ago.is_some() {
        let pressed = match sweep.pressed_by[..] {
            [] => String::new(),
            _ => format!("; pressed by {}", sweep.pressed_by.join(" and ").replace('_', " ")),
        };
        let pace = format!(
            "{:.1} ms of CPU time in {} slices, the longest {:.1} ms, spread over {:.0} ms{pressed}",
            sweep.milliseconds,
            count(sweep.slices.into()),
            sweep.longest_slice_milliseconds,
            sweep.wall_milliseconds
        );
        render::fact(out, style, "its pace", &pace.into())?;
    }
    if !status.attention.is_empty() {
        let counts = status.attention.iter().map(|(reason, number)| format!("{} {reason}", count(*number)));
        let text = counts.collect::<Vec<_>>().join(", ") + " (natgw stats explains)";
        render::fact(out, style, "attention", &Cell(Paint::Notice, text))?;
    }
    Ok(())
}

fn interface_columns<'a>() -> Columns<'a, Interface> {
    let yes =
        |yes: bool, no: Paint| if yes { Cell(Paint::Good, "yes".into()) } else { Cell(no, "no".into()) };
    Columns::<Interface>::default()
        .text("INTERFACE", |interface| interface.name.as_str().into())
        .text("ROLE", |interface| interface.role.into())
        .text("ATTACHED", move |interface| yes(interface.attached, Paint::Bad))
        .text("GUARD", move |interface| match interface.role {
            "inside" => "-".into(),
            _ => yes(interface.guarded, Paint::Bad),
        })
        .text("MODE", |interface| interface.mode.as_deref().unwrap_or("?").into())
        .text("VLAN", |interface| {
            let numbers: Vec<_> = interface.vlans.iter().map(ToString::to_string).collect();
            Cell::from(if numbers.is_empty() { "-".to_owned() } else { numbers.join(".") })
        })
        .number("MTU", |interface| interface.mtu.into())
        .text("MAC", |interface| interface.mac.as_str().into())
        .text("ADDRESS", |interface| match interface.address {
            Some(address) => address.into(),
            None => "-".into(),
        })
}

fn rule_columns<'a>() -> Columns<'a, RuleSummary> {
    let timeout = |rule: &RuleSummary, state: &str| {
        Cell::from(units::duration(rule.timeouts_seconds.get(state).copied().unwrap_or(0)))
    };
    Columns::<RuleSummary>::default()
        .text("RULE", |rule| {
            let draining = if rule.draining { " (draining)" } else { "" };
            format!("{}{draining}", rule.name).into()
        })
        .number("BACKENDS", |rule| units::grouped(rule.backends).into())
        .text("PORTS", |rule| {
            let ports =
                rule.ports.iter().map(|(protocol, ports)| format!("{protocol} {}", units::grouped(*ports)));
            ports.collect::<Vec<_>>().join(", ").into()
        })
        .number("FLOWS", |rule| units::grouped(rule.flows).into())
        .number("IDLE: TCP", move |rule| timeout(rule, "established"))
        .number("UDP", move |rule| timeout(rule, "udp"))
        .number("ICMP", move |rule| timeout(rule, "icmp"))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
