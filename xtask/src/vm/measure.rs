// SPDX-License-Identifier: MIT OR Apache-2.0
//! One gateway under one workload: start it, verify that it does what it should, open its flows, time packets, stop it.
use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Options,
    gateway::{BACKEND_NET, FIRST_BACKEND, FRONTEND, Gateway, MEASURED, STEP, VERIFIED},
    lab::{LAN_MAC, Lab},
    pktgen::{Cycle, Plan, Sent},
};

/// Packets that have to arrive, one by one, before anything is timed.
const VERIFY: u64 = 512;
/// Slow enough for every link.
const VERIFY_RATE: u64 = 2000;
/// While timing, the sink verifies one packet in so many.
const CHECK: u32 = 1024;
/// For what is still in queues when the generator is done.
const IN_FLIGHT: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(500);
/// Packets a second of the slowest machine that is waited for.
const SLOWEST: u64 = 1000;

/// What the generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// So many flows in turn, opened before.
    Established(u32),
    /// So many packets, each the first of a flow.
    NewFlows(u32),
}

impl Workload {
    pub(crate) const fn bench(self) -> &'static str {
        match self {
            Self::Established(_) => "established",
            Self::NewFlows(_) => "new-flows",
        }
    }

    /// Flows that a table has to have room for.
    pub(crate) const fn flows(self) -> u32 {
        match self {
            Self::Established(flows) | Self::NewFlows(flows) => flows,
        }
    }

    fn cycle(self) -> Result<Cycle> {
        match self {
            Self::Established(flows) => Cycle::of(flows),
            Self::NewFlows(_) => Ok(Cycle::NEW_FLOWS),
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        let room = Cycle::NEW_FLOWS.flows();
        match self {
            Self::NewFlows(flows) if flows > room => bail!("--new-flows must be at most {room}"),
            Self::Established(_) | Self::NewFlows(_) => self.cycle().map(drop),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bench(), self.flows())
    }
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) gateway: Gateway,
    pub(crate) workload: Workload,
    /// Packets that the generator handed to its driver.
    pub(crate) sent: u64,
    /// Those that reached the sink.
    pub(crate) received: u64,
    /// Those that the sink looked into, all sound.
    pub(crate) checked: u64,
    /// Time that the generator took.
    pub(crate) microseconds: u64,
    /// CPU time of the gateway's virtual CPU meanwhile.
    pub(crate) vcpu_nanoseconds: u64,
    /// Share of its time that it was busy before, with nothing to do: timers, and the daemon. It is in the figures.
    pub(crate) idle: f64,
}

impl Sample {
    pub(crate) fn delivered(&self) -> f64 {
        self.received as f64 / self.sent as f64
    }

    /// Microseconds of the gateway's virtual CPU for each packet that arrived.
    pub(crate) fn vcpu_per_packet(&self) -> f64 {
        self.vcpu_nanoseconds as f64 / 1000.0 / self.received as f64
    }

    /// Packets that arrived, a second.
    pub(crate) fn rate(&self) -> f64 {
        self.received as f64 * 1e6 / self.microseconds as f64
    }

    pub(crate) fn json(&self) -> Value {
        let Self { gateway, workload, sent, received, checked, microseconds, vcpu_nanoseconds, idle } = self;
        serde_json::json!({
            "gateway": gateway.name(), "bench": workload.bench(), "flows": workload.flows(), "sent": sent,
            "received": received, "checked": checked, "microseconds": microseconds,
            "gateway_vcpu_nanoseconds": vcpu_nanoseconds, "gateway_vcpu_idle_share": idle,
        })
    }
}

/// One measurement from start to stop.
pub(crate) fn measure(
    lab: &mut Lab,
    gateway: Gateway,
    workload: Workload,
    options: &Options,
    room: u32,
) -> Result<Sample> {
    gateway.start(&mut lab.gateway, room)?;
    let plan = Plan {
        device: "eth0".to_owned(),
        gateway_mac: LAN_MAC.to_owned(),
        source: FIRST_BACKEND,
        destination: MEASURED,
        cycle: workload.cycle()?,
        packets: options.packets,
        rate: (options.rate > 0).then_some(options.rate),
        frame: options.frame,
        threads: 1,
        burst: 1,
    };
    verify(lab, gateway, &plan)?;
    let plan = match workload {
        Workload::Established(flows) => {
            send(lab, &Plan { packets: flows.into(), ..plan.clone() })?;
            // Those that are still in queues must not be taken for timed ones.
            read(lab)?;
            plan
        }
        Workload::NewFlows(flows) => Plan { packets: flows.into(), ..plan },
    };
    reset(lab, CHECK - 1)?;
    prepare(lab, &plan)?;
    let idle = idle(lab)?;
    let before = lab.gateway.vcpu_time()?;
    let sent = start(lab, &plan)?;
    thread::sleep(IN_FLIGHT);
    let vcpu_nanoseconds = lab.gateway.vcpu_time()? - before;
    let arrived = read(lab)?;
    judge(gateway, &arrived).with_context(|| gateway.says(&mut lab.gateway))?;
    gateway.stop(&mut lab.gateway)?;
    Ok(Sample {
        gateway,
        workload,
        sent: sent.packets,
        received: arrived.packets,
        checked: arrived.checked,
        microseconds: sent.microseconds,
        vcpu_nanoseconds,
        idle,
    })
}

