// SPDX-License-Identifier: MIT OR Apache-2.0
//! The benches `established` and `new-flows`: repetitions in turn, medians side by side.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde::Serialize;

use super::{
    gateway::Kind,
    measure::{self, Lab, Sample},
    signal,
    stats::Spread,
    workload::{Direction, Workload},
};

/// One gateway under one workload: medians over the repetitions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(skip)]
    workload: usize,
    pub(super) bench: &'static str,
    pub(super) flows: u32,
    pub(super) direction: Direction,
    pub(super) frame_bytes: u16,
    pub(super) cpus: usize,
    pub(super) gateway: &'static str,
    /// Median of million packets received a second, and the worst and best repetition.
    pub(super) mpps: f64,
    mpps_min: f64,
    mpps_max: f64,
    /// Nanoseconds a packet at the median.
    ns_per_packet: f64,
    /// Medians of [`Sample::ns_by_tenth`].
    pub(super) ns_by_tenth: Vec<f64>,
    /// Median as a multiple of the floor's, where the floor took part.
    of_floor: Option<f64>,
    /// Median as a multiple of masquerade's, where masquerade took part.
    of_masquerade: Option<f64>,
    /// Median as a multiple of this gateway's with the first set of CPUs, where there are several sets.
    of_first_cpus: Option<f64>,
    /// Share of the packets sent that did not arrive, over all repetitions.
    lost: f64,
    /// Lowest share of packets that the sink met on a generating CPU.
    on_generator_cpu: f64,
}

/// Measures every workload through every gateway, `repeat` times.
pub(super) fn run(
    lab: &Lab,
    repeat: u32,
    workloads: &[Workload],
    gateways: &[Kind],
) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for repetition in 0..repeat {
        for (number, workload) in workloads.iter().enumerate() {
            for kind in in_turn(gateways, repetition) {
                signal::check()?;
                let sample = measure::repetition(lab, kind, (number, workload), repetition)
                    .with_context(|| format!("{workload} through {kind}, repetition {}", repetition + 1))?;
                eprintln!("{sample}");
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

/// Each repetition starts with another gateway, so that none always follows the same neighbour.
pub(super) fn in_turn(gateways: &[Kind], repetition: u32) -> impl Iterator<Item = Kind> {
    let count = gateways.len();
    (0..count).map(move |turn| gateways[(turn + repetition as usize) % count])
}

/// Medians, workload by workload.
pub(super) fn summary(samples: &[Sample], workloads: &[Workload], gateways: &[Kind]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (number, workload) in workloads.iter().enumerate() {
        let group: Vec<Row> =
            gateways.iter().filter_map(|kind| row(samples, (number, workload), *kind)).collect();
        let of = |kind: Kind| group.iter().find(|row| row.gateway == kind.name()).map(|row| row.mpps);
        let (floor, masquerade) = (of(Kind::Floor), of(Kind::Masquerade));
        let alike = |other: &Workload| Workload { cpus: workload.cpus.clone(), ..other.clone() } == *workload;
        let first = workloads.iter().position(alike).filter(|first| *first != number);
        for row in group {
            let before = |before: &&Row| Some(before.workload) == first && before.gateway == row.gateway;
            let of_first_cpus = rows.iter().find(before).map(|before| row.mpps / before.mpps);
            rows.push(Row {
                of_floor: floor.map(|mpps| row.mpps / mpps),
                of_masquerade: masquerade.map(|mpps| row.mpps / mpps),
                of_first_cpus,
                ..row
            });
        }
    }
    rows
}

fn row(samples: &[Sample], (number, workload): (usize, &Workload), kind: Kind) -> Option<Row> {
    let samples: Vec<&Sample> =
        samples.iter().filter(|sample| sample.workload == number && sample.gateway == kind.name()).collect();
    let mpps = Spread::of(samples.iter().map(|sample| sample.mpps))?;
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(|sample| of(sample)).sum::<u64>() as f64;
    let tenths = samples.first()?.ns_by_tenth.len();
    let tenth =
        |tenth: usize| samples.iter().filter_map(move |sample| sample.ns_by_tenth.get(tenth).copied());
    Some(Row {
        workload: number,
        bench: workload.name(),
        flows: workload.flows,
        direction: workload.direction,
        frame_bytes: workload.frame,
        cpus: workload.cpus.len(),
        gateway: kind.name(),
        mpps: mpps.median,
        mpps_min: mpps.min,
        mpps_max: mpps.max,
        ns_per_packet: 1000.0 / mpps.median,
        ns_by_tenth: (0..tenths).filter_map(|number| Some(Spread::of(tenth(number))?.median)).collect(),
        of_floor: None,
        of_masquerade: None,
        of_first_cpus: None,
        lost: 1.0 - sum(|sample| sample.received) / sum(|sample| sample.sent),
        on_generator_cpu: samples.iter().map(|sample| sample.on_generator_cpu).fold(1.0, f64::min),
    })
}

/// The medians, in at most 110 columns, and what new flows cost as the table fills.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<12}{:>8} {:<9}{:>6}{:>5}  {:<11}{:>8}{:>15}{:>8}{:>9}{:>9}{:>8}{:>7}\n",
        "bench",
        "flows",
        "direction",
        "bytes",
        "CPUs",
        "gateway",
        "Mpps",
        "worst – best",
        "ns",
        "of floor",
        "of masq.",
        "of 1st",
        "lost"
    );
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            text,
            "{:<12}{:>8} {:<9}{:>6}{:>5}  {:<11}{:>8.3}{:>15}{:>8.1}{:>9}{:>9}{:>8}{:>6.1}%",
            row.bench,
            row.flows,
            row.direction.name(),
            row.frame_bytes,
            row.cpus,
            row.gateway,
            row.mpps,
            format!("{:.2} – {:.2}", row.mpps_min, row.mpps_max),
            row.ns_per_packet,
            ratio(row.of_floor),
            ratio(row.of_masquerade),
            ratio(row.of_first_cpus),
            row.lost * 100.0
        );
    }
    if rows.iter().any(|row| row.on_generator_cpu < 0.99) {
        text.push_str(
            "\nsome packets reached the sink on a CPU that does not generate: these rows used more CPUs than named\n",
        );
    }
    let opening: Vec<&Row> = rows.iter().filter(|row| !row.ns_by_tenth.is_empty()).collect();
    if !opening.is_empty() {
        text.push_str("\nns of a new flow, by tenths of the flows, from the empty table on\n\n");
        for row in opening {
            let _infallible = write!(text, "{:<11}{:>3} CPU{:>6}", row.gateway, row.cpus, row.frame_bytes);
            for ns in &row.ns_by_tenth {
                let _infallible = write!(text, "{ns:>8.0}");
            }
            text.push('\n');
        }
    }
    text
}
