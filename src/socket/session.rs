//! One Engine.IO session: its packets come in here ([`incoming`]), and what others
//! send to its device goes out here.
//!
//! Life: opened by the engine; one CONNECT makes it a device (`connect`); its
//! events take their turns (`inbox`, `events`); then it is closed, by the
//! client, the transport or the server, and its device leaves the hub ([`ending`]).

mod ending;
mod incoming;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Services;
use super::engine::Transport;
use super::expiry::Stage;
use super::inbox::Inbox;
use super::outbox::{Outbox, Then};
use super::share::SocketShare;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Class, Ending, Gone, Item, PROBE_WAIT, Recipient};
use crate::model::{ConnectionId, DeviceId, LoginId, Seq, Timestamp, UserId};
use crate::wire::{self, AckId, Frame};

/// A session that is no device by then is closed.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Whom a connected session speaks for.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// This connection of it.
    pub connection: ConnectionId,
    /// The login of the token that it connected with.
    pub login: Option<LoginId>,
    /// When that token ends.
    pub expires_at: Timestamp,
}

/// See the module's comment.
pub struct Session {
    me: Weak<Session>,
    pub(super) services: Arc<Services>,
    pub(super) transport: Transport,
    pub(super) inbox: Inbox,
    outbox: Outbox,
    who: OnceLock<Who>,
    /// When the token in force ends, in milliseconds since 1970.
    token_ends: AtomicI64,
    share: Mutex<Option<SocketShare>>,
    connecting: AtomicBool,
    closed: AtomicBool,
    left: AtomicBool,
    draining: AtomicBool,
    /// Answers that are known later than the turn of their events.
    answers_owed: AtomicUsize,
    attachments_left: AtomicU32,
    refusals: AtomicU32,
    /// The deviceInfo of the handshake's query, until CONNECT takes it.
    device_info: Mutex<Option<String>>,
}

