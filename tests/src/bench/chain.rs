// SPDX-License-Identifier: MIT OR Apache-2.0
//! generator `gen0` – `lan0` gateway `wan0` – `sink0` sink: three namespaces in a row.

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::Path, process};

use anyhow::Context as _;

use super::{exec, namespace::Namespace};

/// Backends that send; their addresses follow [`FIRST_BACKEND`].
pub(super) const BACKENDS: u32 = 50;
/// Address of the first backend.
pub(super) const FIRST_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// Address of the backend that attacks others.
pub(super) const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Network of the backends and its mask.
pub(super) const BACKEND_NET: (Ipv4Addr, Ipv4Addr) =
    (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(255, 255, 0, 0));
/// Destinations that are sent to; their addresses follow [`FIRST_DESTINATION`].
pub(super) const DESTINATIONS: u32 = 64;
/// Address of the first destination.
pub(super) const FIRST_DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The address that translated packets come from: `wan0`'s own, because masquerade can use no other.
pub(super) const FRONTEND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Most addresses that packets may come from, from the frontend's on.
pub(super) const FRONTENDS: u32 = 16;
/// Hardware addresses, locally administered.
pub(super) const GEN0_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address of `lan0`.
pub(super) const LAN0_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Hardware address of `wan0`.
pub(super) const WAN0_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// Hardware address of `sink0`.
pub(super) const SINK0_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];
const SINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
const PREFIX: &str = "natgw-bench-";

/// The three namespaces; dropping the chain deletes them.
#[derive(Debug)]
pub(super) struct Chain {
    /// Where frames come from; device `gen0`.
    pub(super) generator: Namespace,
    /// Where the gateway under test works; devices `lan0` and `wan0`.
    pub(super) gateway: Namespace,
    /// Where frames end; device `sink0`.
    pub(super) sink: Namespace,
}

impl Chain {
    /// Builds the chain with addresses, routes and permanent neighbours, forwarding still off.
    ///
    /// A veth end takes redirected frames into the queue with the number of the sending CPU, so CPUs up to
    /// `queues` do not meet each other; a NIC with a queue for each CPU does the same.
    pub(super) fn build(queues: usize) -> anyhow::Result<Self> {
        let chain = Self {
            generator: Namespace::create(&Self::name("gen"))?,
            gateway: Namespace::create(&Self::name("gw"))?,
            sink: Namespace::create(&Self::name("sink"))?,
        };
        for namespace in [&chain.generator, &chain.gateway, &chain.sink] {
            // A stray discovery packet sent on another CPU takes the queue's polling over to that CPU, and as long
            // as the generator keeps the queue full it stays there.
            for scope in ["all", "default"].iter().filter(|_scope| Path::new("/proc/sys/net/ipv6").exists()) {
                namespace.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
            }
        }
        let queues = queues.to_string();
        chain.link(&chain.generator, ("gen0", GEN0_MAC), ("lan0", LAN0_MAC), &queues)?;
        chain.link(&chain.sink, ("sink0", SINK0_MAC), ("wan0", WAN0_MAC), &queues)?;
        chain.addresses()?;
        for (namespace, device) in [
            (&chain.generator, "gen0"),
            (&chain.gateway, "lan0"),
            (&chain.gateway, "wan0"),
            (&chain.sink, "sink0"),
        ] {
            // GRO makes a veth end accept redirected frames when no XDP program of its own is attached.
            namespace.enter(|| exec::run("ethtool", &["-K", device, "tx", "off", "gro", "on"]))??;
        }
        for key in ["ipv4/conf/all/rp_filter", "ipv4/conf/lan0/rp_filter", "ipv4/conf/wan0/rp_filter"] {
            chain.gateway.sysctl(key, "0")?;
        }
        Ok(chain)
    }

    /// Name of a namespace of this run; what begins like it is removed by the next run, should this one be killed.
    pub(super) fn name(role: &str) -> String {
        format!("{PREFIX}{}-{role}", process::id())
    }

    fn link(
        &self,
        outer: &Namespace,
        (outer_name, outer_mac): (&str, [u8; 6]),
        (gateway_name, gateway_mac): (&str, [u8; 6]),
        queues: &str,
    ) -> anyhow::Result<()> {
        let (outer_mac, gateway_mac) = (mac(outer_mac), mac(gateway_mac));
        let queues = ["numtxqueues", queues, "numrxqueues", queues];
        let mut arguments = vec!["link", "add", outer_name, "address", &outer_mac];
        arguments.extend(queues);
        arguments.extend(["type", "veth", "peer", "name", gateway_name, "address", &gateway_mac]);
        arguments.extend(queues);
        arguments.extend(["netns", self.gateway.name()]);
        outer.ip(&arguments)
    }

    fn addresses(&self) -> anyhow::Result<()> {
        let mut lines = "addr add 10.0.255.254/16 dev gen0\nlink set gen0 up\n".to_owned();
        // Backends answer ARP like real ones: a gateway may ask although their neighbour entries are permanent.
        for backend in backends().chain([ATTACKER]) {
            writeln!(lines, "addr add {backend}/32 dev gen0")?;
        }
        self.generator.ip_batch(&lines)?;
        self.sink.ip_batch(&format!("addr add {SINK}/24 dev sink0\nlink set sink0 up\n"))?;
        let mut lines = format!(
            "addr add 10.0.0.1/16 dev lan0\nlink set lan0 up\naddr add {FRONTEND}/24 dev wan0\nlink set wan0 up\n\
             route add default via {SINK} dev wan0\n\
             neigh replace {SINK} lladdr {} dev wan0 nud permanent\n",
            mac(SINK0_MAC)
        );
        for backend in backends().chain([ATTACKER]) {
            writeln!(lines, "neigh replace {backend} lladdr {} dev lan0 nud permanent", mac(GEN0_MAC))?;
        }
        self.gateway.ip_batch(&lines)
    }

    /// Deletes namespaces of earlier runs whose process is gone, which only SIGKILL can have left.
    pub(super) fn remove_stale() -> anyhow::Result<()> {
        let directory = Path::new("/run/netns");
        if !directory.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(directory).context("cannot list /run/netns")? {
            let name = entry.context("cannot list /run/netns")?.file_name();
            let Some(name) = name.to_str() else { continue };
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                eprintln!("deleting namespace {name} of a run that was killed");
                exec::run("ip", &["netns", "del", name])?;
            }
        }
        Ok(())
    }
}

/// Addresses of the backends.
pub(super) fn backends() -> impl Iterator<Item = Ipv4Addr> {
    (0..BACKENDS).map(|index| Ipv4Addr::from(FIRST_BACKEND.to_bits() + index))
}

/// As `ip` writes a hardware address.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
