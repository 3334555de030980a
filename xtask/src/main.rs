// SPDX-License-Identifier: MIT OR Apache-2.0
//! Project commands: `cargo xtask <verb>`, one file per verb. Nothing here is needed to run natgw.
mod build;
mod exec;
mod paths;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and demo commands of natgw; each does its own set-up first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Only the set-up: BPF toolchain and linker
    Setup,
    /// Build target/release/natgw with the BPF object inside
    Build(build::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build(args) => build::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exec::report(&error),
    }
}
