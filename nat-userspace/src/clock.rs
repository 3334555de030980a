// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data path's clock, read from user space, and its relation to the time of day.

use std::time::{Duration, SystemTime};

use nat_common::{Tick, tick};

/// The current tick: the clock that `bpf_ktime_get_coarse_ns` reads.
#[must_use]
pub fn now() -> Tick {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write; the clock exists on every Linux, so that the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    tick::from_ns(seconds * 1_000_000_000 + nanoseconds)
}

/// Time of day at which it was `then`, when it is `now` at `time`; to the tick.
#[must_use]
pub fn time_of(then: Tick, now: Tick, time: SystemTime) -> SystemTime {
    let ago = Duration::from_nanos(u64::from(now.wrapping_sub(then)) * tick::TICK_NS);
    time.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The time of day `seconds` after 1970-01-01 UTC.
#[must_use]
pub fn unix(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `2026-01-31T23:59:59Z` (RFC 3339, UTC, whole seconds).
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Gregorian).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let (mut year, mut rest) = (1970, days);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_year_ends() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_tick_in_the_past_is_a_time_in_the_past() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let then = time_of(1000, 1000 + tick::from_seconds(3600), time);
        let ago = time.duration_since(then).expect("earlier");
        assert!(ago.as_secs().abs_diff(3600) <= 1, "{ago:?}");
    }
}
