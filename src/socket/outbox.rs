//! What waits to be sent to one device, bounded in events and bytes.
//!
//! While the engine has room, items go straight to it. A device that falls
//! behind has its items wait here: of one session key only the newest change,
//! of one coalesce key only the newest event. One that still cannot keep up is
//! cut; it restores when it comes back. A failed send is never forgotten: it
//! ends here.
//!
//! Restores and answers are the device's own wish and count towards no bound of
//! bytes: whoever makes an answer waits for room first.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::engine::{Sent, Transport};
use crate::hub::{Class, Item};
use crate::model::Seq;
use crate::telemetry::metrics::Metrics;
use crate::wire::Frame;

/// Events that may wait before they are coalesced.
const EVENTS_SOFT_MAX: usize = 256;

/// Past that, so many events more are taken before changes are coalesced again.
const COALESCE_EVERY: usize = 64;

/// Events that may wait after they were coalesced.
const EVENTS_HARD_MAX: usize = 4_096;

/// Bytes that may wait.
const BYTES_MAX: usize = 1 << 20;

/// The same behind a restore or an answer that is still on its way.
const BYTES_BEHIND_ANSWER_MAX: usize = 4 << 20;

/// With so many bytes waiting, answers included, no further answer is made.
const BYTES_BEFORE_ANSWER_MAX: usize = 64 << 10;

/// How long more than [`EVENTS_SOFT_MAX`] may wait.
const OVERDUE: Duration = Duration::from_secs(10);

/// What to do after a push.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Then {
    /// Nothing.
    Nothing,
    /// Start a pump: it calls [`Outbox::pump`] whenever there is room.
    StartPump,
    /// The device cannot keep up: cut it.
    Cut,
}

/// See the module's comment.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    queue: VecDeque<Item>,
    /// Of all that waits.
    bytes: usize,
    /// Of the restore and the answers among it.
    answer_bytes: usize,
    pumping: bool,
    overdue_since: Option<Instant>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the restore: everything waits.
    #[default]
    Held,
    /// Changes up to here are in the restore.
    Open(Seq),
    Closed,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an item, or lets it wait.
    pub fn push(&self, item: Item, transport: &Transport, metrics: &Metrics) -> Then {
        let mut state = self.lock();
        match state.phase {
            Phase::Closed => return Then::Nothing,
            Phase::Open(floor) if is_in_restore(&item, floor) => return Then::Nothing,
            Phase::Open(_) if state.queue.is_empty() => match state.emit(&item.frame, transport, metrics) {
                Emitted::Sent => return Then::Nothing,
                Emitted::Gone => {
                    state.close();
                    return Then::Nothing;
                }
                Emitted::NoRoom => {}
            },
            Phase::Open(_) | Phase::Held => {}
        }
        state.wait(item, metrics);
        if state.is_overdue() {
            state.close();
            drop(state);
            self.room.notify_waiters();
            return Then::Cut;
        }
        if state.phase == Phase::Held || std::mem::replace(&mut state.pumping, true) {
            Then::Nothing
        } else {
            Then::StartPump
        }
    }

    /// Sends the restore, which counts towards no bound, then what was held
    /// back and is not in it.
    pub fn open(&self, restored: Frame, floor: Seq, transport: &Transport, metrics: &Metrics) -> Then {
        let mut state = self.lock();
        if state.phase != Phase::Held {
            return Then::Nothing;
        }
        state.phase = Phase::Open(floor);
        let held = std::mem::take(&mut state.queue);
        (state.bytes, state.answer_bytes) = (0, 0);
        state.add(Item { frame: restored, class: Class::Answer });
        for item in held.into_iter().filter(|item| !is_in_restore(item, floor)) {
            state.add(item);
        }
        state.pumping = true;
        match state.drain(transport, metrics) {
            Drained::Empty => Then::Nothing,
            Drained::NoRoom => Then::StartPump,
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// Whether nothing is sent yet, since the restore is still to come.
    pub fn is_held(&self) -> bool {
        self.lock().phase == Phase::Held
    }

    /// Sends what there is room for; false when nothing waits any more and the
    /// pump may end.
    pub fn pump(&self, transport: &Transport, metrics: &Metrics) -> bool {
        let goes_on = self.lock().drain(transport, metrics) == Drained::NoRoom;
        self.room.notify_waiters();
        goes_on
    }

    /// Waits until an answer may be made: what waits is little, or nothing is sent any more.
    pub async fn has_room_for_answer(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.lock().bytes <= BYTES_BEFORE_ANSWER_MAX {
                return;
            }
            room.await;
        }
    }

    /// Forgets everything; nothing is sent any more. False when it was closed
    /// before.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        let was_open = state.phase != Phase::Closed;
        state.close();
        drop(state);
        self.room.notify_waiters();
        was_open
    }
}

