// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything one run found out: tables of medians for people, every repetition as JSON for programs.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    control, fair, gateway::Kind, interference, live, machine::Machine, measure::Sample, options::Options,
    ports, refusals, tcp, workload::Workload,
};

/// Figures of all benches that ran.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What it was measured on.
    machine: Machine,
    settings: Settings,
    /// Medians of `samples`.
    pub(super) summary: Vec<live::Row>,
    /// Every repetition of `established` and `new-flows`.
    pub(super) samples: Vec<Sample>,
    /// Bench `refusals`.
    pub(super) refusals: Option<refusals::Figures>,
    /// Bench `interference`.
    pub(super) interference: Option<interference::Figures>,
    /// Bench `control`.
    pub(super) control: Option<control::Figures>,
    /// Bench `tcp`.
    pub(super) tcp: Option<tcp::Figures>,
    /// Bench `ports`.
    pub(super) ports: Option<Vec<ports::Row>>,
    /// Bench `fair`.
    pub(super) fair: Option<Vec<fair::Row>>,
    /// What could not be measured here, and why.
    pub(super) skipped: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Settings {
    frame_bytes: Vec<u16>,
    cpu_sets: Vec<Vec<usize>>,
    repetitions: u32,
    seconds: f64,
    packets: u64,
    max_flows: u32,
    streams: u32,
}

impl Report {
    /// A report with the machine's facts and no figure yet.
    pub(super) fn new(options: &Options, gateways: &[Kind]) -> anyhow::Result<Self> {
        let natgw = gateways.contains(&Kind::Natgw).then(|| options.natgw_binary()).transpose()?;
        Ok(Self {
            machine: Machine::read(natgw.as_deref()),
            settings: Settings {
                frame_bytes: options.frame.clone(),
                cpu_sets: options.cpu_sets()?,
                repetitions: options.repeat,
                seconds: options.seconds,
                packets: options.packets,
                max_flows: options.max_flows,
                streams: options.streams,
            },
            summary: Vec::new(),
            samples: Vec::new(),
            refusals: None,
            interference: None,
            control: None,
            tcp: None,
            ports: None,
            fair: None,
            skipped: Vec::new(),
        })
    }

    /// Notes down what is not measured, and says so at once.
    pub(super) fn skip(&mut self, what: &str, reason: &str) {
        eprintln!("SKIPPED: {what}: {reason}");
        self.skipped.push(format!("{what}: {reason}"));
    }

    /// Takes in the repetitions of the benches with live frames.
    pub(super) fn add(&mut self, samples: Vec<Sample>, workloads: &[Workload], gateways: &[Kind]) {
        self.summary = live::summary(&samples, workloads, gateways);
        self.samples = samples;
    }

    /// Machine, then the table of each bench that ran.
    pub(super) fn text(&self) -> String {
        let mut text = self.machine.text(&self.settings.cpu_sets, self.settings.repetitions);
        if !self.summary.is_empty() {
            text.push_str(&live::table(&self.summary));
        }
        let tables = [
            self.refusals.as_ref().map(refusals::Figures::table),
            self.interference.as_ref().map(interference::Figures::table),
            self.control.as_ref().map(control::Figures::table),
            self.tcp.as_ref().map(tcp::Figures::table),
            self.ports.as_deref().map(ports::table),
            self.fair.as_deref().map(fair::table),
        ];
        text.extend(tables.into_iter().flatten());
        if !self.skipped.is_empty() {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "\n{} skipped:", self.skipped.len());
            for skipped in &self.skipped {
                let _infallible = writeln!(text, "  {skipped}");
            }
        }
        text
    }

    /// Writes all of it as JSON.
    pub(super) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the report as JSON")?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}
