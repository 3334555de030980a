// SPDX-License-Identifier: MIT OR Apache-2.0
//! Path MTU, MSS clamp, jumbo frames: with real TCP.

use std::time::Duration;

use anyhow::{Result, ensure};
use nat_tests::netns::{
    Builder, FRONTEND, Network, SERVER, WEB, daemon,
    daemon::Gateway,
    output,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

/// More than any initial window, in both directions.
const MUCH: usize = 400_000;

/// Links of 1,500 bytes, behind which the gateway's routes allow less: 1,300 to the backends, 1,400 to the outside. Only
/// the gateway knows.
fn narrow() -> Result<Network> {
    let network = Network::new()?;
    network.gateway.ip(&[
        "route replace 10.0.0.0/16 dev lan0 src 10.0.0.1 mtu lock 1300",
        "route replace default via 198.51.100.254 mtu lock 1400",
    ])?;
    Ok(network)
}

/// RFC 4787 REQ-13, RFC 1191: both ends hear which size fits, and the connection goes on.
#[test]
fn path_mtu_is_discovered_in_both_directions() -> Result<()> {
    let network = narrow()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, MUCH)?;
    ensure!(gateway.verdicts("too_big")? >= 2, "{}", gateway.json(&["stats"])?);
    // Each end knows now: the backend about the way out, the server about the way in.
    let known = output(network.inside.command("ip").args(["route", "get", SERVER, "from", WEB]))?;
    ensure!(known.contains("mtu 1400"), "{known}");
    let known = output(network.outside.command("ip").args(["route", "get", FRONTEND, "from", SERVER]))?;
    ensure!(known.contains("mtu 1300"), "{known}");
    Ok(())
}

/// Where ICMP is lost, connections hang as soon as they send much; with `mss_clamp` they do not.
#[test]
fn a_black_hole_is_avoided_by_mss_clamp() -> Result<()> {
    let network = narrow()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    for host in [&network.inside, &network.outside] {
        let rules = "add table ip t; add chain ip t in { type filter hook input priority 0; }; \
                     add rule ip t in icmp type destination-unreachable drop";
        output(host.command("nft").arg(rules))?;
    }
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let hangs = exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, MUCH);
    ensure!(hangs.is_err(), "no black hole to avoid");
    let before = gateway.verdicts("too_big")?;
    ensure!(before > 0, "nothing was too big");
    gateway.apply(&format!("{}mss_clamp = \"auto\"\n", daemon::usual()))?;
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, MUCH)?;
    gateway.apply(&format!("{}mss_clamp = 1000\n", daemon::usual()))?;
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, MUCH)?;
    Ok(())
}

fn jumbo(network: &Network, mode: &str) -> Result<()> {
    let echo = Echo::start(&network.outside, SERVER, 80)?;
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, mode, 64);
    let gateway = Gateway::start(&network.gateway, &config)?;
    let icmp = Icmp::open(&network.inside, WEB)?;
    // The first packet may wait for a neighbour.
    icmp.ping(SERVER, 3, b"small")?;
    for length in [1472, 3400, 3500, 4096, 8000, 8972] {
        icmp.ping(SERVER, 4, &vec![7; length])?;
        let socket = datagrams(&network.inside, WEB, 0)?;
        ask(&socket, SERVER, 80, &vec![3; length])?;
    }
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, 4 * MUCH)?;
    ensure!(echo.addresses() == [FRONTEND.parse::<std::net::IpAddr>()?], "{:?}", echo.addresses());
    for reason in ["malformed", "too_big", "too_big_silent", "fragment", "not_configured"] {
        ensure!(gateway.verdicts(reason)? == 0, "{reason}: {}", gateway.json(&["stats"])?);
    }
    Ok(())
}

#[test]
fn jumbo_frames_in_native_mode() -> Result<()> {
    let network = Builder::default().mtu(9000).build()?;
    jumbo(&network, "native")?;
    let links = network.at_gateway("ip", &["link", "show", "wan0"])?;
    ensure!(links.contains("mtu 9000"), "{links}");
    Ok(())
}

#[test]
fn jumbo_frames_in_generic_mode() -> Result<()> {
    jumbo(&Builder::default().plain_peers().mtu(9000).build()?, "generic")
}

/// The MTU of a running gateway may be raised: its program takes what does not fit one buffer.
#[test]
fn the_mtu_is_raised_under_a_running_gateway() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut stream, 10_000)?;
    for (host, interface) in [
        (&network.gateway, "lan0"),
        (&network.gateway, "wan0"),
        (&network.inside, "eth0"),
        (&network.outside, "eth0"),
    ] {
        host.ip(&[format!("link set {interface} mtu 9000")])?;
    }
    exchange(&mut stream, MUCH)?;
    let icmp = Icmp::open(&network.inside, WEB)?;
    nat_tests::netns::eventually("large pings are translated", Duration::from_secs(5), || {
        Ok(icmp.ping(SERVER, 5, &[7; 8000]).is_ok())
    })?;
    ensure!(gateway.verdicts("translated_in")? > 0);
    Ok(())
}
