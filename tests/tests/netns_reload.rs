// SPDX-License-Identifier: MIT OR Apache-2.0
//! A new configuration applies wholly or not at all, and cuts nothing that it still allows.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nat_tests::harness::pass::Pass;
use nat_tests::netns::{
    DB, Network, SERVER, STRANGER, WEB, daemon,
    daemon::Gateway,
    eventually,
    traffic::{Echo, ask, connect, datagrams, exchange},
};
use serde_json::Value;

/// Which backend has which ports, from the answer of `natgw ports`.
fn blocks(plan: &Value) -> Option<Vec<(Value, Value)>> {
    Some(plan.as_array()?.iter().map(|row| (row["backend"].clone(), row["range"].clone())).collect())
}

/// Adds `lan1` to the gateway: a link that leads nowhere.
fn another_link(network: &Network) -> Result<()> {
    network.gateway.ip(&[
        "link add lan1 type veth peer name far1",
        "link set lan1 up",
        "link set far1 up",
        "addr add 10.1.0.1/24 dev lan1",
    ])?;
    network.gateway.sysctl("ipv4/conf/lan1/forwarding", "0")
}

fn two_insides(ports: u16) -> String {
    daemon::config(r#"inside = ["lan0", "lan1"]"#, r#"outside = ["wan0"]"#, "native", ports)
}

fn forwarding(network: &Network, interface: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    Ok(network.at_gateway("cat", &[&path])?.trim().to_owned())
}

#[test]
fn living_flows_survive_another_block_size() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut streams = Vec::new();
    for backend in [WEB, DB] {
        for _ in 0..10 {
            streams.push(connect(&network.inside, backend, SERVER, 80)?);
        }
    }
    for ports in [32, 128, 8, 64] {
        let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "native", ports);
        gateway.apply(&config)?;
        for stream in &mut streams {
            exchange(stream, 2000).with_context(|| format!("with {ports} ports"))?;
        }
        // With 8 ports, of which old flows hold some or none, a new one may have to wait. Else it starts.
        if ports > 10 {
            exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, 1000)?;
        }
    }
    Ok(())
}

#[test]
fn a_backend_is_added_and_removed() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 53)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let socket = datagrams(&network.inside, STRANGER, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    ensure!(ask(&socket, SERVER, 53, b"not yet").is_err(), "translated without a rule");
    let before = daemon::usual();
    let more = before.replace(r#""10.0.0.5"]"#, r#""10.0.0.5", "10.0.0.200"]"#);
    gateway.apply(&more)?;
    eventually("the new backend is translated", Duration::from_secs(3), || {
        Ok(ask(&socket, SERVER, 53, b"now").is_ok())
    })?;
    gateway.apply(&before)?;
    let fresh = datagrams(&network.inside, STRANGER, 0)?;
    fresh.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually("a new flow of the removed backend is refused", Duration::from_secs(3), || {
        let another = datagrams(&network.inside, STRANGER, 0)?;
        another.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(ask(&another, SERVER, 53, b"no more").is_err())
    })?;
    ensure!(ask(&fresh, SERVER, 53, b"no more").is_err(), "translated without a rule");
    // The others were not asked.
    ask(&datagrams(&network.inside, WEB, 0)?, SERVER, 53, b"still")
}

#[test]
fn a_bad_configuration_changes_nothing() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    let plan = gateway.json(&["ports"])?;
    let usual = daemon::usual();
    let bad = [
        usual.replace("ports_per_backend = 64", "ports_per_backend = 60"),
        usual.replace("ports_per_backend = 64", "ports_per_backend = 64000"),
        usual.replace("ports_per_backend = 64", "prts_per_backend = 64"),
        usual.replace(r#"pool = "web""#, r#"pool = "nobody""#),
        usual.replace(r#""wan0""#, r#""wan7""#),
        "not a configuration".to_owned(),
    ];
    for config in &bad {
        gateway.refuse(config)?;
        exchange(&mut stream, 1000).with_context(|| config.clone())?;
        exchange(&mut connect(&network.inside, DB, SERVER, 80)?, 1000)?;
    }
    ensure!(blocks(&gateway.json(&["ports"])?) == blocks(&plan), "the blocks have changed");
    gateway.apply(&usual)?;
    exchange(&mut stream, 1000)
}

/// A device of the new configuration has somebody else's program. Devices come last: by then the new blocks are in
/// force.
#[test]
fn a_late_failure_changes_nothing() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut stream, 1000)?;
    let plan = blocks(&gateway.json(&["ports"])?).context("a list of blocks")?;
    another_link(&network)?;
    let index = network.gateway.index("lan1")?;
    let foreign = network.gateway.run(|| Pass::attach(index))?;
    gateway.refuse(&two_insides(128))?;
    ensure!(blocks(&gateway.json(&["ports"])?) == Some(plan), "the blocks have changed");
    ensure!(forwarding(&network, "lan1")? == "0", "forwarding of lan1 stays on");
    exchange(&mut stream, 1000).context("the old flow")?;
    exchange(&mut connect(&network.inside, DB, SERVER, 80)?, 1000).context("a new flow")?;
    drop(foreign);
    gateway.apply(&two_insides(128))?;
    exchange(&mut stream, 1000).context("the old flow, reloaded")
}

