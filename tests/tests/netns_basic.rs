// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real sockets through the built binary: TCP, UDP, ping, traceroute, exhaustion, and somebody knocking from outside.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    DB, FRONTEND, Network, SERVER, SERVER2, STRANGER, WEB, daemon,
    daemon::Gateway,
    eventually,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

fn frontend() -> Vec<IpAddr> {
    vec![FRONTEND.parse().expect("an address")]
}

#[test]
fn tcp_udp_and_ping() -> Result<()> {
    let network = Network::new()?;
    let echo = Echo::start(&network.outside, SERVER, 8080)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut streams = Vec::new();
    for backend in [WEB, DB] {
        let mut stream = connect(&network.inside, backend, SERVER, 8080)?;
        exchange(&mut stream, 1_000_001)?;
        streams.push(stream);
        let socket = datagrams(&network.inside, backend, 0)?;
        for length in [1, 2, 31, 1472] {
            ask(&socket, SERVER, 8080, &vec![7; length])?;
        }
        let icmp = Icmp::open(&network.inside, backend)?;
        icmp.ping(SERVER, 77, b"odd")?;
        icmp.ping("198.51.100.7", 77, b"even")?;
    }
    ensure!(echo.addresses() == frontend(), "the server saw {:?}", echo.addresses());
    let flows = gateway.flows()?;
    // For each backend a TCP, a UDP and two ICMP flows.
    ensure!(flows.len() == 8, "{flows:#?}");
    for flow in &flows {
        let text =
            |field: &str| flow[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
        ensure!(text("frontend")?.starts_with(FRONTEND), "{flow}");
        ensure!(text("source")?.starts_with(text("backend")?.as_str()), "{flow}");
        ensure!(flow["packets_out"].as_u64() > Some(0) && flow["packets_in"].as_u64() > Some(0), "{flow}");
    }
    let stats = gateway.json(&["stats"])?;
    let verdicts = stats["verdicts"].as_object().context("verdicts")?;
    let sum: u64 = verdicts.values().filter_map(serde_json::Value::as_u64).sum();
    ensure!(Some(sum) == stats["packets_seen"].as_u64(), "{stats}");
    ensure!(gateway.verdicts("malformed")? == 0 && gateway.verdicts("not_configured")? == 0, "{stats}");
    Ok(())
}

#[test]
fn traceroute_sees_the_gateway_and_the_server() -> Result<()> {
    let network = Network::new()?;
    let _gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let icmp = Icmp::open(&network.inside, WEB)?;
    icmp.request(SERVER, 500, 1, b"first hop")?;
    let hop = icmp.wait(Duration::from_secs(3), |message| message.kind == 11)?;
    ensure!(hop.from.to_string() == "10.0.0.1" && hop.code == 0, "{hop:?}");
    icmp.request(SERVER, 500, 2, b"second hop")?;
    let end = icmp.wait(Duration::from_secs(3), |message| message.kind == 0)?;
    ensure!(end.from.to_string() == SERVER, "{end:?}");
    // A closed UDP port: the server's ICMP error reaches the very socket.
    let socket = datagrams(&network.inside, WEB, 0)?;
    socket.connect((SERVER, 33_434))?;
    socket.send(b"anyone?")?;
    let error = socket.recv(&mut [0; 16]).err().context("an answer from a closed port")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

#[test]
fn exactly_eight_connections_on_eight_ports() -> Result<()> {
    let network = Network::new()?;
    let _echo = [Echo::start(&network.outside, SERVER, 80)?, Echo::start(&network.outside, SERVER2, 80)?];
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "native", 8);
    let gateway = Gateway::start(&network.gateway, &config)?;
    let mut open = Vec::new();
    for server in [SERVER, SERVER2] {
        for number in 0..8 {
            let stream = connect(&network.inside, WEB, server, 80);
            open.push(stream.with_context(|| format!("connection {number} to {server}"))?);
        }
        let refused = gateway.verdicts("no_free_port")?;
        ensure!(connect(&network.inside, WEB, server, 80).is_err(), "a ninth connection to {server}");
        ensure!(gateway.verdicts("no_free_port")? > refused, "the refusal was not counted");
    }
    for _ in 0..8 {
        open.push(connect(&network.inside, DB, SERVER, 80).context("the other backend")?);
    }
    for stream in &mut open {
        exchange(stream, 1000)?;
    }
    let ports = gateway.json(&["ports"])?;
    let rows = ports.as_array().context("a list")?;
    let tcp = |row: &&serde_json::Value| row["protocol"] == "tcp" && row["backend"].to_string().contains(WEB);
    let row = rows.iter().find(tcp).with_context(|| format!("no row of {WEB}: {ports}"))?;
    ensure!(row["allocated"] == 8 && row["refused"].as_u64() >= Some(2), "{row}");
    Ok(())
}

#[test]
fn nobody_comes_in_uninvited() -> Result<()> {
    let network = Network::new()?;
    let _inside = Echo::start(&network.inside, WEB, 1024)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    ensure!(connect(&network.outside, "198.51.100.7", FRONTEND, 1024).is_err(), "a connection from outside");
    let socket = datagrams(&network.outside, "198.51.100.7", 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure!(ask(&socket, FRONTEND, 1030, b"hello").is_err(), "an answer to somebody outside");
    ensure!(gateway.verdicts("no_mapping")? >= 2, "not counted");
    // And a host inside that no rule covers does not get out.
    let stranger = datagrams(&network.inside, STRANGER, 0)?;
    stranger.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure!(ask(&stranger, SERVER, 53, b"hello").is_err(), "an answer for a stranger");
    eventually("the stranger is counted", Duration::from_secs(2), || {
        Ok(gateway.verdicts("no_outbound_rule")? >= 1)
    })
}

/// The neighbour is not known when the first packet comes: it is delayed, not lost.
#[test]
fn the_first_packet_to_a_new_neighbour_arrives() -> Result<()> {
    let network = Network::new()?;
    let echo = Echo::start(&network.outside, "198.51.100.7", 53)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    for _ in 0..5 {
        network.gateway.ip(&["neigh flush dev wan0"])?;
        // One datagram only: nothing is sent again.
        ask(&socket, "198.51.100.7", 53, b"once")?;
    }
    ensure!(echo.addresses() == frontend(), "the server saw {:?}", echo.addresses());
    ensure!(gateway.verdicts("translated_out")? + gateway.verdicts("neighbour_unresolved")? >= 5);
    Ok(())
}

/// A neighbour's MAC address changes under a living flow.
#[test]
fn a_neighbour_moves() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 53)?;
    let _gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 53, b"before")?;
    network.outside.ip(&["link set eth0 address 02:00:00:00:99:99"])?;
    network.gateway.ip(&["neigh replace 198.51.100.254 lladdr 02:00:00:00:99:99 dev wan0 nud permanent"])?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // A changed next hop has to take effect within a second; the rest is for the machine that runs the test.
    eventually("the flow goes the new way", Duration::from_millis(1500), || {
        Ok(ask(&socket, SERVER, 53, b"after").is_ok())
    })
}
