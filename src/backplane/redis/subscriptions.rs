//! Which users this node listens to: our own table, and the tasks that make Redis agree with it.
//!
//! fred answers a SUBSCRIBE before the server has, and its own resubscription loses channels, so
//! neither is used. Wishes are written into the table; one task sends them in chunks, and takes them
//! as done only when a ping behind them was answered on the same connection. After every new
//! connection all of it is sent again, and those users may have missed something.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::prelude::*;
use fred::types::config::Server;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::channel_of;
use super::clients::Clients;
use super::link::Link;
use crate::backplane::inbound::InboundSender;
use crate::backplane::observed::{Observed, count, count_many};
use crate::backplane::{Timing, Unavailable};
use crate::model::UserId;

/// Channels a command: large enough for a storm, small enough not to hold up Redis.
const CHUNK: usize = 256;
/// After a failure that left the connection standing.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What is wanted and what stands, by user.
#[derive(Default)]
pub(super) struct Subscriptions {
    table: Mutex<Table>,
    pub(super) changed: Notify,
    /// Everything is to be sent again although the connections stand (a cluster changed its shape).
    again: Notify,
}

#[derive(Default)]
struct Table {
    users: HashMap<UserId, Entry>,
    /// Users whose entry and Redis may differ, each once.
    differing: VecDeque<UserId>,
}

#[derive(Default)]
struct Entry {
    wanted: bool,
    at_redis: AtRedis,
    queued: bool,
    /// It was wanted while it did not stand: the user may have missed something.
    missed: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum AtRedis {
    #[default]
    No,
    /// Sent, not confirmed.
    Perhaps,
    Yes,
}

/// One round of making Redis agree.
#[derive(Default)]
pub(super) struct Round {
    pub subscribe: Vec<UserId>,
    pub unsubscribe: Vec<UserId>,
}

impl Subscriptions {
    pub(super) async fn want(&self, user: UserId, within: Duration) -> Result<(), Unavailable> {
        let Some(confirmed) = self.wish(user) else { return Ok(()) };
        if let Ok(Ok(())) = tokio::time::timeout(within, confirmed).await {
            return Ok(());
        }
        let mut table = self.table();
        match table.users.get_mut(&user) {
            Some(entry) if entry.at_redis == AtRedis::Yes => Ok(()),
            Some(entry) => {
                entry.missed = true;
                Err(Unavailable("subscription not confirmed".into()))
            }
            None => Err(Unavailable("unsubscribed meanwhile".into())),
        }
    }

