// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw plan`: what a reload would change, and how many live flows each change concerns.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use nat_common::abi::config::{ROLE_INSIDE, ROLE_OUTSIDE, name_of};
use serde::Serialize;

use super::{host, plan_host, plan_text, read, render};
use crate::{
    config::{self, Gateway},
    daemon::facts,
    datapath::{
        bank::{self, LiveFlows},
        pin, policy,
        tables::{TableError, Tables},
    },
    plan::{
        self, NoFlows, PortPlan,
        diff::{self, FlowCounts, FlowPlace, PlanDiff},
    },
    view::{
        flows::{Filter, Flow},
        instance::{Instance, role_name},
    },
};

const EXAMPLES: &str = "\
Examples:
  natgw plan --config new.toml && natgw apply --config new.toml
  natgw plan --config new.toml --json | jq .totals.flows_draining

FLOWS are live flows that a change concerns. DRAIN are those of them on ports that go away: no new flow gets these
ports, and the live ones finish where they are.";

/// Show what a reload would change, and how many live flows are concerned
///
/// Compares a configuration with what the tables of the running instance hold, and plans ports as the daemon would: the
/// same file gives the same plan in `apply` and in a reload, unless flows of something removed end in between. Changes
/// nothing. Works without the daemon; without an instance, everything is new.
///
/// Exit codes: 0 planned, 1 the tables cannot be read or there is no plan, 2 the configuration is wrong.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/natgw/natgw.toml")]
    pub config: PathBuf,
    /// Instance to compare with [default: `[gateway] name` of the file]
    #[arg(long, value_name = "NAME", value_parser = read::instance_name)]
    pub name: Option<String>,
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub json: bool,
}

/// Prints the difference.
///
/// # Errors
///
/// The tables cannot be read, there is no plan, or the output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut gateway, warnings) = match config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(io::stderr(), "{error}").context("writing to standard error")?;
            return Ok(ExitCode::from(2));
        }
    };
    for warning in warnings {
        writeln!(io::stderr(), "{warning}").context("writing to standard error")?;
    }
    let name = args.name.clone().unwrap_or_else(|| gateway.name.clone());
    let kept = host::keep_ports(&mut gateway, Some(&name))?;
    let document = Document::new(&name, &gateway, &kept)?;
    let mut out = io::stdout().lock();
    if args.json {
        render::document(&mut out, &document, false)?;
    } else {
        plan_text::write(&mut out, render::Style::of_stdout(), &document)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What is printed. Field names are those of the JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Document {
    /// Instance.
    pub name: String,
    /// Whether there is such an instance; if not, everything is new.
    pub running: bool,
    /// Interfaces that differ.
    pub interfaces: Vec<InterfaceChange>,
    /// Addresses that the host gets.
    pub addresses: Vec<Ipv4Addr>,
    /// What differs and waits for another start.
    pub restart: Vec<Restart>,
    /// The difference of the plans.
    #[serde(flatten)]
    pub diff: PlanDiff,
}

/// An interface whose role differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceChange {
    /// Name.
    pub interface: String,
    /// `inside`, `outside` or `both`; `None`: not used, or it does not exist at present.
    pub before: Option<&'static str>,
    /// Likewise; `None`: not configured.
    pub after: Option<&'static str>,
}

/// A setting that a reload does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// Key in `[gateway]`.
    pub setting: &'static str,
    /// What is in force and stays so.
    pub in_force: String,
    /// What the file says.
    pub configured: String,
}

