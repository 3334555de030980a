// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw stats`

use std::{io::Write, process::ExitCode};

use nat_common::abi::counters::{Fate, Reason};

use super::{
    read::{Presence, ReadArgs},
    render::{self, Cell, Columns, Paint, Style},
    units,
    watch::{self, Format},
};
use crate::{
    datapath::tables::{TableError, Tables},
    view::{
        instance::Instance,
        refusals::Refusals,
        resets::Resets,
        stats::{FATES, Reading, Stats},
    },
};

/// Times that the counters are read while they do not come out equal twice.
const ATTEMPTS: u32 = 4;

const EXAMPLES: &str = "\
Examples:
  natgw stats                              packets and bytes by verdict
  natgw stats --watch=1                    with rates per second
  natgw stats --json | jq .verdicts.no_free_port

Every packet that enters the program ends in exactly one verdict; translated, answered, passed and dropped add up to
the packets seen. Answered: the sender gets an ICMP error. Passed: left to the host's network stack as it is.";

/// Show packets, bytes and verdicts by reason.
///
/// Reads the pinned counters, so that it works without the daemon. They count since the instance was made.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// Also reasons that no packet has had
    #[arg(long)]
    all: bool,
}

/// Shows counters.
///
/// # Errors
///
/// When the tables cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut last: Option<Stats> = None;
    watch::repeat(&args.read, |out, format, elapsed| {
        let (tables, instance, presence) = args.read.read(format)?;
        let mut stats = read(&tables, &instance)?;
        if let (Some(last), Some(seconds)) = (&last, elapsed) {
            stats = stats.since(last, seconds);
        }
        if format.json {
            render::document(out, &stats, format.one_line)?;
        } else {
            print(out, format, args.all, presence, &stats)?;
        }
        last = Some(stats);
        Ok(ExitCode::SUCCESS)
    })
}

/// Reads the counters twice, or a few times until nothing has changed in between.
///
/// # Errors
///
/// [`TableError`].
pub(super) fn read(tables: &Tables, instance: &Instance) -> Result<Stats, TableError> {
    let mut earlier = Reading::of(&tables.counters()?);
    let mut later = Reading::of(&tables.counters()?);
    for _ in 0..ATTEMPTS {
        if earlier == later {
            break;
        }
        earlier = later;
        later = Reading::of(&tables.counters()?);
    }
    Ok(Stats::new(instance, &later, earlier.judge(&later)))
}

/// A line of the table: a reason, or the sum of a fate.
enum Row {
    Fate(&'static str, Fate),
    Reason(Reason),
}

fn print(
    out: &mut dyn Write,
    format: Format,
    all: bool,
    presence: Presence,
    stats: &Stats,
) -> anyhow::Result<()> {
    let seen = units::grouped(stats.packets_seen);
    let mut what = format!("{seen} packets seen, {} bytes", units::grouped(stats.bytes_seen));
    if let Some(rates) = &stats.rates {
        what =
            format!("{what}; now {} packets/s, {} bytes/s", rate(rates.packets_seen), rate(rates.bytes_seen));
    }
    let headline = presence.headline(&stats.name, &what);
    writeln!(out, "{}", format.style.paint(headline.0, &headline.1))?;
    let mut rows = Vec::new();
    for (fate, name) in FATES {
        let reasons = Reason::ALL.iter().copied().filter(|reason| reason.fate() == fate);
        rows.push(Row::Fate(name, fate));
        rows.extend(reasons.filter(|reason| all || stats.verdicts.of(*reason) > 0).map(Row::Reason));
    }
    render::table(out, format.style, &columns(stats), &rows)?;
    if !stats.refusals.is_empty() {
        writeln!(out)?;
        render::table(out, format.style, &refusals(), &stats.refusals)?;
    }
    Ok(footer(out, format.style, stats)?)
}

fn columns(stats: &Stats) -> Columns<'_, Row> {
    let mut columns = Columns::<Row>::default()
        .text("VERDICT", |row| match row {
            Row::Fate(name, _) => Cell(Paint::Strong, (*name).to_owned()),
            Row::Reason(reason) => format!("  {}", reason.name()).into(),
        })
        .number("PACKETS", |row| match row {
            Row::Fate(_, fate) => Cell(Paint::Strong, units::grouped(stats.verdicts.fate(*fate))),
            Row::Reason(reason) => units::grouped(stats.verdicts.of(*reason)).into(),
        })
        .number("BYTES", |row| match row {
            Row::Fate(_, fate) => Cell(Paint::Strong, units::short(stats.bytes.fate(*fate))),
            Row::Reason(reason) => units::short(stats.bytes.of(*reason)).into(),
        });
    if let Some(rates) = &stats.rates {
        let of = |reason: Reason| rates.verdicts.get(reason.name()).copied().unwrap_or(0.0);
        columns = columns.number("PER SECOND", move |row| match row {
            Row::Fate(_, fate) => {
                let reasons = Reason::ALL.iter().filter(|reason| reason.fate() == *fate);
                Cell(Paint::Strong, rate(reasons.map(|reason| of(*reason)).sum()))
            }
            Row::Reason(reason) => rate(of(*reason)).into(),
        });
    }
    columns
        .text("MEANING", |row| match row {
            Row::Fate(..) => Cell::from(""),
            Row::Reason(reason) => Cell(Paint::Dim, reason.help().to_owned()),
        })
        .wraps()
}

