// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plan's difference for people: one line for each change, and a sentence.

use std::io::{self, Write};

use super::{
    plan::Document,
    render::{self, Cell, Columns, Paint, Style},
    units,
};
use crate::{
    config::grouped,
    plan::{
        Change, Run,
        diff::{Block, Member, PlanDiff, Rule},
    },
};

/// Runs of ports that a cell shows.
const RUNS: usize = 2;

/// A line.
#[derive(Clone, Debug, Default)]
struct Line {
    change: &'static str,
    what: String,
    before: String,
    after: String,
    flows: u64,
    draining: u64,
}

/// Writes `document`.
///
/// # Errors
///
/// Of the writer.
pub(super) fn write(out: &mut dyn Write, style: Style, document: &Document) -> io::Result<()> {
    let Document { name, running, diff, .. } = document;
    if !running {
        writeln!(out, "{name}: no such instance runs: everything is new")?;
    }
    let lines = lines(document);
    let columns = Columns::<Line>::default()
        .text("CHANGE", |line| Cell(paint(line), line.change.to_owned()))
        .text("WHAT", |line| line.what.clone().into())
        .text("BEFORE", |line| line.before.clone().into())
        .text("AFTER", |line| line.after.clone().into())
        .number("FLOWS", |line| grouped(line.flows).into())
        .number("DRAIN", |line| {
            let paint = if line.draining == 0 { Paint::Plain } else { Paint::Notice };
            Cell(paint, grouped(line.draining))
        });
    render::table(out, style, &columns, &lines)?;
    for restart in &document.restart {
        let (setting, in_force, configured) = (restart.setting, &restart.in_force, &restart.configured);
        if setting == "name" {
            writeln!(
                out,
                "name is {configured}: refused unless the daemon was started with `--name {in_force}`"
            )?;
        } else {
            writeln!(
                out,
                "{setting} stays {in_force}: {configured} takes effect after `natgw detach` and a new start"
            )?;
        }
    }
    let unchanged = diff.blocks.iter().filter(|block| !block.is_change()).count();
    if unchanged > 0 {
        writeln!(out, "{} unchanged", units::counted(unchanged, "port block"))?;
    }
    writeln!(out, "{}", summary(diff, document.interfaces.len()))
}

const fn paint(line: &Line) -> Paint {
    match line.change.as_bytes() {
        b"removed" | b"gone" => Paint::Notice,
        _ => Paint::Plain,
    }
}

/// The last line: how much changes, and what becomes of flows.
#[must_use]
pub(super) fn summary(diff: &PlanDiff, interfaces: usize) -> String {
    let of = |members: &crate::plan::diff::Members| {
        members.added.len() + members.removed.len() + members.renamed.len()
    };
    let rules = diff.rules.added.len() + diff.rules.removed.len() + diff.rules.changed.len();
    let renamed = diff.backends.renamed.len();
    let parts = [
        (interfaces, "interface"),
        (rules, "rule"),
        (of(&diff.frontends), "frontend address"),
        (diff.totals.backends_changed as usize, "backend"),
        (renamed, "backend name"),
    ];
    let parts: Vec<(usize, &str)> = parts.into_iter().filter(|(number, _)| *number > 0).collect();
    let counted = |(number, what): &(usize, &str)| match *number {
        1 => format!("1 {what}"),
        _ if what.ends_with("ss") => format!("{} {what}es", grouped(*number as u64)),
        _ => units::counted(*number, what),
    };
    let verb = if parts.iter().map(|(number, _)| number).sum::<usize>() == 1 { "changes" } else { "change" };
    let list = parts.iter().map(counted).collect::<Vec<_>>().join(", ");
    if list.is_empty() {
        return "nothing changes".to_owned();
    }
    let list = format!("{list} {verb}");
    let flows = match diff.totals.flows_draining {
        0 => "no live flow is on a port that goes away".to_owned(),
        1 => "1 live flow on a port that goes away: it finishes, nothing is cut".to_owned(),
        flows => {
            format!("{} live flows on ports that go away: they finish, nothing is cut", grouped(flows))
        }
    };
    let separator = if list.len() + flows.len() + 2 > render::WIDTH { ",\n" } else { ", " };
    list + separator + &flows
}