impl Document {
    /// Plans `gateway` for the instance `name`, as a reload would.
    fn new(name: &str, gateway: &Gateway, kept: &[String]) -> anyhow::Result<Self> {
        let explained = |error| facts::explained(error, kept);
        // Without an answer the rest is true all the same.
        let devices = facts::devices().unwrap_or_default();
        let known = !devices.is_empty();
        let addresses = if known { plan_host::added(gateway, &devices) } else { Vec::new() };
        let tables = match Tables::open(name) {
            Err(TableError::NoInstance { .. }) => {
                let plan = plan::plan(gateway, None, &NoFlows).map_err(explained)?;
                let diff = diff::diff(&PortPlan::default(), &plan, &FlowCounts::default());
                let interfaces = interfaces(&Roles::new(), &configured(gateway));
                return Ok(Self { name: name.to_owned(), interfaces, addresses, diff, ..Self::default() });
            }
            opened => opened?,
        };
        let before = Reading::of(&tables)?;
        let live = LiveFlows::new(&tables, &before.instance);
        let after = plan::plan(gateway, Some(&before.plan), &live).map_err(explained)?;
        let mut restart = restart(&before.instance, gateway);
        restart.extend(plan_host::other_mode(&before.instance, gateway, &devices));
        Ok(Self {
            name: name.to_owned(),
            running: true,
            interfaces: interfaces(&in_force(&before.instance), &configured(gateway)),
            addresses,
            restart,
            diff: diff::diff(&before.plan, &after, &before.flows),
        })
    }
}

/// What is in force, and the flows under it.
pub(super) struct Reading {
    instance: Instance,
    plan: PortPlan,
    flows: FlowCounts,
}

impl Reading {
    pub(super) fn of(tables: &Tables) -> anyhow::Result<Self> {
        let instance = tables.instance()?;
        let mut plan = bank::plan_of(&instance);
        policy::read(&pin::Instance::new(&instance.name)?, instance.control.bank, &mut plan)?;
        let live = read::flows(tables, &instance, &Filter::default())?;
        let flows = live.flows.iter().map(place).collect();
        Ok(Self { plan, instance, flows })
    }

    /// How `after` differs, in a sentence.
    pub(super) fn summary(&self, after: &Self) -> String {
        let interfaces = interfaces(&in_force(&self.instance), &in_force(&after.instance));
        plan_text::summary(&diff::diff(&self.plan, &after.plan, &self.flows), interfaces.len(), 0)
    }
}

fn place(flow: &Flow) -> FlowPlace {
    FlowPlace {
        grant: flow.grant,
        rule: flow.rule,
        frontend: flow.frontend.address.into(),
        port: u16::from_be_bytes(flow.frontend.port),
    }
}

/// Roles by interface.
type Roles<'a> = BTreeMap<&'a str, u8>;

fn in_force(instance: &Instance) -> Roles<'_> {
    let used = instance.interfaces.iter().filter(|port| port.role != 0);
    used.map(|port| (name_of(&port.name), port.role)).collect()
}

fn configured(gateway: &Gateway) -> Roles<'_> {
    let mut roles = Roles::new();
    for (names, role) in [(&gateway.inside, ROLE_INSIDE), (&gateway.outside, ROLE_OUTSIDE)] {
        names.iter().for_each(|name| *roles.entry(name).or_default() |= role);
    }
    roles
}

fn interfaces(before: &Roles<'_>, after: &Roles<'_>) -> Vec<InterfaceChange> {
    let mut roles: BTreeMap<&str, (u8, u8)> = BTreeMap::new();
    before.iter().for_each(|(name, role)| roles.entry(name).or_default().0 = *role);
    after.iter().for_each(|(name, role)| roles.entry(name).or_default().1 = *role);
    let named = |role: u8| (role != 0).then(|| role_name(role));
    let differ = roles.into_iter().filter(|(_, (before, after))| before != after);
    differ
        .map(|(name, (before, after))| InterfaceChange {
            interface: name.to_owned(),
            before: named(before),
            after: named(after),
        })
        .collect()
}

fn restart(before: &Instance, gateway: &Gateway) -> Vec<Restart> {
    let flows = (before.meta.max_flows.to_string(), gateway.max_flows.to_string());
    let name = (before.name.clone(), gateway.name.clone());
    let backends = before.meta.max_backends;
    let backends = (backends.to_string(), gateway.max_backends.unwrap_or(backends).to_string());
    let settings = [("name", name), ("max_flows", flows), ("max_backends", backends)].into_iter();
    let settings = settings.filter(|(_, (in_force, configured))| in_force != configured);
    settings.map(|(setting, (in_force, configured))| Restart { setting, in_force, configured }).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
