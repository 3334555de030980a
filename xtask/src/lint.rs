// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask lint`: rustfmt, clippy for host and BPF crates, tidy, and cargo-deny where it is installed.
use std::{ffi::OsStr, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{exec, exec_within, find_program, note, output, step},
    paths,
    setup::{self, BpfTools},
    test::{BPF_CRATES, Tally},
    tidy,
};

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];
const RUSTUP_LIMIT: Duration = Duration::from_secs(180);

type Check = fn() -> Result<Outcome>;

/// What became of a check that found nothing wrong.
enum Outcome {
    Passed,
    /// It could not run here, for this reason.
    Skipped(&'static str),
}

pub(crate) fn run() -> Result<()> {
    let tally = all();
    println!("{}", tally.closing_line());
    if tally.failed > 0 {
        bail!("lints failed ({}): what to change is printed above", tally.failures.join(", "));
    }
    Ok(())
}

/// Every check, also after one has failed, so that one run shows all there is to mend.
pub(crate) fn all() -> Tally {
    let checks: [(&str, Check); 5] = [
        ("rustfmt", || passed(format())),
        ("clippy, host crates", || passed(clippy_host())),
        ("clippy, BPF crates", || passed(clippy_bpf())),
        ("tidy", || passed(tidy::run())),
        ("cargo-deny", deny),
    ];
    let mut tally = Tally::default();
    for (name, check) in checks {
        step(name);
        match check() {
            Ok(Outcome::Passed) => tally.passed += 1,
            Ok(Outcome::Skipped(why)) => {
                println!("SKIPPED: {name}: {why}");
                tally.skipped += 1;
            }
            Err(error) => {
                note(&format!("{error:#}"));
                tally.failed += 1;
                tally.failures.push(name.to_owned());
            }
        }
    }
    tally
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn format() -> Result<()> {
    component("rustfmt", "cargo-fmt")?;
    exec(own_cargo("fmt").args(["--all", "--check"])).context("run `cargo fmt --all`")
}

fn clippy_host() -> Result<()> {
    component("clippy", "cargo-clippy")?;
    let mut command = paths::cargo("clippy");
    command.args(["--quiet", "--workspace", "--all-targets"]);
    command.args(BPF_CRATES.iter().flat_map(|name| ["--exclude", name]));
    exec(command.args(DENY_WARNINGS))
}

/// With the clippy of the compiler that builds the object; else with the stable one, for the host target.
fn clippy_bpf() -> Result<()> {
    let tools = setup::bpf_tools()?;
    setup::try_bpf_clippy(&tools.toolchain);
    let packages = BPF_CRATES.iter().flat_map(|name| ["--package", name]);
    if tools.toolchain.has_clippy() {
        return exec(bpf_cargo_clippy(&tools).args(packages).args(DENY_WARNINGS));
    }
    note(&format!(
        "{} has no clippy: using the stable one, which sees the code for the host",
        tools.toolchain
    ));
    let mut command = Command::new(cargo());
    command
        .current_dir(paths::root())
        .args(["clippy", "--quiet", "--bins", "--target-dir"])
        .arg(paths::target().join("bpf-host"))
        .args(packages)
        // The host's default is to unwind, which needs std; no nightly feature is used by the crates.
        .env("RUSTFLAGS", "-C panic=abort");
    exec(command.args(DENY_WARNINGS))
}

fn bpf_cargo_clippy(tools: &BpfTools) -> Command {
    let mut command = tools.cargo("clippy");
    command.args(["--quiet", "--release", "--bins"]);
    command
}

fn deny() -> Result<Outcome> {
    if find_program("cargo-deny").is_none() {
        return Ok(Outcome::Skipped(
            "it is not installed, deny.toml goes unchecked here: `cargo install cargo-deny --locked`",
        ));
    }
    passed(exec(own_cargo("deny").args(["--all-features", "check"])))
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// `cargo <verb>` for verbs that take no target directory.
fn own_cargo(verb: &str) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(paths::root()).arg(verb);
    command
}

/// Makes sure that this cargo has the subcommand, through rustup if need be.
fn component(name: &str, program: &str) -> Result<()> {
    let works = || output(own_cargo(program.trim_start_matches("cargo-")).arg("--version")).is_ok();
    if works() {
        return Ok(());
    }
    if let Some(rustup) = find_program("rustup") {
        let mut command = Command::new(rustup);
        if let Err(error) =
            exec_within(command.args([OsStr::new("component"), "add".as_ref(), name.as_ref()]), RUSTUP_LIMIT)
        {
            note(&format!("{error:#}"));
        }
    }
    if !works() {
        bail!(
            "`{program}` is missing: `rustup component add {name}`, or install this distribution's {name} for its cargo"
        );
    }
    Ok(())
}
