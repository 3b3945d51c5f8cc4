//! Who is connected to this node, and what reaches them in which order.
//!
//! One [`Room`] a user. A room delivers its user's changes in seq order, each
//! once, whoever committed them: the next one at once, an old one not at all; a
//! hole waits [`HOLE_WAIT`] and is then read from the store. The hub knows
//! devices as [`Recipient`]s and nothing of sockets.

mod ask;
mod cluster;
mod farewell;
mod kick;
mod mail;
mod presence;
mod recipient;
mod room;
mod untold;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backplane::Backplane;
use crate::drain::Tasks;
use crate::model::{Change, ConnectionId, DeviceId, Epoch, Seq, Timestamp, UserId};
use crate::store::Store;
use crate::store::writer::{Committed, CommittedChange};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;
use crate::wire::{self, Frame};

pub use ask::ask_regularly;
pub use cluster::listen;
pub use mail::{Mail, Outgoing};
pub use presence::Arrival;
use presence::Everywhere;
pub use recipient::{Class, Ending, Gone, Item, PROBE_WAIT, Recipient};
pub use room::Member;
use room::{Accepted, Presence, Room};
use untold::Untold;

/// How long a change may wait for one that precedes it.
const HOLE_WAIT: Duration = Duration::from_millis(50);

/// Wait before a catch-up that the store could not answer is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(250);

/// A connection that ended.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Departure {
    pub user: UserId,
    pub device: DeviceId,
    pub connection: ConnectionId,
    pub gone: Gone,
    pub at: Timestamp,
}

/// What a joining device meets.
pub struct Joined {
    /// The others never heard that it was gone: it comes back within its grace
    /// or replaces its own older connection.
    pub still_known: bool,
}

/// Why a device could not join.
#[derive(Debug, PartialEq, Eq)]
pub enum NotJoined {
    /// The user already has as many sockets as allowed.
    TooManySockets,
    /// A newer connection of the device was faster.
    Overtaken,
}

/// Somebody is connecting: the user's room stays.
pub struct Visit {
    hub: Hub,
    room: Arc<Room>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.room.end_visit();
        self.hub.close_if_empty(&self.room);
    }
}

/// See the module's comment.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    rooms: DashMap<UserId, Arc<Room>>,
    store: Arc<dyn Store>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    grace: Duration,
    sockets_per_user: usize,
    backplane: Arc<dyn Backplane>,
    clustered: bool,
    kicked: kick::Kicked,
    /// The past that this hub's devices were told of.
    epoch: Mutex<Epoch>,
    /// Questions to other nodes that wait for their answer.
    pongs: DashMap<Uuid, oneshot::Sender<bool>>,
    /// Devices that went while the other nodes could not be told.
    untold: Mutex<Untold>,
    /// The node is going: what waits for a grace to pass waits no longer.
    hurry: CancellationToken,
    /// What is heard of device messages.
    mail: mpsc::Sender<Mail>,
}

/// What a hub stands on.
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub backplane: Arc<dyn Backplane>,
    /// Other nodes can be there.
    pub clustered: bool,
    pub tasks: Tasks,
    pub metrics: Arc<Metrics>,
    /// The wait before a lost device is announced.
    pub grace: Duration,
    pub sockets_per_user: usize,
    /// Where what is heard of device messages goes.
    pub mail: mpsc::Sender<Mail>,
}

