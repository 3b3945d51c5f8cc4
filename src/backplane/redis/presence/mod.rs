//! Who is online anywhere: a hash of rows per user, a heartbeat per node, and claims of the dead.
//!
//! This node's rows are kept here too: what Redis lost or never got is written again by the next
//! heartbeat. A node's *life* is its heartbeat's name; one that was taken for dead goes on under a
//! new one, so that a claimer still at work can no longer touch its rows.
//! How all of it stands in Redis is `table`'s affair.

mod claims;
pub(super) mod table;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::link::Link;
use crate::backplane::inbound::InboundSender;
use crate::backplane::observed::Observed;
use crate::backplane::presence::{NodeLife, Online, Placed, Roster, Row};
use crate::backplane::{Timing, Unavailable};
use crate::model::{ConnectionId, DeviceId, UserId};
use table::{Beat, Placing, Stood, Table};

/// Rows written back together, so that a large node does not hold up Redis.
const RESTORE_CHUNK: usize = 128;

/// Users of whom rows are remembered that could not be removed. Beyond that this
/// life leaves them to others, as if it had died.
const UNREMOVED_USERS_MAX: usize = 16_384;

pub(super) struct Presence {
    node_id: String,
    table: Arc<dyn Table>,
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
    rows: BTreeMap<UserId, BTreeMap<DeviceId, Online>>,
    /// Redis may lack some of them.
    unwritten: bool,
    /// Rows that may stand and are not ours any more: their removal failed. The hub
    /// tries again, and tells the others then.
    unremoved: HashMap<UserId, HashSet<(DeviceId, ConnectionId)>>,
    /// There may be more of them than are remembered.
    unremoved_more: bool,
    /// Others announced them as gone.
    buried: bool,
    /// Rows that stand again since then, and are to be announced.
    back: Vec<(UserId, DeviceId, Row)>,
    left: bool,
}

impl Own {
    fn new(node_id: &str) -> Self {
        Self {
            life: new_life(node_id),
            rows: BTreeMap::new(),
            unwritten: false,
            unremoved: HashMap::new(),
            unremoved_more: false,
            buried: false,
            back: Vec::new(),
            left: false,
        }
    }
}

impl Presence {
    pub(super) fn new(
        node_id: &str,
        table: Arc<dyn Table>,
        link: Arc<Link>,
        inbound: InboundSender,
        observed: Arc<Observed>,
        timing: Timing,
    ) -> Self {
        Self {
            node_id: node_id.into(),
            table,
            link,
            inbound,
            observed,
            timing,
            own: Mutex::new(Own::new(node_id)),
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
            own.rows.entry(user).or_default().insert(device, online.clone());
            own.life.clone()
        };
        // Whatever fails from here on is made up for by the next heartbeat.
        let written = self.write(&life, user, device, &online).await;
        let placed = written.inspect_err(|_| self.own().unwritten = true)?;
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
        let removed = self.remove_row(user, device, connection).await?;
        let (life, last) = {
            let own = self.own();
            (own.life.clone(), !own.may_have_rows_of(user))
        };
        if last {
            self.table.drop_users(&life, &[user]).await?;
            // Another device of the user may have come while that was on its way.
            if self.own().rows.contains_key(&user) {
                self.table.note_users(&life, &[user]).await?;
            }
        }
        Ok(removed)
    }

    async fn remove_row(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        let removed = match self.reachable() {
            Ok(()) => self.table.remove(user, device, connection).await,
            Err(error) => Err(error),
        };
        self.own().note_removal(user, device, connection, removed.is_ok());
        removed
    }

    pub(super) async fn of(&self, user: UserId) -> Roster {
        if self.link.is_up()
            && let Ok(rows) = self.table.rows(user).await
        {
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
        self.table.is_alive(life).await
    }

    /// Heartbeats and claims until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let beating = self.beat_on();
        let claiming = claims::watch(&self);
        let both = async { tokio::join!(beating, claiming) };
        Box::pin(stop.run_until_cancelled(both)).await;
    }

    /// The rows that are left go, and the life ends in good order. Where one may
    /// stand all the same, others will find it, as if this node had died.
    pub(super) async fn leave(&self) {
        let (life, rows, unremoved, unremoved_more) = {
            let mut own = self.own();
            own.left = true;
            let (rows, unremoved) = (std::mem::take(&mut own.rows), std::mem::take(&mut own.unremoved));
            (own.life.clone(), rows, unremoved, own.unremoved_more)
        };
        self.registered.send_replace(false);
        if self.reachable_link().is_err() {
            return;
        }
        let rows = rows.into_iter().flat_map(|(user, devices)| {
            devices.into_iter().map(move |(device, online)| (user, device, online.connection))
        });
        let unremoved = unremoved.into_iter().flat_map(|(user, rows)| {
            rows.into_iter().map(move |(device, connection)| (user, device, connection))
        });
        let removals = rows
            .chain(unremoved)
            .map(|(user, device, connection)| self.table.remove(user, device, connection));
        if join_all(removals).await.iter().any(Result::is_err) || unremoved_more {
            return;
        }
        let _ = tokio::join!(self.table.unlist(&life), self.table.forget(&life));
    }

    async fn beat_on(&self) {
        let mut ticks = interval(self.timing.heartbeat_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link = self.link.watch();
        loop {
            // In this order, so that what follows from what happened is always the same.
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                // Back from an outage: what changed meanwhile is written at once.
                _ = link.changed() => {}
            }
            if self.link.is_up()
                && let Err(error) = self.beat().await
            {
                tracing::debug!(%error, "heartbeat failed");
                if self.link.is_up() {
                    self.table.reconnect_if_stuck().await;
                }
            }
            if !self.link.is_up() {
                self.registered.send_replace(false);
            }
        }
    }

