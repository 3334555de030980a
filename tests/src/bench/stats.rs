// SPDX-License-Identifier: MIT OR Apache-2.0
//! Medians and percentiles.

use serde::Serialize;

/// A median with the least and the greatest value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Median.
    pub(super) median: f64,
    /// Least value.
    pub(super) min: f64,
    /// Greatest value.
    pub(super) max: f64,
}

impl Spread {
    /// Of some values; `None` when there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: median(&sorted)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// Middle of a sorted list, the mean of the two middle ones when their number is even.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

/// The value that a share `of_one` of a sorted list does not exceed.
pub(super) fn percentile(sorted: &[f64], of_one: f64) -> Option<f64> {
    let place = (sorted.len() as f64 * of_one).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn percentiles_are_values_of_the_list() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 0.999), Some(100.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
