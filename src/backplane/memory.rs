//! The backplane inside one process: nothing for a lone node, several nodes for tests.
//!
//! The same promises as through Redis, from one table under one lock that is held for a few lines.
//! `crash` stands for a node that dies without leaving.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::bucket::LocalBuckets;
use super::envelope::{Envelope, Kind, PresenceChange, PresenceEvent};
use super::inbound::{self, InboundLimits, InboundSender};
use super::observed::{Observed, count};
use super::presence::{NodeLife, Online, Placed, Roster, Row};
use super::{Backplane, Joined, Rate, Settings, Stamp, Taken, Timing, Unavailable};
use crate::model::{Clock, ConnectionId, DeviceId, UserId};

/// Connects the nodes that join it. Clones are the same bus.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Bus>);

#[derive(Default)]
struct Bus {
    /// Read without the lock, so that a lone node's publish costs one load.
    nodes: AtomicUsize,
    table: Mutex<Table>,
    buckets: LocalBuckets,
}

#[derive(Default)]
struct Table {
    nodes: HashMap<NodeLife, Member>,
    online: HashMap<UserId, HashMap<DeviceId, Row>>,
}

struct Member {
    inbound: InboundSender,
    users: HashSet<UserId>,
}

struct MemoryNode {
    life: NodeLife,
    bus: Arc<Bus>,
    observed: Arc<Observed>,
}

impl MemoryBus {
    /// One more node, with a made-up name.
    pub fn join(&self) -> Joined {
        self.join_as(Settings {
            node_id: "node".into(),
            timing: Timing::default(),
            limits: InboundLimits::default(),
            observed: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    pub fn join_as(&self, settings: Settings) -> Joined {
        let life: NodeLife = format!("{}.{}", settings.node_id, Uuid::now_v7()).into();
        let (inbound, receiver) = inbound::queue(settings.limits, settings.observed.clone());
        inbound.link(true);
        let mut table = self.0.table();
        table.nodes.insert(life.clone(), Member { inbound, users: HashSet::new() });
        self.0.nodes.store(table.nodes.len(), Ordering::Release);
        drop(table);
        let node = MemoryNode { life, bus: self.0.clone(), observed: settings.observed };
        Joined { backplane: Arc::new(node), inbound: receiver }
    }

    /// The node is gone without a word: another removes its rows and announces them, once.
    pub fn crash(&self, node: &NodeLife) {
        let mut table = self.0.table();
        self.0.forget(&mut table, node);
        for (user, device, row) in table.remove_rows_of(node) {
            table.deliver(user, &lost(device, &row), None);
        }
    }
}

impl Bus {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, table: &mut Table, node: &NodeLife) {
        table.nodes.remove(node);
        self.nodes.store(table.nodes.len(), Ordering::Release);
    }
}

impl Table {
    /// How many nodes other than `from` took it.
    fn deliver(&self, user: UserId, envelope: &Envelope, from: Option<&NodeLife>) -> usize {
        let others =
            self.nodes.iter().filter(|(life, member)| Some(*life) != from && member.users.contains(&user));
        others.map(|(_, member)| member.inbound.offer(user, envelope.clone())).count()
    }

    fn remove_rows_of(&mut self, node: &NodeLife) -> Vec<(UserId, DeviceId, Row)> {
        let mut removed = Vec::new();
        self.online.retain(|user, devices| {
            devices.retain(|device, row| {
                let keep = row.node != *node;
                if !keep {
                    removed.push((*user, *device, row.clone()));
                }
                keep
            });
            !devices.is_empty()
        });
        removed
    }
}

/// What a claimer says about a device of a dead node.
fn lost(device: DeviceId, row: &Row) -> Envelope {
    let event = PresenceEvent {
        event: PresenceChange::Disconnected,
        device,
        connection: Some(row.connection),
        at_ms: Clock::now().0,
        reason: Some(super::presence::NODE_LOST.into()),
    };
    Envelope::new(Kind::Presence(event), None)
}

#[async_trait]
impl Backplane for MemoryNode {
    fn node(&self) -> NodeLife {
        self.life.clone()
    }

    async fn subscribe(&self, user: UserId) -> Result<(), Unavailable> {
        if let Some(member) = self.bus.table().nodes.get_mut(&self.life) {
            member.users.insert(user);
        }
        Ok(())
    }

    fn unsubscribe(&self, user: UserId) {
        if let Some(member) = self.bus.table().nodes.get_mut(&self.life) {
            member.users.remove(&user);
        }
    }

    fn publish(&self, user: UserId, envelope: &Envelope) {
        if self.bus.nodes.load(Ordering::Acquire) <= 1 {
            return;
        }
        self.bus.table().deliver(user, envelope, Some(&self.life));
        count(&self.observed.published);
    }

    fn is_up(&self) -> bool {
        true
    }

    async fn presence_set(
        &self,
        user: UserId,
        device: DeviceId,
        online: Online,
    ) -> Result<Placed, Unavailable> {
        let row = online.on(&self.life);
        let mut table = self.bus.table();
        let devices = table.online.entry(user).or_default();
        if let Some(there) = devices.get(&device)
            && there.outranks(&row, false)
        {
            return Ok(Placed::Fenced { by: there.clone() });
        }
        let before = devices.insert(device, row);
        Ok(Placed::Stands { replaced: before.filter(|row| row.connection != online.connection) })
    }

    async fn presence_remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        let mut table = self.bus.table();
        let Some(devices) = table.online.get_mut(&user) else { return Ok(false) };
        let ours = devices.get(&device).is_some_and(|row| row.connection == connection);
        if ours {
            devices.remove(&device);
        }
        if devices.is_empty() {
            table.online.remove(&user);
        }
        Ok(ours)
    }

    async fn presence_of(&self, user: UserId) -> Roster {
        let table = self.bus.table();
        let rows = table.online.get(&user).into_iter().flatten();
        Roster { rows: rows.map(|(device, row)| (*device, row.clone())).collect(), complete: true }
    }

    async fn is_alive(&self, node: &NodeLife) -> Result<bool, Unavailable> {
        Ok(self.bus.table().nodes.contains_key(node))
    }

    /// Nothing is kept: the store is in this process too.
    async fn snapshot_get(&self, _user: UserId, _stamp: &Stamp) -> Option<Bytes> {
        None
    }

    fn snapshot_put(&self, _user: UserId, _stamp: &Stamp, _snapshot: Bytes) {}

    async fn take_token(&self, bucket: &str, rate: Rate) -> Taken {
        self.bus.buckets.take(bucket, rate)
    }

    async fn leave(&self) {
        let mut table = self.bus.table();
        self.bus.forget(&mut table, &self.life);
        table.remove_rows_of(&self.life);
    }
}
