//! Devices that went while the other nodes could not be told: remembered, and
//! told as soon as the backplane is there again.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{Departure, Hub};
use crate::backplane::Unavailable;

/// Departures that are kept for when the others can be told again.
const UNTOLD_MAX: usize = 16_384;

/// Wait before they are tried again.
const UNTOLD_RETRY: Duration = Duration::from_secs(1);

/// The same when the node is going.
const UNTOLD_RETRY_IN_A_HURRY: Duration = Duration::from_millis(50);

/// Departures that the others were not told of.
#[derive(Default)]
pub struct Untold {
    /// Each until it is told.
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

    /// Whether nothing is left to tell that can be told.
    pub(super) fn nobody_is_untold(&self) -> bool {
        self.lock_untold().departures.is_empty() || !self.0.backplane.is_up()
    }

    /// The node goes without knowing whether these are out of presence: better
    /// heard twice, of its burial, than never.
    pub(super) fn tell_the_rest(&self) {
        let departures = std::mem::take(&mut self.lock_untold().departures);
        let mut told = HashSet::new();
        departures
            .iter()
            .filter(|left| told.insert(left.device))
            .for_each(|left| self.publish_departure(left));
    }

    fn lock_untold(&self) -> MutexGuard<'_, Untold> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others who went while they could not be told, and takes them out
    /// of presence, where they would stay online for good.
    async fn tell_departures(&self) {
        while self.may_retry().await {
            if !self.0.backplane.is_up() {
                continue;
            }
            let departures = {
                let mut untold = self.lock_untold();
                untold.is_being_told = !untold.departures.is_empty();
                untold.departures.clone()
            };
            if departures.is_empty() {
                return;
            }
            // Of one device several connections may be here.
            let mut told = HashSet::new();
            for left in departures {
                let Ok(is_out) = self.is_out(&left).await else { continue };
                if is_out && told.insert(left.device) {
                    self.publish_departure(&left);
                }
                self.lock_untold().departures.retain(|untold| untold.connection != left.connection);
            }
        }
    }

    /// After a while; false when the node ends.
    async fn may_retry(&self) -> bool {
        let in_a_hurry = self.0.hurry.is_cancelled();
        let pause = if in_a_hurry { UNTOLD_RETRY_IN_A_HURRY } else { UNTOLD_RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.0.hurry.cancelled(), if !in_a_hurry => true,
            () = self.0.tasks.ending() => false,
        }
    }

    /// Takes it out of presence; whether the others are to hear that it went.
    async fn is_out(&self, left: &Departure) -> Result<bool, Unavailable> {
        if self.0.backplane.presence_remove(left.user, left.device, left.connection).await? {
            return Ok(true);
        }
        // Without a row of any connection it is gone too: Redis may have forgotten it.
        let roster = self.roster(left.user).await;
        Ok(roster.complete && roster.rows.iter().all(|(device, _)| *device != left.device))
    }
}
