// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: what building needs beyond a stable cargo, found or installed.
mod apt;
mod linker;
pub(crate) mod system;
mod toolchain;

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    exec::{note, step},
    paths,
};

use toolchain::Toolchain;
pub(crate) use toolchain::try_bpf_clippy;

/// A compiler for bpfel-unknown-none and the linker that understands its bitcode.
pub(crate) struct BpfTools {
    pub(crate) toolchain: Toolchain,
    /// The bpf-linker executable.
    pub(crate) linker: PathBuf,
    /// Where the linker finds its LLVM at run time, if that is the compiler's own copy.
    library_path: Option<PathBuf>,
}

impl BpfTools {
    /// `cargo <verb>` of the BPF toolchain for the BPF target, untouched by the cargo that runs xtask.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let mut command = self.toolchain.cargo(verb);
        command
            .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
            .arg(paths::bpf_target())
            // build-std is unstable: a stable compiler needs this to accept it.
            .env("RUSTC_BOOTSTRAP", "1");
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }
}

pub(crate) fn run() -> Result<()> {
    let tools = bpf_tools()?;
    step("ready");
    note(&format!("compiler: {}", tools.toolchain));
    note(&format!("linker: {}", tools.linker.display()));
    Ok(())
}

/// Finds or installs both; silent and quick where they are already there.
pub(crate) fn bpf_tools() -> Result<BpfTools> {
    let toolchain = toolchain::ensure()?;
    let linker::Installed { linker, library_path } = linker::ensure(&toolchain)?;
    Ok(BpfTools { toolchain, linker, library_path })
}