fn lines(document: &Document) -> Vec<Line> {
    let diff = &document.diff;
    let mut lines: Vec<Line> = Vec::new();
    for interface in &document.interfaces {
        lines.push(Line {
            change: change(interface.before, interface.after),
            what: format!("interface {}", interface.interface),
            before: interface.before.unwrap_or("-").to_owned(),
            after: interface.after.unwrap_or("-").to_owned(),
            ..Line::default()
        });
    }
    for (change, rules) in
        [("removed", &diff.rules.removed), ("added", &diff.rules.added), ("changed", &diff.rules.changed)]
    {
        rules.iter().for_each(|of| rule(change, of, &mut lines));
    }
    for (what, members) in [("frontend", &diff.frontends), ("backend", &diff.backends)] {
        let lists = [("removed", &members.removed), ("added", &members.added), ("renamed", &members.renamed)];
        for (change, list) in lists {
            lines.extend(list.iter().map(|of| member(change, what, of)));
        }
    }
    blocks(&diff.blocks, &mut lines);
    lines
}

fn change<T: PartialEq>(before: Option<T>, after: Option<T>) -> &'static str {
    match (before, after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    }
}

fn rule(change: &'static str, rule: &Rule, lines: &mut Vec<Line>) {
    let text = |seconds: &dyn Fn(&crate::plan::diff::Timeout) -> u64| {
        let each = rule.timeouts.iter();
        each.map(|timeout| format!("{} {}", timeout.state, units::duration(seconds(timeout))))
            .collect::<Vec<_>>()
            .join(", ")
    };
    lines.push(Line {
        change,
        what: format!("rule {}", rule.rule),
        before: text(&|timeout| timeout.before_seconds),
        after: text(&|timeout| timeout.after_seconds),
        flows: rule.flows,
        draining: 0,
    });
}

fn member(change: &'static str, what: &str, member: &Member) -> Line {
    let name = |name: &Option<String>, there: bool| match name {
        Some(name) => name.clone(),
        None if there => "(no name)".to_owned(),
        None => "-".to_owned(),
    };
    Line {
        change,
        what: format!("{what} {}", member.address),
        before: name(&member.name_before, change != "added"),
        after: name(&member.name_after, change != "removed"),
        flows: member.flows,
        draining: 0,
    }
}

/// A line for each block that changes; one for all protocols of a backend where they are alike.
fn blocks(blocks: &[Block], lines: &mut Vec<Line>) {
    let alike = |a: &Block, b: &Block| {
        (a.backend, a.change, &a.before, &a.after, &a.rule_before, &a.rule_after)
            == (b.backend, b.change, &b.before, &b.after, &b.rule_before, &b.rule_after)
    };
    for of_backend in blocks.chunk_by(|a, b| a.backend == b.backend) {
        let changes: Vec<&Block> = of_backend.iter().filter(|block| block.is_change()).collect();
        let one = changes.len() == nat_common::abi::config::CLASS_NAMES.len()
            && changes.windows(2).all(|pair| alike(pair[0], pair[1]));
        if let Some(first) = changes.first().filter(|_| one) {
            lines.push(block("all", first, &changes));
        } else {
            lines.extend(changes.iter().map(|of| block(of.protocol, of, &[of])));
        }
    }
}

fn block(protocol: &str, first: &Block, all: &[&Block]) -> Line {
    let named = |ports: String, rule: &Option<String>| match rule {
        Some(rule) if first.rule_before != first.rule_after && first.before == first.after => {
            format!("{ports} by {rule}")
        }
        _ => ports,
    };
    let backend = first.name.as_ref().map_or_else(|| first.backend.to_string(), Clone::clone);
    Line {
        change: match first.change {
            Change::Kept => "kept",
            Change::Moved => "moved",
            Change::Grown => "grown",
            Change::Shrunk => "shrunk",
            Change::New => "new",
            Change::Gone => "gone",
        },
        what: format!("{backend} {protocol}"),
        before: named(runs(&first.before), &first.rule_before),
        after: named(runs(&first.after), &first.rule_after),
        flows: all.iter().map(|block| block.flows).sum(),
        draining: all.iter().map(|block| block.flows_draining).sum(),
    }
}

fn runs(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "-".to_owned();
    }
    let shown = runs.iter().take(RUNS);
    let mut text =
        shown.map(|run| format!("{} {}-{}", run.frontend, run.range[0], run.range[1])).collect::<Vec<_>>();
    if runs.len() > RUNS {
        text.push(format!("+{}", runs.len() - RUNS));
    }
    text.join(", ")
}
