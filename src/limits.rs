//! Token buckets: how much of something a device, user or address may do.
//!
//! A bucket is a function of its own state and the time it is given; the caller
//! brings the clock, so a table of cases tests it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Fills at `per_second` up to `burst`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: f64,
    /// Tokens when full.
    pub burst: f64,
}

impl Rate {
    /// `per_minute` a minute, all of them at once if nobody came for a minute.
    pub fn per_minute(per_minute: u32) -> Self {
        Self { per_second: f64::from(per_minute) / 60.0, burst: f64::from(per_minute) }
    }
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

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        let mut filled = *self;
        filled.fill(rate, now);
        filled.tokens >= rate.burst
    }
}

/// Buckets by key, for strangers: addresses and e-mails. Bounded: full buckets
/// are forgotten, since a new one would be full too.
pub struct Throttle<K> {
    rate: Option<Rate>,
    buckets: Mutex<HashMap<K, Bucket>>,
}

/// Keys after which full buckets are looked for.
const BUCKETS_BEFORE_SWEEP: usize = 10_000;

impl<K: Hash + Eq> Throttle<K> {
    /// `per_minute` for each key; 0 lets everybody through.
    pub fn per_minute(per_minute: u32) -> Self {
        let rate = (per_minute > 0).then(|| Rate::per_minute(per_minute));
        Self { rate, buckets: Mutex::default() }
    }

    /// Counts one try of `key`.
    ///
    /// # Errors
    /// How long to wait.
    pub fn try_one(&self, key: K, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_BEFORE_SWEEP && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(rate, now));
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(rate, now)).take(1.0, rate, now)
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
        let rate = Rate::per_minute(10);
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

    #[test]
    fn a_throttle_counts_each_key_apart_and_forgets_full_ones() {
        let throttle = Throttle::per_minute(2);
        let now = Instant::now();
        assert!(throttle.try_one("a", now).is_ok() && throttle.try_one("a", now).is_ok());
        assert!(throttle.try_one("a", now).is_err());
        assert!(throttle.try_one("b", now).is_ok());
        assert!(Throttle::per_minute(0).try_one("a", now).is_ok());
    }
}
