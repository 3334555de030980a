// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network: who is where.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::namespace::{Namespace, output};

/// The picture of what [`World::build`] makes.
pub(super) const PICTURE: &str = "
 web   10.0.1.2 ──┐
                  │ lan1 ┌─────────┐ wan0                  ┌─────────┐  ┌── server1  192.0.2.10
 job1  10.0.2.2 ──┼──────│ gateway │───────────────────────│ router  │──┼── server2  192.0.2.74
                  │ lan3 └─────────┘ 198.51.100.1     .254 └─────────┘  └── outsider 192.0.2.138
 job2  10.0.3.2 ──┘      frontends 203.0.113.10 (web) and 203.0.113.20 (job1, job2)";

/// The router's side of the outside link.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// What the gateway leaves to the kernel's own forwarding during the comparison.
pub(super) const WAN: &str = "wan0";

/// A host with one address on `eth0`.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: &'static str,
    pub(super) address: Ipv4Addr,
    pub(super) namespace: Namespace,
}

impl Host {
    /// An end point on this host.
    pub(super) fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }
}

/// All namespaces.
#[derive(Debug)]
pub(super) struct World {
    /// A backend with many ports.
    pub(super) web: Host,
    /// Backends with few.
    pub(super) jobs: [Host; 2],
    pub(super) gateway: Namespace,
    pub(super) router: Namespace,
    pub(super) servers: [Host; 2],
    /// Nobody's customer.
    pub(super) outsider: Host,
}

impl World {
    /// Builds it; every name begins with `prefix`.
    pub(super) fn build(prefix: &str) -> Result<Self> {
        let namespace = |role: &str| Namespace::new(&format!("{prefix}-{role}"));
        let (gateway, router) = (namespace("gateway")?, namespace("router")?);
        let host = |name, address| {
            let namespace = namespace(name)?;
            anyhow::Ok(Host { name, address, namespace })
        };
        let world = Self {
            web: host("web", Ipv4Addr::new(10, 0, 1, 2))?,
            jobs: [host("job1", Ipv4Addr::new(10, 0, 2, 2))?, host("job2", Ipv4Addr::new(10, 0, 3, 2))?],
            servers: [
                host("server1", Ipv4Addr::new(192, 0, 2, 10))?,
                host("server2", Ipv4Addr::new(192, 0, 2, 74))?,
            ],
            outsider: host("outsider", Ipv4Addr::new(192, 0, 2, 138))?,
            gateway,
            router,
        };
        for (number, backend) in (1..).zip(world.backends()) {
            let first = Ipv4Addr::new(10, 0, number, 1);
            link(&world.gateway, &format!("lan{number}"), first, 24, &backend.namespace, backend.address)?;
        }
        link(&world.gateway, WAN, Ipv4Addr::new(198, 51, 100, 1), 24, &world.router, ROUTER)?;
        for (number, host) in (0..).zip([&world.servers[0], &world.servers[1], &world.outsider]) {
            let first = Ipv4Addr::new(192, 0, 2, 1 + 64 * number);
            link(&world.router, &format!("net{number}"), first, 26, &host.namespace, host.address)?;
        }
        world.gateway.ip(&[format!("route add default via {ROUTER}")])?;
        // It knows the way to the frontends and none to the backends: what is not translated is not answered.
        world.router.ip(&["route add 203.0.113.0/24 via 198.51.100.1", "route add blackhole 10.0.0.0/8"])?;
        world.router.sysctl("ipv4/ip_forward", "1")?;
        Ok(world)
    }

    /// The backends, in the order of the gateway's inside interfaces.
    pub(super) fn backends(&self) -> [&Host; 3] {
        [&self.web, &self.jobs[0], &self.jobs[1]]
    }

    /// Counts at the router what comes from the gateway: packets that carry a private source, and packets that carry
    /// a frontend's.
    pub(super) fn watch_wire(&self) -> Result<()> {
        self.router.nft(
            "table ip wire {
                counter private {}
                counter frontend {}
                chain arrivals {
                    type filter hook prerouting priority raw; policy accept;
                    iifname \"eth0\" ip saddr 10.0.0.0/8 counter name private
                    iifname \"eth0\" ip saddr 203.0.113.0/24 counter name frontend
                }
            }",
        )
    }

    /// Packets counted by [`Self::watch_wire`]: with a private source, and with a frontend's.
    pub(super) fn wire(&self) -> Result<(u64, u64)> {
        let text =
            output(self.router.command("nft")?.args(["-j", "list", "counters", "table", "ip", "wire"]))?;
        let listed: Value = serde_json::from_str(&text).context("reading the counters of nft")?;
        let count = |name: &str| {
            let all = listed["nftables"].as_array().into_iter().flatten();
            let mut counters = all.map(|item| &item["counter"]);
            let found = counters.find(|counter| counter["name"] == name);
            found
                .and_then(|counter| counter["packets"].as_u64())
                .with_context(|| format!("no counter `{name}`"))
        };
        Ok((count("private")?, count("frontend")?))
    }
}

/// A veth pair: `name` at the near end, `eth0` at the far one, whose default route leads back.
fn link(
    near: &Namespace,
    name: &str,
    near_address: Ipv4Addr,
    prefix: u8,
    far: &Namespace,
    far_address: Ipv4Addr,
) -> Result<()> {
    near.ip(&[
        format!("link add {name} type veth peer name eth0 netns {}", far.name),
        format!("addr add {near_address}/{prefix} dev {name}"),
        format!("link set {name} up"),
    ])?;
    far.ip(&[format!("addr add {far_address}/{prefix} dev eth0"), "link set eth0 up".to_owned()])?;
    if far_address != ROUTER {
        far.ip(&[format!("route add default via {near_address}")])?;
    }
    // veth leaves checksums unfinished and segments uncut for hardware that is not there, which no XDP program sees
    // on a network; and it takes frames from XDP only where GRO is on.
    far.offload("eth0", &["tx", "off", "tso", "off", "gso", "off", "gro", "on"])
}
