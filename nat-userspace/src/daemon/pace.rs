// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much of a CPU the sweep may take, and what makes it hurry.

use std::time::{Duration, Instant};

use nat_common::abi::{
    config::{SWEEP_PRESSED_REFUSALS, SWEEP_PRESSED_ROOM},
    counters::Reason,
};

/// Shortest time from the begin of a pass to that of the next one.
const PERIOD: Duration = Duration::from_secs(1);
/// The same under pressure.
const PRESSED: Duration = Duration::from_millis(250);
/// It rests for so many times what a slice has taken: 5 % of a CPU.
const REST: u32 = 19;
/// The same under pressure: 20 %, also where somebody keeps up the pressure on purpose.
const PRESSED_REST: u32 = 4;
/// It rests for so many times what the last slice of a pass has taken: 2.5 % of a CPU where one slice is the pass, and passes over empty
/// buckets, 4 million of which take some 50 ms.
const AFTER: u32 = 39;
/// A refusal is pressure for so long: a pass over a table of some 100,000 flows. The data path reports refusals that go on in each tick.
const REFUSED: Duration = Duration::from_secs(2);
/// After a pass that was pressed and reclaimed nothing, there is no pressure for so long: the table may be full of living flows, and all
/// ports of a backend in use, for hours.
const FUTILE: Duration = Duration::from_secs(10);

/// Whether a sweep may make room for what was refused. A search for a port looks for one that has expired itself
/// (`nat-ebpf/src/walk.rs`), but only among its own and so many in a tick.
pub(super) const fn helps(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TableFull
            | Reason::TableShare
            | Reason::NoFreePort
            | Reason::SearchCut
            | Reason::PortCap
            | Reason::FlowLimit
            | Reason::HalfOpenLimit
            | Reason::DestinationLimit
    )
}

/// What asks for a sweep soon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pressure {
    full: bool,
    refused: Option<Instant>,
    futile: Option<Instant>,
}

impl Pressure {
    /// The data path has refused something that a sweep [`helps`].
    pub(super) const fn refused(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// So many flows are in a table for `max`.
    pub(super) fn flows(&mut self, flows: u64, max: u32) {
        self.full = flows.saturating_mul(10) > u64::from(max) * 9;
    }

    /// A pass under `causes` has reclaimed so many flows.
    pub(super) const fn learn(&mut self, causes: u32, reclaimed: u64, now: Instant) {
        if reclaimed > 0 {
            self.futile = None;
        } else if causes != 0 {
            self.futile = Some(now);
        }
    }

    /// Why the sweep should hurry: `SWEEP_PRESSED_*`; 0: it should not.
    pub(super) fn causes(&self, now: Instant) -> u32 {
        let within = |since: Option<Instant>, time| since.is_some_and(|at| now.duration_since(at) < time);
        if within(self.futile, FUTILE) {
            return 0;
        }
        let room = if self.full { SWEEP_PRESSED_ROOM } else { 0 };
        let refusals = if within(self.refused, REFUSED) { SWEEP_PRESSED_REFUSALS } else { 0 };
        room | refusals
    }

    /// How long to rest after CPU time `took`.
    pub(super) fn rest(&self, took: Duration, now: Instant) -> Duration {
        took * if self.causes(now) == 0 { REST } else { PRESSED_REST }
    }
}

/// When the last pass was, for when the next one is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// CPU time of the last slice, after which it has not rested yet.
    pub(super) last: Duration,
}

