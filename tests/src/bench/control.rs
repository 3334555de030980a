// SPDX-License-Identifier: MIT OR Apache-2.0
//! What natgw costs beside packets: start and reload with many backends, kernel memory, size of its programs, and a pass
//! of the sweep over a full table.

use std::{sync::atomic::AtomicBool, time::Instant};

use anyhow::{Context as _, ensure};
use nat_common::abi::names::{FLOWS, RECORDS, ROOTS};
use serde::Serialize;

use super::{
    chain::Chain,
    gateway::{Daemon, Gateway, Kind, LARGE_BACKENDS, LARGE_FRONTENDS, large},
    generator::{Generator, Shape},
    kernel_facts::{self, MapFacts, ProgramFacts, Sweep},
    measure::{Lab, open},
    options::Options,
    rig::Rig,
    signal,
    stats::Spread,
};

/// Tables whose size goes with the flows'.
const BY_FLOW: [&str; 3] = [FLOWS, RECORDS, ROOTS];
/// Passes of the sweep in one repetition.
const PASSES: u32 = 5;
/// Maps that the table names.
const GREATEST: usize = 6;

/// Everything, with all repetitions.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    backends: u32,
    frontends: u32,
    max_flows: u32,
    /// From the start of the process to its line `ready`, milliseconds.
    start: Spread,
    start_milliseconds: Vec<f64>,
    /// `natgw apply` that changes every block, milliseconds from the start of the command to its end.
    apply: Spread,
    apply_milliseconds: Vec<f64>,
    /// What the last one said.
    apply_says: String,
    /// Kernel memory of the pinned maps, bytes.
    maps: Vec<MapFacts>,
    /// The same of `FLOWS`, by [`Self::max_flows`].
    flows_bytes_per_flow: f64,
    /// The same of all tables whose size goes with the flows.
    bytes_per_flow: f64,
    programs: Vec<ProgramFacts>,
    /// Flows in the table that was swept.
    swept_flows: u32,
    /// CPU time of a pass, milliseconds; `None`: no sweep was found.
    sweep: Option<Spread>,
    sweep_milliseconds: Vec<f64>,
    /// Slices of a pass, and CPU time of the longest one of each pass, milliseconds.
    sweep_slices: u32,
    sweep_longest_slice: Option<Spread>,
    /// Entries that a pass looked at.
    sweep_visited: u64,
    /// What `natgw status --json` says of the daemon's own last pass.
    daemon_sweep: serde_json::Value,
}

/// Measures all of it.
pub(super) fn run(options: &Options, lab: &Lab) -> anyhow::Result<Figures> {
    let (mut starts, mut applies, mut says, mut facts) = (Vec::new(), Vec::new(), String::new(), None);
    for repetition in 0..options.repeat {
        signal::check()?;
        let chain = Chain::build(lab.queues)?;
        let daemon = Daemon::start(&lab.natgw, &chain, |name| large(name, lab.max_flows, false))
            .with_context(|| {
                format!("start with {LARGE_BACKENDS} backends, repetition {}", repetition + 1)
            })?;
        starts.push(daemon.started_in.as_secs_f64() * 1e3);
        for variant in [true, false] {
            let text = large(daemon.instance(), lab.max_flows, variant);
            let start = Instant::now();
            says = daemon.apply(&text)?;
            applies.push(start.elapsed().as_secs_f64() * 1e3);
        }
        facts = Some((kernel_facts::maps(&daemon.pins())?, kernel_facts::programs(&daemon.pins())?));
        daemon.stop()?;
        eprintln!(
            "  {:>2}. control start {:.0} ms",
            repetition + 1,
            starts.last().copied().unwrap_or_default()
        );
    }
    let (maps, programs) = facts.context("--repeat is 0")?;
    let bytes = |names: &[&str]| -> f64 {
        maps.iter().filter(|map| names.contains(&map.name)).map(|map| map.bytes).sum::<u64>() as f64
    };
    let swept = sweep(options, lab)?;
    Ok(Figures {
        backends: LARGE_BACKENDS,
        frontends: LARGE_FRONTENDS,
        max_flows: lab.max_flows,
        start: Spread::of(starts.iter().copied()).context("no start")?,
        start_milliseconds: starts,
        apply: Spread::of(applies.iter().copied()).context("no reload")?,
        apply_milliseconds: applies,
        apply_says: says.lines().next().unwrap_or_default().to_owned(),
        flows_bytes_per_flow: bytes(&[FLOWS]) / f64::from(lab.max_flows),
        bytes_per_flow: bytes(&BY_FLOW) / f64::from(lab.max_flows),
        maps,
        programs,
        swept_flows: options.new_flows,
        sweep: Spread::of(swept.milliseconds.iter().copied()),
        sweep_milliseconds: swept.milliseconds,
        sweep_slices: swept.slices,
        sweep_longest_slice: Spread::of(swept.longest.iter().copied()),
        sweep_visited: swept.visited,
        daemon_sweep: swept.daemon,
    })
}

