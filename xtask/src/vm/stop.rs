// SPDX-License-Identifier: MIT OR Apache-2.0
//! SIGINT, SIGTERM and SIGHUP end the run between two steps, so that every machine is ended and every file removed.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const PAUSE: Duration = Duration::from_millis(20);

/// Whether an orderly end was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on these signals only ask.
    pub(crate) fn install() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&asked))
                .with_context(|| format!("cannot install a handler for signal {signal}"))?;
        }
        Ok(Self(asked))
    }

    /// Fails once an orderly end was asked for.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Calls `ready` until it has an answer.
    ///
    /// # Errors
    ///
    /// Those of `ready`; when there is no answer within `limit`, with `what` it was waited for; on a signal.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            self.check()?;
            if let Some(answer) = ready()? {
                return Ok(answer);
            }
            if started.elapsed() > limit {
                bail!("{what}: not within {} s", limit.as_secs());
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_answer_the_limit_or_the_signal() {
        let stop = Stop(Arc::default());
        let mut calls = 0;
        let third = stop.wait("three", Duration::from_secs(10), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(third.expect("the third call answers"), 3);
        let late = stop.wait("never", Duration::ZERO, || Ok(None::<()>)).expect_err("no answer");
        assert_eq!(late.to_string(), "never: not within 0 s");
        stop.0.store(true, Ordering::Relaxed);
        let interrupted = stop.wait("soon", Duration::from_secs(10), || Ok(Some(()))).expect_err("a signal");
        assert_eq!(interrupted.to_string(), "interrupted");
    }
}
