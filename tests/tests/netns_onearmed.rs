// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends and destinations behind one and the same interface.

use anyhow::{Result, ensure};
use nat_tests::netns::{
    Builder, DB, FRONTEND, SERVER, WEB, daemon,
    daemon::Gateway,
    ping::Icmp,
    sniff::{Sniffer, source},
    traffic::{Echo, ask, connect, datagrams, exchange},
};

#[test]
fn both_networks_on_one_interface() -> Result<()> {
    let network = Builder::default().one_armed().build()?;
    let echo = Echo::start(&network.outside, SERVER, 80)?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["lan0"]"#, "native", 64);
    let gateway = Gateway::start(&network.gateway, &config)?;
    for backend in [WEB, DB] {
        exchange(&mut connect(&network.inside, backend, SERVER, 80)?, 200_000)?;
        ask(&datagrams(&network.inside, backend, 0)?, SERVER, 80, b"one arm")?;
        Icmp::open(&network.inside, backend)?.ping(SERVER, 3, b"one arm")?;
    }
    ensure!(echo.addresses() == [FRONTEND.parse::<std::net::IpAddr>()?], "{:?}", echo.addresses());
    ensure!(gateway.flows()?.len() == 6, "{:#?}", gateway.flows()?);
    // On the servers' own link: ARP apart, nothing comes from a private address.
    let frames = sniffer.finish()?;
    let private = frames
        .iter()
        .filter(|frame| source(frame).is_some_and(|address| address[0] == 10) && frame[..6] != [0xff; 6]);
    ensure!(private.count() == 0, "private addresses among {} frames", frames.len());
    Ok(())
}
