// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: builds natgw, the generator's BPF object and the runner, then runs it as root.
use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    build,
    exec::{Root, exec, shown, step},
    paths,
    setup::{BpfTools, system},
    vm,
};

/// Tells the runner where generator, sink and floor are; an absolute path.
const OBJECT_VARIABLE: &str = "NATGW_BENCH_OBJECT";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Benches and options of natgw-bench; `-- --help` lists them. Or `vm`, the same in virtual machines, or `pktgen`, a
    /// script for real hosts; each has its own `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(Args { args }: &Args) -> Result<()> {
    match args.first().and_then(|word| word.to_str()) {
        Some("vm") => return vm::run(&vm::Options::parse_from(args)),
        Some("pktgen") => return vm::print_pktgen(&vm::PktgenOptions::parse_from(args)),
        _natgw_bench => {}
    }
    let tools = build::all()?;
    let object = object(&tools)?;
    step("building target/release/natgw-bench");
    exec(
        paths::cargo("build")
            .args(["--release", "--package", "nat-tests", "--bin", "natgw-bench"])
            // The value that natgw was built with, or its library would be built anew for every bench.
            .env("NATGW_BPF_OBJECT", paths::bpf_object()),
    )
    .context("natgw-bench did not build: fix the compiler errors above and run `cargo xtask bench` again")?;
    system::ensure_packages()?;
    if wants_iptables(args) {
        system::offer_iptables();
    }
    system::ensure_bpffs()?;
    let mut bench = as_root(Root::detect(), &runner(), &object.to_string_lossy())?;
    bench.args(args);
    step(&shown(&bench));
    // Replaces this process: the runner gets Ctrl-C itself, cleans up, and its exit status is ours.
    Err(bench.exec()).with_context(|| format!("cannot start `{}`", runner().display()))
}

/// Builds generator, sinks and floor, and says where they are.
pub(crate) fn object(tools: &BpfTools) -> Result<PathBuf> {
    let object = paths::bpf_target().join("bench.bpf.o");
    step("building the benchmark's generator, sink and floor");
    build::bpf_program(tools, "bench-ebpf", "bench-bpf", &object)?;
    Ok(object)
}

/// Whether iptables may take part: nobody has chosen the gateways, or it is among them.
fn wants_iptables(args: &[OsString]) -> bool {
    let mut words = args.iter().map(|word| word.to_string_lossy());
    let chosen = words.any(|word| word.starts_with("--gateways"));
    !chosen || args.iter().any(|word| word.to_string_lossy().contains("iptables"))
}

fn runner() -> PathBuf {
    paths::target().join("release/natgw-bench")
}

fn as_root(root: Root, runner: &std::path::Path, object: &str) -> Result<Command> {
    root.command(&runner.to_string_lossy(), &[(OBJECT_VARIABLE, object)]).with_context(|| {
        format!(
            "the bench makes namespaces and loads XDP programs, for which it needs root: run \
             `sudo env {OBJECT_VARIABLE}={object} {}`",
            runner.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn without_root_the_command_to_run_is_named() {
        let error = as_root(Root::Unavailable, Path::new("/x/b"), "/x/o").expect_err("no root, no bench");
        assert!(error.to_string().ends_with("run `sudo env NATGW_BENCH_OBJECT=/x/o /x/b`"), "{error}");
    }

    #[test]
    fn iptables_is_wanted_unless_others_are_named() {
        let wants = |line: &str| wants_iptables(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(wants("established"));
        assert!(wants("--gateways floor,iptables"));
        assert!(!wants("--gateways=floor,natgw established"));
    }

    #[test]
    fn object_reaches_the_runner_through_sudo() {
        let command = as_root(Root::Sudo, Path::new("/x/b"), "/x/o").expect("sudo is root enough");
        assert_eq!(shown(&command), "sudo -n env NATGW_BENCH_OBJECT=/x/o /x/b");
    }
}
