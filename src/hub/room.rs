//! One user's devices on this node, and the order of what they get.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Class, Ending, Item, Joined, NotJoined, Recipient};
use crate::model::{Change, ConnectionId, DeviceId, JsonText, LoginId, Seq, SessionKey, Timestamp, UserId};
use crate::store::CatchUp;
use crate::wire::{self, Frame};

/// Changes that may wait behind a hole; beyond it they are read from the store
/// with the rest.
const WAITING_MAX: usize = 4_096;

/// Earlier connections that are remembered of a device.
const SUPERSEDED_MAX: usize = 16;

/// One connected device.
#[derive(Clone)]
pub struct Member {
    /// Which device.
    pub device: DeviceId,
    /// Which of its connections.
    pub connection: ConnectionId,
    /// The store's fence of that connection: a newer one of the device has a higher one.
    pub fence: u64,
    /// The login of its token.
    pub login: Option<LoginId>,
    /// When its token was made.
    pub token_issued_at: Timestamp,
    /// Of what it said of itself.
    pub fingerprint: u64,
    /// Its deviceInfo as others get it.
    pub info: JsonText,
    /// When it connected.
    pub connected_at: Timestamp,
    /// The only keys it wants to hear of; all without.
    pub keys: Option<HashSet<SessionKey>>,
    /// The way to it.
    pub recipient: Arc<dyn Recipient>,
}

/// What became of an arriving change.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Delivered, old, or waiting for a repair that is on its way.
    Settled,
    /// The first to wait behind a hole: somebody must repair.
    Hole,
}

/// A connection as its room knows it.
pub enum Presence {
    /// It is open.
    Here(Arc<Member>),
    /// It ended and that is not announced yet.
    Leaving,
    /// It never was here, or is long gone.
    Unknown,
}

/// See the module's comment.
pub struct Room {
    pub user: UserId,
    state: Mutex<State>,
}

/// A change, and the connection that hears of it by its ack.
struct Arrived {
    change: Arc<Change>,
    acked_to: Option<ConnectionId>,
}

#[derive(Default)]
struct State {
    members: Vec<Arc<Member>>,
    /// Everything up to here was delivered; unknown until the first restore.
    cursor: Option<Seq>,
    /// The first restore's seq: what is up to here was not delivered to anybody.
    began: Seq,
    /// Arrived ahead of their turn.
    waiting: BTreeMap<Seq, Arrived>,
    /// The store has been said to be at least here.
    look_to: Seq,
    /// What waited up to here was there before the store was last read.
    asked_for: Seq,
    repairing: bool,
    /// Devices whose going has not been announced yet.
    leaving: HashMap<DeviceId, ConnectionId>,
    /// Earlier connections of devices, oldest first, whose rows in presence the
    /// present one has not replaced yet.
    superseded: HashMap<DeviceId, Vec<ConnectionId>>,
    /// Connections that are being made.
    visits: usize,
    closed: bool,
}

