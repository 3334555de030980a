// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs inside the virtual machines of `cargo xtask bench vm`: the counting sink, the redirect-only floor, and
//! emptying the connection table. One call, one effect; what has to last is pinned in the BPF file system.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{DevMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{Xdp, XdpMode, links::FdLink},
    util::nr_cpus,
};
use bench_ebpf::{HOMEWARD, OUTWARD, Sink};
use clap::Parser;

use super::gateway::empty_connection_table;

const PINS: &str = "/sys/fs/bpf/natgw-bench";
const SIZE: usize = size_of::<Sink>();

/// Sink and floor of `cargo xtask bench vm`, inside its virtual machines.
#[derive(Debug, Parser)]
#[command(name = "natgw-bench-guest")]
pub enum Verb {
    /// Count and drop what arrives at a device
    Sink {
        /// BPF object of the benchmark
        #[arg(long)]
        object: PathBuf,
        /// Device
        #[arg(long)]
        device: String,
    },
    /// Set the sink's counters to zero
    Reset {
        /// Source address of translated packets
        #[arg(long)]
        frontend: Ipv4Addr,
        /// First address of the backends' network of 16 bits
        #[arg(long)]
        backends: Ipv4Addr,
        /// A packet is verified when its number, and-ed with this, is zero
        #[arg(long)]
        check_mask: u32,
    },
    /// Wait until nothing arrives any more, then print the sink's counters as JSON
    Read {
        /// Time without a packet that counts as the end, in milliseconds
        #[arg(long, default_value_t = 300)]
        quiet: u64,
        /// Longest wait, in seconds
        #[arg(long, default_value_t = 20)]
        limit: u64,
    },
    /// Redirect what arrives at the first device to the second one, unread
    Floor {
        /// BPF object of the benchmark
        #[arg(long)]
        object: PathBuf,
        /// Devices
        #[arg(long, num_args = 2)]
        devices: Vec<String>,
    },
    /// End what `sink` and `floor` began
    Detach,
    /// Empty the connection table
    Flush,
}

/// Does what the command line says.
///
/// # Errors
///
/// Names what the kernel refused.
pub fn run(verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Sink { object, device } => sink(object, device),
        Verb::Reset { frontend, backends, check_mask } => reset(*frontend, *backends, *check_mask),
        Verb::Read { quiet, limit } => read(Duration::from_millis(*quiet), Duration::from_secs(*limit)),
        Verb::Floor { object, devices } => floor(object, devices),
        Verb::Detach => detach(),
        Verb::Flush => empty_connection_table().context("cannot empty the connection table through netlink"),
    }
}

fn sink(object: &Path, device: &str) -> anyhow::Result<()> {
    let mut ebpf = load(object)?;
    ebpf.map("SINK").context("no map `SINK`")?.pin(pin("counters")).context("cannot pin the counters")?;
    attach(&mut ebpf, "sink", device)
}

fn floor(object: &Path, devices: &[String]) -> anyhow::Result<()> {
    let [inside, outside] = devices else { bail!("--devices wants two devices, inside and outside") };
    let mut ebpf = load(object)?;
    let mut target: DevMap<_> = ebpf.map_mut("TARGET").context("no map `TARGET`")?.try_into()?;
    for (index, device) in [(OUTWARD, outside), (HOMEWARD, inside)] {
        target.set(index, ifindex(device)?, None, 0).with_context(|| format!("cannot aim at {device}"))?;
    }
    // A device without a program of its own drops what is redirected to it.
    attach(&mut ebpf, "forward", inside)?;
    attach(&mut ebpf, "back", outside)
}

fn load(object: &Path) -> anyhow::Result<Ebpf> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    fs::create_dir_all(PINS).with_context(|| format!("cannot make {PINS}: is bpffs mounted?"))?;
    EbpfLoader::new().load(&bytes).context("cannot load the benchmark object")
}

/// Attaches in native mode, and pins the link so that it outlives this process.
fn attach(ebpf: &mut Ebpf, name: &str, device: &str) -> anyhow::Result<()> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?.try_into()?;
    program.load().with_context(|| format!("the kernel refuses program `{name}`"))?;
    let id = program
        .attach_to_if_index(ifindex(device)?, XdpMode::Driver)
        .with_context(|| format!("cannot attach `{name}` to {device} in native mode"))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin(&format!("{name}-{device}"))).context("cannot pin the link")?;
    Ok(())
}

fn detach() -> anyhow::Result<()> {
    match fs::remove_dir_all(PINS) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {PINS}"))
        }
        _done_or_not_there => Ok(()),
    }
}

fn reset(frontend: Ipv4Addr, backends: Ipv4Addr, check_mask: u32) -> anyhow::Result<()> {
    let fresh = Sink {
        frontend: frontend.to_bits(),
        frontends: 1,
        backend_net: backends.to_bits(),
        backend_mask: 0xffff_0000,
        check_mask,
        ..Sink::default()
    };
    let bytes: [u8; SIZE] = bytemuck::cast(fresh);
    let cpus = nr_cpus().map_err(|(file, error)| anyhow::anyhow!("cannot read {file}: {error}"))?;
    counters()?
        .set(OUTWARD, PerCpuValues::try_from(vec![bytes; cpus])?, 0)
        .context("cannot reset the sink's counters")
}

fn read(quiet: Duration, limit: Duration) -> anyhow::Result<()> {
    let map = counters()?;
    let started = Instant::now();
    let (mut last, mut changed) = (total(&map)?, Instant::now());
    while changed.elapsed() < quiet {
        ensure!(started.elapsed() < limit, "packets still arrive after {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(20));
        let now = total(&map)?;
        if now.packets != last.packets {
            changed = Instant::now();
        }
        last = now;
    }
    let Sink { packets, bytes, from_frontend, from_backend, checked, bad, .. } = last;
    println!(
        "{}",
        serde_json::json!({
            "packets": packets, "bytes": bytes, "from_frontend": from_frontend, "from_backend": from_backend,
            "checked": checked, "bad": bad,
        })
    );
    Ok(())
}

type Counters = PerCpuArray<MapData, [u8; SIZE]>;

fn counters() -> anyhow::Result<Counters> {
    let data = MapData::from_pin(pin("counters")).context("no counters: start the sink first")?;
    Ok(Map::PerCpuArray(data).try_into()?)
}

fn total(map: &Counters) -> anyhow::Result<Sink> {
    let values = map.get(&OUTWARD, 0).context("cannot read the sink's counters")?;
    let cpus = values.iter().map(|bytes| bytemuck::pod_read_unaligned::<Sink>(bytes));
    Ok(cpus.fold(Sink::default(), |sum, cpu| Sink {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
        from_frontend: sum.from_frontend + cpu.from_frontend,
        from_backend: sum.from_backend + cpu.from_backend,
        checked: sum.checked + cpu.checked,
        bad: sum.bad + cpu.bad,
        ..Sink::default()
    }))
}

fn ifindex(device: &str) -> anyhow::Result<u32> {
    let path = format!("/sys/class/net/{device}/ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("no device {device}"))?;
    text.trim().parse().with_context(|| format!("{path} holds no number"))
}

fn pin(name: &str) -> PathBuf {
    Path::new(PINS).join(name)
}
