// SPDX-License-Identifier: MIT OR Apache-2.0
//! generator → gateway → sink: three machines joined by two links, with addresses, routes and permanent neighbours.
use std::{
    env,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

use super::{
    gateway::{DESTINATION_NET, FIRST_BACKEND, FRONTEND, LAN, SINK, STEP},
    machine::{Accel, Machine, Nic, Spec},
    pktgen::BACKENDS,
    stop::Stop,
};

const GENERATOR_MAC: &str = "02:00:00:00:00:01";
pub(crate) const LAN_MAC: &str = "02:00:00:00:00:02";
const WAN_MAC: &str = "02:00:00:00:00:03";
const SINK_MAC: &str = "02:00:00:00:00:04";
/// MiB. Program files are in memory, too.
const MEMORY: u32 = 512;

/// Where sockets are: below the directory for temporary files, because their paths must be short. Dropping it removes it.
#[derive(Debug)]
struct Sockets(PathBuf);

impl Sockets {
    fn create() -> Result<Self> {
        // Machines that take the place of others are started before those end.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("natgw-vm-{}-{number}", process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make `{}` for sockets", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove `{}`: {error}", self.0.display());
        }
    }
}

/// What the machines are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Material<'a> {
    pub(crate) accel: Accel,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// For console logs.
    pub(crate) logs: &'a Path,
    /// Flows that the gateway has to have room for.
    pub(crate) flows: u32,
}

/// The machines; dropping it ends them and removes their sockets.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) generator: Machine,
    pub(crate) gateway: Machine,
    pub(crate) sink: Machine,
    // The last field: dropped when the machines are gone.
    _sockets: Sockets,
}

impl Lab {
    /// Boots all three, and has the sink count.
    pub(crate) fn boot(material: Material<'_>, stop: &Stop) -> Result<Self> {
        let sockets = Sockets::create()?;
        let nic = |mac: &str, link: &str, listens| Nic {
            mac: mac.to_owned(),
            socket: sockets.0.join(link),
            listens,
        };
        let start = |name, memory, nics| {
            let Material { accel, kernel, initramfs, logs, .. } = material;
            let spec = Spec {
                name,
                accel,
                kernel,
                initramfs: Some(initramfs),
                memory,
                nics,
                sockets: &sockets.0,
                logs,
            };
            Machine::start(&spec, stop)
        };
        // The listening end of a link first.
        let sink = start("sink", MEMORY, vec![nic(SINK_MAC, "outside", true)])?;
        // Room for either table of flows, at a KiB for each flow.
        let gateway = start(
            "gateway",
            MEMORY + 256 + material.flows / 1024,
            vec![nic(LAN_MAC, "inside", true), nic(WAN_MAC, "outside", false)],
        )?;
        let generator = start("generator", MEMORY, vec![nic(GENERATOR_MAC, "inside", false)])?;
        let mut lab = Self { generator, gateway, sink, _sockets: sockets };
        for machine in [&mut lab.sink, &mut lab.gateway, &mut lab.generator] {
            machine.booted()?;
        }
        lab.generator.run("[ -d /proc/net/pktgen ] && /sbin/ip link set eth0 up", STEP)?;
        lab.gateway.run(&gateway_network(), STEP)?;
        // The floor leaves MAC addresses alone, so the sink has to take them all.
        lab.sink.run(
            &format!(
                "/sbin/ip address add {SINK}/24 dev eth0 && /sbin/ip link set eth0 up promisc on && \
                 natgw-bench-guest sink --object /bench.bpf.o --device eth0"
            ),
            STEP,
        )?;
        Ok(lab)
    }
}

fn gateway_network() -> String {
    let mut text = format!(
        "set -e\n\
         for d in /sys/class/net/eth*; do\n\
             case $(cat $d/address) in\n\
             {LAN_MAC}) /sbin/ip link set ${{d##*/}} name lan0 ;;\n\
             {WAN_MAC}) /sbin/ip link set ${{d##*/}} name wan0 ;;\n\
             esac\n\
         done\n\
         for key in all default lan0 wan0; do echo 0 > /proc/sys/net/ipv4/conf/$key/rp_filter; done\n\
         /sbin/ip address add {LAN} dev lan0\n\
         /sbin/ip address add {FRONTEND}/24 dev wan0\n\
         /sbin/ip link set lan0 up\n\
         /sbin/ip link set wan0 up\n\
         /sbin/ip neigh replace {SINK} lladdr {SINK_MAC} dev wan0 nud permanent\n\
         /sbin/ip route add {DESTINATION_NET} via {SINK}\n"
    );
    for index in 0..BACKENDS {
        let backend = Ipv4Addr::from(FIRST_BACKEND.to_bits() + index);
        let _infallible =
            writeln!(text, "/sbin/ip neigh replace {backend} lladdr {GENERATOR_MAC} dev lan0 nud permanent");
    }
    text
}
