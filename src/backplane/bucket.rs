//! Token buckets kept in this process: what throttles count with when nobody shares them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Full buckets tell nothing, so they go first when there are more than this.
const BUCKETS_MAX: usize = 50_000;

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens in a full bucket: the burst.
    pub capacity: u32,
    pub per_second: f64,
}

/// The answer to asking for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Allowed,
    Limited { retry_after: Duration },
}

#[derive(Default)]
pub(super) struct LocalBuckets {
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
    rate: Rate,
}

impl LocalBuckets {
    pub(super) fn take(&self, name: &str, rate: Rate) -> Taken {
        self.take_at(name, rate, Instant::now())
    }

    fn take_at(&self, name: &str, rate: Rate, now: Instant) -> Taken {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(name) {
            buckets.retain(|_, bucket| bucket.level(now) < f64::from(bucket.rate.capacity));
            if buckets.len() >= BUCKETS_MAX {
                // Fifty thousand throttled names at once: forgetting them all bounds the memory and
                // gives each one more burst.
                buckets.clear();
            }
        }
        let full = Bucket { tokens: f64::from(rate.capacity), filled_at: now, rate };
        buckets.entry(name.to_owned()).or_insert(full).take(rate, now)
    }
}

impl Bucket {
    fn level(&self, now: Instant) -> f64 {
        let waited = now.saturating_duration_since(self.filled_at).as_secs_f64();
        (self.tokens + waited * self.rate.per_second).min(f64::from(self.rate.capacity))
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Taken {
        self.rate = rate;
        self.tokens = self.level(now);
        self.filled_at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Taken::Allowed;
        }
        Taken::Limited {
            retry_after: Duration::from_secs_f64((1.0 - self.tokens) / rate.per_second.max(1e-6)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_then_the_rate_holds() {
        let (buckets, start) = (LocalBuckets::default(), Instant::now());
        let rate = Rate { capacity: 2, per_second: 1.0 };

        assert_eq!(buckets.take_at("a", rate, start), Taken::Allowed);
        assert_eq!(buckets.take_at("a", rate, start), Taken::Allowed);
        assert_eq!(buckets.take_at("a", rate, start), Taken::Limited { retry_after: Duration::from_secs(1) });
        assert_eq!(buckets.take_at("b", rate, start), Taken::Allowed);
        assert_eq!(buckets.take_at("a", rate, start + Duration::from_secs(1)), Taken::Allowed);
    }
}
