//! The regular ask: whose head moved in the store since last time?
//!
//! A hole shows only when something later arrives, so the last change before a
//! crash or a lost publish would stay unseen. Healthy or not, each node asks the
//! store, in one query whose cost follows what changed and not who is connected;
//! and in others what was revoked, by a node it does not hear or by the command
//! line, and for whom a message is kept.

use std::time::Duration;

use super::{Hub, Mail};
use crate::store::MovedSince;

/// How often, while the backplane works.
const EVERY: Duration = Duration::from_secs(4);

/// How often, while it does not: the store is then the only way between nodes.
const EVERY_WITHOUT_BACKPLANE: Duration = Duration::from_secs(1);

/// How often, until the store has said where things stand: what happens before
/// that is never heard of. Nobody gets in without the store either.
const UNTIL_PLACED: Duration = Duration::from_millis(100);

/// Asks until the process ends, for the first time at once: what moved later is
/// news.
pub async fn ask_regularly(hub: Hub) {
    let mut since = MovedSince::default();
    let mut revoked_since = None;
    let mut mail_since = None;
    loop {
        match hub.0.store.moved(&since).await {
            Ok(moved) => {
                hub.0.metrics.asks.increment(1);
                hub.0.metrics.asked_users.increment(moved.heads.len() as u64);
                for (user, head) in moved.heads {
                    hub.look_into_store_below(user, head);
                }
                since = moved.next;
                hub.mind_the_epoch();
            }
            Err(error) => tracing::debug!(%error, "the store did not say what moved"),
        }
        match hub.0.store.revocations(revoked_since).await {
            Ok((next, ended)) => {
                for ended in ended {
                    hub.kick_here(ended.user, &ended.revoked, ended.at);
                }
                revoked_since = Some(next);
            }
            Err(error) => tracing::debug!(%error, "the store did not say what was revoked"),
        }
        match hub.0.store.mail_since(mail_since).await {
            Ok((next, kept)) => {
                for (user, device) in kept {
                    if hub.0.mail.send(Mail::Kept { user, device: Some(device) }).await.is_err() {
                        return;
                    }
                }
                mail_since = Some(next);
            }
            Err(error) => tracing::debug!(%error, "the store did not say what mail there is"),
        }
        let is_placed = since.place.is_some() && revoked_since.is_some() && mail_since.is_some();
        let alone = hub.is_clustered() && !hub.0.backplane.is_up();
        let pause = match (is_placed, alone) {
            (false, _) => UNTIL_PLACED,
            (true, true) => EVERY_WITHOUT_BACKPLANE,
            (true, false) => EVERY,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hub.0.tasks.ending() => return,
        }
    }
}
