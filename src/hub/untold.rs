//! Devices that went while the other nodes could not be told: remembered, and
//! told as soon as the backplane is there again.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{Departure, Hub};

/// Departures that are kept for when the others can be told again.
const UNTOLD_MAX: usize = 16_384;

/// Wait before they are tried again.
const UNTOLD_RETRY: Duration = Duration::from_secs(1);

/// Departures that the others were not told of.
#[derive(Default)]
pub struct Untold {
    departures: Vec<Departure>,
    is_being_told: bool,
}

impl Hub {
    /// Remembers who could not be taken out of presence; a task tries until it is
    /// done.
    pub(super) fn untold(&self, left: &Departure) {
        let mut untold = self.lock_untold();
        if untold.departures.len() < UNTOLD_MAX {
            untold.departures.push(*left);
        }
        if !std::mem::replace(&mut untold.is_being_told, true) {
            let hub = self.clone();
            self.0.tasks.spawn(async move { hub.tell_departures().await });
        }
    }

    fn lock_untold(&self) -> MutexGuard<'_, Untold> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others who went while they could not be told, and takes them out
    /// of presence, where they would stay online for good.
    async fn tell_departures(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(UNTOLD_RETRY) => {}
                () = self.0.tasks.ending() => return,
            }
            if !self.0.backplane.is_up() {
                continue;
            }
            let departures = {
                let mut untold = self.lock_untold();
                untold.is_being_told = !untold.departures.is_empty();
                std::mem::take(&mut untold.departures)
            };
            if departures.is_empty() {
                return;
            }
            for left in departures {
                self.tell_departure(&left).await;
            }
        }
    }

    async fn tell_departure(&self, left: &Departure) {
        match self.0.backplane.presence_remove(left.user, left.device, left.connection).await {
            Ok(true) => self.publish_departure(left),
            Ok(false) => {
                // Without a row of any connection it is gone too: Redis may have forgotten it.
                let roster = self.roster(left.user).await;
                if roster.complete && roster.rows.iter().all(|(device, _)| *device != left.device) {
                    self.publish_departure(left);
                }
            }
            Err(_) => self.untold(left),
        }
    }
}
