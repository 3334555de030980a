// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon dies, is ended, comes back: translation goes on.

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    DB, FRONTEND, Network, SERVER, WEB, daemon,
    daemon::Gateway,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

#[test]
fn killing_the_daemon_cuts_nothing() -> Result<()> {
    let network = Network::new()?;
    let echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut old = connect(&network.inside, WEB, SERVER, 80)?;
    let socket = datagrams(&network.inside, DB, 0)?;
    exchange(&mut old, 10_000)?;
    ask(&socket, SERVER, 80, b"before")?;
    let before = gateway.flows()?;
    gateway.kill()?;

    exchange(&mut old, 100_000).context("an old connection without a daemon")?;
    ask(&socket, SERVER, 80, b"without").context("an old UDP flow without a daemon")?;
    let mut new = connect(&network.inside, WEB, SERVER, 80).context("a new connection without a daemon")?;
    exchange(&mut new, 100_000)?;
    Icmp::open(&network.inside, WEB)?.ping(SERVER, 9, b"without")?;
    // Reading commands work from the pinned maps.
    let without = gateway.flows().context("`flows` without a daemon")?;
    ensure!(without.len() == before.len() + 2, "{before:#?}\n{without:#?}");

    gateway.run().context("the second start")?;
    let adopted = gateway.flows()?;
    ensure!(adopted.len() >= without.len(), "{without:#?}\n{adopted:#?}");
    let tuple = |flow: &serde_json::Value| (flow["source"].clone(), flow["frontend"].clone());
    for flow in &without {
        ensure!(adopted.iter().any(|other| tuple(other) == tuple(flow)), "not adopted: {flow}");
    }
    exchange(&mut old, 10_000)?;
    exchange(&mut new, 10_000)?;
    ask(&socket, SERVER, 80, b"after")?;
    ensure!(echo.addresses() == [FRONTEND.parse::<std::net::IpAddr>()?], "{:?}", echo.addresses());
    Ok(())
}

#[test]
fn ending_the_daemon_leaves_translation_running() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        gateway.end(signal)?;
        exchange(&mut stream, 10_000)?;
        exchange(&mut connect(&network.inside, DB, SERVER, 80)?, 10_000)?;
        gateway.run()?;
    }
    exchange(&mut stream, 10_000)
}

#[test]
fn many_restarts_in_a_row() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    for round in 0..5 {
        gateway.kill()?;
        exchange(&mut stream, 1000).with_context(|| format!("round {round}, dead"))?;
        gateway.run()?;
        exchange(&mut stream, 1000).with_context(|| format!("round {round}, back"))?;
    }
    Ok(())
}

#[test]
fn detaching_leaves_nothing_behind() -> Result<()> {
    let network = Network::new()?;
    let before = network.at_gateway("sysctl", &["-a", "--pattern", r"^net\.ipv4\.(ip_forward|conf\.)"])?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let name = gateway.name.clone();
    ensure!(gateway.command(&["detach"]).is_err(), "detached under a running daemon");
    gateway.end(libc::SIGTERM)?;
    gateway.command(&["detach"])?;
    let links = network.at_gateway("ip", &["-details", "link"])?;
    ensure!(!links.contains("xdp"), "{links}");
    let addresses = network.at_gateway("ip", &["addr"])?;
    ensure!(!addresses.contains(FRONTEND), "{addresses}");
    let after = network.at_gateway("sysctl", &["-a", "--pattern", r"^net\.ipv4\.(ip_forward|conf\.)"])?;
    ensure!(before == after, "sysctls before:\n{before}\nafter:\n{after}");
    for path in [format!("/sys/fs/bpf/natgw/{name}"), format!("/run/natgw/{name}.sock")] {
        ensure!(!std::path::Path::new(&path).exists(), "{path} is still there");
    }
    gateway.command(&["detach"]).context("a second time")?;
    Ok(())
}

/// The daemon had no chance to tidy up.
#[test]
fn detaching_after_a_kill_leaves_nothing_behind_either() -> Result<()> {
    let network = Network::new()?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    gateway.kill()?;
    gateway.command(&["detach"])?;
    let links = network.at_gateway("ip", &["-details", "link"])?;
    ensure!(!links.contains("xdp"), "{links}");
    for path in [format!("/sys/fs/bpf/natgw/{}", gateway.name), format!("/run/natgw/{}.sock", gateway.name)] {
        ensure!(!std::path::Path::new(&path).exists(), "{path} is still there");
    }
    Ok(())
}