impl Room {
    pub fn new(user: UserId) -> Self {
        Self { user, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `member` in; nothing when the room is closed.
    pub fn join(&self, member: &mut Option<Member>, sockets_max: usize) -> Option<Result<Joined, NotJoined>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let newcomer = member.take()?;
        let older = state.members.iter().position(|present| present.device == newcomer.device);
        if older.is_some_and(|older| state.members[older].fence > newcomer.fence) {
            return Some(Err(NotJoined::Overtaken));
        }
        if older.is_none() && state.members.len() >= sockets_max {
            return Some(Err(NotJoined::TooManySockets));
        }
        let older = older.map(|place| state.members.swap_remove(place));
        let left = state.leaving.remove(&newcomer.device);
        let before = left.or(older.as_ref().map(|older| older.connection));
        if let Some(before) = before {
            state.supersede(newcomer.device, before);
        }
        let still_known = before.is_some();
        state.members.push(Arc::new(newcomer));
        drop(state);
        if let Some(older) = older {
            older.recipient.end(Ending::Replaced);
        }
        Some(Ok(Joined { still_known }))
    }

    /// Keeps the room while somebody connects; false when it is closed.
    pub fn begin_visit(&self) -> bool {
        let mut state = self.lock();
        if !state.closed {
            state.visits += 1;
        }
        !state.closed
    }

    /// The other end of [`Room::begin_visit`].
    pub fn end_visit(&self) {
        self.lock().visits -= 1;
    }

    /// What is known here of a connection.
    pub fn presence(&self, device: DeviceId, connection: ConnectionId) -> Presence {
        let state = self.lock();
        if let Some(member) = state.members.iter().find(|member| member.connection == connection) {
            Presence::Here(member.clone())
        } else if state.leaving.get(&device) == Some(&connection) {
            Presence::Leaving
        } else {
            Presence::Unknown
        }
    }

    /// Opens a member whose restore holds everything up to `seq`. The first
    /// restore of a room tells where its order begins; nothing when another one
    /// was first, and this one was read before and lacks what lies between.
    pub fn restored(&self, connection: ConnectionId, restored: Frame, seq: Seq) -> Option<Accepted> {
        let mut state = self.lock();
        let member = state.members.iter().find(|member| member.connection == connection).cloned();
        let Some(member) = member else { return Some(Accepted::Settled) };
        if state.cursor.is_some() && seq < state.began {
            return None;
        }
        member.recipient.open(restored, seq);
        if state.cursor.is_none() {
            (state.cursor, state.began) = (Some(seq), seq);
            state.deliver_waiting();
        }
        Some(state.hole())
    }

    /// Removes a connection; false when it was not there any more. Until its
    /// going is announced the device counts as leaving.
    pub fn remove(&self, connection: ConnectionId, device: DeviceId) -> bool {
        let mut state = self.lock();
        let Some(place) = state.members.iter().position(|member| member.connection == connection) else {
            return false;
        };
        state.members.swap_remove(place);
        state.leaving.insert(device, connection);
        true
    }

    /// Nothing if the device has come back since this connection left; else its
    /// earlier connections whose rows may still stand. Asked once, when the going
    /// is to be announced.
    pub fn is_still_gone(&self, device: DeviceId, connection: ConnectionId) -> Option<Vec<ConnectionId>> {
        let mut state = self.lock();
        if state.leaving.get(&device) != Some(&connection) {
            return None;
        }
        state.leaving.remove(&device);
        Some(state.superseded.remove(&device).unwrap_or_default())
    }

    /// A connection's row stands in the place of those before it.
    pub fn placed(&self, device: DeviceId, connection: ConnectionId) {
        let mut state = self.lock();
        if let Some(earlier) = state.superseded.get_mut(&device) {
            let replaced = earlier.iter().position(|one| *one == connection).unwrap_or(earlier.len());
            earlier.drain(..replaced);
            if earlier.is_empty() {
                state.superseded.remove(&device);
            }
        }
    }

    /// Closes an empty room for good.
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.lock();
        state.closed = state.members.is_empty() && state.leaving.is_empty() && state.visits == 0;
        state.closed
    }

    /// Takes a committed change. `acked_to`: the connection that hears of it by its
    /// ack; a later one of the same device does not.
    pub fn accept(&self, change: Arc<Change>, acked_to: Option<ConnectionId>) -> Accepted {
        let mut state = self.lock();
        match state.cursor {
            Some(cursor) if change.seq <= cursor => Accepted::Settled,
            Some(cursor) if change.seq == cursor.next() => {
                state.deliver(&Arrived { change, acked_to });
                state.deliver_waiting();
                Accepted::Settled
            }
            cursor => {
                if state.waiting.len() < WAITING_MAX {
                    state.waiting.insert(change.seq, Arrived { change, acked_to });
                } else {
                    state.look_to = state.look_to.max(change.seq);
                }
                // Without a cursor the first restore will sort it out.
                if cursor.is_none() { Accepted::Settled } else { state.hole() }
            }
        }
    }

    /// Where a repair must read from; nothing when the hole is closed. What was
    /// said of the store so far is answered by that read; what is said later is
    /// not.
    pub fn needs_after(&self) -> Option<Seq> {
        let mut state = self.lock();
        let after = state.cursor.filter(|_| state.is_behind() && !state.members.is_empty());
        state.repairing = after.is_some();
        state.look_to = Seq(0);
        state.asked_for = state.waiting.last_key_value().map_or(Seq(0), |(seq, _)| *seq);
        after
    }

    /// The store is, or may be, as far as `head`.
    pub fn look_up_to(&self, head: Seq) -> Accepted {
        let mut state = self.lock();
        state.look_to = state.look_to.max(head);
        state.hole()
    }

    /// Delivers what the store had, unless the room has started anew meanwhile.
    pub fn catch_up(&self, catch_up: CatchUp) {
        let mut state = self.lock();
        if state.cursor.is_none() {
            return;
        }
        if catch_up.more {
            state.look_to = state.look_to.max(catch_up.up_to.next());
        }
        for change in catch_up.changes {
            if state.cursor.is_some_and(|cursor| change.seq > cursor) {
                // The store does not know whom an ack told of it.
                let arrived = state.waiting.remove(&change.seq);
                let arrived = arrived.unwrap_or_else(|| Arrived { change: Arc::new(change), acked_to: None });
                state.deliver(&arrived);
            }
        }
        state.cursor = state.cursor.max(Some(catch_up.up_to));
        state.deliver_waiting();
        if !catch_up.more {
            // What was there before the store was read, and is not in it, is of another past.
            let asked_for = state.asked_for;
            state.waiting.retain(|seq, _| *seq > asked_for);
        }
    }

