//! Latencies in an HDR histogram: microseconds, three significant digits, up to ten minutes.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const MICROSECONDS_MAX: u64 = 600_000_000;

pub struct Latencies {
    histogram: Histogram<u64>,
}

/// One point of a distribution: this share of all events took at most so long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    pub share: f64,
    pub us: u64,
}

impl Latencies {
    pub fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).expect("the bounds are constants that fit");
        Self { histogram }
    }

    /// Longer than ten minutes counts as ten minutes.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(MICROSECONDS_MAX);
        self.histogram.saturating_record(us.max(1));
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that this share of events did not exceed; 0 without events.
    pub fn us_at(&self, share: f64) -> u64 {
        self.histogram.value_at_quantile(share)
    }

    pub fn max_us(&self) -> u64 {
        self.histogram.max()
    }

    /// The distribution for a plot: finer towards the tail, as far as there are events to tell.
    pub fn distribution(&self) -> Vec<Quantile> {
        if self.count() == 0 {
            return Vec::new();
        }
        let mut points = Vec::new();
        // Eight points for every halving of what is left above.
        let mut left = 1.0;
        while left * self.count() as f64 >= 1.0 {
            for step in 0..8 {
                let share = 1.0 - left * (1.0 - f64::from(step) / 16.0);
                points.push(Quantile { share, us: self.us_at(share) });
            }
            left /= 2.0;
        }
        points.push(Quantile { share: 1.0, us: self.max_us() });
        points
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_digits() {
        let mut latencies = Latencies::new();
        (1..=10_000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        assert!(latencies.us_at(0.5).abs_diff(5_000_000) <= 5_000);
        assert!(latencies.us_at(0.99).abs_diff(9_900_000) <= 9_900);
    }

    #[test]
    fn extremes_are_kept_in_bounds() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(100_000));
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max_us() >= MICROSECONDS_MAX);
    }

    #[test]
    fn a_distribution_rises_to_the_maximum() {
        let mut latencies = Latencies::new();
        assert!(latencies.distribution().is_empty());
        (1..=1_000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let points = latencies.distribution();
        assert!(points.windows(2).all(|pair| pair[0].share <= pair[1].share && pair[0].us <= pair[1].us));
        assert_eq!(points.last().unwrap().us, 1_000);
    }
}
