// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench vm`: generator, gateway and sink as three virtual machines, so that real network drivers and the kernel's own
//! packet generator take part. docs/benchmarking.md says how to read it. No root is needed but for missing packages.
mod accel;
mod gateway;
mod initramfs;
mod kernel;
mod lab;
mod machine;
mod measure;
mod modules;
mod operator;
mod pktgen;
mod report;
mod stop;

use std::{fs, path::PathBuf, process};

use anyhow::{Context, Result, ensure};
use clap::{Parser, value_parser};

pub(crate) use self::operator::{Options as PktgenOptions, run as print_pktgen};
use self::{
    gateway::Gateway,
    initramfs::Tree,
    kernel::{Apt, Kernel},
    lab::{Lab, Material},
    measure::{Sample, Workload, measure},
    report::{Host, Series},
    stop::Stop,
};
use crate::{
    build,
    exec::{exec, note, step},
    paths,
    setup::system,
};

/// What the guests load, with everything that these depend on.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_net",
    "pktgen",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nf_nat",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
];
/// Below this share of packets that arrive, something other than the gateway is the matter.
const STALLED: f64 = 0.5;

/// natgw beside nftables in virtual machines, with the kernel's pktgen.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench vm", bin_name = "cargo xtask bench vm", max_term_width = 100)]
pub(crate) struct Options {
    /// Guest kernels: names of packages, or versions such as 6.12, of which the newest is taken; else the newest of all
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// A sources.list to take kernels from instead of the machine's own package sources
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// Numbers of established flows to send in turn
    #[arg(long, value_delimiter = ',', default_values_t = [256, 60_000], value_parser = value_parser!(u32).range(1..=2_000_000))]
    flows: Vec<u32>,
    /// Packets of the new-flow bench, each the first of a flow; 0 leaves it out
    #[arg(long, default_value_t = 60_000)]
    new_flows: u32,
    /// Packets of each measurement of established flows
    #[arg(long, default_value_t = 60_000, value_parser = value_parser!(u64).range(1000..=1_000_000_000))]
    packets: u64,
    /// Packets a second that the generator offers; 0: as fast as it can, and then XDP loses some
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(0..=100_000_000))]
    rate: u64,
    /// Frame length in bytes, without the frame check sequence
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u16).range(60..=1514))]
    frame: u16,
    /// Repetitions, interleaved; medians are compared
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Gateways to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Gateway::ALL)]
    gateways: Vec<Gateway>,
    /// Write machine facts and every repetition to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    fn workloads(&self) -> Result<Vec<Workload>> {
        let mut workloads: Vec<Workload> =
            self.flows.iter().map(|flows| Workload::Established(*flows)).collect();
        if self.new_flows > 0 {
            workloads.push(Workload::NewFlows(self.new_flows));
        }
        workloads.iter().try_for_each(|workload| workload.check())?;
        Ok(workloads)
    }
}

/// Programs that go into the guests.
struct Programs {
    natgw: PathBuf,
    guest: PathBuf,
    object: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workloads = options.workloads()?;
    system::ensure_packages()?;
    system::ensure_vm_packages()?;
    let programs = programs()?;
    let tree = Tree::new(&programs.natgw, &programs.guest, &programs.object)?;
    step("fetching kernels; they are unpacked below target/vm and never installed");
    let apt = Apt::update(options.sources.as_deref())?;
    let keys: Vec<Option<&str>> = if options.kernel.is_empty() {
        vec![None]
    } else {
        options.kernel.iter().map(|key| Some(key.as_str())).collect()
    };
    let packages = keys.into_iter().map(|key| apt.choose(key)).collect::<Result<Vec<_>>>()?;
    let kernels = packages.iter().map(|package| apt.fetch(package)).collect::<Result<Vec<_>>>()?;
    let host = Host::read(&programs.natgw);
    // From here on there is something to undo.
    let stop = Stop::install()?;
    let (mut series, mut failed) = (Vec::new(), Vec::new());
    for kernel in &kernels {
        let done = bench(kernel, &tree, options, &workloads, &stop);
        // Whatever was waited for just then is no error.
        stop.check()?;
        match done {
            Ok(done) => series.push(done),
            Err(error) if kernels.len() > 1 => {
                let told = format!("{}: {error:#}", kernel.package);
                note(&told);
                failed.push(told);
            }
            Err(error) => return Err(error),
        }
    }
    print!("{}", report::heading(&host, options));
    for series in &series {
        print!("{}", series.text());
    }
    if let Some(path) = &options.json {
        report::write_json(&host, options, &series, path)?;
        println!("every repetition: {}", path.display());
    }
    ensure!(failed.is_empty(), "no figures with {}", failed.join("\n"));
    Ok(())
}

