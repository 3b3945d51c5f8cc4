//! The fred clients of a node: their settings, their start and their end.
//!
//! One client both subscribes and publishes: Redis writes the reply of a publish and the node's own
//! copy of it in one piece then, and the node wakes once for both. In a cluster they are two, for
//! fred notices a shard that hangs by a question without an answer, and every publish would put
//! that off.
//!
//! fred's defaults fit none of them: RESP2, no command timeout, no check for dead connections, an
//! endless queue, three attempts a command (a publish could go out twice) and a message stream of 32.

use std::time::Duration;

use fred::prelude::*;
use fred::types::RespVersion;
use fred::types::config::{TcpConfig, UnresponsiveConfig};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backplane::{BadUrl, Timing, Unavailable};

/// Messages that may wait between fred and our reader; past it fred says `Lagged`.
const MESSAGES_WAITING_MAX: usize = 8 * 1024;
/// Commands that may wait for a connection.
const COMMANDS_WAITING_MAX: usize = 8 * 1024;
const RECONNECT_DELAY_MS_MIN: u32 = 50;
/// Back at the latest about a second after Redis is.
const RECONNECT_DELAY_MS_MAX: u32 = 1_000;

#[derive(Clone)]
pub(super) struct Clients {
    /// Without a timeout for its commands: whoever subscribes has its own.
    pub subscriber: Client,
    /// The subscriber itself, but for a cluster.
    pub publisher: Client,
    pub commands: Client,
    /// Redis Cluster: SSUBSCRIBE and SPUBLISH in the place of SUBSCRIBE and PUBLISH.
    pub sharded: bool,
}

impl Clients {
    pub(super) fn from_url(url: &str, timing: &Timing) -> Result<Self, BadUrl> {
        // fred's message may quote the URL, and the URL holds the password.
        let mut config = Config::from_url(url).map_err(|error| BadUrl(format!("{:?}", error.kind())))?;
        config.version = RespVersion::RESP3;
        config.fail_fast = false;
        let sharded = config.server.is_clustered();
        let build = |command_within: Duration, silent_for: Duration, messages: usize| {
            Builder::from_config(config.clone())
                .with_connection_config(|connection| {
                    connection.connection_timeout = timing.command_within.max(Duration::from_secs(2));
                    connection.internal_command_timeout = timing.command_within.max(Duration::from_secs(2));
                    connection.max_command_attempts = 1;
                    connection.max_command_buffer_len = COMMANDS_WAITING_MAX;
                    connection.reconnect_on_auth_error = true;
                    connection.unresponsive = UnresponsiveConfig {
                        max_timeout: Some(silent_for),
                        interval: timing.probe_every / 4,
                    };
                    // A write that nobody acknowledges would hold fred's task for the kernel's
                    // fifteen minutes.
                    connection.tcp = TcpConfig {
                        nodelay: Some(true),
                        user_timeout: Some(4 * timing.probe_every),
                        ..TcpConfig::default()
                    };
                })
                .with_performance_config(|performance| {
                    performance.default_command_timeout = command_within;
                    performance.broadcast_channel_capacity = messages;
                })
                .set_policy(ReconnectPolicy::new_exponential(
                    0,
                    RECONNECT_DELAY_MS_MIN,
                    RECONNECT_DELAY_MS_MAX,
                    2,
                ))
                .build()
                .map_err(|error| BadUrl(format!("{:?}", error.kind())))
        };
        // A publish ends with its reply or its connection; a timer for each would cost more than
        // the publish.
        let (subscriber, publisher) = if sharded {
            // Less than the time between two pings, which would start fred's clock anew.
            let silent_for = timing.probe_every * 3 / 2;
            let subscriber = build(Duration::ZERO, silent_for, MESSAGES_WAITING_MAX)?;
            (subscriber, build(Duration::ZERO, timing.probe_every * 3, 64)?)
        } else {
            let both = build(Duration::ZERO, timing.probe_every * 3, MESSAGES_WAITING_MAX)?;
            (both.clone(), both)
        };
        let commands = build(timing.command_within, timing.probe_every * 3, 64)?;
        Ok(Self { subscriber, publisher, commands, sharded })
    }

    /// `published` ends the publisher's connection: later than `stop`, for what waits goes out first.
    pub(super) fn start(&self, tasks: &TaskTracker, stop: &CancellationToken, published: &CancellationToken) {
        tasks.spawn(keep_running(self.commands.clone(), stop.clone()));
        if self.sharded {
            tasks.spawn(keep_running(self.subscriber.clone(), stop.clone()));
        }
        tasks.spawn(keep_running(self.publisher.clone(), published.clone()));
    }

    /// Publishes without waiting for anything but the reply.
    pub(super) async fn publish(&self, channel: String, body: bytes::Bytes) -> Result<(), Error> {
        let body = Value::Bytes(body);
        if self.sharded {
            self.publisher.spublish(channel, body).await
        } else {
            self.publisher.publish(channel, body).await
        }
    }

    /// Drops connections that look alive to fred and are not. Those that fred is making anew
    /// already are left alone.
    pub(super) async fn reconnect_stuck(&self) {
        let force = |client: &Client| {
            let client = client.clone();
            async move {
                if client.is_connected() {
                    // The answer only comes with the next connection; asking is enough.
                    let _ =
                        tokio::time::timeout(Duration::from_millis(10), client.force_reconnection()).await;
                }
            }
        };
        let publisher = self.sharded.then_some(&self.publisher);
        let all = [&self.subscriber, &self.commands].into_iter().chain(publisher);
        join_all(all.map(force)).await;
    }
}

/// fred runs a client in a task of its own that ends on errors it takes for final; a node has none.
async fn keep_running(client: Client, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut running = client.connect();
        tokio::select! {
            ended = &mut running => {
                tracing::warn!(?ended, "Redis client ended; starting it again");
                let pause = tokio::time::sleep(Duration::from_millis(RECONNECT_DELAY_MS_MAX.into()));
                let _ = stop.run_until_cancelled(pause).await;
            }
            () = stop.cancelled() => {
                let _ = tokio::time::timeout(Duration::from_millis(500), client.quit()).await;
                running.abort();
            }
        }
    }
}

impl From<Error> for Unavailable {
    fn from(error: Error) -> Self {
        Unavailable(error.to_string())
    }
}
