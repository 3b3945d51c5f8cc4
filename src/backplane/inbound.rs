//! The queue from the backplane to the hub: bounded in messages and bytes, and never silent.
//!
//! Envelopes wait in a bounded channel. What does not fit is dropped and its user remembered, and
//! the receiver learns of it as `Missed` before it takes anything more. Notices (`Missed`, `Up`,
//! `Down`, `Reinstated`, `Overtaken`) stand beside the queue and coalesce, so a full queue cannot lose them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::envelope::Envelope;
use super::observed::{Observed, count};
use super::presence::Row;
use crate::model::{ConnectionId, DeviceId, UserId};

/// Past this many named users the hub is better off looking at all of its own.
const MISSED_USERS_MAX: usize = 4096;

/// What reaches the hub.
#[derive(Debug, PartialEq)]
pub enum Inbound {
    Envelope {
        user: UserId,
        envelope: Envelope,
    },
    /// These users (`None`: all) may have missed something; the store knows.
    Missed(Option<Vec<UserId>>),
    /// The link to the other nodes works, and every wanted subscription stands.
    Up,
    Down,
    /// Others had taken this node for dead and announced these devices as gone; their rows are
    /// back, so announce them as connected.
    Reinstated(Vec<(UserId, DeviceId, Row)>),
    /// Newer connections of the devices took their places while nodes could not hear each other:
    /// whoever holds one of these ends it.
    Overtaken(Vec<(UserId, DeviceId, ConnectionId)>),
}

/// How much may wait for the hub.
#[derive(Clone, Copy, Debug)]
pub struct InboundLimits {
    pub messages_max: usize,
    pub bytes_max: usize,
}

impl Default for InboundLimits {
    /// A second of what a busy node receives; 32 MiB so that large payloads cannot pile up.
    fn default() -> Self {
        Self { messages_max: 16 * 1024, bytes_max: 32 << 20 }
    }
}

/// The hub's end.
pub struct InboundReceiver {
    queue: mpsc::Receiver<(UserId, Envelope)>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
pub(super) struct InboundSender {
    queue: mpsc::Sender<(UserId, Envelope)>,
    shared: Arc<Shared>,
    bytes_max: usize,
    observed: Arc<Observed>,
}

#[derive(Default)]
struct Shared {
    bytes_waiting: AtomicUsize,
    notices: Mutex<Notices>,
    noticed: Notify,
}

#[derive(Default)]
struct Notices {
    missed: HashSet<UserId>,
    missed_all: bool,
    up: bool,
    up_reported: bool,
    /// It was down since the last report, however shortly: that is told before "up" is.
    went_down: bool,
    reinstated: Vec<(UserId, DeviceId, Row)>,
    overtaken: Vec<(UserId, DeviceId, ConnectionId)>,
}

pub(super) fn queue(limits: InboundLimits, observed: Arc<Observed>) -> (InboundSender, InboundReceiver) {
    let (tx, rx) = mpsc::channel(limits.messages_max);
    let shared = Arc::new(Shared::default());
    let sender = InboundSender { queue: tx, shared: shared.clone(), bytes_max: limits.bytes_max, observed };
    (sender, InboundReceiver { queue: rx, shared })
}

impl InboundReceiver {
    /// `None` once the backplane is gone and nothing waits any more. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Inbound> {
        loop {
            if let Some(notice) = self.shared.take_notice() {
                return Some(notice);
            }
            tokio::select! {
                biased;
                () = self.shared.noticed.notified() => {}
                item = self.queue.recv() => return match item {
                    Some(item) => Some(self.shared.taken(item)),
                    None => self.shared.take_notice(),
                },
            }
        }
    }

    /// What waits already, for draining a burst without a wake-up each.
    pub fn try_recv(&mut self) -> Option<Inbound> {
        self.shared.take_notice().or_else(|| self.queue.try_recv().ok().map(|item| self.shared.taken(item)))
    }
}

impl InboundSender {
    pub(super) fn offer(&self, user: UserId, envelope: Envelope) {
        let size = envelope.size_bytes();
        let waiting = self.shared.bytes_waiting.fetch_add(size, Relaxed);
        if waiting + size <= self.bytes_max && self.queue.try_send((user, envelope)).is_ok() {
            return count(&self.observed.received);
        }
        self.shared.bytes_waiting.fetch_sub(size, Relaxed);
        count(&self.observed.overflowed);
        self.missed([user]);
    }

    pub(super) fn missed(&self, users: impl IntoIterator<Item = UserId>) {
        self.shared.notice(|notices| {
            if !notices.missed_all {
                notices.missed.extend(users);
            }
            if notices.missed.len() > MISSED_USERS_MAX {
                notices.missed_all = true;
                notices.missed = HashSet::new();
            }
        });
    }

    pub(super) fn missed_all(&self) {
        self.shared.notice(|notices| {
            notices.missed_all = true;
            notices.missed = HashSet::new();
        });
    }

    pub(super) fn link(&self, up: bool) {
        self.shared.notice(|notices| {
            notices.up = up;
            notices.went_down |= !up;
        });
    }

    pub(super) fn reinstated(&self, rows: Vec<(UserId, DeviceId, Row)>) {
        self.shared.notice(|notices| notices.reinstated.extend(rows));
    }

    pub(super) fn overtaken(&self, user: UserId, device: DeviceId, connection: ConnectionId) {
        self.shared.notice(|notices| notices.overtaken.push((user, device, connection)));
    }
}

impl Shared {
    fn notice(&self, change: impl FnOnce(&mut Notices)) {
        change(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner));
        self.noticed.notify_one();
    }

    fn take_notice(&self) -> Option<Inbound> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut notices.went_down) {
            notices.up_reported = false;
            return Some(Inbound::Down);
        }
        if notices.up && !notices.up_reported {
            notices.up_reported = true;
            return Some(Inbound::Up);
        }
        if std::mem::take(&mut notices.missed_all) {
            return Some(Inbound::Missed(None));
        }
        if !notices.missed.is_empty() {
            return Some(Inbound::Missed(Some(notices.missed.drain().collect())));
        }
        if !notices.reinstated.is_empty() {
            return Some(Inbound::Reinstated(std::mem::take(&mut notices.reinstated)));
        }
        if !notices.overtaken.is_empty() {
            return Some(Inbound::Overtaken(std::mem::take(&mut notices.overtaken)));
        }
        None
    }

    fn taken(&self, (user, envelope): (UserId, Envelope)) -> Inbound {
        self.bytes_waiting.fetch_sub(envelope.size_bytes(), Relaxed);
        Inbound::Envelope { user, envelope }
    }
}
