// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw run`.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use tracing_subscriber::{EnvFilter, fmt};

use super::UsageError;
use crate::{
    daemon::{self, Options},
    datapath::load::{self, LogLevel},
    preflight,
};

/// Translates, in the foreground, until SIGTERM or SIGINT.
///
/// Logs one line `ready` when packets are being translated. SIGHUP reloads the configuration. When the process ends,
/// however it ends, translation goes on: run it again to take over, or end translation with `natgw detach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/natgw/natgw.toml")]
    config: PathBuf,
    /// Instance name, instead of the one in the file
    #[arg(long)]
    name: Option<String>,
    /// What is logged: error, warn, info, debug or trace, or a filter [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Log from the BPF programs too; it costs speed
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    bpf_log: BpfLog,
}

/// Log levels of the BPF side.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum BpfLog {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Runs the daemon.
///
/// # Errors
///
/// A configuration error (exit code 2), or anything that prevents the start; the host is then as it was before.
pub fn run(args: &Args) -> Result<ExitCode> {
    log_to_stderr(args.log_level.as_deref())?;
    let options = Options {
        config: args.config.clone(),
        name: args.name.clone(),
        bpf_log: LogLevel(args.bpf_log as u8),
    };
    let (config, _) = options.load().map_err(|error| UsageError(error.to_string()))?;
    load::object()?;
    preflight::for_run()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(daemon::run(options, config))?;
    // A sweep that is under way ends by itself and holds nothing up.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr(filter: Option<&str>) -> Result<()> {
    let environment = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.or(environment.as_deref()).unwrap_or("info");
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| UsageError(format!("`{filter}` is not a log filter: {error}")))?;
    let log = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let log = log.with_ansi(io::stderr().is_terminal());
    // The journal has its own time stamps.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = if journal { log.without_time().try_init() } else { log.try_init() };
    started.map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}
