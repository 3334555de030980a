// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw-bench`: measures natgw beside the redirect-only floor, kernel forwarding and nftables masquerade.
//! `cargo xtask bench` builds what it needs and starts it as root.

use std::process::ExitCode;

use clap::Parser as _;
use nat_tests::bench::{self, Options};

fn main() -> ExitCode {
    match bench::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("natgw-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
