// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon's sweep: what makes it hurry, and what a daemon that dies in the middle of a pass leaves to the next one.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use nat_common::abi::{
    config::{SWEEP_LAST, SWEEP_RUNNING, SweepPass},
    names,
};
use nat_tests::netns::{
    Network, SERVER, WEB, daemon,
    daemon::Gateway,
    eventually,
    traffic::{Echo, ask, datagrams},
};
use serde_json::Value;

/// Far beyond everything that is waited for.
const LONG: Duration = Duration::from_secs(60);
/// Flows of a table that takes many slices.
const FLOWS: u16 = 20_000;

fn sweep(gateway: &Gateway<'_>) -> Result<Value> {
    Ok(gateway.json(&["status"])?["sweep"].clone())
}

/// Counts of the table: flows in it, and those that the sweep has reclaimed.
fn table(gateway: &Gateway<'_>) -> Result<(u64, u64)> {
    let table = gateway.json(&["stats"])?["table"].clone();
    let count = |field: &str| table[field].as_u64().with_context(|| format!("no {field} in {table}"));
    Ok((count("flows")?, count("swept")?))
}

#[test]
fn refusals_make_the_sweep_hurry() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let pressed =
        |gateway: &Gateway<'_>| Ok(sweep(gateway)?["pressed_by"] == serde_json::json!(["refusals"]));
    for _ in 0..64 {
        ask(&datagrams(&network.inside, WEB, 0)?, SERVER, 80, b"mine")?;
    }
    let passes = sweep(&gateway)?["passes"].as_u64().context("a number")?;
    eventually("two more passes", LONG, || {
        ensure!(!pressed(&gateway)?, "pressed by nothing: {}", sweep(&gateway)?);
        Ok(sweep(&gateway)?["passes"].as_u64() > Some(passes + 1))
    })?;
    eventually("the sweep hurries", LONG, || {
        datagrams(&network.inside, WEB, 0)?.send_to(b"one too many", (SERVER, 80))?;
        pressed(&gateway)
    })?;
    ensure!(gateway.verdicts("no_free_port")? > 0, "pressed, but nothing was refused");
    eventually("and calms down", LONG, || Ok(!pressed(&gateway)?))
}

fn configured(timeouts: &str) -> String {
    let config = daemon::usual().replace("max_flows = 8192", "max_flows = 65536");
    format!("{config}\n[outbound_rule.timeouts]\n{timeouts}\n")
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_pass_is_followed_by_one_that_sweeps_on() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &configured("profile = 'rfc'"))?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 80, b"the way is known")?;
    for port in 10_000..10_000 + FLOWS {
        socket.send_to(b"to nobody", (SERVER, port))?;
    }
    let opened = table(&gateway)?.0;
    ensure!(opened > u64::from(FLOWS) / 2, "only {opened} flows were opened");
    let pin = format!("/sys/fs/bpf/natgw/{}/{}", gateway.name, names::SWEEP);
    let passes: Array<MapData, SweepPass> = Map::Array(MapData::from_pin(&pin)?).try_into()?;
    gateway.apply(&configured("udp = '1s'\nafter_udp = '0s'"))?;
    // A pass over so many flows that are over takes dozens of slices, with rests between them.
    let midway = |pass: &SweepPass| pass.reclaimed > opened / 20 && pass.reclaimed < opened / 2;
    let mut tries = 0;
    loop {
        tries += 1;
        ensure!(tries < 60_000, "no pass was met in its middle: {:?}", passes.get(&SWEEP_RUNNING, 0)?);
        if midway(&passes.get(&SWEEP_RUNNING, 0)?) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    gateway.kill()?;
    let (left, last) = (passes.get(&SWEEP_RUNNING, 0)?, passes.get(&SWEEP_LAST, 0)?);
    ensure!(midway(&left) && left.ended == 0, "it was not in the middle: {left:?}");
    ensure!(
        last.ended != 0 && last.reclaimed < left.reclaimed,
        "{last:?} is the one that was killed: {left:?}"
    );
    let (flows, swept) = table(&gateway)?;
    ensure!(flows > 0 && flows + swept == opened, "{flows} left and {swept} swept of {opened}");

    gateway.run()?;
    eventually("everything is swept", LONG, || Ok(table(&gateway)?.0 == 0))?;
    ensure!(table(&gateway)?.1 == opened, "{:?} of {opened}", table(&gateway)?);
    eventually("the pass ends", LONG, || {
        let sweep = sweep(&gateway)?;
        Ok(sweep["seconds_ago"].is_u64() && sweep["visited"] == 0)
    })
}
