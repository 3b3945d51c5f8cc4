//! Whether this node stood still lately: frozen, or without a processor for too long.
//!
//! What it reads first after that was sent before, maybe by clients that have long gone to another node. A CONNECT that
//! names a device would then take the device from the connection that its client has by now, and send that one away for
//! good. So after a standstill a client has to answer a ping before it counts as connected.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::drain::Tasks;

/// How often the node notes that it goes on.
const TICK: Duration = Duration::from_millis(200);

/// A gap between two ticks that is longer than this is a standstill: clients do not give up sooner.
const GAP: Duration = Duration::from_millis(800);

/// For so long after one what is read may still be old.
const AFTERMATH: Duration = Duration::from_secs(5);

/// See the module's comment.
pub struct Standstill {
    began: Instant,
    /// Milliseconds since `began`: the last tick, and when the last standstill was noticed.
    ticked: AtomicU64,
    noticed: AtomicU64,
}

impl Default for Standstill {
    fn default() -> Self {
        Self { began: Instant::now(), ticked: AtomicU64::new(0), noticed: AtomicU64::new(u64::MAX) }
    }
}

impl Standstill {
    /// Ticks until the process ends.
    pub async fn watch(&self, tasks: &Tasks) {
        loop {
            self.tick(self.now());
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = tasks.ending() => return,
            }
        }
    }

    /// Whether there was one a moment ago, noticed or not.
    pub fn was_lately(&self) -> bool {
        self.was_before(self.now())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tick(&self, now: u64) {
        if self.stood_still(now) {
            self.noticed.store(now, Ordering::Release);
        }
        self.ticked.store(now, Ordering::Release);
    }

    fn stood_still(&self, now: u64) -> bool {
        u128::from(now.saturating_sub(self.ticked.load(Ordering::Acquire))) > GAP.as_millis()
    }

    fn was_before(&self, now: u64) -> bool {
        // First the ticks, then what they noticed: a tick between the two must not hide what it saw.
        let stands_still = self.stood_still(now);
        let noticed = self.noticed.load(Ordering::Acquire);
        let is_aftermath =
            noticed != u64::MAX && u128::from(now.saturating_sub(noticed)) < AFTERMATH.as_millis();
        stands_still || is_aftermath
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_ticks_is_a_standstill_at_once_and_for_a_while() {
        let standstill = Standstill::default();
        for now in [0, 200, 900] {
            standstill.tick(now);
            assert!(!standstill.was_before(now), "{now}");
        }
        assert!(standstill.was_before(3_000), "before any tick has noticed");
        standstill.tick(3_000);
        standstill.tick(3_200);
        assert!(standstill.was_before(3_200));
        standstill.tick(7_900);
        for now in (7_900..13_000).step_by(200) {
            standstill.tick(now);
        }
        assert!(!standstill.was_before(13_000));
    }
}
