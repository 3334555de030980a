// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which way a connection goes, with real sockets: denied and told so, untranslated, by an instance IP, by one of several
//! frontend addresses, by the default.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    DB, FRONTEND, Network, SERVER, SERVER2, STRANGER, WEB, daemon,
    daemon::Gateway,
    eventually,
    file::File,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

const SECOND: &str = "203.0.113.11";
const INSTANCE: &str = "203.0.113.50";
/// Somebody outside.
const OUTSIDER: &str = "198.51.100.7";

/// The usual configuration with `keys` in `[gateway]` and `more` after the rule.
fn config(keys: &str, more: &str) -> String {
    daemon::usual().replace("[gateway]\n", &format!("[gateway]\n{keys}")) + more
}

/// The error a connection is refused with, and how long that took.
fn refused(network: &Network, to: &str, port: u16) -> Result<(i32, Duration)> {
    let start = Instant::now();
    let error = connect(&network.inside, WEB, to, port).err().context("a connection that is denied")?;
    let took = start.elapsed();
    let known = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EINPROGRESS];
    let named = |code: &i32| error.to_string().contains(&format!("(os error {code})"));
    Ok((known.into_iter().find(named).with_context(|| format!("{error:#}"))?, took))
}

/// What a connected UDP socket hears.
fn udp_error(network: &Network, to: &str, port: u16) -> Result<Option<i32>> {
    let socket = datagrams(&network.inside, WEB, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.connect((to, port))?;
    socket.send(b"anyone?")?;
    let error = socket.recv(&mut [0; 16]).err().context("an answer")?;
    Ok(error.raw_os_error().filter(|code| *code != libc::EAGAIN))
}

#[test]
fn what_is_denied_is_told_as_configured() -> Result<()> {
    let network = Network::new()?;
    let _echo = [
        Echo::start(&network.outside, SERVER, 25)?,
        Echo::start(&network.outside, SERVER, 26)?,
        Echo::start(&network.outside, SERVER2, 26)?,
    ];
    let deny = format!("[[deny]]\nname = \"no\"\ndestinations = [\"{SERVER2}\"]\n");
    let told = |how: &str| config(&format!("block_smtp = true\non_refusal = \"{how}\"\n"), &deny);
    let gateway = Gateway::start(&network.gateway, &told("tcp-reset"))?;
    for (to, port) in [(SERVER, 25), (SERVER2, 26)] {
        let (code, took) = refused(&network, to, port)?;
        ensure!(code == libc::ECONNREFUSED && took < Duration::from_millis(500), "{to}: {code} in {took:?}");
    }
    ensure!(udp_error(&network, SERVER2, 26)? == Some(libc::EHOSTUNREACH));
    // Linux takes code 13 for final and tells the UDP socket, code 1 for a passing trouble and does not.
    for (how, heard) in [("icmp-admin-prohibited", Some(libc::EHOSTUNREACH)), ("icmp-host-unreachable", None)]
    {
        gateway.apply(&told(how))?;
        // The answer to the first SYN arrives within connect(2) here, where Linux does not listen to it.
        let (code, took) = refused(&network, SERVER, 25)?;
        ensure!(code == libc::EHOSTUNREACH && took < Duration::from_secs(2), "{how}: {code} in {took:?}");
        ensure!(udp_error(&network, SERVER2, 26)? == heard, "{how}");
    }
    gateway.apply(&told("silent"))?;
    let (code, took) = refused(&network, SERVER, 25)?;
    ensure!(code == libc::EINPROGRESS && took > Duration::from_millis(2500), "{code} in {took:?}");
    ensure!(udp_error(&network, SERVER2, 26)?.is_none(), "an error for a silent refusal");

    // Neighbouring ports, addresses and protocols are not meant.
    exchange(&mut connect(&network.inside, WEB, SERVER, 26)?, 1000)?;
    ask(&datagrams(&network.inside, WEB, 0)?, SERVER, 25, b"not TCP")?;
    ensure!(gateway.verdicts("denied")? >= 8, "not counted");
    let stats = gateway.json(&["stats"])?;
    let policies = stats["policies"].as_array().context("policies")?;
    for name in ["no", "block_smtp"] {
        let row = policies.iter().find(|row| row["name"] == name || row["policy"] == name);
        let row = row.with_context(|| format!("no row of {name}: {policies:#?}"))?;
        ensure!(row["packets"].as_u64() >= Some(3), "{row}");
    }
    let refusals = stats["refusals"].as_array().context("refusals")?;
    let row = refusals.iter().find(|row| row["backend"] == "10.0.0.4").context("no row of the backend")?;
    ensure!(row["policy"].as_u64() >= Some(8) && row["no_outbound_rule"] == 0, "{row}");
    let problems = gateway.json(&["status"])?["problems"].to_string();
    ensure!(problems == "[]", "what is denied as configured is no problem: {problems}");
    Ok(())
}

/// A policy that comes finds connections that live: they finish.
#[test]
fn a_policy_ends_no_connection() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut stream, 1000)?;
    let deny = "[[deny]]\nname = \"no\"\nprotocol = \"tcp\"\n";
    let file = File::new(&gateway, "deny", &config("on_refusal = \"tcp-reset\"\n", deny))?;
    let plan = gateway.json(&["plan", "--config", file.path()])?;
    ensure!(plan["policies"]["added"][0]["policy"] == "no", "{plan:#}");
    ensure!(plan["gateway"][0]["after"] == "tcp-reset", "{plan:#}");
    file.apply(&gateway)?;
    exchange(&mut stream, 100_000).context("the connection of before")?;
    ensure!(refused(&network, SERVER, 80)?.0 == libc::ECONNREFUSED);
    let text = gateway.command(&["plan", "--config", file.path()])?;
    ensure!(text.ends_with("nothing changes\n"), "{text}");
    // What the tables hold is compared, not what some file says.
    let ports = deny.to_owned() + "ports = [80, \"8000-8010\"]\n";
    let other = File::new(&gateway, "ports", &config("on_refusal = \"tcp-reset\"\n", &ports))?;
    let plan = gateway.json(&["plan", "--config", other.path()])?;
    let [before, after] = ["before", "after"].map(|side| &plan["policies"]["changed"][0][side]["ports"]);
    ensure!(before.is_null() && *after == serde_json::json!([[80, 80], [8000, 8010]]), "{plan:#}");
    Ok(())
}

