// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the idle sweep: a BPF program over the flow table, on a thread of its own so that the loop goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use nat_common::{
    abi::{
        config::{SweepArgs, Table},
        names,
    },
    net::timers::TimerClass,
};

use super::status::SweepStatus;
use crate::datapath::pin::Instance;

/// Shortest time between two passes.
const PERIOD: Duration = Duration::from_secs(1);
/// And when the table is nearly full.
const PRESSED: Duration = Duration::from_millis(250);
/// A pass may take one part in so many of a CPU's time: 5 %.
const REST: u32 = 20;
/// Most flows reclaimed in one pass: bounds how long it takes on top of the walk.
const LIMIT: u64 = 262_144;

/// The loaded sweep and the maps it speaks through.
pub(super) struct Sweeper {
    ebpf: Ebpf,
    arguments: Array<MapData, SweepArgs>,
    table: Array<MapData, Table>,
}

/// What a pass found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// How long it took.
    pub(super) took: Duration,
    /// Result.
    pub(super) result: SweepArgs,
    /// Flows alive afterwards.
    pub(super) flows: u64,
}

impl Sweeper {
    /// Takes an object whose sweep program is loaded.
    ///
    /// # Errors
    ///
    /// When its maps are not pinned.
    pub(super) fn new(instance: &Instance, ebpf: Ebpf) -> Result<Self> {
        Ok(Self { ebpf, arguments: instance.array(names::SWEEP)?, table: instance.array(names::TABLE)? })
    }

    /// Does one pass. Blocks for as long as it takes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run the program.
    pub(super) fn run(&mut self) -> Result<Pass> {
        let arguments = SweepArgs { limit: LIMIT, ..SweepArgs::default() };
        self.arguments.set(0, arguments, 0).context("writing map `SWEEP`")?;
        let program: &RawTracePoint =
            self.ebpf.program(names::PROGRAM_SWEEP).context("the BPF object has no sweep")?.try_into()?;
        let start = Instant::now();
        program.test_run(RawTracePointRunOptions::default()).context("running the idle sweep")?;
        let took = start.elapsed();
        let result = self.arguments.get(&0, 0).context("reading map `SWEEP`")?;
        let flows = self.table.get(&0, 0).context("reading map `TABLE`")?.flows;
        Ok(Pass { took, result, flows })
    }
}

/// When to sweep again.
#[must_use]
pub(super) fn pause(pass: &Pass, max_flows: u32) -> Duration {
    let pressed = pass.flows.saturating_mul(10) > u64::from(max_flows) * 9;
    let period = if pressed { PRESSED } else { PERIOD };
    period.max(pass.took * REST)
}

/// Takes a pass into the status.
pub(super) fn record(status: &mut SweepStatus, pass: &Pass, pause: Duration) {
    let SweepArgs { limit: _, visited, reclaimed, pending, live, now: _, reserved: _ } = pass.result;
    *status = SweepStatus {
        passes: status.passes + 1,
        milliseconds: pass.took.as_secs_f64() * 1e3,
        visited,
        reclaimed,
        pending,
        period_seconds: pause.as_secs_f64(),
        live: TimerClass::ALL.iter().map(|class| (class.name().to_owned(), live[*class as usize])).collect(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(took: u64, flows: u64) -> Pass {
        Pass { took: Duration::from_millis(took), result: SweepArgs::default(), flows }
    }

    #[test]
    fn a_sweep_takes_at_most_a_twentieth_of_a_cpu() {
        assert_eq!(pause(&pass(1, 0), 1000), PERIOD);
        assert_eq!(pause(&pass(400, 0), 1000), Duration::from_secs(8));
        assert_eq!(pause(&pass(400, 1000), 1000), Duration::from_secs(8));
    }

    #[test]
    fn a_full_table_is_swept_sooner() {
        assert_eq!(pause(&pass(1, 900), 1000), PERIOD);
        assert_eq!(pause(&pass(1, 901), 1000), PRESSED);
    }
}
