//! Who is online anywhere: a hash of rows per user, a heartbeat per node, and claims of the dead.
//!
//! This node's rows are kept here too: what Redis lost or never got is written again by the next
//! heartbeat. A node's *life* is its heartbeat's name; one that was taken for dead goes on under a
//! new one, so that a claimer still at work can no longer touch its rows.
//!
//! Keys: `tandem:presence:{user}` rows by device; `tandem:nodes` all lives; and of each life
//! `tandem:life:{life}:alive`, `:users` (who has rows of it, written before the row), `:claimed`,
//! `:claimer`.

mod claims;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::prelude::*;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::clients::Clients;
use super::link::Link;
use super::scripts::{BEAT, PLACE, REMOVE};
use crate::backplane::inbound::InboundSender;
use crate::backplane::observed::Observed;
use crate::backplane::presence::{NodeLife, Online, Placed, Roster, Row};
use crate::backplane::{Timing, Unavailable};
use crate::model::{ConnectionId, DeviceId, UserId};

const NODES: &str = "tandem:nodes";
/// Rows written back together, so that a large node does not hold up Redis.
const RESTORE_CHUNK: usize = 128;

pub(super) struct Presence {
    node_id: String,
    client: Client,
    sharded: bool,
    link: Arc<Link>,
    inbound: InboundSender,
    observed: Arc<Observed>,
    timing: Timing,
    own: Mutex<Own>,
    /// Whether Redis knows this life, so that its rows would be found if it died.
    registered: watch::Sender<bool>,
}

struct Own {
    life: NodeLife,
    rows: HashMap<UserId, HashMap<DeviceId, Online>>,
    left: bool,
}

impl Presence {
    pub(super) fn new(
        node_id: &str,
        clients: &Clients,
        link: Arc<Link>,
        inbound: InboundSender,
        observed: Arc<Observed>,
        timing: Timing,
    ) -> Self {
        Self {
            node_id: node_id.into(),
            client: clients.commands.clone(),
            sharded: clients.sharded,
            link,
            inbound,
            observed,
            timing,
            own: Mutex::new(Own { life: new_life(node_id), rows: HashMap::new(), left: false }),
            registered: watch::Sender::new(false),
        }
    }

    pub(super) fn life(&self) -> NodeLife {
        self.own().life.clone()
    }

    pub(super) async fn wait_registered(&self) {
        // The sender lives as long as `self`.
        let _ = self.registered.subscribe().wait_for(|registered| *registered).await;
    }

    pub(super) async fn set(
        &self,
        user: UserId,
        device: DeviceId,
        online: Online,
    ) -> Result<Placed, Unavailable> {
        let life = {
            let mut own = self.own();
            own.rows.entry(user).or_default().insert(device, online);
            own.life.clone()
        };
        self.reachable()?;
        self.note_user(&life, user).await?;
        let placed = self.place(&life, user, device, online, "").await?;
        if let Placed::Fenced { .. } = placed {
            self.own().forget(user, device, online.connection);
        } else if !self.own().holds(user, device, online.connection) {
            // It went while it was being written: the removal came first.
            self.remove_row(user, device, online.connection).await?;
        }
        Ok(placed)
    }