#[test]
fn what_is_bypassed_keeps_its_address() -> Result<()> {
    let network = Network::new()?;
    network.outside.ip(&["route add 10.0.0.0/16 via 198.51.100.1"])?;
    let private = Echo::start(&network.outside, SERVER2, 80)?;
    let public = Echo::start(&network.outside, SERVER, 80)?;
    let bypass = format!("[[bypass]]\nname = \"corp\"\ndestinations = [\"{SERVER2}\"]\n");
    let gateway = Gateway::start(&network.gateway, &config("", &bypass))?;
    for server in [SERVER, SERVER2] {
        exchange(&mut connect(&network.inside, WEB, server, 80)?, 100_000)?;
        ask(&datagrams(&network.inside, WEB, 0)?, server, 80, b"datagram")?;
        Icmp::open(&network.inside, WEB)?.ping(server, 5, b"ping")?;
    }
    let seen = |echo: &Echo| echo.addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
    ensure!(seen(&private) == [WEB] && seen(&public) == [FRONTEND], "{:?}", (seen(&private), seen(&public)));
    ensure!(gateway.flows()?.iter().all(|flow| !flow["destination"].to_string().contains(SERVER2)));
    ensure!(gateway.verdicts("bypassed")? > 0, "not counted");
    Ok(())
}

/// `what` in every protocol from a backend to a server; returns what the server saw.
fn outbound(network: &Network, from: &str, port: u16) -> Result<BTreeSet<String>> {
    let echo = Echo::start(&network.outside, SERVER, port)?;
    exchange(&mut connect(&network.inside, from, SERVER, port)?, 200_001)?;
    ask(&datagrams(&network.inside, from, 0)?, SERVER, port, b"datagram")?;
    Icmp::open(&network.inside, from)?.ping(SERVER, port, b"ping")?;
    Ok(echo.addresses().iter().map(ToString::to_string).collect())
}

