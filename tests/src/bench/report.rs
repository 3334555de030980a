// SPDX-License-Identifier: MIT OR Apache-2.0
//! Medians as a table for people, every repetition as JSON for programs.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    gateway::Kind,
    machine::Machine,
    measure::{Lab, Sample},
    options::Options,
    workload::Workload,
};

/// Everything one run found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    settings: Settings,
    summary: Vec<Row>,
    samples: Vec<Sample>,
    #[serde(skip)]
    workloads: Vec<Workload>,
    #[serde(skip)]
    gateways: Vec<Kind>,
}

#[derive(Debug, Serialize)]
struct Settings {
    frame_bytes: u16,
    generator_cpus: Vec<usize>,
    repetitions: u32,
    seconds: f64,
    packets: u64,
}

/// One gateway under one workload: medians over the repetitions.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    flows: u32,
    gateway: &'static str,
    /// Median of million packets received a second, and the worst and best repetition.
    mpps: f64,
    mpps_min: f64,
    mpps_max: f64,
    /// Nanoseconds a packet at the median.
    ns_per_packet: f64,
    /// Median as a multiple of the floor's, where the floor took part.
    of_floor: Option<f64>,
    /// Median as a multiple of masquerade's, where masquerade took part.
    of_masquerade: Option<f64>,
    /// Share of the packets sent that did not arrive, over all repetitions.
    lost: f64,
    /// Lowest share of packets that the sink met on a generating CPU.
    on_generator_cpu: f64,
}

impl Report {
    /// A report with the machine's facts and no figure yet.
    pub(super) fn new(options: &Options, lab: &Lab, gateways: &[Kind]) -> anyhow::Result<Self> {
        let natgw = gateways.contains(&Kind::Natgw).then(|| options.natgw_binary()).transpose()?;
        Ok(Self {
            machine: Machine::read(natgw.as_deref()),
            settings: Settings {
                frame_bytes: options.frame,
                generator_cpus: lab.cpus.clone(),
                repetitions: options.repeat,
                seconds: options.seconds,
                packets: options.packets,
            },
            summary: Vec::new(),
            samples: Vec::new(),
            workloads: options.workloads(),
            gateways: gateways.to_vec(),
        })
    }

    /// Takes in one repetition.
    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
        self.summary = self.summarise();
    }

    fn summarise(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for workload in &self.workloads {
            let group: Vec<Row> = self.gateways.iter().filter_map(|kind| self.row(workload, *kind)).collect();
            let of = |kind: Kind| group.iter().find(|row| row.gateway == kind.name()).map(|row| row.mpps);
            let (floor, masquerade) = (of(Kind::Floor), of(Kind::Masquerade));
            rows.extend(group.into_iter().map(|row| Row {
                of_floor: floor.map(|mpps| row.mpps / mpps),
                of_masquerade: masquerade.map(|mpps| row.mpps / mpps),
                ..row
            }));
        }
        rows
    }

    fn row(&self, workload: &Workload, kind: Kind) -> Option<Row> {
        let samples: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|sample| {
                sample.bench == workload.name()
                    && sample.flows == workload.flows
                    && sample.gateway == kind.name()
            })
            .collect();
        let mut mpps: Vec<f64> = samples.iter().map(|sample| sample.mpps).collect();
        mpps.sort_by(f64::total_cmp);
        let median = median(&mpps)?;
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(|sample| of(sample)).sum::<u64>() as f64;
        Some(Row {
            bench: workload.name(),
            flows: workload.flows,
            gateway: kind.name(),
            mpps: median,
            mpps_min: *mpps.first()?,
            mpps_max: *mpps.last()?,
            ns_per_packet: 1000.0 / median,
            of_floor: None,
            of_masquerade: None,
            lost: 1.0 - sum(|sample| sample.received) / sum(|sample| sample.sent),
            on_generator_cpu: samples.iter().map(|sample| sample.on_generator_cpu).fold(1.0, f64::min),
        })
    }

    /// Medians, in at most 100 columns.
    pub(super) fn table(&self) -> String {
        let Machine { kernel, cpu, cpus, load_before, .. } = &self.machine;
        let Settings { frame_bytes, generator_cpus, repetitions, .. } = &self.settings;
        let mut text = format!(
            "\nLinux {kernel}, {cpu}, {cpus} CPUs, load before the run {load_before:.1}\n\
             {frame_bytes}-byte frames, generating on CPU {generator_cpus:?}, medians of {repetitions}\n\n\
             {:<12}{:>8}  {:<11}{:>8}  {:>15}  {:>9}  {:>8}  {:>9}  {:>6}\n",
            "bench", "flows", "gateway", "Mpps", "worst – best", "ns/packet", "of floor", "of masq.", "lost"
        );
        for row in &self.summary {
            let ratio =
                |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
            let spread = format!("{:.2} – {:.2}", row.mpps_min, row.mpps_max);
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "{:<12}{:>8}  {:<11}{:>8.3}  {spread:>15}  {:>9.1}  {:>8}  {:>9}  {:>5.1}%",
                row.bench,
                row.flows,
                row.gateway,
                row.mpps,
                row.ns_per_packet,
                ratio(row.of_floor),
                ratio(row.of_masquerade),
                row.lost * 100.0
            );
        }
        let elsewhere = self.summary.iter().any(|row| row.on_generator_cpu < 0.99);
        if elsewhere {
            text.push_str(
                "\nsome packets reached the sink on a CPU that does not generate: these rows used more CPUs than named\n",
            );
        }
        text
    }

    /// Writes machine facts, settings, medians and every repetition.
    pub(super) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        write(path, self)
    }
}

/// Writes figures as JSON.
pub(super) fn write(path: &Path, figures: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(figures).context("cannot write the report as JSON")?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Middle of a sorted list, the mean of the two middle ones when their number is even.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }
}
