// SPDX-License-Identifier: MIT OR Apache-2.0
//! The natgw daemon of a test: started, waited for, killed, and everything it leaves behind removed.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{binary, eventually, output};
use crate::ns::Namespace;

/// Longest that a start may take.
const START: Duration = Duration::from_secs(30);

/// An instance of natgw, running or not.
#[derive(Debug)]
pub struct Gateway<'a> {
    namespace: &'a Namespace,
    /// Instance name, unique on this machine.
    pub name: String,
    config: PathBuf,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

/// What became of a reload.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The new configuration is in force.
    Applied,
    /// The old one stays in force.
    Refused,
}

/// The usual configuration: two backends, 64 ports each, one frontend, two arms.
#[must_use]
pub fn usual() -> String {
    config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "native", 64)
}

/// A configuration with two backends; `{name}` is filled in when it is written.
#[must_use]
pub fn config(inside: &str, outside: &str, mode: &str, ports: u16) -> String {
    format!(
        r#"[gateway]
name = "{{name}}"
{inside}
{outside}
xdp_mode = "{mode}"
max_flows = 8192
assign_frontends = true

[[frontend]]
name = "fe1"
addresses = ["203.0.113.10"]

[[pool]]
name = "web"
backends = ["10.0.0.4", "10.0.0.5"]

[[outbound_rule]]
name = "web-out"
pool = "web"
frontends = ["fe1"]
ports_per_backend = {ports}
"#
    )
}

impl<'a> Gateway<'a> {
    /// An instance that is not started yet.
    ///
    /// # Errors
    ///
    /// When its configuration cannot be written.
    pub fn new(namespace: &'a Namespace, config: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("natgw-{name}.toml"));
        let gateway = Self { namespace, name, config: path, child: None, log: Arc::default() };
        gateway.write(config)?;
        Ok(gateway)
    }

    /// Starts an instance and waits until it translates.
    ///
    /// # Errors
    ///
    /// With its log when it does not.
    pub fn start(namespace: &'a Namespace, config: &str) -> Result<Self> {
        let mut gateway = Self::new(namespace, config)?;
        gateway.run()?;
        Ok(gateway)
    }

    /// Replaces the configuration file.
    ///
    /// # Errors
    ///
    /// Those of writing it.
    pub fn write(&self, config: &str) -> Result<()> {
        let text = config.replace("{name}", &self.name);
        std::fs::write(&self.config, text).with_context(|| format!("writing {}", self.config.display()))
    }

    /// The command `natgw run` of this instance, not started.
    ///
    /// # Errors
    ///
    /// When there is no binary.
    pub fn run_command(&self) -> Result<Command> {
        let mut command = self.namespace.command(binary()?.to_str().context("the path is text")?);
        command.arg("run").arg("--config").arg(&self.config);
        Ok(command)
    }

    /// Starts the daemon and waits for its line `ready`.
    ///
    /// # Errors
    ///
    /// With its log when it ends before, or takes too long.
    pub fn run(&mut self) -> Result<()> {
        let mut child = self.run_command()?.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().context("no error output")?).lines();
        let log = Arc::clone(&self.log);
        let start = log.lock().map_or(0, |log| log.len());
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(mut log) = log.lock() {
                    log.push(line);
                }
            }
        });
        self.child = Some(child);
        let ready = |line: &String| line.split_whitespace().any(|word| word == "ready");
        let waited = eventually("the daemon is ready", START, || {
            let Some(child) = &mut self.child else { bail!("no daemon") };
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended: {status}");
            }
            Ok(self.log.lock().is_ok_and(|log| log[start..].iter().any(ready)))
        });
        waited.with_context(|| self.log())
    }

    /// What the daemons of this instance have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().map_or_else(|_| String::new(), |log| log.join("\n"))
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        // SAFETY: a child of ours that has not been waited for: the number is still its own.
        let sent = unsafe { libc::kill(libc::pid_t::try_from(child.id())?, signal) };
        if sent != 0 {
            bail!("kill: {}", std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// Kills the daemon (`SIGKILL`) and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.end(libc::SIGKILL)
    }

    /// Ends the daemon with `signal` and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end within 10 s.
    pub fn end(&mut self, signal: libc::c_int) -> Result<()> {
        self.signal(signal)?;
        let mut child = self.child.take().context("the daemon does not run")?;
        let ended =
            eventually("the daemon has ended", Duration::from_secs(10), || Ok(child.try_wait()?.is_some()));
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Replaces the configuration, reloads, and waits for the daemon's word on what became of it.
    ///
    /// # Errors
    ///
    /// When the daemon says nothing about it.
    pub fn reload(&self, config: &str) -> Result<Reload> {
        let before = self.log.lock().map_or(0, |log| log.len());
        self.write(config)?;
        self.signal(libc::SIGHUP)?;
        let mut outcome = None;
        eventually("the daemon speaks about the reload", Duration::from_secs(10), || {
            let Ok(log) = self.log.lock() else { bail!("the reader of the log panicked") };
            outcome = log[before..].iter().find_map(|line| outcome_in(line));
            Ok(outcome.is_some())
        })
        .with_context(|| self.log())?;
        outcome.context("no outcome")
    }

    /// As [`Gateway::reload`], of a configuration that has to be applied.
    ///
    /// # Errors
    ///
    /// With the log when it was refused.
    pub fn apply(&self, config: &str) -> Result<()> {
        match self.reload(config)? {
            Reload::Applied => Ok(()),
            Reload::Refused => bail!("the reload was refused:\n{}\n{config}", self.log()),
        }
    }

    /// As [`Gateway::reload`], of a configuration that has to be refused.
    ///
    /// # Errors
    ///
    /// When it was applied.
    pub fn refuse(&self, config: &str) -> Result<()> {
        match self.reload(config)? {
            Reload::Refused => Ok(()),
            Reload::Applied => bail!("the reload was applied:\n{}\n{config}", self.log()),
        }
    }

    /// Runs another command of natgw for this instance and returns what it printed.
    ///
    /// # Errors
    ///
    /// With its error output when it fails.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let path = binary()?;
        let mut command = self.namespace.command(path.to_str().context("the path is text")?);
        output(command.args(arguments).args(["--name", &self.name]))
    }

    /// The answer of a reading command as JSON.
    ///
    /// # Errors
    ///
    /// When it fails, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// How many packets got this verdict so far.
    ///
    /// # Errors
    ///
    /// As [`Gateway::json`].
    pub fn verdicts(&self, reason: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        stats["verdicts"][reason].as_u64().with_context(|| format!("no count of {reason} in {stats}"))
    }

    /// The flows, as `natgw flows --json` shows them.
    ///
    /// # Errors
    ///
    /// As [`Gateway::json`].
    pub fn flows(&self) -> Result<Vec<Value>> {
        Ok(self.json(&["flows"])?.as_array().context("not a list")?.clone())
    }
}

/// The daemon's closing line about a reload.
fn outcome_in(line: &str) -> Option<Reload> {
    let said = |words| line.contains(words);
    match (said("configuration reloaded in"), said("reload refused")) {
        (true, _) => Some(Reload::Applied),
        (_, true) => Some(Reload::Refused),
        _ => None,
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let detached = self.command(&["detach"]);
        let _ = std::fs::remove_file(&self.config);
        // Detaching leaves the lock file, so that two that take it never hold different files. Here nobody else will.
        let _ = std::fs::remove_file(format!("/run/natgw/{}.lock", self.name));
        if let Err(error) = detached
            && !thread::panicking()
        {
            panic!("detaching instance {}: {error:#}", self.name);
        }
    }
}