    /// Forgets where it is; the members, who are to come back. The next restore
    /// tells where the order goes on. Fences of the past count no more: one that
    /// comes may have a lower one.
    pub fn start_anew(&self) -> Vec<Arc<Member>> {
        let mut state = self.lock();
        state.cursor = None;
        state.waiting.clear();
        state.look_to = Seq(0);
        for member in &mut state.members {
            *member = Arc::new(Member { fence: 0, ..Member::clone(member) });
        }
        state.members.clone()
    }

    /// Relays an event to the others, or to those in `to`.
    pub fn relay(&self, source: DeviceId, to: Option<&[DeviceId]>, item: &Item) {
        let state = self.lock();
        let wanted = |device| to.is_none_or(|to| to.contains(&device));
        for member in &state.members {
            if member.device != source && wanted(member.device) {
                member.recipient.push(item.clone());
            }
        }
    }

    /// Sends an event to everyone except one.
    pub fn tell_all(&self, event: &Frame, except: Option<DeviceId>) {
        self.lock().tell_all(event, except);
    }

    /// Tells the others that a connection came, and does `then`, unless it is gone
    /// again and that is told or about to be. Its going is told after both.
    pub fn tell_arrival(
        &self,
        device: DeviceId,
        connection: ConnectionId,
        event: &Frame,
        then: impl FnOnce(),
    ) {
        let state = self.lock();
        let is_here = state.members.iter().any(|member| member.connection == connection);
        let is_known = is_here || state.leaving.get(&device) == Some(&connection);
        if is_known {
            state.tell_all(event, Some(device));
            then();
        }
    }

    /// Sends an event to one device; false when it is not here.
    pub fn tell_one(&self, device: DeviceId, event: Frame) -> bool {
        let state = self.lock();
        let member = state.members.iter().find(|member| member.device == device);
        member.is_some_and(|member| {
            member.recipient.push(Item { frame: event, class: Class::Plain });
            true
        })
    }

    /// Notes that a connection goes on with another token; the member as it is
    /// then.
    pub fn move_to_login(
        &self,
        connection: ConnectionId,
        login: Option<LoginId>,
        token_issued_at: Timestamp,
    ) -> Option<Arc<Member>> {
        let mut state = self.lock();
        let member = state.members.iter_mut().find(|member| member.connection == connection)?;
        *member = Arc::new(Member { login, token_issued_at, ..Member::clone(member) });
        Some(member.clone())
    }

    /// Notes that a device has another deviceInfo now.
    pub fn describe(&self, device: DeviceId, info: &JsonText) {
        let mut state = self.lock();
        if let Some(member) = state.members.iter_mut().find(|member| member.device == device) {
            *member = Arc::new(Member { info: info.clone(), ..Member::clone(member) });
        }
    }

    pub fn members(&self) -> Vec<Arc<Member>> {
        self.lock().members.clone()
    }
}

impl State {
    fn supersede(&mut self, device: DeviceId, connection: ConnectionId) {
        let earlier = self.superseded.entry(device).or_default();
        if earlier.len() >= SUPERSEDED_MAX {
            // While nothing can be written, it is the oldest whose row stands.
            earlier.remove(1);
        }
        earlier.push(connection);
    }

    fn tell_all(&self, event: &Frame, except: Option<DeviceId>) {
        for member in self.members.iter().filter(|member| Some(member.device) != except) {
            member.recipient.push(Item { frame: event.clone(), class: Class::Plain });
        }
    }

    fn is_behind(&self) -> bool {
        !self.waiting.is_empty() || self.cursor.is_some_and(|cursor| self.look_to > cursor)
    }

    /// Whether somebody must repair now: there is a hole and nobody does yet.
    fn hole(&mut self) -> Accepted {
        if !self.is_behind() || self.cursor.is_none() || std::mem::replace(&mut self.repairing, true) {
            Accepted::Settled
        } else {
            Accepted::Hole
        }
    }

    /// Hands a change to every connection but the one whose ack tells of it, and
    /// moves the cursor.
    fn deliver(&mut self, Arrived { change, acked_to }: &Arrived) {
        let mut frame = None;
        for member in &self.members {
            let is_told = *acked_to == Some(member.connection);
            let wanted = member.keys.as_ref().is_none_or(|keys| keys.contains(&change.key));
            if !is_told && wanted {
                let frame = frame.get_or_insert_with(|| wire::session_updated(change)).clone();
                member.recipient.push(Item { frame, class: Class::Change(change.clone()) });
            }
        }
        self.cursor = Some(change.seq);
    }

    /// Hands over what waited and is next now.
    fn deliver_waiting(&mut self) {
        let Some(mut cursor) = self.cursor else { return };
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > cursor.next() {
                break;
            }
            let arrived = entry.remove();
            if arrived.change.seq == cursor.next() {
                self.deliver(&arrived);
                cursor = arrived.change.seq;
            }
        }
    }
}

#[cfg(test)]
mod tests;