impl Session {
    /// A session that the engine has just opened. It must become a device in
    /// time.
    pub fn open(services: Arc<Services>, transport: Transport, device_info: Option<String>) -> Arc<Self> {
        let session = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            services,
            transport,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            who: OnceLock::new(),
            token_ends: AtomicI64::new(0),
            share: Mutex::default(),
            connecting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            left: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            answers_owed: AtomicUsize::new(0),
            attachments_left: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            device_info: Mutex::new(device_info),
        });
        let (waiting, tasks) = (session.me.clone(), session.services.tasks.clone());
        session.services.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(CONNECT_DEADLINE) => {}
                () = tasks.ending() => {}
            }
            if let Some(session) = waiting.upgrade()
                && session.who.get().is_none()
            {
                session.transport.close();
            }
        });
        session
    }

    /// The deviceInfo of the handshake's query; once.
    pub(super) fn take_device_info(&self) -> Option<String> {
        self.device_info.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whom it speaks for, once connected.
    pub fn who(&self) -> Option<Who> {
        self.who.get().copied()
    }

    /// Becomes a device; from now on its events are judged and its going is
    /// told. False when it was closed meanwhile and is gone again.
    pub(super) fn become_device(&self, who: Who) -> bool {
        let share = self.services.shares.socket(who.user, Instant::now());
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = Some(share);
        self.services.metrics.sockets.increment(1);
        self.token_ends.store(who.expires_at.0, Ordering::Release);
        self.services.expiry.watch(who.connection, self.me.clone(), who.expires_at);
        let fresh = self.who.set(who).is_ok();
        if self.closed.load(Ordering::Acquire) {
            self.leave(who, Gone::TransportClose);
            return false;
        }
        fresh
    }

    /// When the token in force ends.
    pub(super) fn token_ends(&self) -> Timestamp {
        Timestamp(self.token_ends.load(Ordering::Acquire))
    }

    /// Another token of the same user is in force from now on.
    pub(super) fn renew(&self, who: Who, ends: Timestamp) {
        let expiry = &self.services.expiry;
        expiry.forget(who.connection, self.token_ends());
        self.token_ends.store(ends.0, Ordering::Release);
        expiry.watch(who.connection, self.me.clone(), ends);
        if self.left.load(Ordering::Acquire) {
            expiry.forget(who.connection, ends);
        }
    }

    /// The token in force ends soon, or has ended.
    pub(super) fn token_due(&self, stage: Stage) {
        match stage {
            Stage::Warning => {
                let body = format!("{{\"expiresAt\":\"{}\"}}", self.token_ends());
                self.push(wire::event("auth-expiring", &body));
            }
            Stage::End => self.end(Ending::TokenExpired),
        }
    }

    /// Answers an event: its ack if it asked for one, else an `error` event if
    /// it failed.
    pub(super) fn answer(&self, id: Option<AckId>, name: Option<&str>, outcome: Outcome<String>) {
        let frame = match (id, outcome) {
            (Some(id), Ok(body)) => wire::ack(id, &body),
            (None, Ok(_)) => return,
            (id, Err(failure)) => {
                self.services.metrics.events_refused.count(failure.code);
                match id {
                    Some(id) => wire::refusal(id, &failure),
                    None => wire::error_event(&failure, name),
                }
            }
        };
        self.push_item(Item { frame, class: Class::Answer });
    }

    /// Waits until an answer may be made, however long: a device that reads nothing is cut.
    pub(super) async fn has_room_for_answer(&self) {
        self.outbox.has_room_for_answer().await;
    }

    /// Promises an answer that is known later: a node that goes away waits for it.
    pub(super) fn owe_answer(self: &Arc<Self>) -> OwedAnswer {
        self.answers_owed.fetch_add(1, Ordering::AcqRel);
        OwedAnswer(self.clone())
    }

    fn push(&self, frame: Frame) {
        self.push_item(Item { frame, class: Class::Plain });
    }

    fn push_item(&self, item: Item) {
        let then = self.outbox.push(item, &self.transport, &self.services.metrics);
        self.then(then);
    }

    fn then(&self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::StartPump => {
                let me = self.me.clone();
                self.services.tasks.spawn(async move {
                    while let Some(session) = me.upgrade() {
                        session.transport.room().await;
                        if !session.outbox.pump(&session.transport, &session.services.metrics) {
                            return;
                        }
                    }
                });
            }
            Then::Cut => {
                self.services.metrics.disconnects_slow_consumer.increment(1);
                tracing::info!(reason = "slow_consumer", "connection cut");
                self.transport.cut();
            }
        }
    }
}

/// See [`Session::owe_answer`].
pub(super) struct OwedAnswer(Arc<Session>);

impl OwedAnswer {
    pub(super) fn session(&self) -> &Session {
        &self.0
    }
}

impl Drop for OwedAnswer {
    fn drop(&mut self) {
        self.0.answers_owed.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Recipient for Session {
    fn push(&self, item: Item) {
        self.push_item(item);
    }

    fn open(&self, restored: Frame, floor: Seq) {
        let then = self.outbox.open(restored, floor, &self.transport, &self.services.metrics);
        self.then(then);
    }

    fn has_room(&self) -> bool {
        self.outbox.is_empty()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn probe(&self) -> BoxFuture<'static, bool> {
        let transport = self.transport.clone();
        async move { tokio::time::timeout(PROBE_WAIT, transport.ping()).await.is_ok() }.boxed()
    }

    fn end(&self, why: Ending) {
        match why {
            Ending::Replaced => {
                let message = "Another connection of this device took over.";
                self.farewell(Failure::new(Code::Replaced, message), Gone::ServerClose);
            }
            Ending::LoginEnded => {
                let failure = Failure::new(Code::Unauthorized, "This login has ended.");
                self.farewell(failure, Gone::ServerDisconnect);
            }
            Ending::DeviceRevoked => {
                let message = "This device was removed by its user.";
                self.farewell(Failure::new(Code::DeviceRevoked, message), Gone::ServerDisconnect);
            }
            // Who has a fresh token at hand is back within the grace.
            Ending::TokenExpired => {
                let failure = Failure::new(Code::TokenExpired, "The token has expired.");
                self.farewell(failure, Gone::ServerClose);
            }
            Ending::ComeBack => self.transport.cut(),
            Ending::Draining => self.drain(),
        }
    }
}