    pub(super) async fn remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        self.own().forget(user, device, connection);
        self.reachable()?;
        let removed = self.remove_row(user, device, connection).await?;
        let (life, last) = {
            let own = self.own();
            (own.life.clone(), !own.rows.contains_key(&user))
        };
        if last {
            self.client.srem::<(), _, _>(users_key(&life), user.to_string()).await?;
            // Another device of the user may have come while that was on its way.
            if self.own().rows.contains_key(&user) {
                self.note_user(&life, user).await?;
            }
        }
        Ok(removed)
    }

    pub(super) async fn of(&self, user: UserId) -> Roster {
        if self.link.is_up()
            && let Ok(rows) = self.client.hgetall::<HashMap<String, String>, _>(rows_key(user)).await
        {
            let rows = rows.into_iter().filter_map(|(device, row)| read_row(&device, &row)).collect();
            return Roster { rows, complete: true };
        }
        let own = self.own();
        let rows = own.rows.get(&user).into_iter().flatten();
        Roster {
            rows: rows.map(|(device, online)| (*device, online.on(&own.life))).collect(),
            complete: false,
        }
    }

    pub(super) async fn is_alive(&self, life: &NodeLife) -> Result<bool, Unavailable> {
        self.reachable()?;
        Ok(self.client.exists::<u8, _>(alive_key(life)).await? == 1)
    }

    /// Heartbeats and claims until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let beating = self.beat_on();
        let claiming = claims::watch(&self);
        let both = async { tokio::join!(beating, claiming) };
        Box::pin(stop.run_until_cancelled(both)).await;
    }

    /// The rows that are left go, and the life ends in good order.
    pub(super) async fn leave(&self) {
        let (life, rows) = {
            let mut own = self.own();
            own.left = true;
            (own.life.clone(), std::mem::take(&mut own.rows))
        };
        self.registered.send_replace(false);
        if self.reachable_link().is_err() {
            return;
        }
        let rows =
            rows.into_iter().flat_map(|(user, devices)| devices.into_iter().map(move |row| (user, row)));
        let removals = rows.map(|(user, (device, online))| self.remove_row(user, device, online.connection));
        join_all(removals).await;
        let keys = vec![alive_key(&life), users_key(&life)];
        let _ = tokio::join!(self.client.srem::<(), _, _>(NODES, &*life), async {
            join_all(keys.into_iter().map(|key| self.client.del::<(), _>(key))).await
        },);
    }

    async fn beat_on(&self) {
        let mut ticks = interval(self.timing.heartbeat_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link = self.link.watch();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // Back from an outage: what changed meanwhile is written at once.
                _ = link.changed() => {}
            }
            if self.link.is_up()
                && let Err(error) = self.beat().await
            {
                tracing::debug!(%error, "heartbeat failed");
                self.reconnect_if_stuck().await;
            }
            if !self.link.is_up() {
                self.registered.send_replace(false);
            }
        }
    }

    /// The link is up and yet no answer: this connection alone may be dead, and fred, whose clock
    /// every new command starts again, would not notice before others take the node for dead.
    async fn reconnect_if_stuck(&self) {
        if self.link.is_up() && self.client.is_connected() {
            let forced = self.client.force_reconnection();
            let _ = tokio::time::timeout(Duration::from_millis(10), forced).await;
        }
    }

    async fn beat(&self) -> Result<(), Error> {
        let life = {
            let own = self.own();
            if own.left {
                return Ok(());
            }
            own.life.clone()
        };
        let ttl_ms = i64::try_from(self.timing.heartbeat_ttl.as_millis()).unwrap_or(i64::MAX);
        let keys = vec![alive_key(&life), claimed_key(&life)];
        let known = BEAT.call::<i64>(&self.client, keys, vec![Value::from(ttl_ms)]).await?;
        if known < 0 {
            tracing::warn!("taken for dead by another node; going on under a new name");
            self.own().life = new_life(&self.node_id);
            return Box::pin(self.beat_reborn()).await;
        }
        self.client.sadd::<(), _, _>(NODES, &*life).await?;
        let was_registered = self.registered.send_replace(true);
        if known == 0 || !was_registered {
            self.restore(&life).await?;
        }
        Ok(())
    }

    /// The first heartbeat of a new life; rows that others announced as gone are announced again.
    async fn beat_reborn(&self) -> Result<(), Error> {
        self.registered.send_replace(true);
        let life = self.life();
        let ttl_ms = i64::try_from(self.timing.heartbeat_ttl.as_millis()).unwrap_or(i64::MAX);
        let keys = vec![alive_key(&life), claimed_key(&life)];
        BEAT.call::<i64>(&self.client, keys, vec![Value::from(ttl_ms)]).await?;
        self.client.sadd::<(), _, _>(NODES, &*life).await?;
        let back = self.restore(&life).await?;
        if !back.is_empty() {
            self.inbound.reinstated(back);
        }
        Ok(())
    }

    /// Writes all of this node's rows; those that did not stand.
    async fn restore(&self, life: &NodeLife) -> Result<Vec<(UserId, DeviceId, Row)>, Error> {
        let rows: Vec<(UserId, DeviceId, Online)> = {
            let own = self.own();
            let rows =
                own.rows.iter().flat_map(|(user, devices)| devices.iter().map(|(d, o)| (*user, *d, *o)));
            rows.collect()
        };
        let mut written = Vec::new();
        for chunk in rows.chunks(RESTORE_CHUNK) {
            let users: Vec<String> = chunk.iter().map(|(user, _, _)| user.to_string()).collect();
            self.client.sadd::<(), _, _>(users_key(life), users).await?;
            let placed = chunk
                .iter()
                .map(|(user, device, online)| self.place(life, *user, *device, *online, "restore"));
            for ((user, device, online), placed) in chunk.iter().zip(join_all(placed).await) {
                match placed? {
                    Placed::Stands { replaced: None } => written.push((*user, *device, online.on(life))),
                    Placed::Stands { replaced: Some(row) } if row.connection != online.connection => {
                        self.inbound.overtaken(*user, *device, row.connection);
                    }
                    Placed::Stands { replaced: Some(_) } => {}
                    Placed::Fenced { .. } => {
                        self.own().forget(*user, *device, online.connection);
                        self.inbound.overtaken(*user, *device, online.connection);
                    }
                }
                // It may have gone while it was being written.
                if !self.own().holds(*user, *device, online.connection) {
                    self.remove_row(*user, *device, online.connection).await?;
                }
            }
        }
        Ok(written)
    }

    /// `replaced` also names a row of the same connection here; `set` leaves that out.
    async fn place(
        &self,
        life: &NodeLife,
        user: UserId,
        device: DeviceId,
        online: Online,
        mode: &str,
    ) -> Result<Placed, Error> {
        let row = serde_json::to_string(&online.on(life)).expect("a plain struct of strings and numbers");
        let args: Vec<Value> = vec![
            device.to_string().into(),
            row.into(),
            online.connection.to_string().into(),
            online.fence.to_string().into(),
            mode.into(),
        ];
        let (stands, other) = PLACE.call::<(i64, String)>(&self.client, vec![rows_key(user)], args).await?;
        let other = serde_json::from_str::<Row>(&other).ok();
        Ok(match (stands, other) {
            (0, Some(by)) => Placed::Fenced { by },
            (_, Some(row)) if mode.is_empty() && row.connection == online.connection => {
                Placed::Stands { replaced: None }
            }
            (_, other) => Placed::Stands { replaced: other },
        })
    }

    async fn remove_row(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Error> {
        let args: Vec<Value> = vec![device.to_string().into(), connection.to_string().into()];
        Ok(REMOVE.call::<i64>(&self.client, vec![rows_key(user)], args).await? == 1)
    }

    async fn note_user(&self, life: &NodeLife, user: UserId) -> Result<(), Error> {
        self.client.sadd(users_key(life), user.to_string()).await
    }

    /// Rows are only written under a life whose death would be noticed.
    fn reachable(&self) -> Result<(), Unavailable> {
        if *self.registered.borrow() {
            self.reachable_link()
        } else {
            Err(Unavailable("not a member yet".into()))
        }
    }

    fn reachable_link(&self) -> Result<(), Unavailable> {
        if self.link.is_up() { Ok(()) } else { Err(Unavailable("the link is down".into())) }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    fn holds(&self, user: UserId, device: DeviceId, connection: ConnectionId) -> bool {
        let online = self.rows.get(&user).and_then(|devices| devices.get(&device));
        online.is_some_and(|online| online.connection == connection)
    }

    fn forget(&mut self, user: UserId, device: DeviceId, connection: ConnectionId) {
        if !self.holds(user, device, connection) {
            return;
        }
        if let Some(devices) = self.rows.get_mut(&user) {
            devices.remove(&device);
            if devices.is_empty() {
                self.rows.remove(&user);
            }
        }
    }
}

fn new_life(node_id: &str) -> NodeLife {
    format!("{node_id}.{}", Uuid::now_v7()).into()
}

fn read_row(device: &str, row: &str) -> Option<(DeviceId, Row)> {
    Some((DeviceId::parse(device)?, serde_json::from_str(row).ok()?))
}

fn rows_key(user: UserId) -> String {
    format!("tandem:presence:{{{user}}}")
}

fn alive_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:alive")
}

fn users_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:users")
}

fn claimed_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:claimed")
}

fn claimer_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:claimer")
}
