// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw plan` says what `natgw apply` does; what goes away drains; a crash in between leaves one or the other.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::Output,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::netns::{
    DB, FRONTEND, Network, SERVER, WEB, binary, daemon,
    daemon::Gateway,
    eventually,
    file::File,
    traffic::{Echo, connect, exchange},
};
use serde_json::Value;

/// The frontend address of the other configuration.
const OTHER: &str = "203.0.113.11";

/// As [`File::apply`], whatever becomes of it.
fn try_apply(network: &Network, file: &str) -> Result<Output> {
    let mut command = network.gateway.command(binary()?.to_str().context("the path is text")?);
    Ok(command.args(["apply", "--config", file]).output()?)
}

fn with_frontend(address: &str) -> String {
    daemon::usual().replace(FRONTEND, address)
}

fn has_address(network: &Network, address: &str) -> Result<bool> {
    Ok(network.at_gateway("ip", &["addr", "show", "dev", "wan0"])?.contains(&format!(" {address}/32")))
}

fn draining(gateway: &Gateway<'_>) -> Result<Vec<Value>> {
    let rows = gateway.json(&["ports"])?;
    Ok(rows.as_array().context("a list")?.iter().filter(|row| row["draining"] == true).cloned().collect())
}

#[test]
fn a_plan_predicts_what_drains() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut streams = Vec::new();
    for backend in [WEB, DB] {
        for _ in 0..30 {
            streams.push(connect(&network.inside, backend, SERVER, 80)?);
        }
    }
    let smaller = File::new(&gateway, "smaller", &daemon::usual().replace("= 64", "= 32"))?;
    let planned = gateway.json(&["plan", "--config", smaller.path()])?;
    let predicted = planned["totals"]["flows_draining"].as_u64().context("a number")?;
    // Half of each block goes away.
    ensure!((1..60).contains(&predicted), "{planned:#}");
    ensure!(planned["totals"]["flows"] == 60 && planned["totals"]["backends_changed"] == 2, "{planned:#}");
    let of_blocks = planned["blocks"].as_array().context("a list")?.iter();
    let tcp: Vec<&Value> = of_blocks.filter(|block| block["protocol"] == "tcp").collect();
    ensure!(tcp.iter().all(|block| block["change"] == "shrunk" && block["flows"] == 30), "{tcp:#?}");
    ensure!(draining(&gateway)?.is_empty(), "planning has changed something");

    let said = smaller.apply(&gateway)?;
    ensure!(said.contains(&format!("{predicted} live flow")) && said.contains("SIGHUP"), "{said}");
    let rows = draining(&gateway)?;
    let shown: u64 = rows.iter().filter_map(|row| row["flows"].as_u64()).sum();
    ensure!(shown == predicted, "predicted {predicted}: {rows:#?}");
    for stream in &mut streams {
        exchange(stream, 1000)?;
    }
    let again = gateway.json(&["plan", "--config", smaller.path()])?;
    ensure!(again["totals"]["flows_draining"] == 0, "{again:#}");
    ensure!(again["totals"]["flows_draining_already"] == predicted, "{again:#}");
    let text = gateway.command(&["plan", "--config", smaller.path()])?;
    ensure!(text.ends_with("nothing changes\n"), "{text}");
    // The daemon's own file is as it was.
    gateway.apply(&daemon::usual())?;
    ensure!(draining(&gateway)?.is_empty(), "the old blocks are back");
    Ok(())
}

#[test]
fn what_cannot_be_applied_changes_nothing() -> Result<()> {
    let network = Network::new()?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let before = gateway.json(&["ports"])?;
    let bad = File::new(&gateway, "bad", &daemon::usual().replace("= 64", "= 60"))?;
    let said = try_apply(&network, bad.path())?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.code() == Some(2) && text.contains(&format!("{}:", bad.path())), "{text}");
    let absent = File::new(&gateway, "absent", &daemon::usual().replace("wan0", "wan7"))?;
    let said = try_apply(&network, absent.path())?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(
        said.status.code() == Some(1) && text.contains("apply refused") && text.contains("wan7"),
        "{text}"
    );

    // What the command would not send.
    let text = std::fs::read_to_string(bad.path())?;
    let answer = post(&gateway, &serde_json::json!({ "file": "f.toml", "text": text }).to_string())?;
    let body: Value = serde_json::from_str(answer.1.as_str())?;
    ensure!(answer.0 == 200 && body["ok"] == false && body["invalid"] == true, "{answer:?}");
    ensure!(body["error"].as_str().is_some_and(|error| error.contains("f.toml:")), "{answer:?}");
    let answer = post(&gateway, "{}")?;
    ensure!(answer.0 == 400 && answer.1.contains("missing field `file`"), "{answer:?}");
    let answer = post(&gateway, &" ".repeat((4 << 20) + 1))?;
    ensure!(answer.0 == 413 && answer.1.contains("larger than 4194304 bytes"), "{answer:?}");
    ensure!(gateway.json(&["ports"])? == before, "something has changed");

    gateway.end(libc::SIGTERM)?;
    let usual = File::new(&gateway, "usual", &daemon::usual())?;
    let said = try_apply(&network, usual.path())?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let next = format!("natgw run --config {}", usual.path());
    ensure!(said.status.code() == Some(1) && text.contains("no daemon") && text.contains(&next), "{text}");
    Ok(())
}

