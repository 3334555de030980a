// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steps. Each says what it does, does it, and checks what it claims.

pub(super) mod crash;
pub(super) mod exhaustion;
pub(super) mod probes;
pub(super) mod tables;
pub(super) mod traffic;

use std::net::SocketAddrV4;

use anyhow::Result;

use super::{gateway::Gateway, say::Say, serve::Server, world::World};

/// What the steps work on.
pub(super) struct Demo<'a> {
    pub(super) say: Say,
    pub(super) world: &'a World,
    pub(super) gateway: Gateway<'a>,
    pub(super) servers: &'a [Server; 2],
}

/// Ports of end points, in ascending order, each once.
fn distinct_ports(peers: &[SocketAddrV4]) -> Vec<u16> {
    let mut ports: Vec<u16> = peers.iter().map(SocketAddrV4::port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `items`, separated by blanks.
fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Forgets what the servers have seen so far.
fn forget(demo: &Demo<'_>) -> Result<()> {
    super::interrupt::check()?;
    for server in demo.servers {
        server.take("", 0);
    }
    Ok(())
}
