//! What nodes share besides events: snapshots for reconnect storms, and the buckets of throttles.
//!
//! Both are only helps. A snapshot that is not there costs a read of the store, a bucket out of
//! reach is this node's own; neither waits long, and nothing is asked while the link is down.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::prelude::*;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clients::Clients;
use super::link::Link;
use super::scripts::TAKE_TOKEN;
use crate::backplane::{Rate, Stamp, Taken, Timing};
use crate::model::UserId;

/// A larger one would hold up the others on its connection for longer than it saves.
const SNAPSHOT_BYTES_MAX: usize = 1 << 20;
/// Snapshots that wait to be kept; a storm makes more, and those are simply not kept.
const SNAPSHOTS_WAITING_MAX: usize = 32;
/// Reading the store takes less than a longer wait.
const SNAPSHOT_WITHIN: Duration = Duration::from_millis(100);
const TOKEN_WITHIN: Duration = Duration::from_millis(100);

pub(super) struct Shared {
    client: Client,
    link: Arc<Link>,
    keep: mpsc::Sender<Keep>,
}

struct Keep {
    key: String,
    stamp: String,
    snapshot: Bytes,
}

impl Shared {
    pub(super) fn new(
        clients: &Clients,
        link: Arc<Link>,
        timing: Timing,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let (keep, kept) = mpsc::channel(SNAPSHOTS_WAITING_MAX);
        let keeping = keep_snapshots(clients.commands.clone(), kept, timing.snapshot_ttl);
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
        Self { client: clients.commands.clone(), link, keep }
    }

    pub(super) async fn snapshot_get(&self, user: UserId, stamp: &Stamp) -> Option<Bytes> {
        if !self.link.is_up() {
            return None;
        }
        let wanted = stamp_text(stamp);
        let found = self.client.hget::<Option<Bytes>, _, _>(snapshot_key(user), wanted);
        tokio::time::timeout(SNAPSHOT_WITHIN, found).await.ok()?.ok()?
    }

    pub(super) fn snapshot_put(&self, user: UserId, stamp: &Stamp, snapshot: Bytes) {
        if snapshot.len() <= SNAPSHOT_BYTES_MAX && self.link.is_up() {
            let keep = Keep { key: snapshot_key(user), stamp: stamp_text(stamp), snapshot };
            // A full queue means a storm: others of the same user will offer theirs.
            let _ = self.keep.try_send(keep);
        }
    }

    /// `None`: out of reach.
    pub(super) async fn take_token(&self, bucket: &str, rate: Rate) -> Option<Taken> {
        if !self.link.is_up() || rate.per_second <= 0.0 {
            return None;
        }
        let args = vec![Value::from(i64::from(rate.capacity)), Value::from(rate.per_second.to_string())];
        let keys = vec![format!("tandem:bucket:{bucket}")];
        let taken = TAKE_TOKEN.call::<u64>(&self.client, keys, args);
        match tokio::time::timeout(TOKEN_WITHIN, taken).await.ok()?.ok()? {
            0 => Some(Taken::Allowed),
            wait_ms => Some(Taken::Limited { retry_after: Duration::from_millis(wait_ms) }),
        }
    }
}

/// A hash with one field, the stamp: a get with another stamp finds nothing and moves nothing.
async fn keep_snapshots(client: Client, mut kept: mpsc::Receiver<Keep>, ttl: Duration) {
    while let Some(Keep { key, stamp, snapshot }) = kept.recv().await {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        // Three commands of one connection: they are written together and run in this order.
        let (_, _, _) = tokio::join!(
            client.del::<(), _>(&key),
            client.hset::<(), _, _>(&key, (stamp, Value::Bytes(snapshot))),
            client.expire::<(), _>(&key, ttl, None),
        );
    }
}

fn snapshot_key(user: UserId) -> String {
    format!("tandem:snapshot:{{{}}}", user.0)
}

fn stamp_text(stamp: &Stamp) -> String {
    format!("{}:{}", stamp.epoch, stamp.seq)
}