/// Everything from outside to [`INSTANCE`], which is [`DB`]'s.
fn inbound(network: &Network, port: u16) -> Result<()> {
    let echo = Echo::start(&network.inside, DB, port)?;
    exchange(&mut connect(&network.outside, OUTSIDER, INSTANCE, port)?, 200_001)?;
    ask(&datagrams(&network.outside, OUTSIDER, 0)?, INSTANCE, port, b"datagram")?;
    Icmp::open(&network.outside, OUTSIDER)?.ping(INSTANCE, port, b"ping")?;
    let seen: BTreeSet<String> = echo.addresses().iter().map(ToString::to_string).collect();
    ensure!(seen == BTreeSet::from([OUTSIDER.to_owned()]), "the backend saw {seen:?}");
    Ok(())
}

#[test]
fn an_instance_ip_works_in_both_directions() -> Result<()> {
    let network = Network::new()?;
    // The router asks by ARP: nothing arrives for an address that nobody has.
    network.outside.ip(&["route replace 203.0.113.0/24 dev eth0"])?;
    let instance = format!("[[instance_ip]]\nbackend = \"{DB}\"\naddress = \"{INSTANCE}\"\n");
    let gateway = Gateway::start(&network.gateway, &config("", &instance))?;
    let only = |address: &str| BTreeSet::from([address.to_owned()]);
    ensure!(outbound(&network, DB, 80)? == only(INSTANCE));
    ensure!(outbound(&network, WEB, 81)? == only(FRONTEND));
    ensure!(gateway.flows()?.iter().all(|flow| flow["backend"] != DB), "flows of an instance IP");
    inbound(&network, 8080)?;

    // A port that nobody listens on, and a way that is denied.
    let closed = connect(&network.outside, OUTSIDER, INSTANCE, 9).err().context("a closed port")?;
    ensure!(closed.to_string().contains("refused"), "{closed}");
    let deny = "[[deny]]\nname = \"own\"\ndirection = \"inbound\"\nprotocol = \"tcp\"\nports = [8081]\n";
    gateway.apply(&config("", &(instance.clone() + deny)))?;
    let _closed = Echo::start(&network.inside, DB, 8081)?;
    let denied = connect(&network.outside, OUTSIDER, INSTANCE, 8081).err().context("a denied port")?;
    ensure!(!denied.to_string().contains("refused"), "who is outside hears nothing: {denied}");
    ask(&datagrams(&network.outside, OUTSIDER, 0)?, INSTANCE, 8081, b"not TCP")?;
    inbound(&network, 8080)?;

    // The other order: out by the rule, in by the instance IP.
    let order = "precedence = [\"outbound-rule\", \"instance-ip\"]\n";
    let file = File::new(&gateway, "order", &config(order, &instance))?;
    let plan = gateway.json(&["plan", "--config", file.path()])?;
    ensure!(plan["gateway"][0]["setting"] == "precedence", "{plan:#}");
    file.apply(&gateway)?;
    ensure!(outbound(&network, DB, 82)? == only(FRONTEND));
    inbound(&network, 8082)?;

    // It goes: the address leaves the host, and what is on the frontend stays.
    let kept = Echo::start(&network.outside, SERVER, 83)?;
    let mut stream = connect(&network.inside, DB, SERVER, 83)?;
    exchange(&mut stream, 1000)?;
    let file = File::new(&gateway, "usual", &daemon::usual())?;
    let plan = gateway.json(&["plan", "--config", file.path()])?;
    let gone = &plan["instance_ips"]["removed"][0];
    ensure!(gone["backend"] == DB && gone["before"] == INSTANCE, "{plan:#}");
    ensure!(gone["flows"].as_u64() >= Some(1), "{plan:#}");
    file.apply(&gateway)?;
    exchange(&mut stream, 1000).context("the connection on the frontend")?;
    drop(kept);
    ensure!(connect(&network.outside, OUTSIDER, INSTANCE, 8082).is_err(), "it is still there");
    Ok(())
}

/// An instance IP that was added to the host goes again when it has no flows.
#[test]
fn an_instance_ip_is_the_host_s_as_long_as_it_is_configured() -> Result<()> {
    let network = Network::new()?;
    let instance = format!("[[instance_ip]]\nbackend = \"{DB}\"\naddress = \"{INSTANCE}\"\n");
    let gateway = Gateway::start(&network.gateway, &config("", &instance))?;
    let has = |address: &str| -> Result<bool> {
        let text = network.at_gateway("ip", &["addr", "show", "dev", "wan0"])?;
        Ok(text.contains(&format!(" {address}/32")))
    };
    ensure!(has(INSTANCE)? && has(FRONTEND)?, "{}", gateway.log());
    gateway.apply(&daemon::usual())?;
    eventually("the address is gone", Duration::from_secs(8), || Ok(!has(INSTANCE)?))
        .with_context(|| gateway.log())?;
    ensure!(has(FRONTEND)?, "the frontend has gone with it");
    Ok(())
}

