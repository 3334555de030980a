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

mod chain;
mod exec;
mod fair;
mod gateway;
mod generator;
mod machine;
mod measure;
mod namespace;
mod options;
mod ports;
mod report;
mod signal;
mod sink;
mod softirqd;
mod workload;

use std::{fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, bail};
use serde::Serialize;

pub use self::options::Options;
use self::{chain::Chain, gateway::Kind, measure::Lab, report::Report, workload::Bench};

/// Two benches at a time would measure each other.
const LOCK: &str = "/run/natgw-bench.lock";

/// Runs the benches asked for, prints the table, and writes the JSON file where one is asked for.
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
    let _lock = lock()?;
    signal::install()?;
    Chain::remove_stale()?;

    let single = Single {
        ports: options.wants(Bench::Ports).then(ports::run).transpose()?,
        fair: options.wants(Bench::Fair).then(fair::run).transpose()?,
    };
    print!("{}", single.table());
    if options.workloads().is_empty() {
        return options.json.as_ref().map_or(Ok(()), |path| report::write(path, &single));
    }
    let gateways = gateways(options)?;
    let lab = Lab::new(options)?;
    let _conntrack =
        gateways.contains(&Kind::Masquerade).then(gateway::ConntrackLimits::raise).transpose()?;

    let mut report = Report::new(options, &lab, &gateways)?;
    for repetition in 0..options.repeat {
        for workload in options.workloads() {
            for turn in 0..gateways.len() {
                // Each repetition starts with another gateway, so that none always follows the same neighbour.
                let kind = gateways[(turn + repetition as usize) % gateways.len()];
                signal::check()?;
                let sample = measure::repetition(&lab, kind, &workload, repetition)
                    .with_context(|| format!("{workload} through {kind}, repetition {}", repetition + 1))?;
                eprintln!("{sample}");
                report.add(sample);
            }
        }
    }
    print!("{}", report.table());
    if let Some(path) = &options.json {
        report.write_json(path)?;
        println!("every repetition: {}", path.display());
    }
    Ok(())
}

/// What was measured packet by packet.
#[derive(Debug, Serialize)]
struct Single {
    ports: Option<Vec<ports::Row>>,
    fair: Option<Vec<fair::Row>>,
}

impl Single {
    fn table(&self) -> String {
        let ports = self.ports.as_deref().map(ports::table);
        ports.into_iter().chain(self.fair.as_deref().map(fair::table)).collect()
    }
}

/// The gateways to compare. natgw is left out, and that said, only when nobody named it and it is not built.
fn gateways(options: &Options) -> anyhow::Result<Vec<Kind>> {
    if let Some(named) = &options.gateways {
        return Ok(named.clone());
    }
    let natgw = options.natgw_binary()?;
    if natgw.is_file() {
        return Ok(Kind::ALL.to_vec());
    }
    eprintln!("natgw is left out: there is no {} (`cargo xtask build` makes it)", natgw.display());
    Ok(Kind::ALL.into_iter().filter(|kind| *kind != Kind::Natgw).collect())
}

fn lock() -> anyhow::Result<File> {
    let file = File::create(LOCK).with_context(|| format!("cannot open {LOCK}"))?;
    // SAFETY: the descriptor belongs to `file`, which is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        bail!("another natgw-bench holds {LOCK}: wait until it ends, both would measure each other");
    }
    Ok(file)
}
