// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `natgw` command.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration error. A reader that closes the pipe early is success.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use nat_userspace::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are "errors" of clap with exit code 0. A closed pipe is no reason to fail.
            let _closed_pipe = answer.print();
            return if answer.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match cli.run() {
        Ok(code) => code,
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln!`: it panics when standard error is closed.
            let _closed_pipe = writeln!(io::stderr(), "natgw: {error:#}");
            cli::exit_code(&error)
        }
    }
}
