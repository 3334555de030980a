// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw detach`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{daemon, datapath::pin::Instance, preflight};

/// Ends translation: removes the programs, all pinned state with its flows, and what was changed on the host.
///
/// The daemon has to be stopped first. May be repeated: what is gone already is no error.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Instance
    #[arg(long, default_value = "default")]
    name: String,
}

/// Ends translation.
///
/// # Errors
///
/// When a daemon runs for the instance, or something cannot be removed.
pub fn run(args: &Args) -> Result<ExitCode> {
    preflight::for_detach()?;
    let instance = Instance::new(&args.name).map_err(|error| super::UsageError(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let done = runtime.block_on(daemon::detach(&instance))?;
    let mut out = io::stdout().lock();
    for line in &done {
        writeln!(out, "{line}")?;
    }
    if done.is_empty() {
        writeln!(out, "instance `{}` is not attached: nothing to remove", instance.name())?;
    }
    Ok(ExitCode::SUCCESS)
}
