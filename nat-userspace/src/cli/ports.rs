// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw ports`

use std::{io::Write, process::ExitCode};

use super::{
    read::{self, Presence, ReadArgs},
    render::{self, Cell, Columns, Paint},
    units,
    watch::{self, Format},
};
use crate::view::{
    destinations::DestinationRow,
    flows::Filter,
    instance::Instance,
    life::Lives,
    ports::{PortRow, PortUse},
};

/// From this share on, in percent, port use is worth a look.
const NOTICE_PERCENT: u64 = 80;

const EXAMPLES: &str = "\
Examples:
  natgw ports                                   every block, how much of it is in use, and what was refused
  natgw ports --by-destination                  which destinations take the ports
  natgw ports --by-destination --backend db1 --watch

A port serves any number of different destinations at once. USED counts the different ports of a block that flows
hold at all; only the ports in use towards one destination can run out, and WORST is the destination for which most
are. When it reaches 100%, new flows to that destination are REFUSED until a flow to it ends or has been idle for
long enough; other destinations are not affected. LIFE counts the flows on a block whose port is claimed / live /
closing / cooling: those that have ended still hold their port while it rests.

Ports that the backends of a rule share (allocation = \"dynamic\") are marked so. They run out for all of them together:
IN USE is then what all hold towards WORST, and --by-destination says who holds most.";

/// Show the SNAT ports of each backend: allocated, used, refused, and what binds.
///
/// Reads the pinned tables, so that it works without the daemon. Ports are counted flow by flow.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// Only this backend: its private address or its name
    #[arg(long, value_name = "ADDR|NAME")]
    backend: Option<String>,
    /// Only this protocol
    #[arg(long, value_name = "tcp|udp|icmp", value_parser = super::flows::class)]
    protocol: Option<u32>,
    /// For each backend and protocol, the destinations that take most of its ports
    #[arg(long)]
    by_destination: bool,
    /// Destinations shown for each backend and protocol, 0: all
    #[arg(long, value_name = "N", default_value_t = 5, requires = "by_destination")]
    limit: usize,
}

/// Shows ports.
///
/// # Errors
///
/// When the tables cannot be read, or `--backend` names nobody.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    watch::repeat(&args.read, |out, format, _| {
        let (tables, instance, presence) = args.read.read(format)?;
        // Of every backend: what one can have of shared ports depends on the others.
        let filter = Filter { backend: None, ..args.filter(&instance)? };
        let flows = read::flows(&tables, &instance, &filter)?;
        let ports = PortUse::of(&instance, &flows.flows);
        print(out, format, args, &instance, presence, &ports)?;
        Ok(ExitCode::SUCCESS)
    })
}

impl Args {
    fn filter(&self, instance: &Instance) -> anyhow::Result<Filter> {
        let backend = self.backend.as_ref().map(|wanted| read::backend_address(instance, wanted));
        Ok(Filter { backend: backend.transpose()?, class: self.protocol, expired: true, ..Filter::default() })
    }
}

fn print(
    out: &mut dyn Write,
    format: Format,
    args: &Args,
    instance: &Instance,
    presence: Presence,
    ports: &PortUse<'_>,
) -> anyhow::Result<()> {
    let filter = args.filter(instance)?;
    let admits = |backend: Option<std::net::Ipv4Addr>, protocol: &str| {
        filter.backend.is_none_or(|wanted| backend.is_some_and(|backend| backend.octets() == wanted))
            && filter.class.is_none_or(|wanted| protocol == crate::view::flows::class_name(wanted))
    };
    let headline = |what: &str| {
        let line = presence.headline(&instance.name, what);
        format.style.paint(line.0, &line.1).into_owned()
    };
    if args.by_destination {
        let limit = if args.limit == 0 { usize::MAX } else { args.limit };
        let rows = ports.by_destination(limit, filter.backend);
        if format.json {
            return render::array(out, rows.iter(), format.one_line);
        }
        writeln!(out, "{}", headline(&units::counted(rows.len(), "destination")))?;
        return Ok(render::table(out, format.style, &destination_columns(), &rows)?);
    }
    let mut rows = ports.rows();
    rows.retain(|row| admits(row.backend, row.protocol));
    if format.json {
        return render::array(out, rows.iter(), format.one_line);
    }
    writeln!(out, "{}", headline(&units::counted(rows.len(), "port block")))?;
    Ok(render::table(out, format.style, &columns(), &rows)?)
}

fn backend(address: Option<std::net::Ipv4Addr>, name: Option<&str>) -> Cell {
    match (address, name) {
        (None, _) => "(shared)".into(),
        (Some(address), Some(name)) => format!("{name} ({address})").into(),
        (Some(address), None) => address.into(),
    }
}

fn share(used: u64, of: u64) -> Cell {
    let percent = units::percent(used, of);
    let paint = match percent {
        _ if of > 0 && used >= of => Paint::Bad,
        NOTICE_PERCENT.. => Paint::Notice,
        _ => Paint::Plain,
    };
    Cell(paint, format!("{percent}%"))
}

fn refused(count: u64) -> Cell {
    Cell(if count == 0 { Paint::Plain } else { Paint::Bad }, units::grouped(count))
}

/// Flows that are claimed, live, closing, cooling.
fn lives(lives: &Lives) -> Cell {
    let Lives { claimed, live, closing, cooling } = *lives;
    let all = [claimed, live, closing, cooling];
    if all == [0; 4] {
        return "-".into();
    }
    all.map(units::short).join("/").into()
}

fn columns<'a>() -> Columns<'a, PortRow> {
    let worst = |row: &PortRow| match row.worst_destination {
        Some(destination) => destination.into(),
        None => Cell::from("-"),
    };
    Columns::<PortRow>::default()
        .text("RULE", |row: &PortRow| row.rule.as_str().into())
        .spare(2)
        .text("BACKEND", |row| backend(row.backend, row.name.as_deref()))
        .text("PROTO", |row| row.protocol.into())
        .text("FRONTEND", |row| row.frontend.into())
        .text("RANGE", |row| {
            let kind = match (row.draining, row.shared) {
                (true, _) => " drains",
                (false, true) => " shared",
                (false, false) => "",
            };
            format!("{}-{}{kind}", row.range[0], row.range[1]).into()
        })
        .number("USED/OF", |row| match row.draining {
            true => units::grouped(row.used).into(),
            false => format!("{}/{}", units::grouped(row.used), units::grouped(row.allocated)).into(),
        })
        .text("LIFE", |row| lives(&row.lives))
        .number("REFUSED", |row| refused(row.refused))
        .text("WORST", worst)
        .number("IN USE", |row| match row.worst_destination {
            Some(_) => share(row.worst_used.into(), row.allocated_total.into()),
            None => "".into(),
        })
}

fn destination_columns<'a>() -> Columns<'a, DestinationRow> {
    Columns::<DestinationRow>::default()
        .text("RULE", |row| row.rule.as_str().into())
        .spare(1)
        .text("BACKEND", |row| backend(row.backend, row.name.as_deref()))
        .text("PROTO", |row| row.protocol.into())
        .text("DESTINATION", |row| row.destination.into())
        .number("USED", |row| units::grouped(row.used).into())
        .number("OF", |row| units::grouped(row.allocated).into())
        .number("IN USE", |row| share(row.used.into(), row.allocated.into()))
        .number("NEXT FREE IN", |row| units::duration(row.next_release_seconds).into())
        .text("MOST OF THEM", |row| match row.top_backend {
            Some(backend) => format!("{backend} {}", units::grouped(row.top_used)).into(),
            None => "".into(),
        })
        .spare(2)
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
