// SPDX-License-Identifier: MIT OR Apache-2.0
//! Live frames into ports that fill up towards one destination: what a new flow costs in stages of occupancy, and how
//! many packets a second are refused once nothing is left.

use std::{fmt::Write as _, thread};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::{
    chain::{BACKENDS, Chain},
    gateway::{Gateway, Kind, Rule, Setup},
    generator::{Generator, Shape},
    live::in_turn,
    measure::{CHECK_MASK, DRAIN, Lab, OPENING},
    options::Options,
    rig::Rig,
    sender::Limit,
    signal,
    stats::Spread,
    workload::Direction,
};

/// Ends of the stages, in percent of the ports.
const STAGES: [u32; 4] = [50, 90, 99, 100];
/// Ports of one address that a dynamic pool uses.
const PORTS_OF_ADDRESS: u32 = 64_512;
/// Ports of each backend where they are its own.
const BLOCK: u32 = 1024;

/// One gateway, one kind of ports, one repetition.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    ports: &'static str,
    gateway: &'static str,
    /// Ports towards the destination, all backends together.
    capacity: u32,
    /// Nanoseconds of a packet that opens a flow, by [`STAGES`].
    new_flow: [f64; STAGES.len()],
    /// Of the packets that should open a flow, those that did not arrive.
    lost: u64,
    /// Packets sent once no port was left, and those that arrived all the same.
    refused_sent: u64,
    refused_arrived: u64,
    /// Nanoseconds of such a packet.
    refused: f64,
    /// What natgw's counter says of refusals for want of a port.
    counted: Option<u64>,
}

/// Every repetition and their medians.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// Medians.
    pub(super) summary: Vec<Row>,
    samples: Vec<Sample>,
}

/// Medians for one gateway and one kind of ports.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    ports: &'static str,
    gateway: &'static str,
    capacity: u32,
    new_flow: Vec<Spread>,
    refused: Spread,
    /// Million packets refused a second.
    refused_mpps: f64,
    /// Cost of a refusal as a multiple of that of a new flow below 50 %.
    refused_of_new: f64,
    /// Share of the packets that should open a flow that did not arrive.
    lost: f64,
    /// Share of the packets that were sent once all ports were in use and arrived.
    passed: f64,
}

/// Measures gateways that translate, and the floor.
pub(super) fn run(options: &Options, lab: &Lab, gateways: &[Kind]) -> anyhow::Result<Figures> {
    let gateways: Vec<Kind> = gateways
        .iter()
        .copied()
        .filter(|kind| matches!(kind, Kind::Floor | Kind::Masquerade | Kind::Iptables | Kind::Natgw))
        .collect();
    let mut samples = Vec::new();
    for repetition in 0..options.repeat {
        for kind in in_turn(&gateways, repetition) {
            let dynamic = Rule::Dynamic { addresses: options.addresses };
            let rules = if kind == Kind::Natgw { vec![dynamic, Rule::Static(BLOCK)] } else { vec![dynamic] };
            for rule in rules {
                signal::check()?;
                let sample = sample(options, lab, kind, rule)
                    .with_context(|| format!("refusals through {kind}, repetition {}", repetition + 1))?;
                eprintln!(
                    "  {:>2}. refusals {:<8}{:<11}{:>8.1} ns refused, {:>8.1} ns new",
                    repetition + 1,
                    sample.ports,
                    sample.gateway,
                    sample.refused,
                    sample.new_flow[0]
                );
                samples.push(sample);
            }
        }
    }
    let mut summary = Vec::new();
    for ports in ["dynamic", "block"] {
        summary.extend(gateways.iter().filter_map(|kind| row(&samples, *kind, ports)));
    }
    Ok(Figures { summary, samples })
}

