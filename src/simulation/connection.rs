//! One socket: to the hub a recipient, to its client what it hears, in order.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::fate::{Fate, lane_of};
use super::node::Node;
use crate::hub::{Class, Ending, Gone, Item, Recipient};
use crate::model::{Change, ConnectionId, DeviceId, Seq, SessionKey, UserId};
use crate::store::Snapshot;
use crate::wire::Frame;

/// Things that wait for a client that does not run yet.
const WAITING_MAX: usize = 10_000;

/// A draining socket is closed this long after it was told.
const DRAIN_HEARD_AFTER: Duration = Duration::from_millis(200);

/// What a client hears.
#[derive(Debug)]
pub enum Heard {
    /// The restore, and the list of devices in it.
    Restored(Snapshot, String),
    Changed(Arc<Change>),
    /// An event without a seq, as it is on the wire.
    Told(Frame),
    Ended(Ending),
    /// The transport is closed.
    Closed,
    /// A write was applied,
    Acked(SessionKey, Seq),
    /// or perhaps,
    Unknown,
    /// or not.
    Refused,
}

/// See the module's comment.
pub struct Connection {
    pub user: UserId,
    pub device: DeviceId,
    pub id: ConnectionId,
    /// Counts the device's connections, as the client made them.
    pub number: u64,
    pub node: Arc<Node>,
    fate: Arc<Fate>,
    me: std::sync::Weak<Connection>,
    client: mpsc::Sender<Heard>,
    fence: OnceLock<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    left: bool,
    ended: Option<Ending>,
    /// What the restore will hold.
    restores: Option<(Snapshot, String)>,
    /// Pushed before the restore.
    held: Vec<Item>,
    /// The restore is on its way; changes up to here are in it.
    floor: Option<Seq>,
}

/// Whose socket it will be.
pub struct Whose {
    pub user: UserId,
    pub device: DeviceId,
    pub id: ConnectionId,
    pub number: u64,
}

impl Connection {
    /// A socket to `node` and its client's end.
    pub fn open(whose: Whose, node: Arc<Node>, fate: Arc<Fate>) -> (Arc<Self>, mpsc::Receiver<Heard>) {
        let (client, heard) = mpsc::channel(WAITING_MAX);
        let connection = Arc::new_cyclic(|me| Self {
            user: whose.user,
            device: whose.device,
            id: whose.id,
            number: whose.number,
            node,
            fate,
            me: me.clone(),
            client,
            fence: OnceLock::new(),
            state: Mutex::default(),
        });
        (connection, heard)
    }

    /// It has an identity now; false when it was closed meanwhile.
    pub fn become_device(&self, fence: u64) -> bool {
        self.fence.set(fence).expect("a socket connects once");
        let closed = self.is_closed();
        if closed {
            self.leave(Gone::TransportClose);
        }
        !closed
    }

    /// The store's fence of it, once it has one.
    pub fn fence(&self) -> Option<u64> {
        self.fence.get().copied()
    }

    /// What the hub's next call opens it with.
    pub fn restores(&self, snapshot: Snapshot, listed: String) {
        self.state().restores = Some((snapshot, listed));
    }

    /// The transport is closed, or broken.
    pub fn closed(&self, gone: Gone) {
        let mut state = self.state();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        drop(state);
        self.note(format_args!("closed: {}", gone.as_str()));
        self.tell(Heard::Closed);
        if self.fence.get().is_some() {
            self.leave(gone);
        }
    }

    fn leave(&self, gone: Gone) {
        if !std::mem::replace(&mut self.state().left, true) {
            self.node.left(self, gone);
        }
    }

    /// Whether the transport is closed.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// How the server ended it, if it did.
    pub fn ended(&self) -> Option<Ending> {
        self.state().ended
    }

    /// To the client; one that is gone hears nothing.
    pub fn tell(&self, heard: Heard) {
        drop(self.client.try_send(heard));
    }

    fn hand_over(&self, item: Item, floor: Seq) {
        self.tell(match item.class {
            Class::Change(change) if change.seq <= floor => return,
            Class::Change(change) => Heard::Changed(change),
            Class::Coalesce(_) | Class::Answer | Class::Plain => Heard::Told(item.frame),
        });
    }

    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        let (device, node) = (self.device.0.as_u128(), &self.node.host.name);
        self.fate.note(lane_of(self.user), format_args!("device {device}.{} on {node} {what}", self.number));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recipient for Connection {
    fn push(&self, item: Item) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        let Some(floor) = state.floor else { return state.held.push(item) };
        drop(state);
        self.hand_over(item, floor);
    }

    fn open(&self, _restored: Frame, floor: Seq) {
        let mut state = self.state();
        let Some((snapshot, listed)) = state.restores.take().filter(|_| !state.closed) else { return };
        state.floor = Some(floor);
        let held = std::mem::take(&mut state.held);
        drop(state);
        self.tell(Heard::Restored(snapshot, listed));
        held.into_iter().for_each(|item| self.hand_over(item, floor));
    }

    fn probe(&self) -> BoxFuture<'static, bool> {
        std::future::ready(!self.client.is_closed()).boxed()
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn has_room(&self) -> bool {
        true
    }

    fn end(&self, why: Ending) {
        let mut state = self.state();
        if state.closed || (state.ended.is_some() && why == Ending::Draining) {
            return;
        }
        state.ended = Some(why);
        drop(state);
        self.note(format_args!("ended: {why:?}"));
        self.tell(Heard::Ended(why));
        let gone = match why {
            Ending::LoginEnded | Ending::DeviceRevoked => Gone::ServerDisconnect,
            Ending::ComeBack => Gone::TransportError,
            _ => Gone::ServerClose,
        };
        if why != Ending::Draining {
            return self.closed(gone);
        }
        if let Some(me) = self.me.upgrade() {
            self.node.spawn(async move {
                tokio::time::sleep(DRAIN_HEARD_AFTER).await;
                me.node.host.running().await;
                me.closed(gone);
            });
        }
    }
}
