// SPDX-License-Identifier: MIT OR Apache-2.0
//! Project commands: `cargo xtask <verb>`, one file per verb. Nothing here is needed to run natgw.
mod bench;
mod build;
mod ci;
mod demo;
mod exec;
mod lint;
mod paths;
mod setup;
mod test;
mod tidy;
mod vm;

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
    /// Build, prepare the machine, then run `natgw demo` as root
    Demo(demo::Args),
    /// Run the tests: pure as you, packet and netns as root
    Test(test::Args),
    /// Build everything, then compare natgw with floor, forwarding and nftables as root; `vm`: in virtual machines
    Bench(bench::Args),
    /// rustfmt, clippy, house rules, cargo-deny
    Lint,
    /// House rules alone
    Tidy,
    /// What .ci/run calls: lint, then test
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build(args) => build::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Lint => lint::run(),
        Verb::Tidy => tidy::run(),
        Verb::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exec::report(&error),
    }
}
