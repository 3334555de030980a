// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: a named bench at one number of flows.

use std::fmt;

use clap::ValueEnum;

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
/// Flows that `new-flows` opens from an empty table.
pub(super) const NEW_FLOWS: u32 = 900_000;

/// The benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Packets of flows that are all open already.
    Established,
    /// Every packet a new 5-tuple, from an empty table to 900,000 flows.
    NewFlows,
    /// What a new flow costs by how full the ports are, and a refusal.
    Ports,
    /// What one backend's floods do to another one.
    Fair,
}

/// Benches of live frames through a chain of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// [`Bench::Established`].
    Established,
    /// [`Bench::NewFlows`].
    NewFlows,
}

/// One bench at one number of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    /// Which bench.
    pub(super) bench: Live,
    /// Flows in the cycle, or flows to open.
    pub(super) flows: u32,
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
        write!(out, "{} {}", self.name(), self.flows)
    }
}