fn sample(options: &Options, lab: &Lab, kind: Kind, rule: Rule) -> anyhow::Result<Sample> {
    let (ports, capacity) = match rule {
        Rule::Dynamic { addresses } => ("dynamic", PORTS_OF_ADDRESS * u32::from(addresses)),
        Rule::Static(each) => ("block", each * BACKENDS),
    };
    let setup = Setup { rule, ..lab.setup() };
    let chain = Chain::build(lab.queues)?;
    let mut rig = Rig::load(&lab.object, &chain, 1)?;
    let frame = options.frame.first().copied().context("--frame names no length")?;
    let mut generator = Generator::new(frame, Shape::ONE_DESTINATION, &[options.one_cpu()?])?;
    let gateway = kind.start(&lab.object, &lab.natgw, &chain, &setup)?;
    rig.reset(CHECK_MASK, false)?;
    let (mut new_flow, mut from, mut sent) = ([0.0; STAGES.len()], 0, 0);
    for (ns, end) in new_flow.iter_mut().zip(STAGES) {
        let to = (u64::from(capacity) * u64::from(end) / 100) as u32;
        let limit = Limit { packets: u64::from(to - from), time: OPENING };
        let stage = generator.send(&mut rig, from..to, Direction::Outbound, limit)?;
        *ns = stage.busy.as_secs_f64() * 1e9 / stage.packets as f64;
        (from, sent) = (to, sent + stage.packets);
    }
    thread::sleep(DRAIN);
    let opened = rig.arrived()?;
    ensure!(opened.packets() > 0, "{sent} packets sent through {kind}, none arrived");
    rig.reset(CHECK_MASK, false)?;
    let over = generator.send(&mut rig, capacity..Shape::MOST_TO_ONE, Direction::Outbound, lab.limit)?;
    thread::sleep(DRAIN);
    let arrived = rig.arrived()?.packets();
    let counted = refusals_counted(&gateway)?;
    gateway.stop()?;
    if kind == Kind::Natgw {
        let lost = sent - opened.packets();
        ensure!(arrived == 0, "{arrived} packets arrived for which there was no port ({lost} lost before)");
    }
    Ok(Sample {
        ports,
        gateway: kind.name(),
        capacity,
        new_flow,
        lost: sent.saturating_sub(opened.packets()),
        refused_sent: over.packets,
        refused_arrived: arrived,
        refused: over.busy.as_secs_f64() * 1e9 / over.packets as f64,
        counted,
    })
}

/// What natgw counted of refusals for want of a port.
fn refusals_counted(gateway: &Gateway<'_>) -> anyhow::Result<Option<u64>> {
    let Gateway::Natgw(daemon) = gateway else { return Ok(None) };
    let stats = daemon.json("stats")?;
    let verdict = |name: &str| stats["verdicts"][name].as_u64().unwrap_or_default();
    Ok(Some(verdict("no_free_port") + verdict("search_cut")))
}

fn row(samples: &[Sample], kind: Kind, ports: &str) -> Option<Row> {
    let samples: Vec<&Sample> =
        samples.iter().filter(|sample| sample.gateway == kind.name() && sample.ports == ports).collect();
    let first = samples.first()?;
    let stage = |stage: usize| Spread::of(samples.iter().map(|sample| sample.new_flow[stage]));
    let new_flow: Vec<Spread> = (0..STAGES.len()).filter_map(stage).collect();
    let refused = Spread::of(samples.iter().map(|sample| sample.refused))?;
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(|sample| of(sample)).sum::<u64>() as f64;
    let opening = f64::from(first.capacity) * samples.len() as f64;
    Some(Row {
        ports: first.ports,
        gateway: first.gateway,
        capacity: first.capacity,
        refused_of_new: refused.median / new_flow.first()?.median,
        new_flow,
        refused,
        refused_mpps: 1000.0 / refused.median,
        lost: sum(|sample| sample.lost) / opening,
        passed: sum(|sample| sample.refused_arrived) / sum(|sample| sample.refused_sent),
    })
}

impl Figures {
    /// Name and nanoseconds of each row: the stages, then a refusal.
    pub(super) fn bars(&self) -> Vec<(String, Vec<f64>)> {
        let ns = |row: &Row| row.new_flow.iter().chain([&row.refused]).map(|spread| spread.median).collect();
        self.summary.iter().map(|row| (format!("{}, {}", row.gateway, row.ports), ns(row))).collect()
    }

    /// The medians, in at most 110 columns.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\nlive frames, ns of a packet that opens a flow to one destination, by ports in use; then without a port\n\n\
             {:<9}{:>9}  {:<11}{:>9}{:>9}{:>9}{:>9}{:>7}{:>10}{:>8}{:>8}{:>8}\n",
            "ports",
            "of them",
            "gateway",
            "–50%",
            "–90%",
            "–99%",
            "–100%",
            "lost",
            "refused",
            "Mpps",
            "of new",
            "passed"
        );
        for row in &self.summary {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "{:<9}{:>9}  {:<11}", row.ports, row.capacity, row.gateway);
            for stage in &row.new_flow {
                let _infallible = write!(text, "{:>9.0}", stage.median);
            }
            let _infallible = writeln!(
                text,
                "{:>6.1}%{:>10.0}{:>8.3}{:>8.2}{:>7.1}%",
                row.lost * 100.0,
                row.refused.median,
                row.refused_mpps,
                row.refused_of_new,
                row.passed * 100.0
            );
        }
        text
    }
}