/// Status and body of the answer to `POST /v1/apply`.
fn post(gateway: &Gateway<'_>, body: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(format!("/run/natgw/{}.sock", gateway.name))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "POST /v1/apply HTTP/1.1\r\nHost: natgw\r\nConnection: close\r\n")?;
    write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
    // Whoever refuses a body need not read it.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    let code = head.split(' ').nth(1).context("a status line")?.parse()?;
    Ok((code, body.to_owned()))
}

/// The router outside asks for frontend addresses by ARP, so that nothing arrives for one that is not there.
fn on_the_link(network: &Network) -> Result<()> {
    network.outside.ip(&["route replace 203.0.113.0/24 dev eth0"])
}

fn forget_neighbours(network: &Network) -> Result<()> {
    network.outside.ip(&["neigh flush all"])
}

#[test]
fn a_frontend_that_leaves_stays_until_its_last_flow_has_ended() -> Result<()> {
    let network = Network::new()?;
    on_the_link(&network)?;
    let echo = Echo::start(&network.outside, SERVER, 80)?;
    let short = |address| with_frontend(address) + "idle_timeout = \"4s\"\n";
    let mut gateway = Gateway::start(&network.gateway, &short(FRONTEND))?;
    let mut old = connect(&network.inside, WEB, SERVER, 80)?;
    exchange(&mut old, 1000)?;
    let other = File::new(&gateway, "other", &short(OTHER))?;
    let planned = gateway.json(&["plan", "--config", other.path()])?;
    let leaves = &planned["frontends"]["removed"][0];
    ensure!(leaves["address"] == FRONTEND && leaves["flows"] == 1, "{planned:#}");
    let said = other.apply(&gateway)?;
    ensure!(said.contains("1 live flow on a port that goes away: it finishes"), "{said}");

    forget_neighbours(&network)?;
    exchange(&mut old, 1000).context("the old connection")?;
    exchange(&mut connect(&network.inside, DB, SERVER, 80)?, 1000).context("a new connection")?;
    let from = echo.addresses();
    ensure!(from.len() == 2 && from.iter().any(|address| address.to_string() == OTHER), "{from:?}");
    let rows = draining(&gateway)?;
    ensure!(rows.len() == 1 && rows[0]["frontend"] == FRONTEND && rows[0]["flows"] == 1, "{rows:#?}");
    ensure!(rows[0]["frontend_name"].is_null(), "{rows:#?}");

    // Another daemon knows, too.
    gateway.write(&short(OTHER))?;
    gateway.kill()?;
    gateway.run()?;
    forget_neighbours(&network)?;
    exchange(&mut old, 1000).context("the old connection, taken over")?;
    thread::sleep(Duration::from_millis(2500));
    ensure!(has_address(&network, FRONTEND)?, "gone while a flow lives:\n{}", gateway.log());
    eventually("the address is gone", Duration::from_secs(12), || Ok(!has_address(&network, FRONTEND)?))
        .with_context(|| gateway.log())?;
    ensure!(gateway.flows()?.iter().all(|flow| !flow["frontend"].to_string().contains(FRONTEND)));
    ensure!(has_address(&network, OTHER)?, "the other one has gone with it");
    let state = std::fs::read_to_string(format!("/run/natgw/{}.state", gateway.name))?;
    ensure!(!state.contains(FRONTEND) && state.contains(OTHER), "{state}");
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, 1000).context("afterwards")
}

