// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running other programs: progress on stderr, failures with the whole command, deadlines.
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Announces a step on stderr; what follows belongs to it.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// Tells a detail of the current step.
pub(crate) fn note(what: &str) {
    eprintln!("    {what}");
}

/// A failure whose reasons are printed already, because another line has to be the last.
#[derive(Debug)]
pub(crate) struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed, see above")
    }
}

impl std::error::Error for Reported {}

/// Prints the causes innermost first, so that the sentence with the remedy comes last.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Reported>() {
        return ExitCode::FAILURE;
    }
    let mut causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    causes.reverse();
    for cause in causes {
        eprintln!("  cause: {cause}");
    }
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Runs a command with inherited streams; a failure names the command in full.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Like [`exec`], announcing the command first: for steps that change the machine or take long.
pub(crate) fn exec_shown(command: &mut Command) -> Result<()> {
    note(&format!("$ {}", shown(command)));
    exec(command)
}

/// Like [`exec_shown`], but the child is killed once `limit` has passed.
pub(crate) fn exec_within(command: &mut Command, limit: Duration) -> Result<()> {
    note(&format!("$ {}", shown(command)));
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("`{}` ended with {status}", shown(command));
            }
            return Ok(());
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{}` took longer than {} s and was stopped", shown(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Standard output of a command that succeeds quietly; its stderr becomes part of the failure.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one could type it, with the variables and directory that were set for it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.display(), quoted(&value.to_string_lossy())));
        }
    }
    words.push(quoted(&command.get_program().to_string_lossy()));
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.' | ',' | '=' | ':' | '+');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// First executable of that name on PATH or in the system directories that PATH may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &std::path::Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

/// How this process can act as root, found without asking anybody for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// Already uid 0.
    Direct,
    /// `sudo -n` works.
    Sudo,
    /// Neither.
    Unavailable,
}

impl Root {
    pub(crate) fn detect() -> Self {
        if fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0) {
            return Self::Direct;
        }
        let quiet =
            Command::new("sudo").args(["-n", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if quiet.is_ok_and(|status| status.success()) { Self::Sudo } else { Self::Unavailable }
    }

    /// A command run as root with those variables, or `None` where root cannot be had.
    pub(crate) fn command(self, program: &str, envs: &[(&str, &str)]) -> Option<Command> {
        let mut command = match self {
            Self::Unavailable => return None,
            Self::Direct => Command::new("env"),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env"]);
                command
            }
        };
        // `env` rather than Command::env: sudo drops the caller's variables.
        command.args(envs.iter().map(|(name, value)| format!("{name}={value}"))).arg(program);
        Some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_commands_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cargo");
        command.env("RUSTFLAGS", "-C debuginfo=2").args(["build", "it's", ""]);
        assert_eq!(shown(&command), r"RUSTFLAGS='-C debuginfo=2' cargo build 'it'\''s' ''");
    }

    #[test]
    fn failures_name_the_whole_command() {
        let error = exec(Command::new("sh").args(["-c", "exit 3"])).expect_err("exit 3 is a failure");
        assert_eq!(error.to_string(), "`sh -c 'exit 3'` ended with exit status: 3");
    }

    #[test]
    fn commands_that_overrun_are_stopped() {
        let started = Instant::now();
        let error = exec_within(Command::new("sleep").arg("30"), Duration::from_millis(200))
            .expect_err("the deadline is shorter than the sleep");
        assert!(error.to_string().contains("was stopped"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn no_root_means_no_command() {
        assert!(Root::Unavailable.command("mount", &[]).is_none());
        let sudo = Root::Sudo.command("mount", &[("A", "b")]).map(|command| shown(&command));
        assert_eq!(sudo.as_deref(), Some("sudo -n env A=b mount"));
    }
}
