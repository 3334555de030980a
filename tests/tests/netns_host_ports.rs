// SPDX-License-Identifier: MIT OR Apache-2.0
//! A gateway whose own address is a frontend keeps its ephemeral ports: its connections and those of backends do not get
//! into each other's way, and `check`, `plan` and `run` agree on what is left.

use std::{ops::RangeInclusive, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    DB, Network, SERVER, WEB, binary, daemon,
    daemon::{Gateway, Reload},
    eventually,
    file::File,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

/// The gateway's own outside address.
const OWN: &str = "198.51.100.1";
/// What Linux starts with.
const USUAL: RangeInclusive<u64> = 32_768..=60_999;

fn config(ports: &str) -> String {
    daemon::usual().replace("203.0.113.10", OWN).replace("ports_per_backend = 64", ports)
}

fn natgw(network: &Network, arguments: &[&str]) -> Result<Output> {
    let mut command = network.gateway.command(binary()?.to_str().context("the path is text")?);
    Ok(command.args(arguments).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Opens flows of every protocol from both backends, while the gateway has connections of its own.
fn together(network: &Network, gateway: &Gateway<'_>, kept: &RangeInclusive<u64>) -> Result<()> {
    let _echo = [Echo::start(&network.outside, SERVER, 80)?, Echo::start(&network.outside, SERVER, 53)?];
    let mut own = Vec::new();
    let mut streams = Vec::new();
    let mut sockets = Vec::new();
    for number in 0..40u16 {
        let mut stream = connect(&network.gateway, OWN, SERVER, 80).context("the gateway's own")?;
        let port = u64::from(stream.local_addr()?.port());
        ensure!(kept.contains(&port), "the gateway has taken {port}");
        exchange(&mut stream, 1000).context("the gateway's own")?;
        own.push(stream);
        for backend in [WEB, DB] {
            streams.push(connect(&network.inside, backend, SERVER, 80)?);
            let socket = datagrams(&network.inside, backend, 0)?;
            ask(&socket, SERVER, 53, b"backend")?;
            sockets.push(socket);
        }
        let socket = datagrams(&network.gateway, OWN, 0)?;
        ask(&socket, SERVER, 53, b"gateway").context("the gateway's own")?;
        Icmp::open(&network.inside, WEB)?.ping(SERVER, 900 + number, b"ping")?;
    }
    for stream in own.iter_mut().chain(&mut streams) {
        exchange(stream, 10_000)?;
    }
    let flows = gateway.flows()?;
    ensure!(flows.len() >= 40 * 5, "{} flows", flows.len());
    for flow in &flows {
        let port = flow["frontend"].as_str().and_then(|end| end.strip_prefix(OWN)?.strip_prefix(':'));
        let port: u64 = port.with_context(|| flow.to_string())?.parse()?;
        ensure!(!kept.contains(&port), "handed out: {flow}");
    }
    given_without(gateway, kept)
}

/// `natgw ports` has nothing of `kept` for new flows.
fn given_without(gateway: &Gateway<'_>, kept: &RangeInclusive<u64>) -> Result<()> {
    let rows = gateway.json(&["ports"])?;
    let rows = rows.as_array().context("a list")?;
    let current: Vec<_> = rows.iter().filter(|row| row["draining"] == false).collect();
    ensure!(!current.is_empty(), "{rows:#?}");
    for row in current {
        let end = |at: usize| row["range"][at].as_u64().context("a port");
        ensure!(end(1)? < *kept.start() || end(0)? > *kept.end(), "{row:#}");
    }
    Ok(())
}

#[test]
fn the_host_and_its_backends_share_an_address() -> Result<()> {
    let network = Network::new()?;
    // Two thirds of what the host leaves: blocks lie on both sides of its range.
    let gateway = Gateway::start(&network.gateway, &config("ports_per_backend = 17000"))?;
    ensure!(gateway.log().contains("198.51.100.1 is an address of this host"), "{}", gateway.log());
    together(&network, &gateway, &USUAL)?;

    // Nearly nothing is left to backends, and all of it is shared.
    network.gateway.sysctl("ipv4/ip_local_port_range", "1200 65000")?;
    let dynamic = File::new(&gateway, "dynamic", &config("allocation = \"dynamic\""))?;
    dynamic.apply(&gateway)?;
    let text = gateway.command(&["plan", "--config", dynamic.path()])?;
    ensure!(text.ends_with("nothing changes\n"), "{text}");
    given_without(&gateway, &(1200..=65_000))?;
    let echo = Echo::start(&network.outside, SERVER, 8053)?;
    for backend in [WEB, DB].repeat(60) {
        ask(&datagrams(&network.inside, backend, 0)?, SERVER, 8053, b"few ports")?;
    }
    let taken: Vec<u16> = echo.peers().iter().map(std::net::SocketAddr::port).collect();
    ensure!(taken.len() == 120 && taken.iter().all(|port| !(1200..=65_000).contains(port)), "{taken:?}");
    Ok(())
}

/// An address that natgw has added is not the host's own, also to the next daemon.
#[test]
fn what_natgw_has_added_does_not_count() -> Result<()> {
    let network = Network::new()?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let before = gateway.json(&["ports"])?;
    gateway.kill()?;
    gateway.run()?;
    gateway.apply(&daemon::usual())?;
    ensure!(!gateway.log().contains("is an address of this host"), "{}", gateway.log());
    ensure!(gateway.json(&["ports"])? == before);
    let file = File::new(&gateway, "same", &daemon::usual())?;
    let check = natgw(&network, &["check", "--config", file.path()])?;
    ensure!(check.status.success() && said(&check).is_empty(), "{}", said(&check));
    Ok(())
}

/// What fits elsewhere does not fit on this host: everybody says so, and why.
#[test]
fn a_plan_without_room_for_the_host_is_refused() -> Result<()> {
    let network = Network::new()?;
    let why = "198.51.100.1 is an address of this host, so its ports 32768 to 60999 stay the host's own";
    let large = config("ports_per_backend = 30000");
    let fails = Gateway::new(&network.gateway, &large)?;
    let output = fails.run_command()?.output()?;
    ensure!(output.status.code() == Some(1) && said(&output).contains(why), "{}", said(&output));

    let file = File::new(&fails, "large", &large)?;
    let output = natgw(&network, &["check", "--config", file.path()])?;
    ensure!(output.status.code() == Some(2) && said(&output).contains(why), "{}", said(&output));
    let output = natgw(&network, &["check", "--other-host", "--config", file.path()])?;
    ensure!(output.status.success() && !said(&output).contains(why), "{}", said(&output));
    let output = natgw(&network, &["plan", "--config", file.path()])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains(why), "{}", said(&output));

    let gateway = Gateway::start(&network.gateway, &config("ports_per_backend = 64"))?;
    let before = gateway.json(&["ports"])?;
    ensure!(gateway.reload(&large)? == Reload::Refused);
    eventually("the log says why", Duration::from_secs(2), || {
        Ok(gateway.log().lines().any(|line| line.contains("reload refused") && line.contains(why)))
    })
    .with_context(|| gateway.log())?;
    ensure!(gateway.json(&["ports"])? == before, "something has changed");
    // With nothing kept, it fits.
    let none = large.replace("addresses = ", "host_ports = \"none\"\naddresses = ");
    gateway.apply(&none)
}
