// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timers of a configuration file, met by real sockets.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    Network, SERVER, SERVER2, WEB, daemon,
    daemon::Gateway,
    eventually,
    traffic::{Echo, ask, connect, datagrams, exchange},
};
use serde_json::Value;

/// Far beyond every timer of these tests.
const LONG: Duration = Duration::from_secs(30);

fn configured(ports: u16, timeouts: &str) -> String {
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "native", ports);
    format!("{config}\n[outbound_rule.timeouts]\n{timeouts}\n")
}

/// Every flow to `destination`, also those that are over.
fn to(gateway: &Gateway<'_>, destination: &str) -> Result<Vec<Value>> {
    let rows = gateway.json(&["flows", "--all"])?;
    let all = rows.as_array().context("a list")?;
    Ok(all.iter().filter(|row| row["destination"] == destination).cloned().collect())
}

fn lives(gateway: &Gateway<'_>, destination: &str, life: &str) -> Result<usize> {
    Ok(to(gateway, destination)?.iter().filter(|row| row["life"] == life).count())
}

/// A socket that does not wait for long.
fn hasty(network: &Network) -> Result<UdpSocket> {
    let socket = datagrams(&network.inside, WEB, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

#[test]
fn a_flow_ends_at_the_timer_of_its_port() -> Result<()> {
    let network = Network::new()?;
    let _dns = Echo::start(&network.outside, SERVER, 53)?;
    let _other = Echo::start(&network.outside, SERVER, 5000)?;
    let timeouts = "profile = 'azure-nat'\nudp_ports = [{ ports = [53], timeout = '2s' }]\nafter_udp = '0s'";
    let gateway = Gateway::start(&network.gateway, &configured(64, timeouts))?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 53, b"a question")?;
    ask(&socket, SERVER, 5000, b"another")?;
    let (dns, other) = (format!("{SERVER}:53"), format!("{SERVER}:5000"));
    ensure!(to(&gateway, &dns)?.len() == 1, "no flow");
    eventually("the flow to port 53 is gone", LONG, || Ok(to(&gateway, &dns)?.is_empty()))?;
    let left = to(&gateway, &other)?;
    ensure!(left.len() == 1 && left[0]["life"] == "live", "{left:?}");
    // 240 s of the profile, of which seconds have passed, and not all of them.
    let expires = left[0]["expires_seconds"].as_u64().context("a number")?;
    ensure!((100..=240).contains(&expires), "{left:?}");
    // It is used again as if nothing had been.
    ask(&socket, SERVER, 53, b"once more")
}

/// One block of 8 ports, all in use for one destination: as long as they rest nobody gets one for it.
#[test]
fn a_resting_port_serves_other_destinations_only() -> Result<()> {
    let network = Network::new()?;
    let _first = Echo::start(&network.outside, SERVER, 53)?;
    let _second = Echo::start(&network.outside, SERVER2, 53)?;
    let gateway = Gateway::start(&network.gateway, &configured(8, "udp = '2s'\nafter_udp = '10s'"))?;
    let sockets: Vec<UdpSocket> =
        (0..8).map(|_| datagrams(&network.inside, WEB, 0)).collect::<Result<_>>()?;
    for socket in &sockets {
        ask(socket, SERVER, 53, b"mine")?;
    }
    let first = format!("{SERVER}:53");
    eventually("all 8 are over", LONG, || Ok(lives(&gateway, &first, "cooling")? == 8))?;
    let refused = gateway.verdicts("no_free_port")?;
    let client = hasty(&network)?;
    ensure!(ask(&client, SERVER, 53, b"me too").is_err(), "a port that rests was given away");
    ensure!(gateway.verdicts("no_free_port")? > refused, "dropped for another reason");
    ask(&hasty(&network)?, SERVER2, 53, b"elsewhere").context("another destination")?;
    let rows = gateway.json(&["ports"])?;
    let row = rows
        .as_array()
        .context("a list")?
        .iter()
        .find(|row| row["backend"] == WEB && row["protocol"] == "udp");
    let lives = &row.context("ports of UDP")?["lives"];
    ensure!(lives["cooling"] == 8 && lives["live"] == 1, "{lives}");
    let left = to(&gateway, &first)?;
    ensure!(left.iter().all(|row| row["free_seconds"].as_u64().is_some_and(|left| left <= 10)), "{left:?}");
    // Its own tuple is another matter: the flow begins anew on the port that it has.
    ask(&sockets[0], SERVER, 53, b"mine again").context("the flow's own client")?;
    eventually("a port is free again", LONG, || Ok(ask(&client, SERVER, 53, b"me too").is_ok()))
}

#[test]
fn a_reload_changes_the_timers_of_living_flows() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &configured(64, "profile = 'rfc'"))?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 80, b"hello")?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut stream, 1000)?;
    let server = format!("{SERVER}:80");
    ensure!(lives(&gateway, &server, "live")? == 2, "{:?}", to(&gateway, &server)?);
    gateway.apply(&configured(64, "profile = 'rfc'\nudp = '1s'\nafter_udp = '0s'"))?;
    eventually("the UDP flow is gone", LONG, || Ok(to(&gateway, &server)?.len() == 1))?;
    exchange(&mut stream, 1000).context("the connection stays")?;
    gateway.apply(&configured(64, "profile = 'rfc'\nestablished = '1s'\nafter_idle = '2m'"))?;
    eventually("the connection is over and rests", LONG, || Ok(lives(&gateway, &server, "cooling")? == 1))?;
    let expired = gateway.verdicts("flow_expired")?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure!(exchange(&mut stream, 10).is_err(), "the connection is over");
    ensure!(gateway.verdicts("flow_expired")? > expired, "dropped for another reason");
    Ok(())
}
