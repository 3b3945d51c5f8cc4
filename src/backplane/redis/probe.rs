//! The heartbeat through Redis: what a node publishes to itself it must hear.
//!
//! A connection that hangs, or a link half open, shows in no other way: an idle subscriber waits
//! for ever. The probe takes the same way as every publish, so its round trip is the backplane's.

use std::sync::Arc;

use fred::prelude::*;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use super::link::Link;
use super::subscriptions::Subscriptions;
use crate::backplane::Timing;

pub(super) struct Probe {
    pub clients: Clients,
    pub subscriptions: Arc<Subscriptions>,
    pub link: Arc<Link>,
    pub channel: String,
    pub timing: Timing,
}

impl Probe {
    pub(super) async fn run(self, stop: CancellationToken) {
        let probing = async { tokio::join!(self.probe_on(), self.ping_shards()) };
        stop.run_until_cancelled(probing).await;
    }

    async fn probe_on(&self) {
        let every = self.timing.probe_every;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A link that is down gets this long to come back by itself, and after each push.
        let mut push_at = every;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.link.probe_now.notified() => {}
            }
            self.link.check_silence();
            match self.link.down_for() {
                None => push_at = every,
                Some(down) if down >= push_at => {
                    push_at = down + 4 * every;
                    self.reconnect().await;
                }
                Some(_) => {}
            }
            let stamp = self.link.probe_stamp().to_string();
            // A failure needs no handling: a probe that is not heard says it all.
            let _ = timeout(every, self.clients.publish(self.channel.clone(), stamp.into())).await;
        }
    }

    /// Connections that look alive to fred and are not are dropped; nothing on them counts any more.
    async fn reconnect(&self) {
        if self.clients.subscriber.is_connected() {
            self.link.unsubscribed();
        }
        self.clients.reconnect_stuck().await;
        if self.clients.sharded {
            // fred keeps those of a cluster that look well, and then tells of no new connection.
            self.subscriptions.subscribe_all_again();
        }
    }

    /// The probe crosses one shard of a cluster only. fred drops a connection whose last question
    /// is unanswered for too long, but asks none by itself, and every further question would start
    /// its clock anew: so one at a time, further apart than fred's patience (`clients`).
    async fn ping_shards(&self) {
        if !self.clients.sharded {
            return;
        }
        let mut ticks = interval(self.timing.probe_every * 2);
        loop {
            ticks.tick().await;
            let subscriber = &self.clients.subscriber;
            let pings = subscriber.active_connections().into_iter().map(|server| async {
                let _ = subscriber.with_cluster_node(server).ping::<()>(None).await;
            });
            let _ = timeout(self.timing.probe_every, join_all(pings)).await;
        }
    }
}
