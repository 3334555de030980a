// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time that the kernel's own softirq threads worked: a gateway's share that was put off to them must still count.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};

/// The softirq thread of one CPU.
#[derive(Debug)]
pub(super) struct SoftirqThread {
    schedstat: PathBuf,
}

impl SoftirqThread {
    /// Finds `ksoftirqd/<cpu>`.
    pub(super) fn of(cpu: usize) -> anyhow::Result<Self> {
        let name = format!("ksoftirqd/{cpu}");
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let path = entry.context("cannot list /proc")?.path();
            // Processes come and go while the directory is read.
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                return Ok(Self { schedstat: path.join("schedstat") });
            }
        }
        Err(anyhow!(
            "no thread {name} in /proc: run the bench where kernel threads are seen, not in a PID namespace"
        ))
    }

    /// Time on the CPU since the machine started.
    pub(super) fn worked(&self) -> anyhow::Result<Duration> {
        let path = self.schedstat.display();
        let text = fs::read_to_string(&self.schedstat).with_context(|| format!("cannot read {path}"))?;
        let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
        nanoseconds
            .map(Duration::from_nanos)
            .with_context(|| format!("{path} holds `{}`, nanoseconds expected", text.trim()))
    }
}