fn is_in_restore(item: &Item, floor: Seq) -> bool {
    matches!(&item.class, Class::Change(change) if change.seq <= floor)
}

enum Emitted {
    Sent,
    NoRoom,
    Gone,
}

#[derive(PartialEq, Eq)]
enum Drained {
    Empty,
    NoRoom,
}

impl State {
    fn emit(&mut self, frame: &Frame, transport: &Transport, metrics: &Metrics) -> Emitted {
        match transport.send(frame) {
            Sent::Yes => {
                metrics.events_out.increment(1);
                Emitted::Sent
            }
            Sent::Full => Emitted::NoRoom,
            Sent::Gone => Emitted::Gone,
        }
    }

    fn drain(&mut self, transport: &Transport, metrics: &Metrics) -> Drained {
        while let Some(item) = self.queue.pop_front() {
            match self.emit(&item.frame, transport, metrics) {
                Emitted::Sent => self.subtract(&item),
                Emitted::NoRoom => {
                    self.queue.push_front(item);
                    return Drained::NoRoom;
                }
                Emitted::Gone => self.close(),
            }
        }
        self.overdue_since = None;
        self.pumping = false;
        Drained::Empty
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.queue = VecDeque::new();
        (self.bytes, self.answer_bytes) = (0, 0);
    }

    fn add(&mut self, item: Item) {
        self.bytes += item.frame.len();
        if item.class == Class::Answer {
            self.answer_bytes += item.frame.len();
        }
        self.queue.push_back(item);
    }

    fn subtract(&mut self, item: &Item) {
        self.bytes -= item.frame.len();
        if item.class == Class::Answer {
            self.answer_bytes -= item.frame.len();
        }
    }

    /// Those that count.
    fn bounded_bytes(&self) -> usize {
        self.bytes - self.answer_bytes
    }

    /// Queues an item in the place of what it makes superfluous.
    fn wait(&mut self, item: Item, metrics: &Metrics) {
        if let Class::Coalesce(key) = &item.class {
            let older = |waiting: &Item| matches!(&waiting.class, Class::Coalesce(other) if other == key);
            if let Some(place) = self.queue.iter().rposition(older) {
                self.forget(place);
                metrics.outbox_coalesced.increment(1);
            }
        }
        self.add(item);
        // Once when it crosses the bound, then now and then: the queue may be long.
        let is_due = self.bounded_bytes() > BYTES_MAX || self.queue.len() % COALESCE_EVERY == 1;
        if self.is_over_soft() && is_due {
            self.coalesce_changes(metrics);
        }
    }

    fn forget(&mut self, place: usize) {
        if let Some(item) = self.queue.remove(place) {
            self.subtract(&item);
        }
    }

    fn is_over_soft(&self) -> bool {
        self.queue.len() > EVENTS_SOFT_MAX || self.bounded_bytes() > BYTES_MAX
    }

    /// Of each session key only the newest change stays.
    fn coalesce_changes(&mut self, metrics: &Metrics) {
        let mut seen = HashSet::new();
        let before = self.queue.len();
        let mut kept: VecDeque<Item> = VecDeque::with_capacity(before);
        for item in std::mem::take(&mut self.queue).into_iter().rev() {
            let superseded = matches!(&item.class, Class::Change(change) if !seen.insert(change.key.clone()));
            if superseded {
                self.subtract(&item);
            } else {
                kept.push_front(item);
            }
        }
        metrics.outbox_coalesced.increment((before - kept.len()) as u64);
        self.queue = kept;
    }

    /// Whether the device is to be cut.
    fn is_overdue(&mut self) -> bool {
        if !self.is_over_soft() {
            self.overdue_since = None;
            return false;
        }
        let since = *self.overdue_since.get_or_insert_with(Instant::now);
        let bytes_max = if self.answer_bytes > 0 { BYTES_BEHIND_ANSWER_MAX } else { BYTES_MAX };
        self.bounded_bytes() > bytes_max || self.queue.len() > EVENTS_HARD_MAX || since.elapsed() > OVERDUE
    }
}

#[cfg(test)]
mod tests;