impl Hub {
    /// An empty hub.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            rooms: DashMap::new(),
            epoch: Mutex::new(parts.store.epoch()),
            store: parts.store,
            tasks: parts.tasks,
            metrics: parts.metrics,
            grace: parts.grace,
            sockets_per_user: parts.sockets_per_user,
            backplane: parts.backplane,
            clustered: parts.clustered,
            kicked: kick::Kicked::default(),
            pongs: DashMap::new(),
            untold: Mutex::default(),
            hurry: CancellationToken::new(),
            mail: parts.mail,
        }))
    }

    /// Adds a device; what happens from now on is held back for it until
    /// [`Hub::restored`]. An older connection of the same device is ended.
    ///
    /// # Errors
    /// When the user has too many sockets, or the device a newer one.
    pub fn join(&self, user: UserId, member: Member) -> Result<Joined, NotJoined> {
        // Fences are compared within one past only.
        self.mind_the_epoch();
        let connection = member.connection;
        let mut member = Some(member);
        let joined = loop {
            // A room that was removed meanwhile takes nobody in.
            if let Some(joined) = self.room_for(user).join(&mut member, self.0.sockets_per_user) {
                break joined;
            }
        };
        if let Some(member) = self.members(user).iter().find(|member| member.connection == connection) {
            self.end_if_kicked(user, member);
            if self.0.tasks.refuses_sockets() {
                // It was on its way in when the others were counted to be sent away.
                member.recipient.end(Ending::Draining);
            }
        }
        joined
    }

    /// The user's room, made if need be. The map is not locked any more when it
    /// is used: what happens in a room may come back to the hub.
    fn room_for(&self, user: UserId) -> Arc<Room> {
        let made = || {
            self.0.metrics.users.increment(1);
            Arc::new(Room::new(user))
        };
        Arc::clone(self.0.rooms.entry(user).or_insert_with(made).value())
    }

    /// Keeps the user's room while somebody connects, and reaches this user's
    /// envelopes for as long, the answers of other nodes among them.
    pub async fn visit(&self, user: UserId) -> Visit {
        let room = loop {
            let room = self.room_for(user);
            if room.begin_visit() {
                break room;
            }
        };
        let visit = Visit { hub: self.clone(), room };
        self.subscribe(user).await;
        visit
    }

    /// Opens a joined device: `restored` goes out first and holds everything up
    /// to `seq`. False when that is too old by now: read again what it is made of.
    #[must_use]
    pub fn restored(&self, user: UserId, connection: ConnectionId, restored: Frame, seq: Seq) -> bool {
        let Some(room) = self.room(user) else { return true };
        let accepted = room.restored(connection, restored, seq);
        let is_fresh = accepted.is_some();
        self.repair_after(room, accepted.unwrap_or(Accepted::Settled));
        is_fresh
    }

    /// Removes a device. The others hear of it at once if it said goodbye
    /// itself or was sent away, else after the grace, unless it is back by then.
    pub fn leave(&self, left: Departure) {
        let Some(room) = self.room(left.user) else { return };
        if !room.remove(left.connection, left.device) {
            return;
        }
        let at_once = left.gone.is_final() || self.0.grace.is_zero();
        let hub = self.clone();
        self.0.tasks.spawn(async move {
            if !at_once {
                tokio::select! {
                    () = tokio::time::sleep(hub.0.grace) => {}
                    () = hub.0.hurry.cancelled() => {}
                    () = hub.0.tasks.ending() => {}
                }
            }
            hub.announce_gone(&room, &left).await;
        });
    }

    async fn announce_gone(&self, room: &Arc<Room>, left: &Departure) {
        if let Some(earlier) = room.is_still_gone(left.device, left.connection) {
            let gone = self.are_gone_everywhere(left, earlier).await;
            if gone != Everywhere::No {
                let body = wire::device_disconnected_body(left.device, left.gone.as_str(), left.at);
                room.tell_all(&wire::event("device-disconnected", &body), None);
            }
            // Else whoever takes it out of presence later tells the other nodes, or they hear it twice.
            if gone == Everywhere::Yes {
                self.publish_departure(left);
            }
        }
        self.close_if_empty(room);
    }

    fn close_if_empty(&self, room: &Arc<Room>) {
        if room.close_if_empty() {
            let removed = self.0.rooms.remove_if(&room.user, |user, present| {
                let is_ours = Arc::ptr_eq(present, room);
                if is_ours {
                    // Under the map's lock, so that it comes before the next room's subscription.
                    self.0.backplane.unsubscribe(*user);
                }
                is_ours
            });
            if removed.is_some() {
                self.0.metrics.users.decrement(1);
            }
        }
    }

    /// Takes what this node committed, in the order of the commits.
    pub fn committed(&self, committed: &Committed) {
        self.mind_the_epoch();
        for CommittedChange { change, acked_to, trace } in &committed.changes {
            let _step = traces::step("deliver", traces::Role::Internal, *trace).entered();
            self.change(change.clone(), *acked_to);
            if self.is_clustered() {
                self.publish_change(change);
            }
        }
        let trace = committed.changes.iter().find_map(|change| change.trace);
        self.0.metrics.delivered(committed.at.elapsed(), trace);
    }

    /// Where a new epoch has begun, what devices know counts no more: all
    /// transports close, and whoever comes back gets everything.
    fn mind_the_epoch(&self) {
        let now = self.0.store.epoch();
        {
            let mut known = self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner);
            if *known == now {
                return;
            }
            *known = now;
        }
        tracing::warn!("a new epoch has begun: all devices are sent to load everything anew");
        let rooms: Vec<_> = self.0.rooms.iter().map(|room| room.value().clone()).collect();
        for member in rooms.iter().flat_map(|room| room.start_anew()) {
            member.recipient.end(Ending::ComeBack);
        }
    }

    /// Takes one committed change, from whichever node. `acked_to`: the connection
    /// that hears of it by its ack.
    pub fn change(&self, change: Arc<Change>, acked_to: Option<ConnectionId>) {
        let Some(room) = self.room(change.user) else { return };
        let accepted = room.accept(change, acked_to);
        self.repair_after(room, accepted);
    }

    /// Gives what is missing a moment to arrive, then repairs. Without a
    /// backplane nothing else will arrive.
    fn repair_after(&self, room: Arc<Room>, accepted: Accepted) {
        if accepted == Accepted::Settled {
            return;
        }
        self.0.metrics.seq_holes.increment(1);
        let hub = self.clone();
        self.0.tasks.spawn(async move {
            if !hub.is_clustered() || hub.0.backplane.is_up() {
                tokio::time::sleep(HOLE_WAIT).await;
            }
            hub.repair(&room).await;
        });
    }

    /// The user may have missed something: reads what follows.
    fn look_into_store(&self, user: UserId) {
        self.look_into_store_below(user, Seq(u64::MAX));
    }

    /// The same where the hub is known to be behind `head`.
    fn look_into_store_below(&self, user: UserId, head: Seq) {
        let Some(room) = self.room(user) else { return };
        let accepted = room.look_up_to(head);
        self.repair_after(room, accepted);
    }

    fn look_into_store_for_all(&self) {
        let users: Vec<_> = self.0.rooms.iter().map(|room| *room.key()).collect();
        users.into_iter().for_each(|user| self.look_into_store(user));
    }

    /// Reads from the store what did not arrive. One at a time for each room.
    async fn repair(&self, room: &Room) {
        while let Some(after) = room.needs_after() {
            self.0.metrics.seq_repairs.increment(1);
            match self.0.store.changes_after(room.user, after).await {
                Ok(catch_up) => {
                    if catch_up.forgotten {
                        // They come back, from below what is forgotten, and get everything.
                        let behind = room.start_anew();
                        behind.iter().for_each(|member| member.recipient.end(Ending::ComeBack));
                    } else {
                        room.catch_up(catch_up);
                    }
                }
                Err(_) => {
                    tokio::time::sleep(REPAIR_RETRY).await;
                    room.look_up_to(after.next());
                }
            }
        }
    }

    /// Sends an event to the user's other devices, or to those in `to`.
    pub fn realtime(&self, user: UserId, source: DeviceId, to: Option<&[DeviceId]>, item: &Item) {
        self.relay_here(user, source, to, item);
        if self.is_clustered() {
            self.publish_realtime(user, source, to, item);
        }
    }

    fn relay_here(&self, user: UserId, source: DeviceId, to: Option<&[DeviceId]>, item: &Item) {
        if let Some(room) = self.room(user) {
            room.relay(source, to, item);
        }
    }

    /// Sends an event to all of the user's devices except one.
    pub fn tell(&self, user: UserId, event: &Frame, except: Option<DeviceId>) {
        if let Some(room) = self.room(user) {
            room.tell_all(event, except);
        }
    }

    /// Sends an event to one device; false when it is not connected.
    pub fn tell_device(&self, user: UserId, device: DeviceId, event: Frame) -> bool {
        self.room(user).is_some_and(|room| room.tell_one(device, event))
    }

    /// Whether a connection takes more; one that is gone takes anything.
    pub fn has_room(&self, user: UserId, device: DeviceId, connection: ConnectionId) -> bool {
        let members = self.members(user);
        let member = members.iter().find(|member| member.device == device && member.connection == connection);
        member.is_none_or(|member| member.recipient.has_room())
    }

    /// Whether the user has as many sockets here as allowed.
    pub fn is_full(&self, user: UserId) -> bool {
        self.members(user).len() >= self.0.sockets_per_user
    }

    /// The user's connected devices.
    pub fn members(&self, user: UserId) -> Vec<Arc<Member>> {
        self.room(user).map(|room| room.members()).unwrap_or_default()
    }

    fn room(&self, user: UserId) -> Option<Arc<Room>> {
        self.0.rooms.get(&user).map(|room| room.value().clone())
    }
}

/// Feeds the hub with what the writer commits, until the writer is gone.
pub async fn relay(hub: Hub, mut committed: mpsc::Receiver<Committed>) {
    while let Some(batch) = committed.recv().await {
        hub.committed(&batch);
    }
}
