//! A device that is, or was, connected to this node, as its messages see it.
//!
//! What the store keeps for it goes first; until that is through, a message that
//! arrives directly has to wait behind it. What was handed over is remembered
//! for [`REMEMBERED_FOR`], so that a copy which was kept because word of the
//! first came too late is only taken away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{DirectMessage, Mailbox};
use crate::backplane::Delivery;
use crate::model::{Clock, ConnectionId, DeviceId, MessageId, Timestamp, UserId};
use crate::store::WaitingMessage;

/// How long a message that was handed over is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Messages that are remembered of one device; the oldest are forgotten first.
const REMEMBERED_MAX: usize = 4_096;

/// A message that is not there by then was told to its sender as queued.
const CONFIRMED_WITHIN_MS: i64 = 1_000;

/// Wait before the store is asked again when it did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// How often a device that is behind is looked at for room.
const ROOM_CHECK: Duration = Duration::from_millis(20);

/// What became of a message that was to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The device has it.
    Delivered,
    /// Its socket has it; the client will say when it has it, too.
    Unacknowledged,
    /// Something is before it.
    Behind,
    /// The device is not connected here.
    NotHere,
}

/// What an acknowledgement was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// A message that is not kept, and where its sender's node waits.
    Live {
        /// Its sender.
        source: DeviceId,
        /// It came from another node.
        elsewhere: bool,
    },
    /// One that the store keeps.
    Kept,
    /// It was acknowledged before.
    Again,
    /// Nothing that this node remembers.
    Unknown,
}

/// See the module's comment.
pub struct Slot {
    /// Whose device.
    pub user: UserId,
    device: DeviceId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<ConnectionId>,
    /// Since when; what was sent before has waited for it.
    since: Timestamp,
    /// Its client acknowledges each message.
    acks: bool,
    /// The last kept message that was looked at.
    cursor: u64,
    /// The store may keep something that was not looked at.
    look: bool,
    working: bool,
    handed: HashMap<MessageId, Memory>,
}

struct Memory {
    at: Instant,
    source: DeviceId,
    /// It is known to be there, not only on its way.
    known: bool,
    /// The store keeps it.
    kept: bool,
    elsewhere: bool,
}

