// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages: what is on offer, and installing it without a question.
use std::{
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Context, Result, bail};

use crate::exec::{Root, exec_shown, find_program, note, output};

/// Whether this machine has apt at all.
pub(crate) fn available() -> bool {
    find_program("apt-get").is_some()
}

/// Version that apt would install, or `None` when the lists (refreshed once) do not have the package.
pub(crate) fn candidate(package: &str) -> Option<String> {
    if !available() {
        return None;
    }
    let look = || {
        let mut command = Command::new("apt-cache");
        command.env("LC_ALL", "C").args(["policy", package]);
        output(&mut command).ok().as_deref().and_then(parse_candidate)
    };
    look().or_else(|| {
        refresh();
        look()
    })
}

/// Whether dpkg has that package in place.
pub(crate) fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    output(&mut query).is_ok_and(|status| status.trim() == "installed")
}

/// Candidate line of `apt-cache policy`.
fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// Refreshes the package lists at most once per run; failing is not fatal, the lists may do as they are.
fn refresh() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        note("refreshing the package lists");
        if let Some(mut command) = Root::detect().command("apt-get", &[])
            && let Err(error) =
                exec_shown(command.args(["update", "--quiet", "--quiet"]).stdout(Stdio::null()))
        {
            note(&format!("{error}; going on with the lists as they are"));
        }
    });
}

/// Installs packages; without root it ends with the command the user has to run.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if !available() {
        bail!("missing {list} ({why}): install the equivalents with this system's package manager");
    }
    note(&format!("installing {list} (a minute or two): {why}"));
    let remedy = || format!("missing {list} ({why}): run `sudo apt-get install {list}` and try again");
    if try_install(packages).is_ok() {
        return Ok(());
    }
    refresh();
    try_install(packages).with_context(remedy)
}

fn try_install(packages: &[&str]) -> Result<()> {
    let envs = [("DEBIAN_FRONTEND", "noninteractive")];
    let Some(mut command) = Root::detect().command("apt-get", &envs) else {
        bail!("neither root nor a password-less sudo is available");
    };
    command.args(["install", "--yes", "--quiet", "--quiet", "--no-install-recommends"]).args(packages);
    // A line for every unpacked package hides what matters; errors go to stderr.
    exec_shown(command.stdout(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8-1~deb12u1\n  Version table:\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("1:22.1.8-1~deb12u1"));
    }

    #[test]
    fn packages_without_candidate_are_not_on_offer() {
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
