// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generic XDP, the fallback for devices whose driver has none: same behaviour, other speed.

use anyhow::{Result, ensure};
use nat_tests::netns::{
    Builder, DB, FRONTEND, SERVER, WEB, daemon,
    daemon::Gateway,
    ping::Icmp,
    traffic::{Echo, ask, connect, datagrams, exchange},
};

#[test]
fn everything_works_in_generic_mode() -> Result<()> {
    let network = Builder::default().plain_peers().build()?;
    let echo = Echo::start(&network.outside, SERVER, 80)?;
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "generic", 64);
    let mut gateway = Gateway::start(&network.gateway, &config)?;
    let links = network.at_gateway("ip", &["-details", "link"])?;
    ensure!(links.matches("xdpgeneric").count() >= 2, "{links}");
    for backend in [WEB, DB] {
        exchange(&mut connect(&network.inside, backend, SERVER, 80)?, 200_001)?;
        let socket = datagrams(&network.inside, backend, 0)?;
        for length in [1, 77, 1472] {
            ask(&socket, SERVER, 80, &vec![3; length])?;
        }
        Icmp::open(&network.inside, backend)?.ping(SERVER, 3, b"generic")?;
    }
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    gateway.kill()?;
    exchange(&mut stream, 10_000)?;
    ensure!(echo.addresses() == [FRONTEND.parse::<std::net::IpAddr>()?], "{:?}", echo.addresses());
    Ok(())
}
