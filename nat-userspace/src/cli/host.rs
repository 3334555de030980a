// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this host keeps for itself, and what is taken from it, for the commands that plan.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

use crate::{
    config::{self, Gateway},
    daemon::facts,
    datapath::pin::Instance,
};

/// Reserves on the frontends of `gateway` what the host keeps, as the daemon of instance `name`, or of the one that it names, would, and says so on
/// standard error. Returns what was said about ports.
///
/// # Errors
///
/// Standard error cannot be written.
pub(super) fn keep_ports(gateway: &mut Gateway, name: Option<&str>) -> Result<Vec<String>> {
    let instance = Instance::new(name.unwrap_or(&gateway.name));
    let kept = match instance.and_then(|instance| facts::of_this_host(&instance)) {
        Ok(facts) => {
            config::taken_from_host(gateway, &facts).iter().try_for_each(|sentence| say(sentence))?;
            config::keep_host_ports(gateway, &facts)
        }
        Err(error) => {
            say(&format!("natgw: planned as if no frontend were an address of this host: {error:#}"))?;
            return Ok(Vec::new());
        }
    };
    kept.iter().try_for_each(|sentence| say(sentence))?;
    Ok(kept)
}

/// Writes a line to standard error.
///
/// # Errors
///
/// It cannot be written.
pub(super) fn say(line: &str) -> Result<()> {
    writeln!(io::stderr(), "{line}").context("writing to standard error")
}
