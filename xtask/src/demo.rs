// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask demo`: builds, prepares the machine, then hands over to `natgw demo` as root.
use std::{ffi::OsString, os::unix::process::CommandExt, path::Path};

use anyhow::{Context, Result};

use crate::{
    build,
    exec::{Root, shown, step},
    paths,
    setup::system,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `natgw demo`; try --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(Args { args }: &Args) -> Result<()> {
    build::all()?;
    let natgw = paths::natgw();
    let mut demo = as_root(Root::detect(), &natgw)?;
    system::ensure_packages()?;
    system::ensure_bpffs()?;
    demo.arg("demo").args(args);
    step(&shown(&demo));
    // Replaces this process: the demo gets Ctrl-C itself and its exit status is ours.
    Err(demo.exec()).with_context(|| format!("cannot start `{}`: run `cargo xtask build`", natgw.display()))
}

fn as_root(root: Root, natgw: &Path) -> Result<std::process::Command> {
    root.command(&natgw.to_string_lossy(), &[]).with_context(|| {
        format!(
            "the demo makes namespaces, for which it needs root: run `sudo -v` and this again, or as root `{} demo`",
            natgw.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_the_command_to_run_is_named() {
        let error = as_root(Root::Unavailable, Path::new("/x/natgw")).expect_err("no root, no demo");
        assert!(error.to_string().ends_with("as root `/x/natgw demo`"), "{error}");
    }
}
