// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C ends the demo at the next opportunity, so that everything it made is removed on the way out.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// Longest that a signal goes unnoticed while the demo only waits.
const SLICE: Duration = Duration::from_millis(50);

static PENDING: AtomicBool = AtomicBool::new(false);

/// The demo was asked to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

extern "C" fn note(_signal: libc::c_int) {
    PENDING.store(true, Ordering::Relaxed);
}

/// Catches SIGINT, SIGTERM and SIGHUP.
pub(super) fn catch() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = note;
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        let previous = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        ensure!(previous != libc::SIG_ERR, "catching signal {signal}: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// Fails once a signal has come.
pub(super) fn check() -> Result<()> {
    if PENDING.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// Waits until `moment`, or fails as soon as a signal comes.
pub(super) fn wait_until(moment: Instant) -> Result<()> {
    loop {
        check()?;
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}
