// SPDX-License-Identifier: MIT OR Apache-2.0
//! The gateway under demonstration: this very program, as its user runs it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nat_common::abi::counters::Reason;
use serde_json::Value;

use super::{
    Options, interrupt,
    namespace::{Namespace, output},
    say::Say,
    world::Host,
};
use crate::{cli::render::Style, datapath::pin::Instance};

/// The example that the gateway is started from.
pub(super) const CONFIG: &str = include_str!("../../../config/demo.toml");

/// Longest that a start may take, on a busy machine too.
const START: Duration = Duration::from_secs(30);
/// This program, even when its file has been replaced meanwhile.
const SELF: &str = "/proc/self/exe";

/// Files of a demo, by instance name: configuration and log.
pub(super) fn files(instance: &Instance) -> [PathBuf; 2] {
    ["toml", "log"].map(|extension| instance.lock().with_extension(extension))
}

/// This program with `words`, to be started in `namespace`.
pub(super) fn natgw(namespace: &Namespace, words: &[&str]) -> Command {
    let mut command = Command::new(SELF);
    command.arg0("natgw").args(words).stdin(Stdio::null());
    namespace.attach(&mut command);
    command
}

/// A block of ports on one frontend address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) frontend: Ipv4Addr,
    pub(super) ports: RangeInclusive<u16>,
}

impl Block {
    pub(super) fn holds(&self, end: &SocketAddrV4) -> bool {
        *end.ip() == self.frontend && self.ports.contains(&end.port())
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}–{}", self.frontend, self.ports.start(), self.ports.end())
    }
}

/// The instance.
#[derive(Debug)]
pub(super) struct Gateway<'a> {
    namespace: &'a Namespace,
    instance: &'a Instance,
    keep: bool,
    style: Style,
    child: Option<Child>,
}

impl<'a> Gateway<'a> {
    /// Not started yet.
    pub(super) fn new(namespace: &'a Namespace, instance: &'a Instance, options: &Options) -> Result<Self> {
        let [config, log] = files(instance);
        fs::write(&config, CONFIG).with_context(|| format!("writing `{}`", config.display()))?;
        File::create(&log).with_context(|| format!("making `{}`", log.display()))?;
        Ok(Self { namespace, instance, keep: options.keep, style: options.style, child: None })
    }

    pub(super) fn name(&self) -> &str {
        self.instance.name()
    }

    /// Starts the daemon and waits until it translates. Returns how long that took.
    pub(super) fn start(&mut self) -> Result<Duration> {
        let [config, log] = files(self.instance);
        let file = File::options().append(true).open(&log)?;
        let before = file.metadata()?.len() as usize;
        let config = config.to_string_lossy();
        let mut command = natgw(self.namespace, &["run", "--config", &config, "--name", self.name()]);
        command.env_remove("RUST_LOG").stdout(Stdio::null()).stderr(file).process_group(0);
        if !self.keep {
            // Should the demo itself be killed, its daemon goes too.
            // SAFETY: prctl(2) is async-signal-safe and touches no memory here.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                })
            };
        }
        let started = Instant::now();
        self.child = Some(command.spawn().context("starting the gateway")?);
        loop {
            interrupt::check()?;
            let text = fs::read_to_string(&log)?;
            let fresh = text.get(before..).unwrap_or_default();
            if fresh.lines().any(|line| line.split_whitespace().any(|word| word == "ready")) {
                return Ok(started.elapsed());
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the gateway did not start: {status}");
            }
            ensure!(started.elapsed() < START, "the gateway is not ready after {START:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the daemon, as a crash would.
    pub(super) fn kill(&mut self) -> Result<u32> {
        let mut child = self.child.take().context("the gateway does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(child.id())
    }

    /// Last lines of the daemon's log.
    pub(super) fn log(&self, lines: usize) -> Vec<String> {
        let [_, log] = files(self.instance);
        let text = fs::read_to_string(log).unwrap_or_default();
        let all: Vec<_> = text.lines().map(str::to_owned).collect();
        all[all.len().saturating_sub(lines)..].to_vec()
    }

    /// The JSON of a reading command.
    pub(super) fn json(&self, words: &[&str]) -> Result<Value> {
        let mut command = natgw(self.namespace, words);
        let text = output(command.args(["--json", "--name", self.name()]))?;
        serde_json::from_str(&text).with_context(|| format!("natgw {} --json gave no JSON", words.join(" ")))
    }

    /// Runs a reading command for the people who watch.
    pub(super) fn show(&self, say: &Say, words: &[&str]) -> Result<()> {
        say.command(&format!("natgw {} --name {}", words.join(" "), self.name()))?;
        let mut command = natgw(self.namespace, words);
        command.args(["--name", self.name()]);
        if self.style == Style::PLAIN {
            command.env("NO_COLOR", "1");
        }
        let status = command.status().with_context(|| format!("starting natgw {}", words.join(" ")))?;
        ensure!(status.success(), "natgw {}: {status}", words.join(" "));
        Ok(())
    }

    /// Packets that got this verdict so far.
    pub(super) fn verdicts(&self, reason: Reason) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        stats["verdicts"][reason.name()]
            .as_u64()
            .with_context(|| format!("stats have no `{}`", reason.name()))
    }

    /// The row of `natgw ports` for a backend.
    pub(super) fn port_row(&self, backend: &Host, protocol: &str) -> Result<Value> {
        let rows = self.json(&["ports", "--backend", backend.name, "--protocol", protocol])?;
        match rows.as_array().map(Vec::as_slice) {
            Some([row]) => Ok(row.clone()),
            _ => bail!("`{}` does not have one block of {protocol} ports: {rows}", backend.name),
        }
    }

    /// The ports of a backend.
    pub(super) fn block(&self, backend: &Host, protocol: &str) -> Result<Block> {
        let row = self.port_row(backend, protocol)?;
        let port = |at: usize| row["range"][at].as_u64().and_then(|port| u16::try_from(port).ok());
        let frontend = row["frontend"].as_str().and_then(|text| text.parse().ok());
        let (Some(frontend), Some(first), Some(last)) = (frontend, port(0), port(1)) else {
            bail!("a row of `natgw ports` without frontend and range: {row}")
        };
        Ok(Block { frontend, ports: first..=last })
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Some(child) = &mut self.child
        {
            // Both fail only when it has ended by itself.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}
