// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others do to established flows: one CPU sends packets of flows that are open, another one meanwhile floods as one
//! more backend does, or sweeps the table, without pause or as the daemon does. Only what the first CPU spends is compared.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::{
    attack::{self, Attack},
    chain::Chain,
    gateway::{Gateway, Kind, Rule, Setup},
    generator::{Generator, Shape},
    kernel_facts::{REST, Sweep},
    live::in_turn,
    measure::{CHECK_MASK, DRAIN, Lab, open, prove},
    options::Options,
    report::Report,
    rig::Rig,
    sender::{Sender, Sent, pin_to},
    signal,
    stats::Spread,
    workload::Direction,
};

/// Ports of each of 51 backends, the attacker included.
const PORTS: u32 = 1248;
const ALONE: &str = "alone";
const SWEEP: &str = "sweep without pause";
const PACED: &str = "sweep as the daemon";

/// One gateway under one condition, once.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    gateway: &'static str,
    /// What goes on meanwhile.
    meanwhile: &'static str,
    /// Flows in the table before.
    table: u32,
    /// Million packets of the victims received a second of their CPU's time.
    mpps: f64,
    sent: u64,
    received: u64,
    /// Packets of the attacker, and those that arrived.
    attacker_sent: u64,
    attacker_arrived: u64,
    /// Seconds that the attacker's CPU spent.
    attacker_seconds: f64,
    /// CPU time of each pass of the sweep, milliseconds.
    sweep_milliseconds: Vec<f64>,
}

/// Every repetition and their medians.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    victim_cpu: usize,
    other_cpu: usize,
    /// Flows that the victims' packets belong to.
    flows: u32,
    summary: Vec<Row>,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Row {
    gateway: &'static str,
    meanwhile: &'static str,
    table: u32,
    mpps: Spread,
    /// As a multiple of what the same gateway does alone with the same table.
    of_alone: Option<f64>,
    lost: f64,
    attacker_mpps: Option<f64>,
    attacker_arrived: Option<f64>,
    sweep_milliseconds: Option<Spread>,
}

/// Measures the floor, masquerade and natgw, where two CPUs are there.
pub(super) fn run(
    options: &Options,
    lab: &Lab,
    gateways: &[Kind],
    report: &mut Report,
) -> anyhow::Result<()> {
    let victim = options.one_cpu()?;
    let Some(other) = (0..lab.queues).find(|cpu| *cpu != victim) else {
        report.skip("interference", "it takes two CPUs, this machine has one");
        return Ok(());
    };
    let gateways: Vec<Kind> = gateways
        .iter()
        .copied()
        .filter(|kind| matches!(kind, Kind::Floor | Kind::Masquerade | Kind::Natgw))
        .collect();
    let flows = options.flows.iter().copied().max().unwrap_or(1);
    let (mut samples, mut no_sweep) = (Vec::new(), false);
    for repetition in 0..options.repeat {
        for kind in in_turn(&gateways, repetition) {
            let mut both = vec![flows];
            if kind == Kind::Natgw {
                both.push(options.new_flows.max(flows));
            }
            for (turn, table) in both.into_iter().enumerate() {
                signal::check()?;
                let mut bed = Bed { options, lab, kind, victim, other, flows, table, samples: Vec::new() };
                let found = bed
                    .measure(turn > 0)
                    .with_context(|| format!("interference through {kind}, repetition {}", repetition + 1))?;
                no_sweep |= !found;
                samples.append(&mut bed.samples);
            }
        }
    }
    if no_sweep {
        report.skip("interference by the sweep", "the daemon has no program of that name loaded");
    }
    let summary = summary(&samples);
    report.interference = Some(Figures { victim_cpu: victim, other_cpu: other, flows, summary, samples });
    Ok(())
}

/// One gateway with so many flows in its table.
struct Bed<'a> {
    options: &'a Options,
    lab: &'a Lab,
    kind: Kind,
    victim: usize,
    other: usize,
    flows: u32,
    table: u32,
    samples: Vec<Sample>,
}

