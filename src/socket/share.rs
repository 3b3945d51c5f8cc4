//! How many events a device and a user may send.
//!
//! A device has its rate with bursts of twice that; all of a user's devices
//! together have twice the rate and 4 MiB a second. Beyond it events are
//! refused; reading slows down; a socket that stays above ten times its rate
//! for ten seconds is closed.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::limits::{Bucket, Rate};
use crate::model::UserId;

/// Bytes of events a second and user.
const USER_BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;

/// Times its rate that a socket may send before it is a flood.
const FLOOD_FACTOR: u32 = 10;

/// Seconds in a row after which a flood ends the connection.
const FLOOD_SECONDS: u32 = 10;

/// Every connected user's share.
pub struct Shares {
    per_second: u32,
    users: DashMap<UserId, Weak<UserShare>>,
}

/// What all of a user's devices on this node have together.
pub struct UserShare(Mutex<UserBuckets>);

struct UserBuckets {
    events: Bucket,
    bytes: Bucket,
}

/// One socket's share.
pub struct SocketShare {
    per_second: u32,
    user: Option<Arc<UserShare>>,
    events: Bucket,
    second: Instant,
    this_second: u32,
    seconds_flooding: u32,
}

/// What to do with an arriving event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handle it.
    Take,
    /// Refuse it; a later try may succeed after this wait.
    Refuse(Duration),
    /// Close the socket.
    Flood,
}

impl Shares {
    /// `per_second` events a device; 0 lets everything through.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, users: DashMap::new() }
    }

    /// The share of a new socket of `user`.
    pub fn socket(&self, user: UserId, now: Instant) -> SocketShare {
        let user = (self.per_second > 0).then(|| self.user(user, now));
        SocketShare {
            per_second: self.per_second,
            user,
            events: Bucket::full(self.device_rate(), now),
            second: now,
            this_second: 0,
            seconds_flooding: 0,
        }
    }

    fn user(&self, user: UserId, now: Instant) -> Arc<UserShare> {
        let mut slot = self.users.entry(user).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let buckets = UserBuckets {
                events: Bucket::full(user_rate(self.per_second), now),
                bytes: Bucket::full(bytes_rate(), now),
            };
            let share = Arc::new(UserShare(Mutex::new(buckets)));
            *slot = Arc::downgrade(&share);
            share
        })
    }

    /// Forgets a user whose last socket is gone.
    pub fn forget(&self, user: UserId) {
        self.users.remove_if(&user, |_, share| share.strong_count() == 0);
    }

    fn device_rate(&self) -> Rate {
        device_rate(self.per_second)
    }
}

fn device_rate(per_second: u32) -> Rate {
    Rate { per_second: f64::from(per_second), burst: f64::from(per_second) * 2.0 }
}

fn user_rate(per_second: u32) -> Rate {
    device_rate(per_second.saturating_mul(2))
}

fn bytes_rate() -> Rate {
    Rate { per_second: USER_BYTES_PER_SECOND, burst: USER_BYTES_PER_SECOND }
}

impl SocketShare {
    /// Judges one event of `bytes` bytes.
    pub fn judge(&mut self, bytes: usize, now: Instant) -> Verdict {
        let Some(user) = &self.user else { return Verdict::Take };
        let taken = self.events.take(1.0, device_rate(self.per_second), now).and_then(|()| {
            let mut buckets = user.0.lock().unwrap_or_else(PoisonError::into_inner);
            buckets.events.take(1.0, user_rate(self.per_second), now)?;
            buckets.bytes.take(bytes as f64, bytes_rate(), now)
        });
        if self.is_flooding(now) {
            return Verdict::Flood;
        }
        taken.map_or_else(Verdict::Refuse, |()| Verdict::Take)
    }

    fn is_flooding(&mut self, now: Instant) -> bool {
        let gone = now.saturating_duration_since(self.second);
        if gone >= Duration::from_secs(1) {
            let flooded = self.this_second > self.per_second.saturating_mul(FLOOD_FACTOR);
            let unbroken = flooded && gone < Duration::from_secs(2);
            self.seconds_flooding = if unbroken { self.seconds_flooding + 1 } else { 0 };
            (self.second, self.this_second) = (now, 0);
        }
        self.this_second += 1;
        self.seconds_flooding >= FLOOD_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_burst_and_a_user_twice_that() {
        let shares = Shares::new(200);
        let (user, now) = (UserId::fresh(), Instant::now());
        let mut devices: Vec<_> = (0..3).map(|_| shares.socket(user, now)).collect();
        let taken: Vec<_> = devices
            .iter_mut()
            .map(|device| (0..500).filter(|_| device.judge(10, now) == Verdict::Take).count())
            .collect();
        assert_eq!(taken, [400, 400, 0]);
    }

    #[test]
    fn ten_times_the_rate_for_ten_seconds_is_a_flood() {
        let shares = Shares::new(10);
        let start = Instant::now();
        let mut socket = shares.socket(UserId::fresh(), start);
        let verdict_at = |socket: &mut SocketShare, second: u64| {
            let now = start + Duration::from_secs(second);
            (0..150).map(|_| socket.judge(1, now)).last()
        };
        assert!((0..10).all(|second| verdict_at(&mut socket, second) != Some(Verdict::Flood)));
        assert_eq!(verdict_at(&mut socket, 10), Some(Verdict::Flood));
    }

    #[test]
    fn off_means_off() {
        let mut socket = Shares::new(0).socket(UserId::fresh(), Instant::now());
        assert!((0..100_000).all(|_| socket.judge(1_000_000, Instant::now()) == Verdict::Take));
    }
}
