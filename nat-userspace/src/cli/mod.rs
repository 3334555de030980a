// SPDX-License-Identifier: MIT OR Apache-2.0
//! Command line: one file per verb, each with its `Args` (whose doc comments are the help) and
//! `run(&Args) -> anyhow::Result<ExitCode>`.

pub mod apply;
pub mod check;
pub mod demo;
pub mod detach;
pub mod flows;
mod host;
pub mod plan;
mod plan_host;
mod plan_text;
mod plan_words;
pub mod ports;
pub mod read;
pub mod render;
pub mod run;
pub mod stats;
pub mod status;
pub mod units;
pub mod watch;

#[cfg(test)]
mod snapshot;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

pub use read::ReadArgs;

/// SNAT gateway in the kernel's XDP hook.
///
/// natgw turns a Linux host into a SNAT gateway, as Azure's Load Balancer outbound rules and NAT Gateway are in a
/// cloud network: private backends reach the internet from blocks of ports on public frontend addresses. An XDP
/// program translates packets before the network stack sees them; the daemon loads it and answers questions, but
/// translation goes on without it.
#[derive(Debug, Parser)]
#[command(name = "natgw", version, long_version = LONG_VERSION, after_help = START, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What a newcomer does next.
const START: &str = "\
Start with:
  sudo natgw demo                       watch it at work in a throw-away network
  natgw check --config natgw.toml       check a configuration and print its port plan, without root
  sudo natgw run --config natgw.toml    translate; logs `ready` when packets are being translated
  sudo natgw status                     is it translating, since when, what needs attention

Then, also while the daemon is down: natgw flows, natgw ports, natgw stats. To change the
configuration: natgw plan shows what would change, natgw apply does it. To end: natgw detach.
`natgw <command> --help` explains each. Exit codes: 0 done, 1 failed, 2 usage or configuration.";

/// Also says whether this binary carries the BPF object.
const LONG_VERSION: &str = if include_bytes!(concat!(env!("OUT_DIR"), "/natgw.bpf.o")).is_empty() {
    concat!(
        env!("CARGO_PKG_VERSION"),
        "\nBPF object: not embedded, only reading commands and `check` work (build with `cargo xtask build`)"
    )
} else {
    concat!(env!("CARGO_PKG_VERSION"), "\nBPF object: embedded")
};

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Status(status::Args),
    Flows(flows::Args),
    Ports(ports::Args),
    Stats(stats::Args),
    Detach(detach::Args),
    Demo(demo::Args),
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// Whatever the command ends with; [`exit_code`] says what it means for the caller.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.command {
            None => {
                Self::command().print_long_help()?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Check(args)) => check::run(args),
            Some(Command::Plan(args)) => plan::run(args),
            Some(Command::Apply(args)) => apply::run(args),
            Some(Command::Run(args)) => run::run(args),
            Some(Command::Detach(args)) => detach::run(args),
            Some(Command::Status(args)) => status::run(args),
            Some(Command::Flows(args)) => flows::run(args),
            Some(Command::Ports(args)) => ports::run(args),
            Some(Command::Stats(args)) => stats::run(args),
            Some(Command::Demo(args)) => demo::run(args),
        }
    }
}

/// The command line or the configuration is wrong: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Exit code for an error that ended a command.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(if error.chain().any(|cause| cause.is::<UsageError>()) { 2 } else { 1 })
}

/// Whether the reader of our output has gone away.
#[must_use]
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests;