/// What each backend was refused: packets under the first two reasons, new flows under the others.
fn refusals() -> Columns<'static, Refusals> {
    let count = |count: u64| units::grouped(count);
    Columns::<Refusals>::default()
        .text("REFUSED BACKEND", |row| row.backend.into())
        .text("NAME", |row| row.name.clone().unwrap_or_default().into())
        .number("NO RULE", move |row| count(row.no_outbound_rule).into())
        .number("POLICY", move |row| count(row.policy).into())
        .number("LIMIT", move |row| count(row.limit).into())
        .number("NO PORT", move |row| count(row.no_port).into())
        .number("TABLE", move |row| count(row.table).into())
}

/// A rate as a short count.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are small and not negative"
)]
fn rate(per_second: f64) -> String {
    units::short(per_second.round() as u64)
}

fn footer(out: &mut dyn Write, style: Style, stats: &Stats) -> std::io::Result<()> {
    let count = units::grouped;
    let (guard, internals, table) = (stats.guard, stats.internals, stats.table);
    writeln!(out)?;
    let guarded = format!(
        "{} packets that the stack forwarded translated, {} dropped rather than leaked",
        count(guard.translated),
        count(guard.dropped)
    );
    render::fact(out, style, "guard", &guarded.into())?;
    let fragments = stats.fragments;
    let early = format!(
        "{} wait for the first of their datagram; {} did and were sent, {} in vain; {} could not be kept",
        count(fragments.now),
        count(fragments.released),
        count(fragments.expired),
        count(fragments.lost)
    );
    render::fact(out, style, "fragments", &early.into())?;
    let held = format!(
        "{} flows, {} above their backend's share; {} reclaimed by the sweep, {} by the data path",
        count(table.flows),
        count(table.burst),
        count(table.swept),
        count(table.taken_over)
    );
    render::fact(out, style, "flow table", &held.into())?;
    let slow = format!(
        "{} new flows without a port record, {} searches for an expired port, {} races for one flow",
        count(internals.record_fallbacks),
        count(internals.searches),
        count(internals.same_flow_races)
    );
    render::fact(out, style, "slow paths", &slow.into())?;
    if !stats.policies.is_empty() {
        let counts = stats.policies.iter().map(|policy| format!("{} {}", count(policy.packets), policy.name));
        render::fact(out, style, "policies", &counts.collect::<Vec<_>>().join(", ").into())?;
    }
    if internals.refusals_icmp + internals.refusals_reset > 0 {
        let told = format!(
            "{} refused packets answered with ICMP, {} with RST",
            count(internals.refusals_icmp),
            count(internals.refusals_reset)
        );
        render::fact(out, style, "refusals", &told.into())?;
    }
    resets(out, style, &stats.resets)?;
    let lost = Paint::Notice;
    let events = Cell(
        if internals.events_lost == 0 { Paint::Plain } else { lost },
        format!("{} lost because the daemon did not read them in time", count(internals.events_lost)),
    );
    render::fact(out, style, "events", &events)?;
    let integrity = if !stats.integrity.consistent {
        let off = stats.integrity.unaccounted;
        Cell(
            Paint::Bad,
            format!("verdicts do NOT add up: {off} packets seen have none; a defect, please report"),
        )
    } else if stats.integrity.unaccounted == 0 {
        Cell(Paint::Good, "verdicts add up to the packets seen".to_owned())
    } else {
        let off = stats.integrity.unaccounted;
        Cell(Paint::Plain, format!("verdicts add up, but for packets in flight ({off:+})"))
    };
    render::fact(out, style, "integrity", &integrity)
}

fn resets(out: &mut dyn Write, style: Style, resets: &Resets) -> std::io::Result<()> {
    if resets.is_none() {
        return Ok(());
    }
    let count = units::grouped;
    let mut told = format!(
        "{} late segments answered with RST; {} idle connections reset at both ends",
        count(resets.on_packet),
        count(resets.on_idle),
    );
    for (number, what) in [
        (resets.on_idle_missed, "that ended without"),
        (resets.failed, "segments not sent"),
        (resets.not_believed, "RST not believed"),
    ] {
        if number > 0 {
            told.push_str(&format!(", {} {what}", count(number)));
        }
    }
    render::fact(out, style, "resets", &told.into())
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
