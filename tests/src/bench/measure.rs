// SPDX-License-Identifier: MIT OR Apache-2.0
//! One repetition: fresh chain, fresh gateway, precheck, warm-up, timing, proof.

use std::{fmt, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::{
    chain::Chain,
    gateway::{Kind, Rule, Setup},
    generator::{Generator, Shape},
    options::Options,
    rig::Rig,
    sender::{Limit, Sent},
    sink::Arrived,
    workload::{Direction, Live, MAX_FLOWS, PORTS_PER_BACKEND, Workload},
};

/// Packets of the precheck, each of a flow of its own.
const PRECHECK: u32 = 1024;
/// Longest warm-up of established flows, after every flow was opened; no longer than the timing itself.
const WARM_UP: Duration = Duration::from_millis(200);
/// Longest time for opening flows or for all of `new-flows`.
pub(super) const OPENING: Duration = Duration::from_secs(60);
/// While timing, one packet in so many is verified, less one.
pub(super) const CHECK_MASK: u32 = 1023;
/// What is left in the queues when the generator returns arrives in this time.
pub(super) const DRAIN: Duration = Duration::from_millis(50);
/// Parts of `new-flows` that are timed one by one.
const STAGES: u32 = 10;

/// What all repetitions share.
#[derive(Debug)]
pub(super) struct Lab {
    /// The BPF object with generator, sinks and floor.
    pub(super) object: Vec<u8>,
    /// The program under test.
    pub(super) natgw: PathBuf,
    /// Queues of every device: one for each CPU that may send.
    pub(super) queues: usize,
    /// When a timing ends.
    pub(super) limit: Limit,
    /// Places in natgw's flow table.
    pub(super) max_flows: u32,
}

impl Lab {
    /// Reads the BPF object and settles what the options leave open.
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            object: options.object()?,
            natgw: options.natgw_binary()?,
            queues: thread::available_parallelism().context("cannot count the CPUs")?.get(),
            limit: Limit { packets: options.packets, time: options.time() },
            max_flows: options.max_flows,
        })
    }

    /// When a warm-up ends.
    pub(super) fn warm_up(&self) -> Limit {
        Limit { packets: u64::MAX, time: self.limit.time.min(WARM_UP) }
    }

    /// The usual setting: ports of its own for each backend.
    pub(super) const fn setup(&self) -> Setup {
        Setup { rule: Rule::Static(PORTS_PER_BACKEND), attacker: false, max_flows: self.max_flows }
    }
}

/// The outcome of one repetition.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    /// Which of the workloads.
    #[serde(skip)]
    pub(super) workload: usize,
    /// Name of the bench.
    pub(super) bench: &'static str,
    /// Flows in the cycle, or flows opened.
    pub(super) flows: u32,
    /// Which way packets went.
    pub(super) direction: Direction,
    /// Frame length in bytes.
    pub(super) frame_bytes: u16,
    /// CPUs that generated.
    pub(super) cpus: Vec<usize>,
    /// Name of the gateway.
    pub(super) gateway: &'static str,
    /// Number of the repetition, from 0.
    pub(super) repetition: u32,
    /// Packets sent.
    pub(super) sent: u64,
    /// Packets that arrived at a sink, all of them as this gateway should leave them.
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
    /// `new-flows`: nanoseconds a packet by tenths of the flows, from the empty table on; else empty.
    pub(super) ns_by_tenth: Vec<f64>,
    /// Packets whose checksums were verified, all right.
    pub(super) verified: u64,
    /// Share of the received packets that a sink met on a CPU that generates.
    pub(super) on_generator_cpu: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, flows, direction, frame_bytes, gateway, repetition, sent, received, .. } = self;
        let lost = sent.saturating_sub(*received);
        write!(
            out,
            "  {:>2}. {bench} {flows:<8} {:<9}{frame_bytes:>5} B on {} CPU {gateway:<11}{:>7.3} Mpps {:>8.1} ns, {lost} lost",
            repetition + 1,
            direction.name(),
            self.cpus.len(),
            self.mpps,
            self.ns_per_packet,
        )
    }
}

/// Measures one gateway once, from nothing to nothing.
pub(super) fn repetition(
    lab: &Lab,
    kind: Kind,
    (number, workload): (usize, &Workload),
    repetition: u32,
) -> anyhow::Result<Sample> {
    let chain = Chain::build(lab.queues)?;
    let mut rig = Rig::load(&lab.object, &chain, workload.flows)?;
    let mut generator = Generator::new(workload.frame, Shape::SPREAD, &workload.cpus)?;
    let gateway = kind.start(&lab.object, &lab.natgw, &chain, &lab.setup())?;
    precheck(kind, workload, &mut generator, &mut rig)
        .with_context(|| format!("precheck, nothing was timed; {}", gateway.says()))?;
    let (sent, ns_by_tenth) = time(lab, kind, workload, &mut generator, &mut rig)?;
    thread::sleep(DRAIN);
    let arrived = rig.arrived()?;
    prove(kind, &arrived).with_context(|| gateway.says())?;
    let on_generator_cpu = rig.share_on(&workload.cpus)?;
    gateway.stop()?;
    let received = arrived.packets();
    Ok(Sample {
        workload: number,
        bench: workload.name(),
        flows: workload.flows,
        direction: workload.direction,
        frame_bytes: workload.frame,
        cpus: workload.cpus.clone(),
        gateway: kind.name(),
        repetition,
        sent: sent.packets,
        received,
        seconds: sent.busy.as_secs_f64(),
        softirqd_seconds: sent.softirqd.as_secs_f64(),
        wall_seconds: sent.time.as_secs_f64(),
        mpps: received as f64 / sent.busy.as_secs_f64() / 1e6,
        ns_per_packet: sent.busy.as_secs_f64() * 1e9 / received as f64,
        ns_by_tenth,
        verified: arrived.checked(),
        on_generator_cpu,
    })
}

