// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: a named bench at one number of flows, in one direction, with one length of frames.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::Serialize;

use super::chain::{BACKENDS, DESTINATIONS};

/// Source ports of one backend start this far above the last backend's. Ranges that never overlap spare a
/// port-preserving NAT every search: the comparison is with its best case.
pub(super) const PORT_STRIDE: u32 = (65_536 - PORT_BASE) / BACKENDS;
/// First source port in use.
pub(super) const PORT_BASE: u32 = 1024;
/// SNAT ports of each backend under natgw: 50 blocks of this size are all 64,000 static ports of one address.
pub(super) const PORTS_PER_BACKEND: u32 = 1280;
/// Most flows that the addresses and ports in use can tell apart and every gateway can hold.
pub(super) const MAX_FLOWS: u32 = {
    let ports = if PORT_STRIDE < PORTS_PER_BACKEND { PORT_STRIDE } else { PORTS_PER_BACKEND };
    BACKENDS * DESTINATIONS * ports
};

/// The benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Packets of flows that are all open already.
    Established,
    /// Every packet a new 5-tuple, from an empty table to --new-flows.
    NewFlows,
    /// Live frames into a pool of ports that fills up towards one destination, and is full.
    Refusals,
    /// What a backend's flood, or the sweep, takes from the established flows of others; two CPUs.
    Interference,
    /// Start and reload, memory, sweep and instruction counts of natgw.
    Control,
    /// Real connections: bulk streams, short connections, latency of requests.
    Tcp,
    /// What a new flow costs by how full the ports are, and a refusal; single runs of the program.
    Ports,
    /// What one backend's floods do to another one; single runs of the program.
    Fair,
}

/// Which way the packets of `established` go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From backends to destinations.
    Outbound,
    /// From destinations to the addresses and ports that the flows were translated to.
    Inbound,
    /// One packet out, one packet in, flow by flow.
    Both,
}

impl Direction {
    /// Name as typed and printed.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Both => "both",
        }
    }

    /// Whether some packets go to backends.
    pub(super) const fn has_inbound(self) -> bool {
        !matches!(self, Self::Outbound)
    }
}

/// Sets of generating CPUs: `0,1` is one set, `1:0,1` are two that are measured in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSets(pub(super) Vec<Vec<usize>>);

impl FromStr for CpuSets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let set = |set: &str| {
            let mut cpus = Vec::new();
            for number in set.split(',') {
                let cpu =
                    number.trim().parse().map_err(|_| format!("`{number}` is not the number of a CPU"))?;
                if cpus.contains(&cpu) {
                    return Err(format!("CPU {cpu} is named twice in `{set}`"));
                }
                cpus.push(cpu);
            }
            Ok(cpus)
        };
        text.split(':').map(set).collect::<Result<_, _>>().map(Self)
    }
}

/// Benches of live frames through a chain of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// [`Bench::Established`].
    Established,
    /// [`Bench::NewFlows`].
    NewFlows,
}

/// One bench at one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    /// Which bench.
    pub(super) bench: Live,
    /// Flows in the cycle, or flows to open.
    pub(super) flows: u32,
    /// Which way packets go.
    pub(super) direction: Direction,
    /// Frame length in bytes, Ethernet header included.
    pub(super) frame: u16,
    /// CPUs that generate.
    pub(super) cpus: Vec<usize>,
}

impl Workload {
    /// Name of the bench as typed.
    pub(super) const fn name(&self) -> &'static str {
        match self.bench {
            Live::Established => "established",
            Live::NewFlows => "new-flows",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, direction, frame, cpus, .. } = self;
        write!(
            out,
            "{} {flows} {}, {frame} bytes, {} CPU{}",
            self.name(),
            direction.name(),
            cpus.len(),
            if cpus.len() == 1 { "" } else { "s" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::CpuSets;

    #[test]
    fn cpus_are_one_set_or_several() {
        assert_eq!("0,1".parse(), Ok(CpuSets(vec![vec![0, 1]])));
        assert_eq!("1:0,1".parse(), Ok(CpuSets(vec![vec![1], vec![0, 1]])));
        for wrong in ["", "a", "0,0", "1:"] {
            wrong.parse::<CpuSets>().expect_err(wrong);
        }
    }
}
