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

/// `1 flow`, `2,345 flows`.
#[must_use]
pub fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number as u64))
}

/// Memory: `512 KiB`, `288 MiB`, `9 GiB`, rounded to the nearest.
#[must_use]
pub fn memory(bytes: u64) -> String {
    let (shift, unit) = match bytes {
        0..0x10_0000 => (10, "KiB"),
        0x10_0000..0x2_8000_0000 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    format!("{} {unit}", grouped((bytes + (1 << (shift - 1))) >> shift))
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
        assert_eq!([0, 600, 1 << 20, 302_000_000].map(memory), ["0 KiB", "1 KiB", "1 MiB", "288 MiB"]);
        assert_eq!(memory(1 << 34), "16 GiB");
        assert_eq!([0, 1, 1234].map(|n| counted(n, "flow")), ["0 flows", "1 flow", "1,234 flows"]);
        assert_eq!([percent(0, 8), percent(1, 1000), percent(999, 1000), percent(8, 8)], [0, 1, 99, 100]);
        assert_eq!(percent(3, 0), 0);
    }
}