fn dynamic(selection: &str) -> String {
    daemon::usual()
        .replace("addresses = [\"203.0.113.10\"]", "addresses = [\"203.0.113.10\", \"203.0.113.11\"]")
        .replace(
            "ports_per_backend = 64",
            &format!("allocation = \"dynamic\"\nmin_ports = 8\nfrontend_selection = \"{selection}\""),
        )
}

/// Addresses that the server sees a backend's datagrams from.
fn seen_from(network: &Network, backend: &str, port: u16) -> Result<BTreeSet<String>> {
    let echo = Echo::start(&network.outside, SERVER, port)?;
    let sockets: Result<Vec<UdpSocket>> = (0..40).map(|_| datagrams(&network.inside, backend, 0)).collect();
    for socket in &sockets? {
        ask(socket, SERVER, port, b"from where?")?;
    }
    Ok(echo.addresses().iter().map(ToString::to_string).collect())
}

#[test]
fn spread_uses_every_address_and_paired_one_for_each_client() -> Result<()> {
    let network = Network::new()?;
    let gateway = Gateway::start(&network.gateway, &dynamic("spread"))?;
    let both = BTreeSet::from([FRONTEND.to_owned(), SECOND.to_owned()]);
    for backend in [WEB, DB] {
        let seen = seen_from(&network, backend, 53)?;
        ensure!(seen == both, "spread: {backend} came from {seen:?}");
    }
    let file = File::new(&gateway, "paired", &dynamic("paired"))?;
    let plan = gateway.json(&["plan", "--config", file.path()])?;
    ensure!(plan["totals"]["blocks"]["kept"].is_null(), "{plan:#}");
    file.apply(&gateway)?;
    let mut used = BTreeSet::new();
    for (number, backend) in (0..).zip([WEB, DB]) {
        let seen = seen_from(&network, backend, 54 + number)?;
        ensure!(seen.len() == 1, "paired: {backend} came from {seen:?}");
        // As with passive FTP: a second connection, to another port, has to come from the address of the first.
        let (control, data) =
            (Echo::start(&network.outside, SERVER2, 21)?, Echo::start(&network.outside, SERVER2, 50_021)?);
        for _ in 0..10 {
            let mut first = connect(&network.inside, backend, SERVER2, 21)?;
            exchange(&mut first, 100)?;
            exchange(&mut connect(&network.inside, backend, SERVER2, 50_021)?, 10_000)?;
            exchange(&mut first, 100)?;
        }
        let pair: BTreeSet<String> =
            control.addresses().iter().chain(&data.addresses()).map(ToString::to_string).collect();
        ensure!(pair == seen, "{backend}: {pair:?} and {seen:?}");
        used.extend(seen);
    }
    ensure!(used == both, "both clients have {used:?}");
    Ok(())
}

#[test]
fn the_default_is_for_whom_no_rule_covers() -> Result<()> {
    let network = Network::new()?;
    let more = format!(
        "[[frontend]]\nname = \"fe-default\"\naddresses = [\"{SECOND}\"]\n[[pool]]\nname = \"rest\"\n\
         backends = [\"{STRANGER}\"]\n"
    );
    let gateway = Gateway::start(&network.gateway, &config("", &more))?;
    ensure!(connect(&network.inside, STRANGER, SERVER, 80).is_err(), "out without a rule");
    ensure!(gateway.verdicts("no_outbound_rule")? >= 1, "not counted");
    let file = File::new(
        &gateway,
        "default",
        &config("", &format!("{more}[default_outbound]\nfrontends = [\"fe-default\"]\n")),
    )?;
    file.apply(&gateway)?;
    ensure!(outbound(&network, STRANGER, 80)? == BTreeSet::from([SECOND.to_owned()]));
    ensure!(outbound(&network, WEB, 81)? == BTreeSet::from([FRONTEND.to_owned()]));
    Ok(())
}
