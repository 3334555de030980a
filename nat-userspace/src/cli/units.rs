// SPDX-License-Identifier: MIT OR Apache-2.0
//! Quantities for people. JSON has plain numbers in base units instead.

pub use crate::config::grouped;

/// `7s`, `4m00s`, `2h05m`, `3d04h`: two units at most, rounded down.
#[must_use]
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A count in at most five characters: `999`, `1.2k`, `34M`, `5.0G`; powers of 1000, rounded down.
#[must_use]
pub fn short(number: u64) -> String {
    let mut scale = 1u64;
    for unit in ["", "k", "M", "G", "T", "P", "E"] {
        let whole = number / scale;
        if whole < 1000 || unit == "E" {
            let tenth = number / (scale / 10).max(1) % 10;
            let fraction = if whole < 10 && scale > 1 { format!(".{tenth}") } else { String::new() };
            return format!("{whole}{fraction}{unit}");
        }
        scale *= 1000;
    }
    number.to_string()
}

/// `used` of `whole` in percent, rounded up, so that 100 means all and 0 means none.
#[must_use]
pub fn percent(used: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (used * 100).div_ceil(whole).min(if used < whole { 99 } else { u64::MAX }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short_and_exact_at_the_edges() {
        assert_eq!([0, 59, 60, 3599].map(duration), ["0s", "59s", "1m00s", "59m59s"]);
        assert_eq!([3600, 86_399, 86_400].map(duration), ["1h00m", "23h59m", "1d00h"]);
        assert_eq!([0, 999, 1000, 9999, 10_000].map(short), ["0", "999", "1.0k", "9.9k", "10k"]);
        assert_eq!([999_999, 1_000_000, u64::MAX].map(short), ["999k", "1.0M", "18E"]);
        assert_eq!([percent(0, 8), percent(1, 1000), percent(999, 1000), percent(8, 8)], [0, 1, 99, 100]);
        assert_eq!(percent(3, 0), 0);
    }
}
