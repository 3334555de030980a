// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data path's unit of time.
//!
//! A tick is 2^29 ns (about 0.537 s) of `CLOCK_MONOTONIC`, read with `bpf_ktime_get_coarse_ns` (Linux 5.11). A
//! power of two because BPF has no cheap 64-bit division; half a second because flows are touched once a tick, and
//! a route change has to reach every flow within a second.

/// Time since boot in units of 2^29 ns. Wraps after 73 years.
pub type Tick = u32;

/// log2 of the nanoseconds in a tick.
pub const TICK_SHIFT: u32 = 29;

/// Nanoseconds in a tick.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;

/// The tick that `CLOCK_MONOTONIC` nanoseconds fall into.
#[inline(always)]
#[must_use]
pub const fn from_ns(ns: u64) -> Tick {
    (ns >> TICK_SHIFT) as Tick
}

/// Ticks that cover at least `seconds`: rounded up, so that a timer never fires early.
#[must_use]
pub const fn from_seconds(seconds: u32) -> Tick {
    let ns = seconds as u64 * 1_000_000_000;
    ns.div_ceil(TICK_NS) as Tick
}

/// Whole seconds in `ticks`, rounded down.
#[must_use]
pub const fn to_seconds(ticks: Tick) -> u64 {
    ticks as u64 * TICK_NS / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_never_fires_early() {
        for seconds in [1, 2, 15, 30, 65, 240, 7440, 86_400, 4_000_000] {
            let ticks = from_seconds(seconds);
            assert!(u64::from(ticks) * TICK_NS >= u64::from(seconds) * 1_000_000_000, "{seconds} s");
            assert!((u64::from(ticks) - 1) * TICK_NS < u64::from(seconds) * 1_000_000_000, "{seconds} s");
        }
    }

    #[test]
    fn half_a_second_at_most_is_lost_in_conversion() {
        assert_eq!(to_seconds(from_seconds(240)), 240);
        assert_eq!(to_seconds(0), 0);
    }
}
