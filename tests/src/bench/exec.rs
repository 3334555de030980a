// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running the system's own tools.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Runs a command to its end and returns its standard output; `input` goes to its standard input.
///
/// The command gets a process group of its own: Ctrl-C must not kill the tool that is cleaning up.
///
/// # Errors
///
/// Names the command and quotes its standard error when it cannot be started or does not exit with 0.
pub(super) fn output(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let line = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`: is {program} installed?", line()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("`{}` does not read", line()))?;
    }
    let done = child.wait_with_output().with_context(|| format!("cannot wait for `{}`", line()))?;
    if !done.status.success() {
        bail!("`{}` ended with {}: {}", line(), done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a command for its effect.
///
/// # Errors
///
/// As [`output`].
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    output(program, arguments, "").map(drop)
}
