//! Big restores, kept in Redis while a reconnect storm lasts.
//!
//! A user's full snapshot is kept as text under (epoch, seq) and used only when
//! both equal the store's head at that moment; so it is never stale, and Redis
//! may lose it whenever it likes. Small sessions are read from the store: asking
//! two places would cost more than it saves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::restore::Restore;
use crate::backplane::{Backplane, Stamp};
use crate::model::{Epoch, UserId};
use crate::store::HeadRead;
use crate::telemetry::metrics::Metrics;

/// Bytes of live state from which a snapshot is worth keeping.
const WORTH_KEEPING_BYTES: u64 = 16 * 1024;

/// An answer of Redis that takes longer helps nobody.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// See the module's comment.
pub struct SessionCache {
    backplane: Arc<dyn Backplane>,
    metrics: Arc<Metrics>,
}

impl SessionCache {
    /// A cache behind `backplane`.
    pub fn new(backplane: Arc<dyn Backplane>, metrics: Arc<Metrics>) -> Self {
        Self { backplane, metrics }
    }

    /// Whether a session with this head belongs in here, and Redis is there.
    pub fn is_for(&self, head: &HeadRead) -> bool {
        head.live_bytes >= WORTH_KEEPING_BYTES && self.backplane.is_up()
    }

    /// The restore that was kept at exactly this head.
    pub async fn get(&self, user: UserId, epoch: &Epoch, head: &HeadRead) -> Option<Restore> {
        let stamp = Stamp { epoch: epoch.clone(), seq: head.seq };
        let kept = self.backplane.snapshot_get(user, &stamp);
        let kept = tokio::time::timeout(ANSWER_WITHIN, kept).await.ok().flatten();
        let text = kept.and_then(|bytes| String::from_utf8(bytes.into()).ok());
        match &text {
            Some(_) => self.metrics.cache_hits.increment(1),
            None => self.metrics.cache_misses.increment(1),
        }
        text.map(|text| Restore { fields: text.into(), seq: head.seq, delta: false })
    }

    /// Keeps a full restore for whoever comes next.
    pub fn put(&self, user: UserId, epoch: &Epoch, restore: &Restore) {
        let stamp = Stamp { epoch: epoch.clone(), seq: restore.seq };
        self.backplane.snapshot_put(user, &stamp, Bytes::copy_from_slice(restore.fields.as_bytes()));
    }
}
