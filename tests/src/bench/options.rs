// SPDX-License-Identifier: MIT OR Apache-2.0
//! Command line of the bench.

use std::{env, path::PathBuf, thread};

use anyhow::{Context as _, bail};
use clap::{Parser, value_parser};

use super::{
    gateway::Kind,
    workload::{Bench, Live, MAX_FLOWS, NEW_FLOWS, Workload},
};

/// Names the BPF object with generator, sink and floor.
pub(super) const OBJECT_VARIABLE: &str = "NATGW_BENCH_OBJECT";

/// Compares gateways on live XDP frames inside throw-away namespaces.
#[derive(Clone, Debug, Parser)]
#[command(name = "natgw-bench", version)]
pub struct Options {
    /// Benches to run; all of them when none is named
    #[arg(value_enum)]
    pub benches: Vec<Bench>,
    /// Numbers of established flows to cycle over
    #[arg(long, value_delimiter = ',', default_values_t = [256, 65_536],
          value_parser = value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    pub flows: Vec<u32>,
    /// Gateways to compare; all that are there when none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    pub gateways: Option<Vec<Kind>>,
    /// Repetitions of every measurement, interleaved; medians are compared
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Longest time of one measurement, in seconds
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Most packets of one measurement
    #[arg(long, default_value_t = 50_000_000)]
    pub packets: u64,
    /// Frame length in bytes, from the Ethernet header to the last byte of payload
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u16).range(60..=1514))]
    pub frame: u16,
    /// CPUs that generate, one thread each; the last CPU when none is named
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Write machine facts and every repetition to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The natgw to measure; the one beside this program when not named
    #[arg(long)]
    pub natgw: Option<PathBuf>,
}

impl Options {
    /// Whether a bench is to run.
    pub(super) fn wants(&self, bench: Bench) -> bool {
        self.benches.is_empty() || self.benches.contains(&bench)
    }

    /// What to measure with live frames, in order.
    pub(super) fn workloads(&self) -> Vec<Workload> {
        let mut workloads = Vec::new();
        let wanted = |bench| self.wants(bench);
        if wanted(Bench::Established) {
            let each = self.flows.iter().map(|&flows| Workload { bench: Live::Established, flows });
            workloads.extend(each);
        }
        if wanted(Bench::NewFlows) {
            workloads.push(Workload { bench: Live::NewFlows, flows: NEW_FLOWS });
        }
        workloads
    }

    /// CPUs that generate.
    ///
    /// # Errors
    ///
    /// Fails when a CPU is named that the machine does not have.
    pub(super) fn generator_cpus(&self) -> anyhow::Result<Vec<usize>> {
        let available = thread::available_parallelism().context("cannot count the CPUs")?.get();
        if self.cpus.is_empty() {
            return Ok(vec![available - 1]);
        }
        if let Some(cpu) = self.cpus.iter().find(|cpu| **cpu >= available) {
            bail!("--cpus names CPU {cpu}, this machine has CPUs 0 to {}", available - 1);
        }
        Ok(self.cpus.clone())
    }

    /// Path of the natgw binary, there or not.
    pub(super) fn natgw_binary(&self) -> anyhow::Result<PathBuf> {
        match &self.natgw {
            Some(path) => Ok(path.clone()),
            None => {
                Ok(env::current_exe().context("cannot find this program's own path")?.with_file_name("natgw"))
            }
        }
    }

    /// The BPF object with generator, sink and floor.
    pub(super) fn object() -> anyhow::Result<Vec<u8>> {
        let Some(path) = env::var_os(OBJECT_VARIABLE) else {
            bail!("{OBJECT_VARIABLE} does not name the benchmark's BPF object: run `cargo xtask bench`");
        };
        std::fs::read(&path).with_context(|| {
            format!("cannot read {} named by {OBJECT_VARIABLE}: run `cargo xtask bench`", path.display())
        })
    }
}