impl Slot {
    /// The slot of a device that has not connected yet.
    pub fn new(user: UserId, device: DeviceId) -> Self {
        Self { user, device, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device has a connection here, if it still `stands`. What another
    /// connection of it did not acknowledge is sent again.
    pub fn attach(&self, connection: ConnectionId, acks: bool, stands: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        if !stands() {
            return false;
        }
        state.connection = Some(connection);
        state.since = Clock::now();
        state.acks = acks;
        state.cursor = 0;
        state.look = true;
        state.handed.retain(|_, memory| memory.known);
        true
    }

    /// That connection is gone.
    pub fn detach(&self, connection: ConnectionId) {
        let mut state = self.lock();
        if state.connection == Some(connection) {
            state.connection = None;
        }
    }

    /// Whether the device is connected here.
    pub fn is_attached(&self) -> bool {
        self.lock().connection.is_some()
    }

    /// Forgets what is old; whether the slot itself may be forgotten.
    pub fn tidy(&self) -> bool {
        let mut state = self.lock();
        state.handed.retain(|_, memory| memory.at.elapsed() < REMEMBERED_FOR);
        state.connection.is_none() && !state.working && state.handed.is_empty()
    }

    /// Hands a message over. `elsewhere`: it came from another node, which waits
    /// for word.
    pub fn hand_over(&self, mailbox: &Mailbox, direct: &DirectMessage, elsewhere: bool) -> Handed {
        let mut state = self.lock();
        if state.connection.is_none() {
            return Handed::NotHere;
        }
        if let Some(memory) = state.handed.get(&direct.id) {
            return if memory.known { Handed::Delivered } else { Handed::Unacknowledged };
        }
        if state.look || state.working {
            return Handed::Behind;
        }
        if !mailbox.0.hub.tell_device(self.user, self.device, direct.event(false)) {
            return Handed::NotHere;
        }
        let acks = state.acks;
        if acks || elsewhere {
            let (at, source) = (Instant::now(), direct.source);
            state.remember(direct.id.clone(), Memory { at, source, known: !acks, kept: false, elsewhere });
        }
        if acks { Handed::Unacknowledged } else { Handed::Delivered }
    }

    /// The client has a message.
    pub fn acknowledge(&self, id: &MessageId) -> Acknowledged {
        let mut state = self.lock();
        let Some(memory) = state.handed.get_mut(id) else { return Acknowledged::Unknown };
        if std::mem::replace(&mut memory.known, true) {
            return Acknowledged::Again;
        }
        if memory.kept {
            Acknowledged::Kept
        } else {
            Acknowledged::Live { source: memory.source, elsewhere: memory.elsewhere }
        }
    }

    /// What to do with a kept message.
    fn take(&self, connection: ConnectionId, message: &WaitingMessage) -> Take {
        let mut state = self.lock();
        if state.connection != Some(connection) {
            return Take::Stop;
        }
        state.cursor = message.place;
        match state.handed.get_mut(&message.id) {
            Some(memory) if memory.known => Take::Remove,
            Some(memory) => {
                memory.kept = true;
                Take::Leave
            }
            None => {
                let (at, source, acks) = (Instant::now(), message.source, state.acks);
                let memory = Memory { at, source, known: !acks, kept: true, elsewhere: false };
                state.remember(message.id.clone(), memory);
                if acks { Take::Send } else { Take::SendAndRemove }
            }
        }
    }

    /// It could not be sent after all.
    fn not_sent(&self, id: &MessageId) {
        self.lock().handed.remove(id);
    }
}

enum Take {
    Send,
    SendAndRemove,
    /// It was handed over before and is not acknowledged yet.
    Leave,
    /// The device has it already.
    Remove,
    /// The connection is another one by now.
    Stop,
}

impl State {
    fn remember(&mut self, id: MessageId, memory: Memory) {
        if self.handed.len() >= REMEMBERED_MAX
            && let Some(oldest) =
                self.handed.iter().min_by_key(|(_, memory)| memory.at).map(|(id, _)| id.clone())
        {
            self.handed.remove(&oldest);
        }
        self.handed.insert(id, memory);
    }
}

impl Mailbox {
    /// Something may be kept for the device of a slot: delivers it, once at a
    /// time.
    pub(super) fn look(&self, slot: &Arc<Slot>) {
        let mut state = slot.lock();
        state.look = true;
        if state.connection.is_none() || std::mem::replace(&mut state.working, true) {
            return;
        }
        drop(state);
        let (mailbox, slot) = (self.clone(), slot.clone());
        self.0.tasks.spawn(async move { mailbox.deliver_kept(&slot).await });
    }

    async fn deliver_kept(&self, slot: &Slot) {
        loop {
            let (connection, cursor) = {
                let mut state = slot.lock();
                let Some(connection) = state.connection.filter(|_| state.look) else {
                    state.working = false;
                    return;
                };
                state.look = false;
                (connection, state.cursor)
            };
            let page = match self.0.store.mailbox(slot.user, slot.device, cursor, Clock::now()).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(%error, "the store did not say what is kept for a device");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = self.0.tasks.ending() => return,
                    }
                    slot.lock().look = true;
                    continue;
                }
            };
            if page.is_empty() {
                continue;
            }
            slot.lock().look = true;
            self.deliver_page(slot, connection, page).await;
        }
    }

    async fn deliver_page(&self, slot: &Slot, connection: ConnectionId, page: Vec<WaitingMessage>) {
        let mut gone = Vec::new();
        for message in page {
            match slot.take(connection, &message) {
                Take::Stop => break,
                Take::Leave => {}
                Take::Remove => gone.push(message.id),
                taken @ (Take::Send | Take::SendAndRemove) => {
                    let (id, source, target) = (message.id, message.source, slot.device);
                    let (sent_at, json) = (message.sent_at, message.json);
                    let direct = DirectMessage { id, source, target, sent_at, json };
                    // One that is kept only for its id's sake has not waited for the device.
                    let waited_ms = Clock::now().0 - sent_at.0;
                    let has_waited = sent_at <= slot.lock().since || waited_ms >= CONFIRMED_WITHIN_MS;
                    if !self.0.hub.tell_device(slot.user, slot.device, direct.event(has_waited)) {
                        slot.not_sent(&direct.id);
                        break;
                    }
                    if matches!(taken, Take::SendAndRemove) {
                        gone.push(direct.id);
                    }
                }
            }
        }
        if !gone.is_empty()
            && let Err(error) = self.take(slot.user, slot.device, gone, Delivery::Delivered).await
        {
            // They stay, and are remembered here: the next look takes them away.
            tracing::debug!(%error, "delivered messages could not be taken away");
            slot.lock().cursor = 0;
            tokio::time::sleep(RETRY).await;
        }
        while !self.0.hub.has_room(slot.user, slot.device, connection) {
            tokio::time::sleep(ROOM_CHECK).await;
        }
    }
}
