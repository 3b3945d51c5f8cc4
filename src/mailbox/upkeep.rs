//! What the mailbox does by the clock: messages that waited too long go, their
//! senders hear of it; what is remembered of devices and lanes is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Mailbox;
use crate::backplane::Delivery;
use crate::model::Clock;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// How often what is remembered is gone through and what waits is counted, in
/// turns.
const TIDY_EVERY: u32 = 10;

/// Goes on until the process ends.
pub async fn look_after(mailbox: Mailbox) {
    let mut turn = 0u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = mailbox.0.tasks.ending() => return,
        }
        mailbox.expire().await;
        if turn.is_multiple_of(TIDY_EVERY) {
            // Who has just taken one out of the map is about to use it.
            mailbox.0.lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_idle());
            mailbox.0.slots.retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.tidy());
            mailbox.count().await;
        }
        turn = turn.wrapping_add(1);
    }
}

impl Mailbox {
    /// Whichever node takes an expired message away tells its sender.
    async fn expire(&self) {
        let expired = match self.0.store.expired_messages(Clock::now()).await {
            Ok(expired) => expired,
            Err(error) => return tracing::debug!(%error, "the store did not say what expired"),
        };
        let mut by_device: HashMap<_, Vec<_>> = HashMap::new();
        for (user, device, id) in expired {
            by_device.entry((user, device)).or_default().push(id);
        }
        for ((user, device), ids) in by_device {
            if let Err(error) = self.take(user, device, ids, Delivery::Expired).await {
                tracing::debug!(%error, "expired messages could not be taken away");
            }
        }
    }

    async fn count(&self) {
        if let Ok(depth) = self.0.store.mailbox_depth().await {
            let age = depth.oldest.map_or(0, |oldest| (Clock::now().0 - oldest.0).max(0));
            self.0.metrics.mailbox_messages.set(depth.messages as f64);
            self.0.metrics.mailbox_oldest_seconds.set(age as f64 / 1_000.0);
        }
    }
}
