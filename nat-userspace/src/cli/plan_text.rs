// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plan's difference for people: one line for each change, and a sentence.

use std::io::{self, Write};

use super::{
    plan::Document,
    plan_words,
    render::{self, Cell, Columns, Paint, Style},
    units,
};
use crate::{
    config::grouped,
    plan::{
        Change, Run,
        diff::{
            Block, Member, Members, PlanDiff,
            rules::{Rule, Timeout},
        },
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
    if !diff.instance_ips.removed.is_empty() || !diff.instance_ips.changed.is_empty() {
        writeln!(out, "connections by an instance IP that goes end with it; those on frontends go on")?;
    }
    let unchanged = diff.blocks.iter().filter(|block| !block.is_change()).count();
    if unchanged > 0 {
        writeln!(out, "{} unchanged", units::counted(unchanged, "port block"))?;
    }
    writeln!(out, "{}", summary(diff, document.interfaces.len(), document.addresses.len()))
}

const fn paint(line: &Line) -> Paint {
    match line.change.as_bytes() {
        b"removed" | b"gone" => Paint::Notice,
        _ => Paint::Plain,
    }
}

/// The last line: how much changes, and what becomes of flows.
#[must_use]
pub(super) fn summary(diff: &PlanDiff, interfaces: usize, addresses: usize) -> String {
    let of = |members: &Members| members.added.len() + members.removed.len() + members.renamed.len();
    let rules = diff.rules.added.len() + diff.rules.removed.len() + diff.rules.changed.len();
    let renamed = diff.backends.renamed.len();
    let parts = [
        (interfaces, "interface"),
        (addresses, "address of the host"),
        (diff.gateway.len(), "gateway setting"),
        (rules, "rule"),
        (diff.policies.count(), "policy"),
        (diff.instance_ips.count(), "instance IP"),
        (of(&diff.frontends), "frontend address"),
        (diff.totals.backends_changed as usize, "backend"),
        (renamed, "backend name"),
    ];
    let parts: Vec<(usize, &str)> = parts.into_iter().filter(|(number, _)| *number > 0).collect();
    let counted = |(number, what): &(usize, &str)| match *number {
        1 => format!("1 {what}"),
        _ if what.starts_with("address ") => format!("{} addresses of the host", grouped(*number as u64)),
        _ if what.ends_with('y') => {
            format!("{} {}ies", grouped(*number as u64), what.trim_end_matches('y'))
        }
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
    for address in &document.addresses {
        let (what, after) = (format!("address {address}"), "of this host".to_owned());
        lines.push(Line {
            change: "added",
            what,
            before: plan_words::NONE.to_owned(),
            after,
            ..Line::default()
        });
    }
    for setting in &diff.gateway {
        let [before, after] = plan_words::setting(setting);
        let what = format!("gateway {}", setting.setting);
        lines.push(Line { change: "changed", what, before, after, ..Line::default() });
    }
    for (change, rules) in
        [("removed", &diff.rules.removed), ("added", &diff.rules.added), ("changed", &diff.rules.changed)]
    {
        rules.iter().for_each(|of| rule(change, of, &mut lines));
    }
    ways(diff, &mut lines);
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
    let text = |seconds: &dyn Fn(&Timeout) -> u64| {
        let each = rule.timeouts.iter();
        each.map(|timeout| format!("{} {}", timeout.state, units::duration(seconds(timeout))))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let what = format!("rule {}", rule.rule);
    if rule.settings.is_empty() || !rule.timeouts.is_empty() {
        lines.push(Line {
            change,
            what: what.clone(),
            before: text(&|timeout| timeout.before_seconds),
            after: text(&|timeout| timeout.after_seconds),
            flows: rule.flows,
            draining: 0,
        });
    }
    for setting in &rule.settings {
        let [before, after] = plan_words::setting(setting);
        let what = format!("{what} {}", setting.setting);
        lines.push(Line { change, what, before, after, flows: rule.flows, draining: 0 });
    }
}

/// What sends connections another way than by their rule.
fn ways(diff: &PlanDiff, lines: &mut Vec<Line>) {
    let all = &diff.policies;
    for (change, list) in [("removed", &all.removed), ("added", &all.added), ("changed", &all.changed)] {
        for policy in list {
            let [before, after] = plan_words::policy(policy);
            let what = format!("policy {}", policy.policy);
            lines.push(Line { change, what, before, after, ..Line::default() });
        }
    }
    let all = &diff.instance_ips;
    for (change, list) in [("removed", &all.removed), ("added", &all.added), ("changed", &all.changed)] {
        lines.extend(list.iter().map(|of| Line {
            change,
            what: format!("instance IP {}", of.name.clone().unwrap_or_else(|| of.backend.to_string())),
            before: of.before.map_or_else(|| plan_words::NONE.to_owned(), |address| address.to_string()),
            after: of.after.map_or_else(|| plan_words::NONE.to_owned(), |address| address.to_string()),
            flows: of.flows,
            draining: 0,
        }));
    }
}

fn member(change: &'static str, what: &str, member: &Member) -> Line {
    let moves = change == "renamed" && member.pool_before != member.pool_after;
    let name = |name: &Option<String>, pool: &Option<String>, there: bool| {
        let name = match name {
            Some(name) => name.as_str(),
            None if there => "(no name)",
            None => plan_words::NONE,
        };
        match pool.as_ref().filter(|_| moves) {
            Some(pool) => format!("{name} in {pool}"),
            None => name.to_owned(),
        }
    };
    Line {
        change,
        what: format!("{what} {}", member.address),
        before: name(&member.name_before, &member.pool_before, change != "added"),
        after: name(&member.name_after, &member.pool_after, change != "removed"),
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
            Change::Shared => "shared",
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
    let mut text: Vec<String> = shown
        .map(|run| {
            let shared = if run.shared { " shared" } else { "" };
            format!("{} {}-{}{shared}", run.frontend, run.range[0], run.range[1])
        })
        .collect();
    if runs.len() > RUNS {
        text.push(format!("+{}", runs.len() - RUNS));
    }
    text.join(", ")
}
