// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole networks for the built binary: backends, gateway and servers, each in a namespace of its own, joined by veth
//! pairs. Nothing of it has a name on the host, so nothing is left of it when the test process is gone.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{harness::pass::Pass, ns::Namespace};

pub mod daemon;
pub mod file;
pub mod ping;
pub mod raw;
pub mod sniff;
pub mod traffic;

/// First backend.
pub const WEB: &str = "10.0.0.4";
/// Second backend.
pub const DB: &str = "10.0.0.5";
/// A host inside that no rule covers.
pub const STRANGER: &str = "10.0.0.200";
/// The frontend address.
pub const FRONTEND: &str = "203.0.113.10";
/// The servers' address, behind a router.
pub const SERVER: &str = "192.0.2.80";
/// Another address of theirs.
pub const SERVER2: &str = "192.0.2.81";
/// An address on the outside link that nobody answers for.
pub const SILENT: &str = "198.51.100.99";

/// How to build a [`Network`].
#[derive(Clone, Debug)]
pub struct Builder {
    one_armed: bool,
    native_peers: bool,
    mtu_inside: u16,
    mtu_outside: u16,
}

impl Default for Builder {
    fn default() -> Self {
        Self { one_armed: false, native_peers: true, mtu_inside: 1500, mtu_outside: 1500 }
    }
}

/// Backends, gateway and servers.
///
/// The backends' host has all backend addresses on one interface; the servers' host is the router and has the
/// servers' addresses on its loopback interface. It has no route back to the backends: what arrives there
/// untranslated stays unanswered.
#[derive(Debug)]
pub struct Network {
    /// Backends and the stranger: `eth0`.
    pub inside: Namespace,
    /// `lan0`, and `wan0` unless it is one-armed.
    pub gateway: Namespace,
    /// Router and servers: `eth0`.
    pub outside: Namespace,
    _pass: Vec<Pass>,
}

impl Builder {
    /// Both networks behind `lan0`, joined by a bridge outside the gateway.
    #[must_use]
    pub fn one_armed(mut self) -> Self {
        self.one_armed = true;
        self
    }

    /// Without XDP at the hosts' ends: for gateways in generic mode, which need none there.
    #[must_use]
    pub fn plain_peers(mut self) -> Self {
        self.native_peers = false;
        self
    }

    /// MTU of both links.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        (self.mtu_inside, self.mtu_outside) = (mtu, mtu);
        self
    }

    /// MTU of the outside link.
    #[must_use]
    pub fn mtu_outside(mut self, mtu: u16) -> Self {
        self.mtu_outside = mtu;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// With the step that failed.
    pub fn build(self) -> Result<Network> {
        let (inside, gateway, outside) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        let mut pass = Vec::new();
        for namespace in [&inside, &gateway, &outside] {
            namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        }
        if self.one_armed {
            self.bridge(&inside, &gateway, &outside, &mut pass)?;
        } else {
            join(&gateway, "lan0", &inside, "eth0", self.mtu_inside)?;
            join(&gateway, "wan0", &outside, "eth0", self.mtu_outside)?;
        }
        inside.ip(&[
            "addr add 10.0.0.4/16 dev eth0",
            "addr add 10.0.0.5/16 dev eth0",
            "addr add 10.0.0.200/16 dev eth0",
            "route add default via 10.0.0.1",
        ])?;
        let wan = if self.one_armed { "lan0" } else { "wan0" };
        gateway.ip(&[
            "addr add 10.0.0.1/16 dev lan0".to_owned(),
            format!("addr add 198.51.100.1/24 dev {wan}"),
            "route add default via 198.51.100.254".to_owned(),
        ])?;
        outside.ip(&[
            "addr add 198.51.100.254/24 dev eth0",
            "addr add 198.51.100.7/24 dev eth0",
            "addr add 192.0.2.80/32 dev lo",
            "addr add 192.0.2.81/32 dev lo",
            "route add 203.0.113.0/24 via 198.51.100.1",
        ])?;
        if self.native_peers && !self.one_armed {
            for host in [&inside, &outside] {
                let index = host.index("eth0")?;
                pass.push(host.run(|| Pass::attach(index))?);
            }
        }
        for host in [&inside, &outside] {
            offload(host, "eth0", &["tx", "off", "tso", "off", "gso", "off"])?;
        }
        Ok(Network { inside, gateway, outside, _pass: pass })
    }

    /// The gateway's only link ends in a bridge that both hosts are on.
    fn bridge(
        &self,
        inside: &Namespace,
        gateway: &Namespace,
        outside: &Namespace,
        pass: &mut Vec<Pass>,
    ) -> Result<()> {
        // The bridge is in the servers' namespace; its ports are not the servers' own interface.
        outside.ip(&["link add br0 type bridge", "link set br0 up"])?;
        join(gateway, "lan0", outside, "port0", 1500)?;
        join(inside, "eth0", outside, "port1", 1500)?;
        outside.ip(&["link add eth0 type veth peer name port2", "link set eth0 up", "link set port2 up"])?;
        outside.ip(&[
            "link set port0 master br0",
            "link set port1 master br0",
            "link set port2 master br0",
        ])?;
        let index = outside.index("port0")?;
        pass.push(outside.run(|| Pass::attach(index))?);
        Ok(())
    }
}

/// Makes a veth pair between two namespaces, both ends up.
fn join(left: &Namespace, left_name: &str, right: &Namespace, right_name: &str, mtu: u16) -> Result<()> {
    let peer = right.path();
    left.ip(&[
        format!("link add {left_name} mtu {mtu} type veth peer name {right_name} netns {peer} mtu {mtu}"),
        format!("link set {left_name} up"),
    ])?;
    right.ip(&[format!("link set {right_name} up")])
}

/// Changes offloads of an interface.
fn offload(namespace: &Namespace, interface: &str, features: &[&str]) -> Result<()> {
    let output = namespace.command("ethtool").arg("-K").arg(interface).args(features).output();
    let output = output.context("starting `ethtool`")?;
    ensure!(output.status.success(), "ethtool -K {interface}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Network {
    /// The usual: two-armed, native XDP.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Builder::default().build()
    }

    /// Runs a command in the gateway's namespace and returns what it printed.
    ///
    /// # Errors
    ///
    /// With its error output when it fails.
    pub fn at_gateway(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.gateway.command(program).args(arguments))
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
///
/// With its error output when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Asks again and again until the answer is yes.
///
/// # Errors
///
/// When it is still no after `limit`.
pub fn eventually(what: &str, limit: Duration, mut yes: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        if yes()? {
            return Ok(());
        }
        ensure!(Instant::now() < end, "after {limit:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The binary under test.
///
/// # Errors
///
/// When it has not been built; the sentence says how.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("NATGW_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/natgw"),
        PathBuf::from,
    );
    ensure!(path.exists(), "no binary at {}: build it with `cargo xtask build`", path.display());
    Ok(path)
}
