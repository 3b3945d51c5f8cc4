//! The open-loop schedule: when each event is due, and whose it is, fixed before the first is sent. A slow server
//! delays no later event, so its slowness is in every latency that it caused (no coordinated omission).

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    events_per_second: u32,
    pub events: u64,
    /// Events before this one warm the server up.
    pub first_measured: u64,
}

impl Schedule {
    pub fn new(start: Instant, events_per_second: u32, warmup: Duration, measured: Duration) -> Self {
        let events_in = |time: Duration| (time.as_secs_f64() * f64::from(events_per_second)).round() as u64;
        let first_measured = events_in(warmup);
        Self { start, events_per_second, events: first_measured + events_in(measured), first_measured }
    }

    /// When event `nth` is due; evenly spaced.
    pub fn due(&self, nth: u64) -> Instant {
        // In nanoseconds from the start, so that no rounding adds up.
        let ns = u128::from(nth) * 1_000_000_000 / u128::from(self.events_per_second);
        self.start + Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    pub fn end(&self) -> Instant {
        self.due(self.events)
    }
}

/// A fixed order in which every one of `count` devices gets its turn before any gets its second, neighbours far
/// apart: the next device is a step further that has no divisor in common with the count.
pub fn turn_order(count: u64) -> impl Fn(u64) -> u64 {
    // The golden section spreads steps most evenly.
    let golden = ((count as f64) * 0.618) as u64;
    let step = (golden.max(1)..).find(|step| greatest_common_divisor(*step, count) == 1).unwrap_or(1);
    move |nth| (u128::from(nth) * u128::from(step) % u128::from(count)) as u64
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_evenly_spaced_without_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3, Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!((schedule.first_measured, schedule.events), (3, 9));
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(3_000), start + Duration::from_secs(1_000));
        assert_eq!(schedule.end(), start + Duration::from_secs(3));
    }

    #[test]
    fn every_device_gets_its_turn() {
        for count in [1, 2, 3, 8, 200, 8_000] {
            let order = turn_order(count);
            let mut seen: Vec<u64> = (0..count).map(&order).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..count), "{count}");
        }
    }
}