/// One that comes back before its last flow has ended stays; one that natgw has not added is none of its business.
#[test]
fn only_what_was_added_and_is_not_wanted_goes() -> Result<()> {
    const FOREIGN: &str = "203.0.113.12";
    let network = Network::new()?;
    network.gateway.ip(&[format!("addr add {FOREIGN}/32 dev wan0")])?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let config = |addresses: &[&str]| with_frontend(&addresses.join("\", \"")) + "idle_timeout = \"2s\"\n";
    let gateway = Gateway::start(&network.gateway, &config(&[FRONTEND, FOREIGN]))?;
    let other = File::new(&gateway, "other", &config(&[OTHER]))?;
    let both = File::new(&gateway, "both", &config(&[OTHER, FRONTEND]))?;
    exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, 1000)?;
    other.apply(&gateway)?;
    both.apply(&gateway)?;
    // Closed flows rest for four minutes; this one has only begun to.
    thread::sleep(Duration::from_secs(3));
    ensure!(has_address(&network, FRONTEND)?, "it is configured:\n{}", gateway.log());
    let second = File::new(&gateway, "second", &config(&[FRONTEND]))?;
    second.apply(&gateway)?;
    // No flow has ever used it.
    eventually("the address is gone", Duration::from_secs(6), || Ok(!has_address(&network, OTHER)?))
        .with_context(|| gateway.log())?;
    ensure!(has_address(&network, FRONTEND)? && has_address(&network, FOREIGN)?, "{}", gateway.log());
    Ok(())
}

/// Many backends, so that writing a bank takes a while.
fn many(tag: &str, frontend: &str, ports: u16) -> String {
    let backends: Vec<String> = (0..500)
        .map(|n| format!(r#"{{ name = "{tag}{n}", address = "10.0.{}.{}" }}"#, 1 + n / 250, 1 + n % 250))
        .collect();
    daemon::usual()
        .replace(FRONTEND, frontend)
        .replace("\"fe1\"", &format!("\"fe-{tag}\""))
        .replace("web-out", &format!("out-{tag}"))
        .replace(r#""10.0.0.4", "10.0.0.5""#, &backends.join(", "))
        .replace("= 64", &format!("= {ports}"))
}

type Row = (String, String, String, String, String, String);

/// What a plan is, from `natgw ports` or `natgw check`.
fn plan_of(rows: &Value) -> Result<BTreeSet<Row>> {
    let text = |row: &Value, field: &str| row[field].to_string();
    let rows = rows.as_array().context("a list")?.iter();
    Ok(rows
        .map(|row| {
            let frontend = text(row, "frontend") + &text(row, "frontend_name");
            let of = |field| text(row, field);
            (of("rule"), of("backend"), of("name"), of("protocol"), frontend, of("range"))
        })
        .collect())
}

/// Killed at any moment, also while a bank is being written, the daemon leaves one configuration in force.
#[test]
fn a_kill_during_apply_leaves_one_or_the_other() -> Result<()> {
    const ROUNDS: u64 = 15;
    let network = Network::new()?;
    let mut gateway = Gateway::new(&network.gateway, &many("a", FRONTEND, 64))?;
    let files = [
        File::new(&gateway, "a", &many("a", FRONTEND, 64))?,
        File::new(&gateway, "b", &many("b", OTHER, 128))?,
    ];
    let mut expected = Vec::new();
    for file in &files {
        let command = ["check", "--json", "--config", file.path()];
        let plan = nat_tests::netns::output(
            network.gateway.command(binary()?.to_str().context("text")?).args(command),
        )?;
        expected.push(plan_of(&serde_json::from_str(&plan)?)?);
    }
    ensure!(expected[0].len() == 1500 && expected[0].is_disjoint(&expected[1]));
    let (stop, applied) = (AtomicBool::new(false), [AtomicU32::new(0), AtomicU32::new(0)]);
    thread::scope(|scope| -> Result<()> {
        // Two at a time, so that the daemon has always the other one to do.
        for (file, applied) in files.iter().zip(&applied) {
            let (stop, network) = (&stop, &network);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Refused whenever there is no daemon.
                    let done = try_apply(network, file.path()).is_ok_and(|said| said.status.success());
                    applied.fetch_add(u32::from(done), Ordering::Relaxed);
                }
            });
        }
        let rounds = (0..ROUNDS).try_for_each(|round| {
            gateway.run()?;
            // Spread over a few applies; what is hit is up to the machine.
            thread::sleep(Duration::from_millis(200 + round * 7919 % 300));
            gateway.kill()?;
            let found = plan_of(&gateway.json(&["ports"])?)?;
            let a = found.difference(&expected[0]).count();
            let b = found.difference(&expected[1]).count();
            ensure!(
                expected.contains(&found),
                "round {round}: {} blocks, {a} not of the first plan, {b} not of the second",
                found.len()
            );
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        rounds
    })?;
    let applied = applied.map(AtomicU32::into_inner);
    ensure!(applied.iter().all(|times| *times > 0), "applied {applied:?} times");
    Ok(())
}