#[test]
fn an_interface_that_leaves_is_as_before() -> Result<()> {
    let network = Network::new()?;
    another_link(&network)?;
    let gateway = Gateway::start(&network.gateway, &two_insides(64))?;
    ensure!(forwarding(&network, "lan1")? == "1", "forwarding of lan1 is off");
    gateway.apply(&daemon::usual())?;
    ensure!(forwarding(&network, "lan1")? == "0", "forwarding of lan1 stays on");
    ensure!(forwarding(&network, "lan0")? == "1", "forwarding of lan0 is off");
    let links = network.at_gateway("ip", &["link", "show", "dev", "lan1"])?;
    ensure!(!links.contains("xdp"), "{links}");
    Ok(())
}

/// As a late failure of a reload, for a daemon that takes over.
#[test]
fn a_takeover_that_fails_changes_nothing() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut stream, 1000)?;
    let plan = blocks(&gateway.json(&["ports"])?).context("a list of blocks")?;
    gateway.end(libc::SIGTERM)?;
    another_link(&network)?;
    let index = network.gateway.index("lan1")?;
    let foreign = network.gateway.run(|| Pass::attach(index))?;
    gateway.write(&two_insides(128))?;
    let said = gateway.run_command()?.output()?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(!said.status.success() && text.contains("has an XDP program already"), "{text}");
    ensure!(blocks(&gateway.json(&["ports"])?) == Some(plan), "the blocks have changed: {text}");
    exchange(&mut stream, 1000).context("the old flow")?;
    exchange(&mut connect(&network.inside, DB, SERVER, 80)?, 1000).context("a new flow")?;
    drop(foreign);
    gateway.run()?;
    exchange(&mut stream, 1000).context("the old flow, taken over")
}

/// The control socket cannot be made: found out before anything is attached.
#[test]
fn a_start_that_fails_leaves_nothing() -> Result<()> {
    let network = Network::new()?;
    let mut gateway = Gateway::new(&network.gateway, &daemon::usual())?;
    let in_the_way = format!("/run/natgw/{}.sock", gateway.name);
    std::fs::create_dir_all(&in_the_way)?;
    let said = gateway.run_command()?.output();
    std::fs::remove_dir(&in_the_way)?;
    let said = said?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(!said.status.success() && text.contains("control socket"), "{text}");
    let links = network.at_gateway("ip", &["link", "show"])?;
    ensure!(!links.contains("prog/xdp"), "a program is left: {links}");
    let pins = format!("/sys/fs/bpf/natgw/{}", gateway.name);
    ensure!(!std::path::Path::new(&pins).exists(), "{pins} is left");
    gateway.run()
}
