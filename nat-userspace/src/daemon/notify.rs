// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells systemd. Outside of it there is nobody to tell, and that is no error.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Packets are being translated.
pub(super) fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("translating")]);
}

/// A reload has begun; [`ready`] ends it. systemd wants to know when, to tell it from an earlier one.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => debug!("reading the clock for systemd: {error}"),
    }
}

/// The process ends.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("translation goes on without the daemon")]);
}

/// The loop turns.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is expected, halved for safety; `None`: nobody watches.
#[must_use]
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("notifying systemd: {error}");
    }
}