fn programs() -> Result<Programs> {
    let tools = build::all()?;
    let object = crate::bench::object(&tools)?;
    step("building target/release/natgw-bench-guest");
    exec(
        paths::cargo("build")
            .args(["--release", "--package", "nat-tests", "--bin", "natgw-bench-guest"])
            // As in `cargo xtask bench`: another value would build natgw's library anew.
            .env("NATGW_BPF_OBJECT", paths::bpf_object()),
    )
    .context("natgw-bench-guest did not build: fix the compiler errors above and try again")?;
    let guest = paths::target().join("release/natgw-bench-guest");
    Ok(Programs { natgw: paths::natgw(), guest, object })
}

/// Everything with one kernel.
fn bench(
    kernel: &Kernel,
    tree: &Tree,
    options: &Options,
    workloads: &[Workload],
    stop: &Stop,
) -> Result<Series> {
    step(&format!("booting {}", kernel.package));
    let run = Run::create()?;
    let (accel, reason) = accel::choose(kernel, &run.0, stop)?;
    note(&format!("-accel {}: {reason}", accel.name()));
    let initramfs = run.0.join("initramfs.cpio");
    tree.write(&modules::collect(&kernel.modules, &MODULES)?, &initramfs)?;
    // The verified flows, and twice the room that the measured ones need.
    let most = workloads.iter().map(|workload| workload.flows()).max().unwrap_or_default();
    let room = (2 * most).next_power_of_two().max(65_536);
    let material =
        Material { accel, kernel: &kernel.image, initramfs: &initramfs, logs: &run.0, flows: room };
    let mut session = Session { material, stop, lab: Lab::boot(material, stop)?, remarks: Vec::new() };
    let release = session.lab.gateway.run("uname -r", gateway::STEP)?.trim().to_owned();
    let mut samples = Vec::new();
    for repetition in 1..=options.repeat {
        for workload in workloads {
            for gateway in &options.gateways {
                let sample = session.measure(*gateway, *workload, options)?;
                note(&format!(
                    "{repetition}/{} {workload} {gateway}: {:.2} us/packet, {:.1} % of {} arrived, {:.1} kpps",
                    options.repeat,
                    sample.vcpu_per_packet(),
                    100.0 * sample.delivered(),
                    sample.sent,
                    sample.rate() / 1000.0
                ));
                samples.push(sample);
            }
        }
    }
    let package = kernel.package.clone();
    Ok(Series { package, release, accel, reason, samples, remarks: session.remarks })
}

/// Console logs and the guests' file system; dropping it removes them.
struct Run(PathBuf);

impl Run {
    fn create() -> Result<Self> {
        let path = paths::target().join(format!("vm/run-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove `{}`: {error}", self.0.display());
        }
    }
}

/// Machines that are booted anew when packets get stuck.
struct Session<'a> {
    material: Material<'a>,
    stop: &'a Stop,
    lab: Lab,
    remarks: Vec<String>,
}

impl Session<'_> {
    /// A measurement; with fresh machines once more when most packets are lost, as has been seen of a virtio device
    /// that stops sending.
    fn measure(&mut self, gateway: Gateway, workload: Workload, options: &Options) -> Result<Sample> {
        let room = self.material.flows;
        let first = measure(&mut self.lab, gateway, workload, options, room)?;
        if first.delivered() >= STALLED {
            return Ok(first);
        }
        let remark = format!(
            "{workload} {gateway}: {:.1} % arrived; repeated once with fresh machines",
            100.0 * first.delivered()
        );
        note(&remark);
        self.remarks.push(remark);
        self.lab = Lab::boot(self.material, self.stop)?;
        measure(&mut self.lab, gateway, workload, options, room)
    }
}
