// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask ci`: lints and every test, with one closing line over both.
use std::time::Instant;

use anyhow::Result;

use crate::{
    exec::{note, step},
    lint,
    test::{self, Rung},
};

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let mut tally = lint::all();
    note(&format!("lints took {:.0} s", started.elapsed().as_secs_f32()));
    let args = test::Args { rung: Rung::All, filter: None, test_threads: None, repeat: 1 };
    // The closing line is owed even where nothing could be built.
    match test::rungs(&args) {
        Ok(rungs) => tally.add(rungs),
        Err(error) => {
            tally.failed += 1;
            tally.failures.push(format!("set-up or build: {error:#}"));
        }
    }
    step(&format!(
        "all done in {:.0} s; each lint counts as one in the closing line",
        started.elapsed().as_secs_f32()
    ));
    test::conclude(&tally)
}
