// SPDX-License-Identifier: MIT OR Apache-2.0
//! One repetition: fresh chain, fresh gateway, precheck, warm-up, timing, proof.

use std::{fmt, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, ensure};
use bench_ebpf::Sink as Counters;
use serde::Serialize;

use super::{
    chain::Chain,
    gateway::Kind,
    generator::{Generator, Limit, Sent},
    options::Options,
    sink::Sink,
    workload::{Live, MAX_FLOWS, Workload},
};

/// Packets of the precheck, each of a flow of its own.
const PRECHECK: u32 = 1024;
/// Least warm-up of established flows, after every flow was opened.
const WARM_UP: Duration = Duration::from_millis(200);
/// Longest time for opening flows or for all of `new-flows`.
const OPENING: Duration = Duration::from_secs(60);
/// While timing, one packet in so many is verified, less one.
const CHECK_MASK: u32 = 1023;
/// What is left in the queues when the generator returns arrives in this time.
const DRAIN: Duration = Duration::from_millis(50);

/// What all repetitions share.
#[derive(Debug)]
pub(super) struct Lab {
    object: Vec<u8>,
    natgw: PathBuf,
    /// CPUs that generate.
    pub(super) cpus: Vec<usize>,
    frame: u16,
    queues: usize,
    limit: Limit,
}

impl Lab {
    /// Reads the BPF object and settles what the options leave open.
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        ensure!(
            options.seconds > 0.0 && options.seconds <= 600.0,
            "--seconds must be above 0 and at most 600"
        );
        let cpus = options.generator_cpus()?;
        Ok(Self {
            object: Options::object()?,
            natgw: options.natgw_binary()?,
            queues: cpus.iter().max().map_or(1, |cpu| cpu + 1),
            cpus,
            frame: options.frame,
            limit: Limit { packets: options.packets, time: Duration::from_secs_f64(options.seconds) },
        })
    }
}

/// The outcome of one repetition.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    /// Name of the bench.
    pub(super) bench: &'static str,
    /// Flows in the cycle, or flows opened.
    pub(super) flows: u32,
    /// Name of the gateway.
    pub(super) gateway: &'static str,
    /// Number of the repetition, from 0.
    pub(super) repetition: u32,
    /// Packets sent.
    pub(super) sent: u64,
    /// Packets that arrived at the sink, all of them as this gateway should leave them.
    pub(super) received: u64,
    /// CPU time of the busiest generating CPU, its softirq thread included; the other figures are made from it.
    pub(super) seconds: f64,
    /// Its part that was put off to the softirq thread.
    pub(super) softirqd_seconds: f64,
    /// Time of sending by the clock on the wall, with set-up and whatever else the CPU had to do.
    pub(super) wall_seconds: f64,
    /// Million packets received a second.
    pub(super) mpps: f64,
    /// Nanoseconds a received packet.
    pub(super) ns_per_packet: f64,
    /// Packets whose checksums were verified, all right.
    pub(super) verified: u64,
    /// Share of the received packets that the sink met on a CPU that generates.
    pub(super) on_generator_cpu: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, flows, gateway, repetition, sent, received, mpps, ns_per_packet, .. } = self;
        let lost = sent.saturating_sub(*received);
        let number = repetition + 1;
        write!(
            out,
            "  {number:>2}. {bench} {flows:<8} {gateway:<11}{mpps:>7.3} Mpps {ns_per_packet:>8.1} ns, {lost} lost"
        )
    }
}

