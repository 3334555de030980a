// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw-bench-guest`: sink and floor inside the virtual machines of `cargo xtask bench vm`, which puts it there.

use std::process::ExitCode;

use clap::Parser as _;
use nat_tests::bench::guest::{self, Verb};

fn main() -> ExitCode {
    match guest::run(&Verb::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("natgw-bench-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
