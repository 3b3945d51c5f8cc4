//! The backplane through Redis 7: standalone, TLS, Sentinel or Cluster. Only this folder knows fred.
//!
//! Two connections a node: one carries what is published and what is subscribed, which ride on each
//! other's wake-ups (three in a cluster, see `clients`), and *commands* carries presence, snapshots
//! and throttles, which are waited for. Every command has a timeout and is sent once.
//! Which user is subscribed stands in our own table (`subscriptions`), never in fred's.

#![expect(
    clippy::let_underscore_must_use,
    reason = "whoever hears no answer any more has been told by the link"
)]

mod clients;
mod link;
mod presence;
mod probe;
mod publisher;
mod reader;
mod scripts;
mod shared;
#[cfg(test)]
pub mod simulated;
mod subscriptions;
mod topology;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::bucket::LocalBuckets;
use super::envelope::{Codec, Envelope};
use super::inbound;
use super::observed::{Observed, count};
use super::presence::{NodeLife, Online, Placed, Roster};
use super::{Backplane, BadUrl, Joined, Rate, Settings, Stamp, Taken, Unavailable};
use crate::model::{ConnectionId, DeviceId, UserId};
use clients::Clients;
use link::Link;
use presence::Presence;
use presence::table::RedisTable;
use probe::Probe;
use publisher::Publisher;
use reader::Reader;
use shared::Shared;
use subscriptions::{Settling, Subscriptions};

/// Where a user's envelopes travel. The braces are Redis Cluster's hash tag, so the channel and the
/// user's presence row live on one shard.
fn channel_of(user: UserId) -> String {
    format!("tandem:{{{}}}", user.0)
}

/// Starts the tasks of a node and waits a moment for Redis; without it the node comes up all the same.
pub(super) async fn join(url: &str, settings: Settings) -> Result<Joined, BadUrl> {
    let Settings { node_id, timing, limits, observed, tasks, stop } = settings;
    let process = format!("{node_id}.{}", Uuid::now_v7());
    let clients = Clients::from_url(url, &timing)?;
    let (sender, receiver) = inbound::queue(limits, observed.clone());
    let link = Arc::new(Link::new(sender.clone(), timing));
    let codec = Arc::new(Codec::new(&process));
    let probe_channel = format!("tandem:node:{process}");

    let subscriptions = Arc::new(Subscriptions::default());
    let (publisher, outgoing) = publisher::queue(observed.clone());
    let table = Arc::new(RedisTable::new(&clients));
    let presence =
        Arc::new(Presence::new(&node_id, table, link.clone(), sender.clone(), observed.clone(), timing));
    let shared = Shared::new(&clients, link.clone(), timing, &tasks, &stop);

    let reader = Reader {
        codec: codec.clone(),
        inbound: sender.clone(),
        link: link.clone(),
        observed: observed.clone(),
        probe_channel: probe_channel.clone(),
    };
    let settling = Settling {
        subscriptions: subscriptions.clone(),
        clients: clients.clone(),
        link: link.clone(),
        observed: observed.clone(),
        probe_channel: probe_channel.clone(),
        timing,
    };
    // Both listen before the first connection is made, so that they hear of every one.
    tasks.spawn(reader.run(clients.subscriber.clone(), stop.clone()));
    tasks.spawn(settling.run(sender, stop.clone()));
    let published = CancellationToken::new();
    let publishing = publisher::run(clients.clone(), outgoing, observed.clone(), stop.clone());
    let done = published.clone().drop_guard();
    tasks.spawn(async move {
        publishing.await;
        drop(done);
    });
    let probe = Probe {
        clients: clients.clone(),
        subscriptions: subscriptions.clone(),
        link: link.clone(),
        channel: probe_channel,
        timing,
    };
    tasks.spawn(probe.run(stop.clone()));
    tasks.spawn(presence.clone().run(stop.clone()));
    if clients.sharded {
        tasks.spawn(topology::watch(clients.clone(), subscriptions.clone(), timing, stop.clone()));
    }
    clients.start(&tasks, &stop, &published);

    let backplane = RedisBackplane {
        subscriptions,
        publisher,
        presence,
        shared,
        link,
        codec,
        observed,
        buckets: LocalBuckets::default(),
        timing,
    };
    backplane.settle().await;
    Ok(Joined { backplane: Arc::new(backplane), inbound: receiver })
}

struct RedisBackplane {
    subscriptions: Arc<Subscriptions>,
    publisher: Publisher,
    presence: Arc<Presence>,
    shared: Shared,
    link: Arc<Link>,
    codec: Arc<Codec>,
    observed: Arc<Observed>,
    buckets: LocalBuckets,
    timing: super::Timing,
}

impl RedisBackplane {
    /// Gives Redis a moment, so that a node that starts beside it starts as a member.
    async fn settle(&self) {
        let joined = async {
            self.link.wait_up().await;
            self.presence.wait_registered().await;
        };
        if tokio::time::timeout(self.timing.join_within, joined).await.is_err() {
            tracing::warn!("Redis does not answer; starting without it");
        }
    }
}

#[async_trait]
impl Backplane for RedisBackplane {
    fn node(&self) -> NodeLife {
        self.presence.life()
    }

    async fn subscribe(&self, user: UserId) -> Result<(), Unavailable> {
        let within = if self.is_up() { self.timing.subscribe_within } else { std::time::Duration::ZERO };
        self.subscriptions.want(user, within).await
    }

    fn unsubscribe(&self, user: UserId) {
        self.subscriptions.unwant(user);
    }

    fn publish(&self, user: UserId, envelope: &Envelope) {
        match envelope.encode(&self.codec) {
            Some(body) => self.publisher.offer(channel_of(user), body),
            None => count(&self.observed.dropped),
        }
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    async fn presence_set(
        &self,
        user: UserId,
        device: DeviceId,
        online: Online,
    ) -> Result<Placed, Unavailable> {
        self.presence.set(user, device, online).await
    }

    async fn presence_remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        self.presence.remove(user, device, connection).await
    }

    async fn presence_of(&self, user: UserId) -> Roster {
        self.presence.of(user).await
    }

    async fn is_alive(&self, node: &NodeLife) -> Result<bool, Unavailable> {
        self.presence.is_alive(node).await
    }

    async fn snapshot_get(&self, user: UserId, stamp: &Stamp) -> Option<Bytes> {
        self.shared.snapshot_get(user, stamp).await
    }

    fn snapshot_put(&self, user: UserId, stamp: &Stamp, snapshot: Bytes) {
        self.shared.snapshot_put(user, stamp, snapshot);
    }

    async fn take_token(&self, bucket: &str, rate: Rate) -> Taken {
        match self.shared.take_token(bucket, rate).await {
            Some(taken) => taken,
            None => self.buckets.take(bucket, rate),
        }
    }

    async fn leave(&self) {
        self.presence.leave().await;
    }
}
