// SPDX-License-Identifier: MIT OR Apache-2.0
//! Facts about the machine, without which a figure says nothing.

use std::{env, fs, path::Path, thread};

use serde::Serialize;

use super::{exec, gateway::iptables_version};

/// What the figures were measured on and with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    /// Kernel release.
    pub(super) kernel: String,
    /// Processor architecture.
    pub(super) architecture: &'static str,
    /// Processor model.
    pub(super) cpu: String,
    /// Processors that this process may use.
    pub(super) cpus: usize,
    /// Whether the processor says that a hypervisor runs below.
    pub(super) virtual_machine: bool,
    /// Memory in KiB.
    pub(super) memory_kib: u64,
    /// Load average over one minute before the run: other work makes figures worse.
    pub(super) load_before: f64,
    /// Version of this program.
    pub(super) bench: &'static str,
    /// Version of natgw, where it takes part.
    pub(super) natgw: Option<String>,
    /// Version of nft.
    pub(super) nft: Option<String>,
    /// Version of iptables, and which of its variants is measured.
    pub(super) iptables: Option<String>,
    /// The command line.
    pub(super) command: String,
}

impl Machine {
    /// Reads the facts; what the machine does not tell is left empty.
    pub(super) fn read(natgw: Option<&Path>) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            architecture: env::consts::ARCH,
            cpu: field(&cpuinfo, "model name"),
            cpus: thread::available_parallelism().map_or(0, usize::from),
            virtual_machine: field(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            memory_kib: field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal")
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
            load_before: first_line("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
            bench: env!("CARGO_PKG_VERSION"),
            natgw: natgw.and_then(|path| version(&path.to_string_lossy())),
            nft: version("nft"),
            iptables: iptables_version(),
            command: env::args().collect::<Vec<_>>().join(" "),
        }
    }

    /// The facts, as they stand above the tables.
    pub(super) fn text(&self, cpu_sets: &[Vec<usize>], repetitions: u32) -> String {
        let Self { kernel, cpu, cpus, virtual_machine, memory_kib, load_before, .. } = self;
        let programs: Vec<&str> =
            [&self.natgw, &self.nft, &self.iptables].into_iter().flatten().map(String::as_str).collect();
        format!(
            "\nLinux {kernel}, {cpu}, {cpus} {}CPUs, {:.1} GiB, load before the run {load_before:.1}\n\
             {}\ngenerating on CPUs {cpu_sets:?}, medians of {repetitions}\n",
            if *virtual_machine { "virtual " } else { "" },
            *memory_kib as f64 / f64::from(1 << 20),
            programs.join("; ")
        )
    }
}

fn version(program: &str) -> Option<String> {
    exec::output(program, &["--version"], "").ok().map(|text| text.trim().to_owned())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// Value of the first line `name : value`.
fn field(text: &str, name: &str) -> String {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or_else(String::new, |(_, value)| value.trim().to_owned())
}
