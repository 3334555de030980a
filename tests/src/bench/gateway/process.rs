// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gateways that are processes: waiting for a line of theirs, and ending them.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::Child,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::bench::signal;

/// Longest start; a table of two million entries is preallocated in it.
const START: Duration = Duration::from_secs(30);
/// Longest orderly end.
const END: Duration = Duration::from_secs(10);

/// Hands on every line that a process writes to its pipes; goes on reading to the end, so that it never blocks on a full one.
pub(super) fn follow(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    read(child.stdout.take(), sender.clone());
    read(child.stderr.take(), sender);
    lines
}

fn read(stream: Option<impl Read + Send + 'static>, lines: Sender<String>) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // The receiver goes away once the process is ready; what follows is still read.
            let _gone = lines.send(line);
        }
    });
}

/// Waits until a process says that it is ready.
///
/// # Errors
///
/// Quotes what it has said instead.
pub(super) fn wait_for(name: &str, lines: &Receiver<String>, ready: fn(&str) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    let mut said = String::new();
    loop {
        signal::check()?;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) if ready(&line) => return Ok(()),
            Ok(line) => said = said + "\n  " + &line,
            Err(RecvTimeoutError::Disconnected) => bail!("{name} ended before it was ready, saying:{said}"),
            Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                bail!("{name} was not ready after {} s, saying:{said}", START.as_secs())
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Ends a process in order, or else kills it.
///
/// # Errors
///
/// When it had to be killed.
pub(super) fn terminate(name: &str, mut child: Child) -> anyhow::Result<()> {
    let pid = libc::pid_t::try_from(child.id())?;
    // SAFETY: no pointers. The child was not waited for yet, so the number is still its own.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let deadline = Instant::now() + END;
    while Instant::now() < deadline {
        if child.try_wait().with_context(|| format!("cannot wait for {name}"))?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().with_context(|| format!("cannot kill {name}"))?;
    child.wait().with_context(|| format!("cannot wait for {name}"))?;
    bail!("{name} did not end within {} s of SIGTERM and was killed", END.as_secs())
}
