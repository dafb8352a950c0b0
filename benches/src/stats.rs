//! Figures over the rounds of a run.

use serde::Serialize;

/// Above this spread a figure is called noisy.
pub const SPREAD_PERCENT_MAX: f64 = 20.0;

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these values; None when there are none.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary { median, min, max })
    }

    /// (max - min) in percent of the median; 0 when all are 0.
    pub fn spread_percent(&self) -> f64 {
        if self.max == self.min {
            return 0.0;
        }
        100.0 * (self.max - self.min) / self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_ones() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 10.0]).unwrap();
        assert_eq!((summary.median, summary.min, summary.max), (3.5, 1.0, 10.0));
        assert_eq!(Summary::of(&[7.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_spread_is_a_share_of_the_median() {
        let summary = Summary::of(&[90.0, 100.0, 120.0]).unwrap();
        assert!((summary.spread_percent() - 30.0).abs() < 1e-9);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread_percent(), 0.0);
    }
}
