// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in the checkout, and how cargo is called for the stable crates.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Top directory of the checkout.
pub(crate) fn root() -> PathBuf {
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Build output; the same directory whatever the user's own cargo configuration says.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Tools that the project builds for itself, never installed globally.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Cargo's target directory for the BPF crate alone: other flags, other compiler.
pub(crate) fn bpf_target() -> PathBuf {
    target().join("bpf")
}

/// The finished BPF object.
pub(crate) fn bpf_object() -> PathBuf {
    bpf_target().join("natgw.bpf.o")
}

/// The finished program.
pub(crate) fn natgw() -> PathBuf {
    target().join("release/natgw")
}

/// `cargo <verb>` with the cargo that runs this program, in the checkout, into [`target`].
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(verb).arg("--target-dir").arg(target());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_own_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Variables that `cargo run` sets about xtask itself and that must not reach another build.
pub(crate) fn is_own_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME"
}
