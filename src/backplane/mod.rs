//! Carries "this happened" between nodes, at most once.
//!
//! A user's devices may be connected to different nodes. The node that accepts a change publishes
//! it on the user's channel, and every node that holds one of that user's devices is subscribed.
//! It is only a hint: the store holds the truth and repairs whatever is lost here, and whatever may
//! have been lost is told as `Inbound::Missed`. Nothing durable lives behind this seam.
//!
//! Besides, it knows who is online anywhere, keeps snapshots for reconnect storms and shares the
//! throttles. Not here: what an envelope means (the hub), and when to look into the store.

#![expect(missing_docs, reason = "plain fields and variants are what their names say")]

mod bucket;
pub(crate) mod envelope;
mod inbound;
mod memory;
mod observed;
mod presence;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use bucket::{Rate, Taken};
pub use envelope::{
    CHANGE_PAYLOAD_BYTES_MAX, Changed, Delivery, ENVELOPE_BYTES_MAX, Envelope, Head, HeadsMoved, Kick, Kind,
    Message, MessageStatus, Ping, Pong, PresenceChange, PresenceEvent, Realtime,
};
pub use inbound::{Inbound, InboundLimits, InboundReceiver};
pub use memory::MemoryBus;
pub use observed::Observed;
pub use presence::{NODE_LOST, NodeLife, Online, Placed, Roster, Row};
#[cfg(test)]
pub use redis::simulated;

use crate::model::{ConnectionId, DeviceId, Epoch, Seq, UserId};

/// Opens the Redis backplane or, without a URL, one private to this process. Redis need not be
/// there: the node starts without it and joins when it comes.
pub async fn open(redis_url: Option<&str>, settings: Settings) -> Result<Joined, BadUrl> {
    match redis_url {
        Some(url) => redis::join(url, settings).await,
        None => Ok(MemoryBus::default().join_as(settings)),
    }
}

/// A node's two ends of the backplane.
pub struct Joined {
    pub backplane: Arc<dyn Backplane>,
    pub inbound: InboundReceiver,
}

/// The seam between this node and the others. The hub subscribes for a user's first local device
/// and unsubscribes after the last, so nothing counts here.
#[async_trait]
pub trait Backplane: Send + Sync {
    /// This node as presence rows name it at the moment.
    fn node(&self) -> NodeLife;

    /// Ok once the user's envelopes reach this node. Waits 500 ms at most, and not at all while
    /// the link is down. Remembered either way: a failed one is made up for as soon as possible,
    /// and the user is then named in `Inbound::Missed`.
    async fn subscribe(&self, user: UserId) -> Result<(), Unavailable>;

    fn unsubscribe(&self, user: UserId);

    /// Reaches every other subscribed node, at most once and in order for a user; never waits.
    /// What cannot be queued is dropped and counted.
    fn publish(&self, user: UserId, envelope: &Envelope);

    /// False at the latest 5 s after the link stopped working, however it did.
    fn is_up(&self) -> bool;

    /// This node holds the device's connection. Remembered when it fails, and written then.
    async fn presence_set(
        &self,
        user: UserId,
        device: DeviceId,
        online: Online,
    ) -> Result<Placed, Unavailable>;

    /// True if that connection's row stood and is gone; false if another connection's stands.
    async fn presence_remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable>;

    async fn presence_of(&self, user: UserId) -> Roster;

    /// Whether that life of a node still sends its heartbeat.
    async fn is_alive(&self, node: &NodeLife) -> Result<bool, Unavailable>;

    /// The user's snapshot if it was kept under exactly this stamp.
    async fn snapshot_get(&self, user: UserId, stamp: &Stamp) -> Option<Bytes>;

    /// Keeps a snapshot for a while; never waits, and may well not keep it.
    fn snapshot_put(&self, user: UserId, stamp: &Stamp, snapshot: Bytes);

    /// Takes a token from a bucket that all nodes share, or from this node's own without them.
    async fn take_token(&self, bucket: &str, rate: Rate) -> Taken;

    /// Ends this node's presence in good order: its remaining rows go, and nobody claims them.
    async fn leave(&self);
}

/// What a snapshot was taken at; it is used only where both equal the store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub epoch: Epoch,
    pub seq: Seq,
}

/// What a node brings along.
#[derive(Clone)]
pub struct Settings {
    /// Readable and unique in the cluster; every start adds a boot id of its own.
    pub node_id: String,
    pub timing: Timing,
    pub limits: InboundLimits,
    pub observed: Arc<Observed>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Every wait of the backplane in one place, so that tests can shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long `open` waits for Redis before it goes on without.
    pub join_within: Duration,
    pub subscribe_within: Duration,
    pub command_within: Duration,
    /// A probe goes through Redis this often; three missed in a row are "down".
    pub probe_every: Duration,
    pub heartbeat_every: Duration,
    /// How long a node counts as alive after its last heartbeat.
    pub heartbeat_ttl: Duration,
    /// How long a heartbeat must be seen missing before the rows are claimed: a node whose key
    /// was flushed has written it again by then. With the defaults a dead node's devices are
    /// announced within 6 + 4.5 + 1.5 s.
    pub claim_after: Duration,
    pub snapshot_ttl: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            join_within: Duration::from_secs(1),
            subscribe_within: Duration::from_millis(500),
            command_within: Duration::from_secs(1),
            probe_every: Duration::from_secs(1),
            heartbeat_every: Duration::from_secs(2),
            heartbeat_ttl: Duration::from_secs(6),
            claim_after: Duration::from_millis(4_500),
            snapshot_ttl: Duration::from_secs(600),
        }
    }
}

/// Callers go on from the store and this node's own connections.
#[derive(Debug, thiserror::Error)]
#[error("backplane unavailable: {0}")]
pub struct Unavailable(pub String);

/// The only thing that keeps a node from starting.
#[derive(Debug, thiserror::Error)]
#[error("not a Redis URL that can be used: {0}")]
pub struct BadUrl(pub String);
