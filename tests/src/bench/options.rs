// SPDX-License-Identifier: MIT OR Apache-2.0
//! Command line of the bench.

use std::{env, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, value_parser};

use super::{
    gateway::Kind,
    workload::{Bench, CpuSets, Direction, Live, MAX_FLOWS, Workload},
};

/// Names the BPF object with generator, sink and floor.
pub(super) const OBJECT_VARIABLE: &str = "NATGW_BENCH_OBJECT";

/// Compares gateways on live XDP frames and real connections inside throw-away namespaces.
#[derive(Clone, Debug, Parser)]
#[command(name = "natgw-bench", version, args_override_self = true)]
pub struct Options {
    /// Benches to run; all of them when none is named
    #[arg(value_enum)]
    pub benches: Vec<Bench>,
    /// Numbers of established flows to cycle over
    #[arg(long, value_delimiter = ',', default_values_t = [256, 65_536],
          value_parser = value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    pub flows: Vec<u32>,
    /// Flows that `new-flows` opens from an empty table
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u32).range(10..=i64::from(MAX_FLOWS)))]
    pub new_flows: u32,
    /// Which way packets of `established` go
    #[arg(long, value_enum, value_delimiter = ',', default_value = "outbound")]
    pub direction: Vec<Direction>,
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
    /// Frame lengths in bytes, from the Ethernet header to the last byte of payload
    #[arg(long, value_delimiter = ',', default_values_t = [64],
          value_parser = value_parser!(u16).range(60..=1514))]
    pub frame: Vec<u16>,
    /// CPUs that generate, one thread each; the last CPU when none is named. `1:0,1` measures CPU 1 alone and both
    #[arg(long)]
    pub cpus: Option<CpuSets>,
    /// Places in natgw's flow table
    #[arg(long, default_value_t = 1_048_576, value_parser = value_parser!(u32).range(4096..=16_777_216))]
    pub max_flows: u32,
    /// Addresses of the pool that `refusals` fills, with 64,512 ports each
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..=16))]
    pub addresses: u8,
    /// Connections at the same time in `tcp`
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u32).range(1..=512))]
    pub streams: u32,
    /// Write machine facts and every repetition to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write charts of what was measured into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
    /// BPF object with generator, sink and floor; the one named by NATGW_BENCH_OBJECT when not named
    #[arg(long)]
    pub object: Option<PathBuf>,
    /// The natgw to measure; the one beside this program when not named
    #[arg(long)]
    pub natgw: Option<PathBuf>,
}

impl Options {
    /// Whether a bench is to run.
    pub(super) fn wants(&self, bench: Bench) -> bool {
        self.benches.is_empty() || self.benches.contains(&bench)
    }

    /// Refuses what cannot be measured before anything is started.
    ///
    /// # Errors
    ///
    /// Names the option.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.seconds > 0.0 && self.seconds <= 600.0, "--seconds must be above 0 and at most 600");
        self.cpu_sets().map(drop)
    }

    /// Longest time of one measurement.
    pub(super) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// What to measure with live frames, in order.
    ///
    /// # Errors
    ///
    /// As [`Self::cpu_sets`].
    pub(super) fn workloads(&self) -> anyhow::Result<Vec<Workload>> {
        let mut workloads = Vec::new();
        for cpus in self.cpu_sets()? {
            for &frame in &self.frame {
                let workload =
                    |bench, flows, direction| Workload { bench, flows, direction, frame, cpus: cpus.clone() };
                if self.wants(Bench::Established) {
                    for &flows in &self.flows {
                        workloads.extend(
                            self.direction.iter().map(|&way| workload(Live::Established, flows, way)),
                        );
                    }
                }
                if self.wants(Bench::NewFlows) {
                    workloads.push(workload(Live::NewFlows, self.new_flows, Direction::Outbound));
                }
            }
        }
        Ok(workloads)
    }

    /// Sets of CPUs that generate, at least one.
    ///
    /// # Errors
    ///
    /// Fails when a CPU is named that the machine does not have.
    pub(super) fn cpu_sets(&self) -> anyhow::Result<Vec<Vec<usize>>> {
        let available = thread::available_parallelism().context("cannot count the CPUs")?.get();
        let Some(CpuSets(sets)) = &self.cpus else { return Ok(vec![vec![available - 1]]) };
        if let Some(cpu) = sets.iter().flatten().find(|cpu| **cpu >= available) {
            bail!("--cpus names CPU {cpu}, this machine has CPUs 0 to {}", available - 1);
        }
        Ok(sets.clone())
    }

    /// The CPU for measurements that need one only.
    ///
    /// # Errors
    ///
    /// As [`Self::cpu_sets`].
    pub(super) fn one_cpu(&self) -> anyhow::Result<usize> {
        self.cpu_sets()?.first().and_then(|set| set.first()).copied().context("--cpus names no CPU")
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
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(super) fn object(&self) -> anyhow::Result<Vec<u8>> {
        let Some(path) = self.object.clone().or_else(|| env::var_os(OBJECT_VARIABLE).map(PathBuf::from))
        else {
            bail!("{OBJECT_VARIABLE} does not name the benchmark's BPF object: run `cargo xtask bench`");
        };
        std::fs::read(&path).with_context(|| {
            format!("cannot read the BPF object {}: run `cargo xtask bench`", path.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::Options;

    #[test]
    fn every_setting_is_a_workload() {
        let options = Options::parse_from([
            "natgw-bench",
            "established",
            "new-flows",
            "--flows=1,2,3",
            "--direction=outbound,both",
            "--frame=64,512",
            "--cpus=0:0",
        ]);
        assert_eq!(options.workloads().expect("CPU 0 is there").len(), 2 * 2 * (3 * 2 + 1));
    }
}
