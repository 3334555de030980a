// SPDX-License-Identifier: MIT OR Apache-2.0
//! The networks themselves, without a gateway: a test that proves an absence needs to know that a presence is seen.

use std::time::Duration;

use anyhow::{Result, ensure};
use nat_tests::netns::{
    Builder, Network, SERVER, WEB,
    sniff::{Sniffer, source},
    traffic::{Echo, ask, connect, datagrams, exchange},
};

#[test]
fn without_forwarding_nothing_passes() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 53)?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    ensure!(ask(&socket, SERVER, 53, b"anyone").is_err(), "an answer");
    let frames = sniffer.finish()?;
    ensure!(!frames.iter().any(|frame| source(frame).is_some()), "{frames:02x?}");
    Ok(())
}

/// Plain forwarding leaks, and the sniffer notices: so it would notice with natgw, too.
#[test]
fn the_sniffer_notices_private_addresses() -> Result<()> {
    for builder in [Builder::default(), Builder::default().plain_peers()] {
        let network = builder.build()?;
        network.gateway.sysctl("ipv4/ip_forward", "1")?;
        let sniffer = Sniffer::start(&network.outside, "eth0")?;
        let socket = datagrams(&network.inside, WEB, 0)?;
        for _ in 0..100 {
            socket.send_to(b"here I am", (SERVER, 53))?;
        }
        std::thread::sleep(Duration::from_millis(100));
        let frames = sniffer.finish()?;
        let private = frames.iter().filter(|frame| source(frame) == Some([10, 0, 0, 4])).count();
        ensure!(private == 100, "{private} of 100 in {} frames", frames.len());
    }
    Ok(())
}

/// With a way back everything arrives: what natgw's tests miss is not the network's fault.
#[test]
fn the_networks_carry_traffic() -> Result<()> {
    for builder in [Builder::default(), Builder::default().plain_peers(), Builder::default().one_armed()] {
        let network = builder.build()?;
        network.gateway.sysctl("ipv4/ip_forward", "1")?;
        network.outside.ip(&["route add 10.0.0.0/16 via 198.51.100.1"])?;
        let echo = Echo::start(&network.outside, SERVER, 80)?;
        exchange(&mut connect(&network.inside, WEB, SERVER, 80)?, 300_000)?;
        ask(&datagrams(&network.inside, WEB, 0)?, SERVER, 80, b"hello")?;
        ensure!(echo.addresses() == [WEB.parse::<std::net::IpAddr>()?], "{:?}", echo.addresses());
    }
    Ok(())
}