impl Bed<'_> {
    /// All conditions in turn, on one loading of the gateway. False when there was no sweep to run.
    fn measure(&mut self, sweep: bool) -> anyhow::Result<bool> {
        let chain = Chain::build(self.lab.queues)?;
        let mut rig = Rig::load(&self.lab.object, &chain, 1)?;
        let frame = self.options.frame.first().copied().context("--frame names no length")?;
        let mut generator = Generator::new(frame, Shape::SPREAD, &[self.victim])?;
        let mut sender = Sender::new(self.other)?;
        let setup = Setup { rule: Rule::Static(PORTS), attacker: true, ..self.lab.setup() };
        let gateway = self.kind.start(&self.lab.object, &self.lab.natgw, &chain, &setup)?;
        open(&mut generator, &mut rig, self.table, false)?;
        generator
            .send(&mut rig, 0..self.flows, Direction::Outbound, self.lab.warm_up())
            .context("warm-up")?;
        let mut found = true;
        self.one(&mut rig, &mut generator, ALONE, |_| Ok(()), |(), _| {})?;
        if sweep {
            found = self.beside_sweep(&mut rig, &mut generator, &gateway)?;
        } else {
            for attack in Attack::ALL {
                attack::aim(&mut rig.ebpf, attack)?;
                let flood = |(ebpf, end): (&_, &_)| attack.flood(&chain, &mut sender, ebpf, end);
                self.one(&mut rig, &mut generator, attack.name(), flood, |sent: Sent, sample| {
                    sample.attacker_sent = sent.packets;
                    sample.attacker_seconds = sent.busy.as_secs_f64();
                })?;
            }
        }
        self.one(&mut rig, &mut generator, ALONE, |_| Ok(()), |(), _| {})?;
        gateway.stop()?;
        Ok(found)
    }

    fn beside_sweep(
        &mut self,
        rig: &mut Rig<'_>,
        generator: &mut Generator,
        gateway: &Gateway<'_>,
    ) -> anyhow::Result<bool> {
        let Gateway::Natgw(daemon) = gateway else { return Ok(true) };
        let _halted = daemon.halt()?;
        let Some(mut sweep) = Sweep::find(&daemon.pins())? else { return Ok(false) };
        let cpu = self.other;
        for (meanwhile, rest) in [(SWEEP, 0), (PACED, REST)] {
            let passes = |(_, end): (&_, &AtomicBool)| -> anyhow::Result<Vec<Duration>> {
                pin_to(cpu)?;
                let mut passes = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    signal::check()?;
                    passes.extend(sweep.pass(rest, end)?.map(|pass| pass.cpu));
                }
                Ok(passes)
            };
            self.one(rig, generator, meanwhile, passes, |passes, sample| {
                sample.sweep_milliseconds = passes.iter().map(|pass| pass.as_secs_f64() * 1e3).collect();
            })?;
        }
        Ok(true)
    }

    /// Measures the victims while `other` runs on a thread of its own, whose result `note` puts into the sample.
    fn one<T: Send>(
        &mut self,
        rig: &mut Rig<'_>,
        generator: &mut Generator,
        meanwhile: &'static str,
        other: impl FnOnce((&aya::Ebpf, &AtomicBool)) -> anyhow::Result<T> + Send,
        note: impl FnOnce(T, &mut Sample),
    ) -> anyhow::Result<()> {
        thread::sleep(DRAIN);
        rig.reset(CHECK_MASK, false)?;
        let (sent, other) =
            generator.send_beside(rig, 0..self.flows, Direction::Outbound, self.lab.limit, other)?;
        thread::sleep(DRAIN);
        let arrived = rig.arrived()?;
        prove(self.kind, &arrived)?;
        let received = arrived.packets();
        ensure!(received > 0, "nothing arrived");
        let mut sample = Sample {
            gateway: self.kind.name(),
            meanwhile,
            table: self.table,
            mpps: received as f64 / sent.busy.as_secs_f64() / 1e6,
            sent: sent.packets,
            received,
            attacker_sent: 0,
            attacker_arrived: arrived.outward.attack,
            attacker_seconds: 0.0,
            sweep_milliseconds: Vec::new(),
        };
        note(other, &mut sample);
        let Sample { gateway, table, mpps, .. } = &sample;
        eprintln!("      interference {gateway:<11}{table:>8} flows, {meanwhile:<22}{mpps:>7.3} Mpps");
        self.samples.push(sample);
        Ok(())
    }
}

