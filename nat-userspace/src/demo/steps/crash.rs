// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon dies, and nobody notices.

use std::net::TcpStream;

use anyhow::{Context as _, Result};

use super::{Demo, traffic};
use crate::demo::{serve::HTTP, socket};

/// Kills the daemon and starts it again. `held`: any connection through the gateway.
pub(in crate::demo) fn kill(demo: &mut Demo<'_>, held: &mut TcpStream) -> Result<()> {
    demo.say.step("The daemon is killed (SIGKILL): translation goes on in the kernel")?;
    let pid = demo.gateway.kill()?;
    socket::echo(held, "without a daemon").context("an established connection, without a daemon")?;
    demo.say.claim(
        true,
        &format!("process {pid} is gone; an established connection still talks"),
        String::new,
    )?;
    let peer = traffic::download(&demo.world.web, demo.world.servers[1].at(HTTP));
    let peer = peer.context("a new connection, without a daemon")?;
    let block = demo.gateway.block(&demo.world.web, "tcp")?;
    let claim = format!("a new one opens and downloads, as {peer}; `natgw ports` reads the pinned tables");
    demo.say.claim(block.holds(&peer), &claim, || format!("a block of {block}"))?;
    let flows = |demo: &Demo<'_>| {
        let established = demo.gateway.json(&["flows", "--state", "established"])?;
        anyhow::Ok(established.as_array().map_or(0, Vec::len))
    };
    let before = flows(demo)?;
    let took = demo.gateway.start().context("starting the daemon again")?;
    let after = flows(demo)?;
    let claim = format!(
        "started again after {} ms, it has taken over all {before} established connections",
        took.as_millis()
    );
    demo.say.claim(before == after && before > 0, &claim, || after.to_string())?;
    socket::echo(held, "with a new daemon").context("an established connection, after the restart")
}
