//! Token buckets: how much of something a device or user may do on this node.
//!
//! A bucket is a function of its own state and the time it is given; the caller
//! brings the clock, so a table of cases tests it.

use std::time::{Duration, Instant};

/// Fills at `per_second` up to `burst`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: f64,
    /// Tokens when full.
    pub burst: f64,
}

/// How full one bucket is.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// Takes `tokens`, or says how long to wait for them.
    ///
    /// # Errors
    /// The wait after which the same call succeeds if nobody else comes.
    pub fn take(&mut self, tokens: f64, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.tokens >= tokens.min(rate.burst) {
            self.tokens -= tokens;
            return Ok(());
        }
        let missing = tokens.min(rate.burst) - self.tokens;
        Err(Duration::from_secs_f64((missing / rate.per_second).min(3_600.0)))
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + gone * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 200.0, burst: 400.0 };
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, start);
        assert_eq!((0..500).filter(|_| bucket.take(1.0, rate, start).is_ok()).count(), 400);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..500).filter(|_| bucket.take(1.0, rate, later).is_ok()).count(), 20);
    }

    #[test]
    fn the_wait_it_names_is_enough() {
        let rate = Rate { per_second: 1.0 / 6.0, burst: 10.0 };
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, start);
        while bucket.take(1.0, rate, start).is_ok() {}
        let wait = bucket.take(1.0, rate, start).unwrap_err();
        assert!(bucket.take(1.0, rate, start + wait + Duration::from_millis(1)).is_ok());
    }

    #[test]
    fn something_bigger_than_the_burst_waits_for_a_full_bucket_and_is_paid_back() {
        let rate = Rate { per_second: 10.0, burst: 10.0 };
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, start);
        assert!(bucket.take(30.0, rate, start).is_ok());
        assert!(bucket.take(1.0, rate, start + Duration::from_secs(1)).is_err());
        assert!(bucket.take(1.0, rate, start + Duration::from_secs(3)).is_ok());
    }
}
