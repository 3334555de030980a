// SPDX-License-Identifier: MIT OR Apache-2.0
//! natgw as its users run it: a daemon with a configuration file, stopped with SIGTERM and `natgw detach`.

use std::{
    ffi::CString,
    fs,
    io::{self, BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use nat_common::abi::names::PIN_ROOT;
use serde_json::Value;

use crate::bench::{chain::Chain, exec, signal};

/// Longest start; a table of two million entries is preallocated in it.
const START: Duration = Duration::from_secs(30);
/// Longest orderly end.
const END: Duration = Duration::from_secs(10);
const BPFFS: &str = "/sys/fs/bpf";

/// A running natgw; dropping it ends translation and removes what it pinned.
#[derive(Debug)]
pub(in crate::bench) struct Daemon<'a> {
    chain: &'a Chain,
    binary: PathBuf,
    instance: String,
    configuration: PathBuf,
    child: Option<Child>,
    /// From the start of the process to its line `ready`.
    pub(in crate::bench) started_in: Duration,
}

impl<'a> Daemon<'a> {
    /// Starts natgw in the gateway namespace and waits for its line `ready`; `text` makes its configuration from the
    /// instance's name.
    pub(in crate::bench) fn start(
        binary: &Path,
        chain: &'a Chain,
        text: impl FnOnce(&str) -> String,
    ) -> anyhow::Result<Self> {
        if !binary.is_file() {
            bail!(
                "there is no natgw at {}: build it with `cargo xtask build` or name it with --natgw",
                binary.display()
            );
        }
        mount_bpffs()?;
        let instance = format!("natgw-bench-{}", process::id());
        let configuration = std::env::temp_dir().join(format!("{instance}.toml"));
        fs::write(&configuration, text(&instance))
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut daemon = Self {
            chain,
            binary: binary.to_owned(),
            instance,
            configuration,
            child: None,
            started_in: Duration::ZERO,
        };
        let mut command = Command::new(&daemon.binary);
        command
            .args(["run", "--config"])
            .arg(&daemon.configuration)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = chain
            .gateway
            .enter(|| command.spawn())?
            .with_context(|| format!("cannot start {}", daemon.binary.display()))?;
        let (sender, lines) = mpsc::channel();
        follow(child.stdout.take(), sender.clone());
        follow(child.stderr.take(), sender);
        daemon.child = Some(child);
        wait_ready(&lines)?;
        daemon.started_in = start.elapsed();
        Ok(daemon)
    }

    /// Name of the instance.
    pub(in crate::bench) fn instance(&self) -> &str {
        &self.instance
    }

    /// Where its tables are pinned.
    pub(in crate::bench) fn pins(&self) -> PathBuf {
        Path::new(PIN_ROOT).join(&self.instance)
    }

    /// The document of `natgw <verb> --json`.
    pub(in crate::bench) fn json(&self, verb: &str) -> anyhow::Result<Value> {
        let text = self.command(&[verb, "--name", &self.instance, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("`natgw {verb} --json` writes no JSON: {text}"))
    }

    /// Has the daemon put another configuration in force; returns what `natgw apply` says.
    pub(in crate::bench) fn apply(&self, text: &str) -> anyhow::Result<String> {
        let file = self.configuration.with_extension("next.toml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let applied = self.command(&["apply", "--config", &file.to_string_lossy()]);
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        applied
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let binary = self.binary.to_string_lossy();
        self.chain.gateway.enter(|| exec::output(&binary, arguments, ""))?
    }

    /// Has the daemon stand still, so that its sweep does not come between one that is run from here: both would write
    /// to the same `SWEEP`. To be dropped before the daemon is stopped.
    pub(in crate::bench) fn halt(&self) -> anyhow::Result<Halted> {
        let pid = libc::pid_t::try_from(self.child.as_ref().context("there is no daemon")?.id())?;
        // SAFETY: no pointers. The child was not waited for yet, so the number is still its own.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        Ok(Halted(pid))
    }

    /// Ends the daemon and translation.
    ///
    /// # Errors
    ///
    /// Fails when the daemon has to be killed or `natgw detach` does not succeed.
    pub(in crate::bench) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(child) = self.child.take() else { return Ok(()) };
        let ended = terminate(child);
        let binary = self.binary.to_string_lossy();
        let arguments = ["detach", "--name", &self.instance];
        let detached = self.chain.gateway.enter(|| exec::run(&binary, &arguments)).and_then(|result| result);
        let removed = fs::remove_file(&self.configuration)
            .with_context(|| format!("cannot remove {}", self.configuration.display()));
        ended.and(detached).and(removed)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("natgw-bench: natgw did not end in order: {error:#}");
        }
    }
}

/// Hands on every line that the daemon writes; goes on reading to the end, so that it never blocks on a full pipe.
fn follow(stream: Option<impl Read + Send + 'static>, lines: Sender<String>) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // The receiver goes away once the daemon is ready; what follows is still read.
            let _gone = lines.send(line);
        }
    });
}

fn wait_ready(lines: &Receiver<String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    let mut said = String::new();
    loop {
        signal::check()?;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) if is_ready(&line) => return Ok(()),
            Ok(line) => said = said + "\n  " + &line,
            Err(RecvTimeoutError::Disconnected) => bail!("natgw ended before it was ready, saying:{said}"),
            Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                bail!("natgw was not ready after {} s, saying:{said}", START.as_secs())
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The message `ready`, alone or behind a time stamp and before fields, as the daemon's log formats write it.
fn is_ready(line: &str) -> bool {
    line.split_whitespace().any(|word| word == "ready")
}

/// A daemon that stands still until this is dropped.
pub(in crate::bench) struct Halted(libc::pid_t);

impl Drop for Halted {
    fn drop(&mut self) {
        // SAFETY: no pointers. The daemon, which is still there, has not been waited for.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }
}

fn terminate(mut child: Child) -> anyhow::Result<()> {
    let pid = libc::pid_t::try_from(child.id())?;
    // SAFETY: no pointers. The child was not waited for yet, so the number is still its own.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let deadline = Instant::now() + END;
    while Instant::now() < deadline {
        if child.try_wait().context("cannot wait for natgw")?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("cannot kill natgw")?;
    child.wait().context("cannot wait for natgw")?;
    bail!("natgw did not end within {} s of SIGTERM and was killed", END.as_secs())
}

fn mount_bpffs() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    let (kind, path) = (CString::new("bpf")?, CString::new(BPFFS)?);
    // SAFETY: three NUL-terminated strings that outlive the call, and no data.
    if unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot mount the BPF file system on {BPFFS}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_ready;

    #[test]
    fn ready_is_a_word_of_its_own() {
        assert!(is_ready("ready"));
        assert!(is_ready("2026-01-01T00:00:00Z  INFO natgw: ready interfaces=2"));
        assert!(!is_ready("not already running"));
    }
}