/// Medians by gateway, table and condition, in the order in which they were measured.
fn summary(samples: &[Sample]) -> Vec<Row> {
    let mut keys: Vec<(&'static str, u32, &'static str)> = Vec::new();
    for sample in samples {
        let key = (sample.gateway, sample.table, sample.meanwhile);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|(gateway, table, _)| {
        (Kind::ALL.iter().position(|kind| kind.name() == *gateway), *table)
    });
    let group = |(gateway, table, meanwhile): (&str, u32, &str)| -> Vec<&Sample> {
        let alike = |s: &&Sample| s.gateway == gateway && s.table == table && s.meanwhile == meanwhile;
        samples.iter().filter(alike).collect()
    };
    let mpps = |group: &[&Sample]| Spread::of(group.iter().map(|sample| sample.mpps));
    let mut rows = Vec::new();
    for key in keys {
        let group_now = group(key);
        let alone = mpps(&group((key.0, key.1, ALONE))).map(|alone| alone.median);
        let Some(now) = mpps(&group_now) else { continue };
        let sum = |of: fn(&Sample) -> u64| group_now.iter().map(|s| of(s)).sum::<u64>() as f64;
        let seconds: f64 = group_now.iter().map(|s| s.attacker_seconds).sum();
        let attacker = sum(|s| s.attacker_sent);
        let passes = group_now.iter().flat_map(|s| s.sweep_milliseconds.iter().copied());
        rows.push(Row {
            gateway: key.0,
            meanwhile: key.2,
            table: key.1,
            of_alone: alone.map(|alone| now.median / alone),
            mpps: now,
            lost: 1.0 - sum(|s| s.received) / sum(|s| s.sent),
            attacker_mpps: (attacker > 0.0).then(|| attacker / seconds / 1e6),
            attacker_arrived: (attacker > 0.0).then(|| sum(|s| s.attacker_arrived) / attacker),
            sweep_milliseconds: Spread::of(passes),
        });
    }
    rows
}

impl Figures {
    /// The medians, in at most 110 columns.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{} established flows on CPU {}, meanwhile on CPU {}\n\n\
             {:<11}{:>9}  {:<22}{:>8}{:>15}{:>9}{:>7}{:>10}{:>9}{:>9}\n",
            self.flows,
            self.victim_cpu,
            self.other_cpu,
            "gateway",
            "in table",
            "meanwhile",
            "Mpps",
            "worst – best",
            "of alone",
            "lost",
            "attacker",
            "arrived",
            "pass ms"
        );
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        for row in &self.summary {
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "{:<11}{:>9}  {:<22}{:>8.3}{:>15}{:>9}{:>6.1}%{:>10}{:>9}{:>9}",
                row.gateway,
                row.table,
                row.meanwhile,
                row.mpps.median,
                format!("{:.2} – {:.2}", row.mpps.min, row.mpps.max),
                or_dash(row.of_alone.map(|ratio| format!("{ratio:.2}"))),
                row.lost * 100.0,
                or_dash(row.attacker_mpps.map(|mpps| format!("{mpps:.3}"))),
                or_dash(row.attacker_arrived.map(|share| format!("{:.1}%", share * 100.0))),
                or_dash(row.sweep_milliseconds.map(|pass| format!("{:.0}", pass.median)))
            );
        }
        text
    }
}
