// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw flows`

use std::{io::Write, net::Ipv4Addr, process::ExitCode};

use ipnet::Ipv4Net;
use nat_common::{
    abi::config::{CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASS_UDP},
    tick,
};

use super::{
    read::{self, Presence, ReadArgs},
    render::{self, Cell, Columns, Paint},
    units,
    watch::{self, Format},
};
use crate::view::{
    flows::{Destination, Filter, Flow, FlowRow, Flows, Sort, State, protocol_name},
    instance::Instance,
};

/// Rows of a table when no `--limit` is given. JSON has all.
const TABLE_ROWS: usize = 100;

const EXAMPLES: &str = "\
Examples:
  natgw flows                                       the 100 flows that were active last
  natgw flows --backend db1 --state established     of one backend
  natgw flows --destination 198.51.100.0/24:443 --sort bytes --limit 10
  natgw flows --json | jq 'length'                  every flow, for a program

SOURCE is the backend's own address and port, FRONTEND what they are translated to. For ICMP the identifier of the
query takes the place of these ports, and the destination's port is 0. A flow EXPIRES when no packet that keeps it
comes for so long. LIFE is that of its port: claimed (nothing answered yet), live, closing (FIN or RST seen), cooling
(over, and at rest; only with --all). It is FREE for another flow to the same destination after that time; to other
destinations it is at any time. docs/timers.md says which timer that is.";

/// Show flows: both tuples, state, idle time and expiry.
///
/// Reads the pinned flow table, so that it works without the daemon. Only whole flows are shown, that is, both halves.
/// A flow that opens or ends while the table is read may or may not be among them.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// Only flows of this backend: its private address or its name
    #[arg(long, value_name = "ADDR|NAME")]
    backend: Option<String>,
    /// Only flows to these destinations
    #[arg(long, value_name = "ADDR[/LEN][:PORT]", value_parser = destination)]
    destination: Option<Destination>,
    /// Only flows of this protocol
    #[arg(long, value_name = "tcp|udp|icmp|other", value_parser = class_or_other)]
    protocol: Option<u32>,
    /// Only flows in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<State>,
    /// Also flows that are over and only wait to be reclaimed (state `expired`)
    #[arg(long)]
    all: bool,
    /// Which come first
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Show so many at most, 0: all [default: 100 in tables, all in JSON]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Shows flows.
///
/// # Errors
///
/// When the tables cannot be read, or `--backend` names nobody.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    watch::repeat(&args.read, |out, format, _| {
        let (tables, instance, presence) = args.read.read(format)?;
        let filter = args.filter(&instance)?;
        let mut flows = read::flows(&tables, &instance, &filter)?;
        print(out, format, args, &instance, presence, &mut flows)?;
        Ok(ExitCode::SUCCESS)
    })
}

impl Args {
    fn filter(&self, instance: &Instance) -> anyhow::Result<Filter> {
        let backend = self.backend.as_ref().map(|wanted| read::backend_address(instance, wanted));
        Ok(Filter {
            backend: backend.transpose()?,
            destination: self.destination,
            class: self.protocol,
            state: self.state,
            expired: self.all,
        })
    }

    fn limit(&self, json: bool) -> Option<usize> {
        match self.limit {
            Some(0) => None,
            Some(limit) => Some(limit),
            None => (!json).then_some(TABLE_ROWS),
        }
    }
}

fn print(
    out: &mut dyn Write,
    format: Format,
    args: &Args,
    instance: &Instance,
    presence: Presence,
    flows: &mut Flows,
) -> anyhow::Result<()> {
    let found = flows.flows.len();
    flows.arrange(args.sort, args.limit(format.json));
    if format.json {
        let rows = flows.flows.iter().map(|flow| FlowRow::new(instance, flow));
        return render::array(out, rows, format.one_line);
    }
    let shown = flows.flows.len();
    let what = if shown == found {
        units::counted(found, "flow")
    } else {
        format!("{} of {} (--limit 0 shows all)", units::grouped(shown as u64), units::counted(found, "flow"))
    };
    let headline = presence.headline(&instance.name, &what);
    writeln!(out, "{}", format.style.paint(headline.0, &headline.1))?;
    Ok(render::table(out, format.style, &columns(instance), &flows.flows)?)
}

fn columns(instance: &Instance) -> Columns<'_, Flow> {
    let seconds = |ticks| Cell::from(units::duration(tick::to_seconds(ticks)));
    Columns::<Flow>::default()
        .text("PROTO", |flow| protocol_name(flow).into())
        .text("STATE", |flow| Cell(paint(flow.state), flow.state.name().to_owned()))
        .text("LIFE", |flow| flow.life.name().into())
        .text("SOURCE", |flow| flow.source.into())
        .text("FRONTEND", |flow| flow.frontend.into())
        .text("DESTINATION", |flow| flow.destination.into())
        .number("IDLE", move |flow| seconds(flow.idle))
        .number("EXPIRES", move |flow| seconds(flow.expires))
        .number("FREE IN", move |flow| seconds(flow.releases))
        .text("BYTES OUT/IN", |flow| both(flow.out.bytes, flow.r#in.bytes))
        .spare(1)
        .text("PKTS OUT/IN", |flow| both(flow.out.packets, flow.r#in.packets))
        .spare(2)
        .number("AGE", move |flow| seconds(flow.age))
        .spare(3)
        .text("RULE", |flow| instance.rule_name(flow.rule).into())
        .spare(4)
}

fn both(out: u64, inward: u64) -> Cell {
    format!("{}/{}", units::short(out), units::short(inward)).into()
}

fn paint(state: State) -> Paint {
    use nat_common::net::timers::TimerClass;
    match state {
        State::Live(TimerClass::TcpEstablished) => Paint::Good,
        State::Live(TimerClass::TcpReset) => Paint::Notice,
        State::Live(TimerClass::TcpClosed) | State::Expired => Paint::Dim,
        State::Live(_) => Paint::Plain,
    }
}

fn destination(text: &str) -> Result<Destination, String> {
    let wrong =
        || "expected ADDR, ADDR:PORT, ADDR/LEN or ADDR/LEN:PORT, as in 198.51.100.0/24:443".to_owned();
    let (network, port) = match text.split_once(':') {
        Some((network, port)) => (network, Some(port.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let network = match network.contains('/') {
        true => network.parse::<Ipv4Net>().map_err(|_| wrong())?,
        false => network.parse::<Ipv4Addr>().map(Ipv4Net::from).map_err(|_| wrong())?,
    };
    Ok(Destination { network, port })
}

pub(super) fn class(text: &str) -> Result<u32, String> {
    match text {
        "tcp" => Ok(CLASS_TCP),
        "udp" => Ok(CLASS_UDP),
        "icmp" => Ok(CLASS_ICMP),
        _ => Err("expected tcp, udp or icmp".to_owned()),
    }
}

/// As [`class`], and every other protocol.
fn class_or_other(text: &str) -> Result<u32, String> {
    match text {
        "other" => Ok(CLASS_OTHER),
        text => class(text).map_err(|_| "expected tcp, udp, icmp or other".to_owned()),
    }
}

fn state(text: &str) -> Result<State, String> {
    State::all().find(|state| state.name() == text).ok_or_else(|| {
        let names: Vec<_> = State::all().map(State::name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
