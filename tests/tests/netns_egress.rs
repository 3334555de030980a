// SPDX-License-Identifier: MIT OR Apache-2.0
//! Egress only, with the configuration that is shipped for it: backends that cannot connect and are told why, then the
//! outbound rule, and everything works. Azure: "Outbound-only load balancer configuration".

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    FRONTEND, Network, SERVER, binary,
    daemon::Gateway,
    eventually,
    file::File,
    output,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};
use serde_json::Value;

const VMS: [&str; 3] = ["10.1.0.4", "10.1.0.5", "10.1.0.6"];

/// `config/egress-only.toml`, for this test's interfaces and name.
fn shipped() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/egress-only.toml");
    let text = std::fs::read_to_string(path).context(path)?;
    ensure!(text.matches("[gateway]\n").count() == 1, "{text}");
    let more = "[gateway]\nname = \"{name}\"\nxdp_mode = \"native\"\nmax_flows = 8192\n";
    Ok(text.replace("[gateway]\n", more))
}

/// The usual network with the backends that the file names.
fn network() -> Result<Network> {
    let network = Network::new()?;
    network.gateway.ip(&["addr add 10.1.0.1/16 dev lan0"])?;
    for vm in VMS {
        network.inside.ip(&[format!("addr add {vm}/16 dev eth0")])?;
    }
    Ok(network)
}

fn problems(gateway: &Gateway<'_>) -> Result<String> {
    Ok(gateway.json(&["status"])?["problems"].to_string())
}

#[test]
fn the_walk_through_of_an_egress_only_gateway() -> Result<()> {
    let network = network()?;
    let echo = Echo::start(&network.outside, SERVER, 443)?;
    let whole = shipped()?;
    let (without, rule) = whole.split_once("[[outbound_rule]]").context("an outbound rule")?;
    ensure!(rule.contains("ports_per_backend = 10000") && rule.contains("idle_timeout = \"15m\""), "{rule}");

    // The pool alone: nobody gets out, and both the backend and the operator learn why.
    let gateway = Gateway::start(&network.gateway, without)?;
    let start = Instant::now();
    let refused =
        connect(&network.inside, VMS[0], SERVER, 443).err().context("a connection without a rule")?;
    let took = start.elapsed();
    // On a veth pair the answer to the first SYN arrives within connect(2), which Linux does not listen to (the socket is
    // locked); that to the second one, after a second, counts.
    ensure!(took < Duration::from_secs(2), "told after {took:?}");
    ensure!(refused.to_string().contains(&host_unreachable()), "{refused}");
    ensure!(gateway.verdicts("no_outbound_rule")? >= 1, "not counted");
    eventually("the status names the backend and the reason", Duration::from_secs(5), || {
        let said = problems(&gateway)?;
        Ok(said.contains("vm1 (10.1.0.4)") && said.contains("no outbound rule covers it"))
    })
    .with_context(|| problems(&gateway).unwrap_or_default())?;
    ensure!(!problems(&gateway)?.contains("vm2"), "{}", problems(&gateway)?);
    let refused = gateway.json(&["stats"])?["refusals"].take();
    let row = &refused[0];
    ensure!(
        refused.as_array().is_some_and(|rows| rows.len() == 1)
            && row["backend"] == VMS[0]
            && row["name"] == "vm1"
            && row["no_outbound_rule"].as_u64() >= Some(1)
            && row["no_port"] == 0,
        "{refused:#}"
    );
    ensure!(echo.peers().is_empty() && gateway.flows()?.is_empty());

    // What the rule will change is known before.
    let file = File::new(&gateway, "whole", &whole)?;
    let plan = gateway.json(&["plan", "--config", file.path()])?;
    ensure!(
        plan["rules"]["added"][0]["rule"] == "egress" && plan["totals"]["blocks"]["new"] == 9,
        "{plan:#}"
    );
    let said = file.apply(&gateway)?;
    ensure!(said.contains("1 rule, 3 backends change"), "{said}");

    for vm in VMS {
        exchange(&mut connect(&network.inside, vm, SERVER, 443)?, 100_000)?;
        ask(&datagrams(&network.inside, vm, 0)?, SERVER, 443, b"datagram")?;
        Icmp::open(&network.inside, vm)?.ping(SERVER, 700, b"ping")?;
    }
    let seen = echo.addresses();
    ensure!(seen.len() == 1 && seen[0].to_string() == FRONTEND, "the server saw {seen:?}");
    ports(&gateway)?;
    // It is told what is wrong now; what was wrong stays in the counters.
    let said = problems(&gateway)?;
    ensure!(!said.contains("refused") && !said.contains("no outbound rule"), "{said}");
    let stats = gateway.json(&["stats"])?;
    ensure!(stats["refusals"][0]["no_outbound_rule"].as_u64() >= Some(1), "{stats:#}");
    let idle = gateway.json(&["status"])?;
    let timeouts = &idle["rules"][0]["timeouts_seconds"];
    ensure!(timeouts["established"] == 900, "{timeouts}");

    // In force: the same again changes nothing, and nobody comes in.
    let text = gateway.command(&["plan", "--config", file.path()])?;
    ensure!(text.ends_with("nothing changes\n"), "{text}");
    let _inside = Echo::start(&network.inside, VMS[0], 443)?;
    ensure!(connect(&network.outside, "198.51.100.7", FRONTEND, 443).is_err(), "somebody came in");
    Ok(())
}

fn host_unreachable() -> String {
    let error = std::io::Error::from_raw_os_error(libc::EHOSTUNREACH);
    debug_assert_eq!(error.kind(), ErrorKind::HostUnreachable);
    error.to_string()
}

/// 10,000 ports of each protocol for each backend, all of them on the one address and no port twice.
fn ports(gateway: &Gateway<'_>) -> Result<()> {
    let rows = gateway.json(&["ports"])?;
    let rows = rows.as_array().context("a list")?;
    for protocol in ["tcp", "udp", "icmp"] {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for vm in VMS {
            let own: Vec<&Value> = rows
                .iter()
                .filter(|row| {
                    row["backend"] == vm && row["protocol"] == protocol && row["frontend"] == FRONTEND
                })
                .collect();
            let sum: u64 = own.iter().filter_map(|row| row["allocated"].as_u64()).sum();
            ensure!(sum == 10_000, "{vm} {protocol}: {own:#?}");
            for row in own {
                let port = |end: usize| row["range"][end].as_u64().context("a port");
                runs.push((port(0)?, port(1)?));
            }
        }
        runs.sort_unstable();
        ensure!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{protocol}: {runs:?}");
    }
    Ok(())
}

#[test]
fn the_shipped_file_is_right() -> Result<()> {
    let network = Network::new()?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/egress-only.toml");
    let mut command = network.gateway.command(binary()?.to_str().context("the path is text")?);
    let text = output(command.args(["check", "--config", path]))?;
    ensure!(text.contains("30,000 of 64,000"), "{text}");
    Ok(())
}
