// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C ends the run between two chunks of packets, so that everything is dropped in order and undone.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, bail};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP ask for an orderly end.
pub(super) fn install() -> anyhow::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = stop;
        // SAFETY: the handler only stores to an atomic, which is safe in a signal context.
        if unsafe { libc::signal(signal, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error()).context("cannot install a signal handler");
        }
    }
    Ok(())
}

/// Whether an orderly end was asked for.
pub(super) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Fails once an orderly end was asked for.
pub(super) fn check() -> anyhow::Result<()> {
    if stopped() {
        bail!("interrupted");
    }
    Ok(())
}
