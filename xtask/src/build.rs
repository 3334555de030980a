// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask build`: the BPF object, then one self-contained natgw around it.
use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};

use crate::{
    exec::{exec, note, step},
    paths,
    setup::{self, BpfTools},
};

/// What rustc and bpf-linker need to know: line and type information for the verifier's messages,
/// and BTF, without which programs with callbacks do not load.
/// Copies and zeroing are expanded as everywhere else: in order, as bpf-linker has them by default, each becomes the call of a
/// loop over single bytes.
const BPF_RUSTFLAGS: &str =
    "-C debuginfo=2 -C target-cpu=v3 -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised build; the default, and the only kind there is
    #[arg(long)]
    release: bool,
    /// Stop after target/bpf/natgw.bpf.o
    #[arg(long)]
    bpf_only: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { release: _, bpf_only } = args;
    if *bpf_only { bpf_object().map(drop) } else { all().map(drop) }
}

/// Builds everything and returns the tools that did it.
pub(crate) fn all() -> Result<BpfTools> {
    let started = Instant::now();
    let tools = bpf_object()?;
    step("building target/release/natgw with the BPF object inside");
    exec(
        paths::cargo("build")
            .args(["--release", "--package", "nat-userspace"])
            .env("NATGW_BPF_OBJECT", paths::bpf_object()),
    )
    .context("natgw did not build: fix the compiler errors above and run `cargo xtask build` again")?;
    note(&format!("built {} in {:.1} s", paths::natgw().display(), started.elapsed().as_secs_f32()));
    Ok(tools)
}

/// Builds natgw's BPF object alone.
fn bpf_object() -> Result<BpfTools> {
    let tools = setup::bpf_tools()?;
    step(&format!("building the BPF object with {}", tools.toolchain));
    bpf_program(&tools, "nat-ebpf", "natgw-bpf", &paths::bpf_object())?;
    Ok(tools)
}

/// Builds one binary of a BPF crate and leaves the object at `to`, untouched if it has not changed.
pub(crate) fn bpf_program(tools: &BpfTools, package: &str, binary: &str, to: &Path) -> Result<()> {
    exec(
        tools
            .cargo("build")
            .args(["--release", "--package", package, "--bin", binary])
            .env("RUSTFLAGS", BPF_RUSTFLAGS)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker),
    )
    .with_context(|| {
        format!("{package} did not build for BPF: fix the compiler or linker errors above and try again")
    })?;
    let built = paths::bpf_target().join("bpfel-unknown-none/release").join(binary);
    install_if_changed(&built, to)
}

/// Copies only a different object, so that an unchanged one never makes cargo rebuild what embeds it.
fn install_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read the BPF object `{}`", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, &new).with_context(|| {
        format!("cannot write `{}`: make the directory writable for the building user", to.display())
    })
}