/// Measures one gateway once, from nothing to nothing.
pub(super) fn repetition(
    lab: &Lab,
    kind: Kind,
    workload: &Workload,
    repetition: u32,
) -> anyhow::Result<Sample> {
    let chain = Chain::build(lab.queues)?;
    let mut sink = Sink::attach(&lab.object, &chain)?;
    let mut generator = Generator::load(&lab.object, &chain, lab.frame, &lab.cpus)?;
    let gateway = kind.start(&lab.object, &lab.natgw, &chain)?;
    precheck(kind, workload, &mut generator, &mut sink).context("precheck, nothing was timed")?;
    let sent = time(lab, workload, &mut generator, &mut sink)?;
    thread::sleep(DRAIN);
    let total = sink.total()?;
    prove(kind, &total)?;
    let on_generator_cpu = {
        let per_cpu = sink.per_cpu()?;
        let near: u64 = lab.cpus.iter().filter_map(|cpu| per_cpu.get(*cpu)).map(|cpu| cpu.packets).sum();
        near as f64 / total.packets as f64
    };
    gateway.stop()?;
    Ok(Sample {
        bench: workload.name(),
        flows: workload.flows,
        gateway: kind.name(),
        repetition,
        sent: sent.packets,
        received: total.packets,
        seconds: sent.busy.as_secs_f64(),
        softirqd_seconds: sent.softirqd.as_secs_f64(),
        wall_seconds: sent.time.as_secs_f64(),
        mpps: total.packets as f64 / sent.busy.as_secs_f64() / 1e6,
        ns_per_packet: sent.busy.as_secs_f64() * 1e9 / total.packets as f64,
        verified: total.checked,
        on_generator_cpu,
    })
}

/// Every one of a few packets must arrive, translated where the gateway translates, with right checksums.
fn precheck(
    kind: Kind,
    workload: &Workload,
    generator: &mut Generator<'_>,
    sink: &mut Sink,
) -> anyhow::Result<()> {
    sink.reset(0)?;
    let flows = match workload.bench {
        Live::Established => 0..workload.flows.min(PRECHECK),
        // Flows that the timing will not meet again.
        Live::NewFlows => MAX_FLOWS - PRECHECK..MAX_FLOWS,
    };
    let packets = u64::from(flows.end - flows.start);
    let sent = generator.send(flows, Limit { packets, time: OPENING })?;
    thread::sleep(DRAIN);
    let total = sink.total()?;
    ensure!(total.packets > 0, "{} packets sent through {kind}, none arrived", sent.packets);
    prove(kind, &total)?;
    ensure!(
        total.packets == sent.packets,
        "{} packets of as many flows sent through {kind}, {} arrived",
        sent.packets,
        total.packets
    );
    Ok(())
}

/// Warms up, then sends the timed packets.
fn time(
    lab: &Lab,
    workload: &Workload,
    generator: &mut Generator<'_>,
    sink: &mut Sink,
) -> anyhow::Result<Sent> {
    let flows = 0..workload.flows;
    match workload.bench {
        Live::Established => {
            let opening = Limit { packets: u64::from(workload.flows), time: OPENING };
            generator.send(flows.clone(), opening).context("opening the flows")?;
            generator.send(flows.clone(), Limit { packets: u64::MAX, time: WARM_UP }).context("warm-up")?;
            thread::sleep(DRAIN);
            sink.reset(CHECK_MASK)?;
            generator.send(flows, lab.limit)
        }
        Live::NewFlows => {
            sink.reset(CHECK_MASK)?;
            generator.send(flows, Limit { packets: u64::from(workload.flows), time: OPENING })
        }
    }
}

/// What arrived must be what this gateway is there to produce, whatever its speed.
fn prove(kind: Kind, total: &Counters) -> anyhow::Result<()> {
    let Counters { packets, from_frontend, from_backend, checked, bad, .. } = *total;
    let (right, what) =
        if kind.translates() { (from_frontend, "the frontend") } else { (from_backend, "their backends") };
    ensure!(
        packets > 0 && right == packets,
        "{packets} packets arrived through {kind}, only {right} of them with the address of {what} \
         ({from_frontend} from the frontend, {from_backend} from backends)"
    );
    ensure!(
        checked > 0 && bad == 0,
        "{bad} of {checked} verified packets that arrived through {kind} have a wrong length or checksum"
    );
    Ok(())
}