/// Every one of a few packets must arrive, translated where the gateway translates, with right checksums.
fn precheck(
    kind: Kind,
    workload: &Workload,
    generator: &mut Generator,
    rig: &mut Rig<'_>,
) -> anyhow::Result<()> {
    rig.reset(0, false)?;
    let flows = match workload.bench {
        Live::Established => 0..workload.flows.min(PRECHECK),
        // Flows that the timing will not meet again.
        Live::NewFlows => MAX_FLOWS - PRECHECK..MAX_FLOWS,
    };
    let packets = u64::from(flows.end - flows.start);
    let sent = generator.send(rig, flows, Direction::Outbound, Limit { packets, time: OPENING })?;
    thread::sleep(DRAIN);
    let arrived = rig.arrived()?;
    ensure!(arrived.packets() > 0, "{} packets sent through {kind}, none arrived", sent.packets);
    prove(kind, &arrived)?;
    ensure!(
        arrived.packets() == sent.packets,
        "{} packets of as many flows sent through {kind}, {} arrived",
        sent.packets,
        arrived.packets()
    );
    Ok(())
}

/// Opens flows `0..flows`, one packet each, and notes down where the sink sees them come from if they are to be answered.
pub(super) fn open(
    generator: &mut Generator,
    rig: &mut Rig<'_>,
    flows: u32,
    answered: bool,
) -> anyhow::Result<()> {
    rig.reset(CHECK_MASK, answered)?;
    let opening = Limit { packets: u64::from(flows), time: OPENING };
    generator.send(rig, 0..flows, Direction::Outbound, opening).context("opening the flows")?;
    thread::sleep(DRAIN);
    let learnt = rig.arrived()?.outward.learnt;
    ensure!(
        !answered || learnt == u64::from(flows),
        "{flows} flows opened, {learnt} seen to arrive: the others cannot be answered"
    );
    Ok(())
}

/// Warms up, then sends the timed packets; of new flows also what each tenth cost.
fn time(
    lab: &Lab,
    kind: Kind,
    workload: &Workload,
    generator: &mut Generator,
    rig: &mut Rig<'_>,
) -> anyhow::Result<(Sent, Vec<f64>)> {
    let (flows, direction) = (0..workload.flows, workload.direction);
    match workload.bench {
        Live::Established => {
            open(generator, rig, workload.flows, direction.has_inbound())?;
            generator.send(rig, flows.clone(), direction, lab.warm_up()).context("warm-up")?;
            thread::sleep(DRAIN);
            rig.reset(CHECK_MASK, false)?;
            Ok((generator.send(rig, flows, direction, lab.limit)?, Vec::new()))
        }
        Live::NewFlows => {
            rig.reset(CHECK_MASK, false)?;
            let (mut total, mut by_tenth) = (Sent::NOTHING, Vec::new());
            let edge = |stage: u32| (u64::from(workload.flows) * u64::from(stage) / u64::from(STAGES)) as u32;
            for stage in 0..STAGES {
                let flows = edge(stage)..edge(stage + 1);
                let limit = Limit { packets: u64::from(flows.end - flows.start), time: OPENING };
                let sent = generator
                    .send(rig, flows, direction, limit)
                    .with_context(|| format!("tenth {} of the flows through {kind}", stage + 1))?;
                by_tenth.push(sent.busy.as_secs_f64() * 1e9 / sent.packets as f64);
                total = total.then(sent);
            }
            Ok((total, by_tenth))
        }
    }
}

/// What arrived must be what this gateway is there to produce, whatever its speed.
pub(super) fn prove(kind: Kind, arrived: &Arrived) -> anyhow::Result<()> {
    let Arrived { outward, homeward } = arrived;
    let (right, what) = if kind.translates() {
        (outward.from_frontend, "from the frontend")
    } else {
        (outward.from_backend, "from their backends")
    };
    ensure!(
        arrived.packets() > 0 && right == outward.packets,
        "{} packets arrived through {kind}, only {right} of them {what} \
         ({} from the frontend, {} from backends)",
        outward.packets,
        outward.from_frontend,
        outward.from_backend
    );
    ensure!(
        homeward.to_backend == homeward.packets,
        "{} answers arrived through {kind}, only {} of them at the backend and port that they are for",
        homeward.packets,
        homeward.to_backend
    );
    let (checked, bad) = (arrived.checked(), outward.bad + homeward.bad);
    ensure!(
        checked > 0 && bad == 0,
        "{bad} of {checked} verified packets that arrived through {kind} have a wrong length or checksum"
    );
    Ok(())
}