    /// What tells of its confirmation, or nothing if it stands already.
    fn wish(&self, user: UserId) -> Option<oneshot::Receiver<()>> {
        let mut table = self.table();
        let entry = table.users.entry(user).or_default();
        entry.wanted = true;
        if entry.at_redis == AtRedis::Yes && !entry.queued {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        entry.waiting.push(tx);
        table.differ(user);
        drop(table);
        self.changed.notify_one();
        Some(rx)
    }

    pub(super) fn unwant(&self, user: UserId) {
        let mut table = self.table();
        let Some(entry) = table.users.get_mut(&user) else { return };
        entry.wanted = false;
        entry.missed = false;
        entry.waiting.clear();
        table.differ(user);
        drop(table);
        self.changed.notify_one();
    }

    pub(super) fn subscribe_all_again(&self) {
        self.again.notify_one();
    }

    /// Nothing stands any more. How many are to be subscribed again.
    pub(super) fn forget_standing(&self) -> usize {
        let mut table = self.table();
        table.users.retain(|_, entry| entry.wanted);
        table.differing.clear();
        let Table { users, differing } = &mut *table;
        for (user, entry) in users.iter_mut() {
            entry.at_redis = AtRedis::No;
            entry.missed = true;
            entry.queued = true;
            differing.push_back(*user);
        }
        table.differing.len()
    }

    pub(super) fn next_round(&self) -> Option<Round> {
        let mut table = self.table();
        let mut round = Round::default();
        while round.subscribe.len() + round.unsubscribe.len() < CHUNK {
            let Some(user) = table.differing.pop_front() else { break };
            let Some(entry) = table.users.get_mut(&user) else { continue };
            entry.queued = false;
            match (entry.wanted, entry.at_redis) {
                (true, AtRedis::Yes) => entry.confirm(),
                (true, _) => {
                    entry.at_redis = AtRedis::Perhaps;
                    round.subscribe.push(user);
                }
                (false, AtRedis::No) => drop(table.users.remove(&user)),
                (false, _) => {
                    table.users.remove(&user);
                    round.unsubscribe.push(user);
                }
            }
        }
        (!round.subscribe.is_empty() || !round.unsubscribe.is_empty()).then_some(round)
    }

    /// Those of them who may have missed something before.
    pub(super) fn confirm(&self, users: &[UserId]) -> Vec<UserId> {
        let mut table = self.table();
        let mut missed = Vec::new();
        for user in users {
            let Some(entry) = table.users.get_mut(user) else { continue };
            entry.at_redis = AtRedis::Yes;
            if std::mem::take(&mut entry.missed) {
                missed.push(*user);
            }
            entry.confirm();
        }
        missed
    }

    pub(super) fn put_back(&self, users: &[UserId]) {
        let mut table = self.table();
        for user in users {
            table.differ(*user);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn differ(&mut self, user: UserId) {
        if let Some(entry) = self.users.get_mut(&user)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.differing.push_back(user);
        }
    }
}

impl Entry {
    fn confirm(&mut self) {
        for waiting in self.waiting.drain(..) {
            // One that stopped waiting was told that it failed.
            let _ = waiting.send(());
        }
    }
}

/// The task that makes Redis agree with the table.
pub(super) struct Settling {
    pub subscriptions: Arc<Subscriptions>,
    pub clients: Clients,
    pub link: Arc<Link>,
    pub observed: Arc<Observed>,
    pub probe_channel: String,
    pub timing: Timing,
}

impl Settling {
    pub(super) fn run(self, inbound: InboundSender, stop: CancellationToken) -> impl Future<Output = ()> {
        let connects = self.clients.subscriber.reconnect_rx();
        let errors = self.clients.subscriber.error_rx();
        async move {
            Box::pin(stop.run_until_cancelled(self.settle(inbound, connects, errors)))
                .await
                .unwrap_or_default()
        }
    }

    async fn settle(
        self,
        inbound: InboundSender,
        mut connects: broadcast::Receiver<Server>,
        mut errors: broadcast::Receiver<(Error, Option<Server>)>,
    ) {
        let mut all_again = false;
        let mut retry = false;
        loop {
            let pause = tokio::time::sleep(RETRY_AFTER);
            tokio::select! {
                biased;
                connected = connects.recv() => all_again |= !matches!(connected, Err(RecvError::Closed)),
                error = errors.recv() => self.lost(error),
                () = self.subscriptions.again.notified() => all_again = true,
                () = self.subscriptions.changed.notified(), if !retry => {}
                () = pause, if retry => {}
            }
            while connects.try_recv().is_ok() {
                all_again = true;
            }
            if !self.clients.subscriber.is_connected() {
                // The next connection brings us back here, with everything to send again.
                retry = true;
                continue;
            }
            let settled = self.settle_all(&inbound, all_again, &connects).await;
            all_again &= !settled;
            retry = !settled;
        }
    }

    fn lost(&self, error: Result<(Error, Option<Server>), RecvError>) {
        // Without a server it is an attempt to connect that failed.
        if let Ok((error, Some(_))) = error {
            tracing::info!(%error, "subscriber connection lost");
            self.link.unsubscribed();
        }
    }

    /// False if it has to be tried again.
    async fn settle_all(
        &self,
        inbound: &InboundSender,
        again: bool,
        connects: &broadcast::Receiver<Server>,
    ) -> bool {
        if again {
            self.link.unsubscribed();
            count(&self.observed.connects);
            count_many(&self.observed.resubscribed, self.subscriptions.forget_standing());
            if !self.subscribe(std::slice::from_ref(&self.probe_channel), connects).await {
                return false;
            }
        }
        while let Some(round) = self.subscriptions.next_round() {
            if !self.settle_round(&round, connects).await {
                self.subscriptions.put_back(&round.subscribe);
                return false;
            }
            inbound.missed(self.subscriptions.confirm(&round.subscribe));
        }
        if again {
            self.link.subscribed();
        }
        true
    }

    async fn settle_round(&self, round: &Round, connects: &broadcast::Receiver<Server>) -> bool {
        let leaving: Vec<String> = round.unsubscribe.iter().copied().map(channel_of).collect();
        let left = self.within(self.unsubscribe(leaving)).await;
        let coming: Vec<String> = round.subscribe.iter().copied().map(channel_of).collect();
        left.is_ok() && (coming.is_empty() || self.subscribe(&coming, connects).await)
    }

    /// Not confirmed: a message that still comes is for a user whom the hub no longer knows.
    async fn unsubscribe(&self, channels: Vec<String>) -> Result<(), Error> {
        let subscriber = &self.clients.subscriber;
        if self.clients.sharded {
            let mut left = Ok(());
            for channel in channels {
                left = left.and(subscriber.sunsubscribe(channel).await);
            }
            left
        } else if channels.is_empty() {
            Ok(())
        } else {
            subscriber.unsubscribe(channels).await
        }
    }

    /// True once the server has confirmed them all on the connection that stands.
    async fn subscribe(&self, channels: &[String], connects: &broadcast::Receiver<Server>) -> bool {
        let subscribed = if self.clients.sharded {
            self.within(self.subscribe_sharded(channels)).await
        } else {
            self.within(self.subscribe_plain(channels)).await
        };
        if let Err(error) = &subscribed {
            tracing::info!(%error, "subscribing failed");
        }
        // A connection made meanwhile has none of it, whatever was answered.
        subscribed.is_ok() && connects.is_empty()
    }

    async fn subscribe_plain(&self, channels: &[String]) -> Result<(), Error> {
        let subscriber = &self.clients.subscriber;
        subscriber.subscribe(channels.to_vec()).await?;
        let token = Uuid::new_v4().to_string();
        let echo: String = subscriber.ping(Some(token.clone())).await?;
        if echo == token {
            return Ok(());
        }
        // A reply that belongs to another command: a refused SUBSCRIBE answers with an error that
        // fred pairs with whatever waits. Only a new connection is in step again.
        self.end_connections().await;
        Err(Error::new(ErrorKind::Protocol, "answers out of step"))
    }

    /// One channel a command, each answered by its own confirmation: fred pairs one reply with one
    /// command, and channels live on several shards.
    async fn subscribe_sharded(&self, channels: &[String]) -> Result<(), Error> {
        let subscriber = &self.clients.subscriber;
        let all = channels.iter().map(|channel| subscriber.ssubscribe(channel.as_str()));
        futures_util::future::try_join_all(all).await.map(drop)
    }

    /// The client has no timeouts of its own, for the sake of what it publishes.
    async fn within(&self, answered: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let answered = tokio::time::timeout(self.timing.command_within, answered);
        answered.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "not confirmed")))
    }

    async fn end_connections(&self) {
        let _ =
            tokio::time::timeout(self.timing.command_within, self.clients.subscriber.force_reconnection())
                .await;
    }
}