#[derive(Default)]
struct Swept {
    milliseconds: Vec<f64>,
    longest: Vec<f64>,
    slices: u32,
    visited: u64,
    daemon: serde_json::Value,
}

fn sweep(options: &Options, lab: &Lab) -> anyhow::Result<Swept> {
    let mut swept = Swept::default();
    for _ in 0..options.repeat {
        signal::check()?;
        let chain = Chain::build(lab.queues)?;
        let mut rig = Rig::load(&lab.object, &chain, 1)?;
        let frame = options.frame.first().copied().context("--frame names no length")?;
        let mut generator = Generator::new(frame, Shape::SPREAD, &[options.one_cpu()?])?;
        let gateway = Kind::Natgw.start(&lab.object, &lab.natgw, &chain, &lab.setup())?;
        open(&mut generator, &mut rig, options.new_flows, false)?;
        if let Gateway::Natgw(daemon) = &gateway {
            swept.daemon = daemon.json("status")?["sweep"].clone();
            let _halted = daemon.halt()?;
            if let Some(mut sweep) = Sweep::find(&daemon.pins())? {
                for _ in 0..PASSES {
                    let pass = sweep.pass(0, &AtomicBool::new(false))?.context("a pass that ended early")?;
                    ensure!(pass.visited > 0, "a pass of the sweep looked at nothing");
                    swept.milliseconds.push(pass.cpu.as_secs_f64() * 1e3);
                    swept.longest.push(pass.longest.as_secs_f64() * 1e3);
                    (swept.visited, swept.slices) = (pass.visited, pass.slices);
                }
            }
        }
        gateway.stop()?;
    }
    Ok(swept)
}

impl Figures {
    /// In at most 100 columns.
    pub(super) fn table(&self) -> String {
        let Self { backends, frontends, max_flows, start, apply, .. } = self;
        let mut text = format!(
            "\n{backends} backends, {frontends} frontends, a table for {max_flows} flows\n\n\
             start to `ready`      {:>8.0} ms  ({:.0} – {:.0})\n\
             apply, every block    {:>8.0} ms  ({:.0} – {:.0}); last: {}\n",
            start.median, start.min, start.max, apply.median, apply.min, apply.max, self.apply_says
        );
        // Writing to a String cannot fail.
        let mut line = |written: String| text = std::mem::take(&mut text) + &written + "\n";
        match &self.sweep {
            Some(pass) => line(format!(
                "sweep, CPU time       {:>8.0} ms  ({:.0} – {:.0}), {} flows, {} entries, {} slices",
                pass.median, pass.min, pass.max, self.swept_flows, self.sweep_visited, self.sweep_slices
            )),
            None => line("sweep                 not found among the loaded programs".to_owned()),
        }
        if let Some(longest) = &self.sweep_longest_slice {
            line(format!(
                "  its longest slice   {:>8.1} ms  ({:.1} – {:.1})",
                longest.median, longest.min, longest.max
            ));
        }
        line(format!("  the daemon's last: {}", self.daemon_sweep));
        line(format!(
            "memory of a flow      {:>8.0} bytes in FLOWS, {:.0} with {} and {}",
            self.flows_bytes_per_flow, self.bytes_per_flow, RECORDS, ROOTS
        ));
        let total: u64 = self.maps.iter().map(|map| map.bytes).sum();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        line(format!("memory of all maps    {:>8.1} MiB", mib(total)));
        for map in self.maps.iter().take(GREATEST) {
            line(format!("  {:<20}{:>8.1} MiB", map.name, mib(map.bytes)));
        }
        line(format!(
            "\n{:<18}{:>14}{:>14}{:>24}",
            "program", "instructions", "machine bytes", "verified instructions"
        ));
        for program in &self.programs {
            let or_dash =
                |value: Option<u32>| value.map_or_else(|| "–".to_owned(), |value| value.to_string());
            line(format!(
                "{:<18}{:>14}{:>14}{:>24}",
                program.name,
                or_dash(program.xlated_bytes.map(|bytes| bytes / 8)),
                program.jited_bytes,
                or_dash(program.verified_instructions)
            ));
        }
        text
    }
}