/// Share of its time that the gateway's virtual CPU is busy while nothing is sent.
fn idle(lab: &Lab) -> Result<f64> {
    let (started, before) = (Instant::now(), lab.gateway.vcpu_time()?);
    thread::sleep(IDLE);
    let busy = lab.gateway.vcpu_time()? - before;
    Ok(busy as f64 / started.elapsed().as_nanos() as f64)
}

/// Every packet of a few arrives as this gateway should leave it.
fn verify(lab: &mut Lab, gateway: Gateway, plan: &Plan) -> Result<()> {
    reset(lab, 0)?;
    let rate = Some(plan.rate.unwrap_or(VERIFY_RATE).min(VERIFY_RATE));
    send(lab, &Plan { packets: VERIFY, destination: VERIFIED, rate, ..plan.clone() })?;
    let arrived = read(lab)?;
    let checked = || {
        judge(gateway, &arrived)?;
        ensure!(arrived.packets == VERIFY, "{} of {VERIFY} packets arrived", arrived.packets);
        ensure!(arrived.checked == VERIFY, "{} of {VERIFY} packets were verified", arrived.checked);
        Ok(())
    };
    checked().with_context(|| {
        format!("{gateway} does not do its work; it says: {}", gateway.says(&mut lab.gateway).trim())
    })
}

/// The sink's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrived {
    packets: u64,
    from_frontend: u64,
    from_backend: u64,
    checked: u64,
    bad: u64,
}

impl Arrived {
    fn parse(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text.trim()).with_context(|| format!("the sink writes no JSON: {text}"))?;
        let field = |name: &str| {
            json[name].as_u64().with_context(|| format!("the sink does not tell `{name}`: {text}"))
        };
        Ok(Self {
            packets: field("packets")?,
            from_frontend: field("from_frontend")?,
            from_backend: field("from_backend")?,
            checked: field("checked")?,
            bad: field("bad")?,
        })
    }
}

/// No packet may be damaged or have another source address than this gateway gives.
fn judge(gateway: Gateway, arrived: &Arrived) -> Result<()> {
    let Arrived { packets, from_frontend, from_backend, checked, bad } = *arrived;
    let (right, from) =
        if gateway.translates() { (from_frontend, "the frontend") } else { (from_backend, "a backend") };
    ensure!(bad == 0, "{bad} of {checked} verified packets had a wrong length or checksum");
    ensure!(right == packets, "{right} of {packets} packets came from {from}'s address, all should");
    Ok(())
}

fn reset(lab: &mut Lab, check_mask: u32) -> Result<()> {
    let command = format!(
        "natgw-bench-guest reset --frontend {FRONTEND} --backends {BACKEND_NET} --check-mask {check_mask}"
    );
    lab.sink.run(&command, STEP).map(drop)
}

fn read(lab: &mut Lab) -> Result<Arrived> {
    Arrived::parse(&lab.sink.run("natgw-bench-guest read", STEP)?)
}

fn send(lab: &mut Lab, plan: &Plan) -> Result<Sent> {
    prepare(lab, plan)?;
    start(lab, plan)
}

fn prepare(lab: &mut Lab, plan: &Plan) -> Result<()> {
    lab.generator.run(&plan.prepare(), STEP).map(drop)
}

fn start(lab: &mut Lab, plan: &Plan) -> Result<Sent> {
    let rate = plan.rate.map_or(SLOWEST, |rate| rate.min(SLOWEST));
    let limit = STEP + Duration::from_secs(plan.packets / rate);
    Sent::parse(&lab.generator.run(&plan.send(), limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(text: &str) -> Arrived {
        Arrived::parse(text).expect("all counters are there")
    }

    #[test]
    fn untranslated_or_damaged_packets_are_no_success() {
        let good =
            "{\"packets\":9,\"bytes\":540,\"from_frontend\":9,\"from_backend\":0,\"checked\":9,\"bad\":0}";
        assert!(judge(Gateway::Natgw, &arrived(good)).is_ok());
        let error = judge(Gateway::Forward, &arrived(good)).expect_err("forwarding translates nothing");
        assert_eq!(error.to_string(), "0 of 9 packets came from a backend's address, all should");
        let bad = good.replace("\"bad\":0", "\"bad\":1");
        assert!(judge(Gateway::Natgw, &arrived(&bad)).is_err());
        assert!(Arrived::parse("{\"packets\":9}").is_err());
    }

    #[test]
    fn figures_are_for_packets_that_arrived() {
        let sample = Sample {
            gateway: Gateway::Natgw,
            workload: Workload::Established(256),
            sent: 1000,
            received: 500,
            checked: 1,
            microseconds: 100_000,
            vcpu_nanoseconds: 5_000_000,
            idle: 0.01,
        };
        assert_eq!((sample.delivered(), sample.vcpu_per_packet(), sample.rate()), (0.5, 10.0, 5000.0));
    }
}