impl Due {
    /// When the next pass begins under this pressure.
    pub(super) fn next(&self, pressure: &Pressure, now: Instant) -> Instant {
        let (period, rest) =
            if pressure.causes(now) == 0 { (PERIOD, AFTER) } else { (PRESSED, PRESSED_REST) };
        (self.began + period).max(self.ended + self.last * rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(2);

    /// Sweeps for `time` on a clock of its own, passes of so many slices; `before` is asked before each slice what has
    /// happened, `found` what a pass has reclaimed. How many passes there were, and what share of the time they took.
    fn sweep(
        slices: u32,
        time: Duration,
        mut before: impl FnMut(&mut Pressure, Instant),
        found: impl Fn() -> u64,
    ) -> (u32, f64) {
        let start = Instant::now();
        let (mut now, mut pressure, mut busy, mut passes) = (start, Pressure::default(), Duration::ZERO, 0);
        while now - start < time {
            let (began, mut causes) = (now, 0);
            for slice in 1..=slices {
                before(&mut pressure, now);
                causes |= pressure.causes(now);
                now += SLICE;
                busy += SLICE;
                if slice < slices {
                    now += pressure.rest(SLICE, now);
                }
            }
            pressure.learn(causes, found(), now);
            let due = Due { began, ended: now, last: SLICE };
            while now < due.next(&pressure, now) {
                before(&mut pressure, now);
                now += Duration::from_millis(1);
            }
            passes += 1;
        }
        (passes, busy.as_secs_f64() / (now - start).as_secs_f64())
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_small_table_is_swept_every_second() {
        let (passes, share) = sweep(1, MINUTE, |_, _| (), || 0);
        assert_eq!(passes, 60);
        assert!(share < 0.003, "{share}");
    }

    #[test]
    fn a_sweep_takes_a_twentieth_of_a_cpu() {
        let (_, share) = sweep(200, MINUTE, |_, _| (), || 5);
        assert!((0.045..=0.05).contains(&share), "{share}");
    }

    #[test]
    fn a_full_table_is_swept_sooner() {
        let full = |pressure: &mut Pressure, _| pressure.flows(901, 1000);
        let (passes, share) = sweep(1, MINUTE, full, || 1);
        assert_eq!(passes, 240);
        assert!(share < 0.01, "{share}");
        let (_, share) = sweep(200, MINUTE, full, || 1);
        assert!((0.19..=0.2).contains(&share), "{share}");
        let (_, share) = sweep(200, MINUTE, |pressure, _| pressure.flows(900, 1000), || 0);
        assert!(share <= 0.05, "{share}");
    }

    #[test]
    fn whoever_is_refused_on_purpose_drives_it_to_a_fifth_of_a_cpu_at_most() {
        let (_, share) = sweep(200, MINUTE, |pressure, now| pressure.refused(now), || 1);
        assert!((0.19..=0.2).contains(&share), "{share}");
    }

    #[test]
    fn a_table_that_is_full_of_living_flows_is_no_pressure_for_long() {
        let (_, share) = sweep(200, MINUTE, |pressure, _| pressure.flows(1000, 1000), || 0);
        assert!((0.045..0.09).contains(&share), "{share}");
    }

    #[test]
    fn a_table_that_is_nearly_empty_is_swept_at_half_the_share() {
        let now = Instant::now();
        let due = Due { began: now, ended: now + 50 * SLICE, last: 50 * SLICE };
        assert_eq!(due.next(&Pressure::default(), now), now + 50 * SLICE * 40);
    }

    #[test]
    fn refusals_that_no_sweep_helps_are_no_pressure_for_long() {
        let (_, share) = sweep(200, MINUTE, |pressure, now| pressure.refused(now), || 0);
        assert!((0.045..0.09).contains(&share), "{share}");
    }

    #[test]
    fn a_refusal_brings_the_next_pass_forward_and_is_forgotten() {
        let now = Instant::now();
        let due = Due { began: now, ended: now + SLICE, last: SLICE };
        let mut pressure = Pressure::default();
        assert_eq!(due.next(&pressure, now), now + PERIOD);
        pressure.refused(now);
        assert_eq!(due.next(&pressure, now), now + PRESSED);
        assert_eq!(due.next(&pressure, now + REFUSED), now + PERIOD);
    }

    #[test]
    fn a_pass_that_found_something_makes_refusals_count_again() {
        let now = Instant::now();
        let mut pressure = Pressure::default();
        pressure.refused(now);
        pressure.learn(SWEEP_PRESSED_REFUSALS, 0, now);
        assert_eq!(pressure.causes(now), 0);
        pressure.learn(0, 3, now);
        assert_eq!(pressure.causes(now), SWEEP_PRESSED_REFUSALS);
    }

    #[test]
    fn only_what_a_sweep_can_help_is_pressure() {
        for reason in [Reason::TableFull, Reason::TableShare, Reason::NoFreePort, Reason::FlowLimit] {
            assert!(helps(reason), "{reason:?}");
        }
        for reason in [Reason::RateLimit, Reason::Denied, Reason::NoOutboundRule, Reason::TableError] {
            assert!(!helps(reason), "{reason:?}");
        }
    }
}