    async fn beat(&self) -> Result<(), Unavailable> {
        let mut life = {
            let own = self.own();
            if own.left {
                return Ok(());
            }
            own.life.clone()
        };
        let ttl = self.timing.heartbeat_ttl;
        let mut found = self.table.beat(&life, ttl).await?;
        if found == Beat::Claimed {
            tracing::warn!("taken for dead by another node; going on under a new name");
            life = new_life(&self.node_id);
            {
                let mut own = self.own();
                own.life = life.clone();
                own.buried = true;
            }
            found = self.table.beat(&life, ttl).await?;
        }
        self.table.list(&life).await?;
        let was_registered = self.registered.send_replace(true);
        let is_due = std::mem::take(&mut self.own().unwritten);
        if is_due || found != Beat::Known || !was_registered {
            self.restore(&life).await.inspect_err(|_| self.own().unwritten = true)?;
            let (was_buried, back) = {
                let mut own = self.own();
                (std::mem::take(&mut own.buried), std::mem::take(&mut own.back))
            };
            // Rows that others announced as gone are announced again.
            if was_buried && !back.is_empty() {
                self.inbound.reinstated(back);
            }
        }
        Ok(())
    }

    /// Writes all of this node's rows, and notes those that did not stand, also
    /// where it fails midway: the next time they do.
    async fn restore(&self, life: &NodeLife) -> Result<(), Unavailable> {
        let rows: Vec<(UserId, DeviceId, Online)> = {
            let own = self.own();
            let rows = own
                .rows
                .iter()
                .flat_map(|(user, devices)| devices.iter().map(|(d, o)| (*user, *d, o.clone())));
            rows.collect()
        };
        for chunk in rows.chunks(RESTORE_CHUNK) {
            let users: Vec<UserId> = chunk.iter().map(|(user, _, _)| *user).collect();
            self.table.note_users(life, &users).await?;
            let placed = chunk.iter().map(|(user, device, online)| {
                let row = online.on(life);
                self.place(Placing { user: *user, device: *device, row, restores: true })
            });
            let mut outcome = Ok(());
            for ((user, device, online), stood) in chunk.iter().zip(join_all(placed).await) {
                let stood = match stood {
                    Ok(stood) => stood,
                    Err(error) => {
                        outcome = Err(error);
                        continue;
                    }
                };
                match stood {
                    Stood::Placed(None) => self.own().note_back(*user, *device, online.on(life)),
                    Stood::Placed(Some(row)) if row.connection != online.connection => {
                        self.inbound.overtaken(*user, *device, row.connection);
                    }
                    Stood::Placed(Some(_)) => {}
                    Stood::Refused(_) => {
                        self.own().forget(*user, *device, online.connection);
                        self.inbound.overtaken(*user, *device, online.connection);
                    }
                }
                // It may have gone while it was being written.
                if !self.own().holds(*user, *device, online.connection) {
                    let removed = self.remove_row(*user, *device, online.connection).await;
                    outcome = outcome.and(removed.map(drop));
                }
            }
            outcome?;
        }
        Ok(())
    }

    async fn write(
        &self,
        life: &NodeLife,
        user: UserId,
        device: DeviceId,
        online: &Online,
    ) -> Result<Placed, Unavailable> {
        self.reachable()?;
        self.table.note_users(life, &[user]).await?;
        let placing = Placing { user, device, row: online.on(life), restores: false };
        Ok(match self.place(placing).await? {
            Stood::Refused(by) => Placed::Fenced { by },
            Stood::Placed(before) => {
                Placed::Stands { replaced: before.filter(|row| row.connection != online.connection) }
            }
        })
    }

    /// Places a row, also over one that outranks it if the node of that one is dead:
    /// its row only waits to be removed. Should that node be asleep, it finds out as
    /// it wakes; so its device is not told as one that was replaced.
    async fn place(&self, placing: Placing) -> Result<Stood, Unavailable> {
        let stood = self.table.place(placing.clone()).await?;
        let Stood::Refused(by) = &stood else { return Ok(stood) };
        // After an outage everyone's heartbeat is old: each gets the time to beat again.
        let is_settled = self.link.up_for().is_some_and(|up| up >= self.timing.heartbeat_ttl);
        if !is_settled || by.node == placing.row.node || self.table.is_alive(&by.node).await? {
            return Ok(stood);
        }
        self.table.remove(placing.user, placing.device, by.connection).await?;
        self.table.place(placing).await
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

    /// Whether a row of the user's may stand that this life wrote.
    fn may_have_rows_of(&self, user: UserId) -> bool {
        self.rows.contains_key(&user) || self.unremoved.contains_key(&user) || self.unremoved_more
    }

    fn note_back(&mut self, user: UserId, device: DeviceId, row: Row) {
        if self.buried {
            self.back.push((user, device, row));
        }
    }

    fn note_removal(&mut self, user: UserId, device: DeviceId, connection: ConnectionId, is_done: bool) {
        if !is_done {
            let has_room = self.unremoved.len() < UNREMOVED_USERS_MAX;
            self.unremoved_more |= !has_room;
            if has_room || self.unremoved.contains_key(&user) {
                self.unremoved.entry(user).or_default().insert((device, connection));
            }
        } else if let Some(rows) = self.unremoved.get_mut(&user) {
            rows.remove(&(device, connection));
            if rows.is_empty() {
                self.unremoved.remove(&user);
            }
        }
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
