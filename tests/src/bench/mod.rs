// SPDX-License-Identifier: MIT OR Apache-2.0
//! Throughput of natgw beside its peers, on frames that never touch a real network.
//!
//! Three namespaces in a row, generator → gateway → sink, joined by veth pairs. The generator is an XDP program run
//! by `BPF_PROG_TEST_RUN` with live frames; veth delivers each batch in the softirq of the CPU that sent it, so the
//! whole chain (generator, gateway, sink) costs one CPU per generator thread. That makes the redirect-only gateway
//! the floor that every figure is to be read against.
//!
//! Time is what the kernel counts around the generator's batches, each of which ends when its packets have been
//! dropped by the sink, plus what the CPU's softirq thread worked meanwhile. Setting a call up and waiting for a
//! CPU that other work holds are no part of it.
//!
//! Every repetition builds its own namespaces and loads its own programs, because figures of one object differ
//! between fresh loads; repetitions of the gateways are interleaved and medians are compared.

mod attack;
mod chain;
mod control;
mod exec;
mod fair;
mod gateway;
mod generator;
pub mod guest;
mod interference;
mod kernel_facts;
mod live;
mod machine;
mod measure;
mod namespace;
mod options;
mod plot;
mod ports;
mod refusals;
mod report;
mod rig;
mod sender;
mod signal;
mod sink;
mod softirqd;
mod stats;
mod tcp;
mod workload;

use std::{fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, bail};

pub use self::options::Options;
use self::{
    chain::Chain,
    gateway::{ConntrackLimits, Kind},
    measure::Lab,
    report::Report,
    workload::Bench,
};

/// Two benches at a time would measure each other.
pub const LOCK: &str = "/run/natgw-bench.lock";

/// Runs the benches asked for, prints the tables, and writes the JSON file and the charts where they are asked for.
///
/// # Errors
///
/// Fails when a gateway cannot be started, when packets do not arrive as that gateway should leave them, or on
/// Ctrl-C. Namespaces, processes, pins and changed settings are undone in every case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("natgw-bench makes network namespaces and loads XDP programs: run it as root");
    }
    options.check()?;
    let _lock = lock()?;
    signal::install()?;
    Chain::remove_stale()?;
    let report = measure_all(options)?;
    print!("{}", report.text());
    if let Some(path) = &options.json {
        report.write_json(path)?;
        println!("every repetition: {}", path.display());
    }
    if let Some(directory) = &options.plot {
        for chart in plot::write(&report, directory)? {
            println!("chart: {}", chart.display());
        }
    }
    Ok(())
}

fn measure_all(options: &Options) -> anyhow::Result<Report> {
    let wants = |bench| options.wants(bench);
    let chained = [
        Bench::Established,
        Bench::NewFlows,
        Bench::Refusals,
        Bench::Interference,
        Bench::Control,
        Bench::Tcp,
    ];
    let (mut gateways, mut skipped) = (Vec::new(), Vec::new());
    if chained.into_iter().any(wants) {
        (gateways, skipped) = available(options)?;
    }
    let mut report = Report::new(options, &gateways)?;
    for (kind, reason) in skipped {
        report.skip(kind.name(), &reason);
    }
    report.ports = wants(Bench::Ports).then(|| ports::run(options.packets)).transpose()?;
    report.fair = wants(Bench::Fair).then(|| fair::run(options.packets)).transpose()?;
    if gateways.is_empty() {
        return Ok(report);
    }
    let lab = Lab::new(options)?;
    let _conntrack = gateways.iter().any(|kind| kind.tracks()).then(ConntrackLimits::raise).transpose()?;
    let workloads = options.workloads()?;
    let samples = live::run(&lab, options.repeat, &workloads, &gateways)?;
    report.add(samples, &workloads, &gateways);
    if wants(Bench::Refusals) {
        report.refusals = Some(refusals::run(options, &lab, &gateways)?);
    }
    if wants(Bench::Interference) {
        interference::run(options, &lab, &gateways, &mut report)?;
    }
    if wants(Bench::Control) {
        if gateways.contains(&Kind::Natgw) {
            report.control = Some(control::run(options, &lab)?);
        } else {
            report.skip("control", "it is about natgw, which does not take part");
        }
    }
    if wants(Bench::Tcp) {
        report.tcp = Some(tcp::run(options, &lab, &gateways)?);
    }
    Ok(report)
}

/// A gateway that is not measured, and why.
type Skipped = Vec<(Kind, String)>;

/// The gateways to compare, and those that this machine does not have. natgw is left out only when nobody named it.
fn available(options: &Options) -> anyhow::Result<(Vec<Kind>, Skipped)> {
    let named = options.gateways.as_deref();
    let natgw = options.natgw_binary()?;
    let (mut there, mut skipped) = (Vec::new(), Vec::new());
    for &kind in named.unwrap_or(&Kind::ALL) {
        let missing = match kind {
            Kind::Natgw if named.is_none() && !natgw.is_file() => {
                Some(format!("there is no {} (`cargo xtask build` makes it)", natgw.display()))
            }
            kind => kind.missing(),
        };
        match missing {
            Some(reason) => skipped.push((kind, reason)),
            None => there.push(kind),
        }
    }
    Ok((there, skipped))
}

fn lock() -> anyhow::Result<File> {
    let file = File::create(LOCK).with_context(|| format!("cannot open {LOCK}"))?;
    // SAFETY: the descriptor belongs to `file`, which is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        bail!("another natgw-bench holds {LOCK}: wait until it ends, both would measure each other");
    }
    Ok(file)
}
