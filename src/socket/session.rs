//! One Engine.IO session: its packets come in here, and what others send to its
//! device goes out here.
//!
//! Life: opened by the engine; one CONNECT makes it a device (`connect`); its
//! events take their turns (`inbox`, `events`); then it is closed, by the
//! client, the transport or the server, and its device leaves the hub.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::engine::{Closed, Transport};
use super::expiry::Stage;
use super::inbox::{Inbox, Turn};
use super::outbox::{Outbox, Then};
use super::packet::{self, Kind, Packet};
use super::share::{SocketShare, Verdict};
use super::{Services, connect, events, fields};
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Class, Ending, Gone, Item, PROBE_WAIT, Recipient};
use crate::model::{ConnectionId, DeviceId, LoginId, Seq, Timestamp, UserId};
use crate::wire::{self, AckId, Frame};

/// A session that is no device by then is closed.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What is in an inbox when the node drains is answered within this.
const DRAIN_ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// How long a client may take to fetch why it has to go.
const FAREWELL_WAIT: Duration = Duration::from_secs(3);

/// A client has heard that the node is going by then. Closing earlier, under what
/// it is just sending, would make the kernel throw away what it has not read.
const DRAIN_HEARD_AFTER: Duration = Duration::from_millis(100);

/// How often a draining session looks whether its inbox is empty.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(5);

/// Refusals after which reading rests for a moment.
const REFUSALS_BEFORE_REST: u32 = 64;

/// That moment.
const REST: Duration = Duration::from_millis(5);

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

    /// Whether its device is gone again, or was never there.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A text message from the client: one Socket.IO packet.
    pub fn text(self: &Arc<Self>, text: &str) {
        // A packet that interrupts another's attachments, or none at all.
        let parsed = packet::parse(text).ok().filter(|_| self.attachments_left.load(Ordering::Relaxed) == 0);
        let Some(packet) = parsed else { return self.transport.close() };
        match packet.kind {
            Kind::Connect => self.connect(&packet),
            _ if packet.namespace != "/" => self.transport.close(),
            _ if !self.connecting.load(Ordering::Acquire) => self.transport.close(),
            Kind::Disconnect => self.goodbye(),
            Kind::Event => self.event(packet.id, packet.json),
            Kind::BinaryEvent => self.binary_event(&packet),
            Kind::Ack => {}
            Kind::BinaryAck => self.attachments_left.store(packet.attachments, Ordering::Relaxed),
            Kind::ConnectError => self.transport.close(),
        }
    }

    /// A binary message: an attachment, of which nothing is wanted.
    pub fn binary(&self) {
        let left = self.attachments_left.load(Ordering::Relaxed);
        match left.checked_sub(1) {
            Some(left) => self.attachments_left.store(left, Ordering::Relaxed),
            None => self.transport.close(),
        }
    }

    fn connect(self: &Arc<Self>, packet: &Packet<'_>) {
        if packet.namespace != "/" {
            // Not through the outbox, which waits for a restore.
            self.transport.send_or_close(&wire::unknown_namespace(packet.namespace));
            return;
        }
        if self.connecting.swap(true, Ordering::AcqRel) {
            let failure = Failure::new(Code::InvalidOperation, "This socket is connected already.");
            self.push(wire::error_event(&failure, Some("connect")));
            return;
        }
        let (session, auth) = (self.clone(), packet.json.to_owned());
        self.services.tasks.spawn(async move { connect::connect(&session, &auth).await });
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

    /// CONNECT was refused: the client has a moment to read why.
    pub(super) fn refused(&self) {
        self.inbox.close();
        self.close_later();
    }

    /// Closes the transport once the client has had time to read what it was told.
    fn close_later(&self) {
        let transport = self.transport.clone();
        self.services.tasks.spawn(async move {
            tokio::time::sleep(FAREWELL_WAIT).await;
            transport.close();
        });
    }

    /// The restore is out: events that waited for it are handled now.
    pub(super) fn open_inbox(self: &Arc<Self>) {
        if self.inbox.open() {
            self.start_worker();
        }
    }

    fn event(self: &Arc<Self>, id: Option<AckId>, json: &str) {
        self.services.metrics.events_in.increment(1);
        if let Err(failure) = self.judge(json.len()) {
            return self.refuse(id, json, failure);
        }
        if self.draining.load(Ordering::Acquire) {
            return self.refuse(id, json, Failure::new(Code::Draining, "This node is going away."));
        }
        match self.inbox.arrive(id, json) {
            Turn::Now => {
                if events::handle_at_once(self, id, json) {
                    self.take_next();
                } else {
                    self.start_worker_with(id, json.into());
                }
            }
            Turn::Waits { crowded: false } => {}
            Turn::Waits { crowded: true } => self.transport.pause(),
            Turn::Full => {
                self.services.metrics.inbox_full.increment(1);
                self.refuse(id, json, Failure::rate_limited(100));
            }
        }
    }

    /// Binary payloads cannot be merged, kept or replayed as JSON.
    fn binary_event(self: &Arc<Self>, packet: &Packet<'_>) {
        self.attachments_left.store(packet.attachments, Ordering::Relaxed);
        self.services.metrics.events_in.increment(1);
        let failure = self.judge(packet.json.len()).err().unwrap_or_else(|| {
            Failure::field("payload", "Payloads are JSON; binary attachments are not taken.")
        });
        self.refuse(packet.id, packet.json, failure);
    }

    /// Refuses an event that was not looked into; its name is only read where the
    /// answer needs it.
    fn refuse(&self, id: Option<AckId>, json: &str, failure: Failure) {
        let name = if id.is_none() { fields::named(json).ok().map(|event| event.name) } else { None };
        self.answer(id, name.as_deref(), Err(failure));
    }

    fn judge(&self, bytes: usize) -> Outcome<()> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = share.as_mut().map_or(Verdict::Take, |share| share.judge(bytes, Instant::now()));
        drop(share);
        match verdict {
            Verdict::Take => Ok(()),
            Verdict::Refuse(wait) => {
                self.services.metrics.events_rate_limited.increment(1);
                if self.refusals.fetch_add(1, Ordering::Relaxed) % REFUSALS_BEFORE_REST
                    == REFUSALS_BEFORE_REST - 1
                {
                    self.rest();
                }
                Err(Failure::rate_limited(wait.as_millis() as u64))
            }
            Verdict::Flood => {
                self.services.metrics.disconnects_flood.increment(1);
                self.transport.cut();
                Err(Failure::rate_limited(10_000))
            }
        }
    }

    /// Reads nothing for a moment: TCP slows the sender down.
    fn rest(&self) {
        self.transport.pause();
        let me = self.me.clone();
        self.services.tasks.spawn(async move {
            tokio::time::sleep(REST).await;
            if let Some(session) = me.upgrade()
                && session.inbox.has_room()
            {
                session.transport.resume();
            }
        });
    }

    fn take_next(self: &Arc<Self>) {
        if let Some(next) = self.inbox.next() {
            self.start_worker_with(next.id, next.json);
        }
    }

    fn start_worker(self: &Arc<Self>) {
        self.take_next();
    }

    fn start_worker_with(self: &Arc<Self>, id: Option<AckId>, json: Box<str>) {
        let session = self.clone();
        self.services.tasks.spawn(async move { events::work(&session, id, json).await });
    }

    /// Answers an event: its ack if it asked for one, else an `error` event if
    /// it failed.
    pub(super) fn answer(&self, id: Option<AckId>, name: Option<&str>, outcome: Outcome<String>) {
        let frame = match (id, outcome) {
            (Some(id), Ok(body)) => wire::ack(id, &body),
            (None, Ok(_)) => return,
            (id, Err(failure)) => {
                self.services.metrics.events_refused.increment(1);
                match id {
                    Some(id) => wire::refusal(id, &failure),
                    None => wire::error_event(&failure, name),
                }
            }
        };
        self.push(frame);
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

    /// Announces that the node is going, answers what is in the inbox, refuses
    /// what comes after, then closes the transport: stock clients come back, to another node.
    fn drain(&self) {
        if self.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        self.push(wire::event("server-draining", "{\"reconnectInMs\":0}"));
        self.inbox.close();
        let me = self.me.clone();
        self.services.tasks.spawn(async move {
            let announced = Instant::now();
            while let Some(session) = me.upgrade() {
                let waited = announced.elapsed();
                let is_answered = session.inbox.is_at_rest()
                    && session.answers_owed.load(Ordering::Acquire) == 0
                    && waited >= DRAIN_HEARD_AFTER;
                if is_answered || waited > DRAIN_ANSWERS_WITHIN {
                    return session.transport.close();
                }
                drop(session);
                tokio::time::sleep(DRAIN_LOOK_EVERY).await;
            }
        });
    }

    /// Tells the client why it has to go, in a way that makes stock clients stay
    /// away, and closes. What the client sent before is not answered any more.
    fn farewell(&self, why: Failure, gone: Gone) {
        let farewell = [wire::error_event(&why, None), wire::disconnect()];
        if self.outbox.is_held() {
            // Before the restore nothing else is on its way; the client has not
            // even heard that it is connected.
            if let Some(who) = self.who() {
                self.transport.send_or_close(&wire::connected(who.connection));
            }
            farewell.iter().for_each(|frame| self.transport.send_or_close(frame));
        } else {
            farewell.into_iter().for_each(|frame| self.push(frame));
        }
        self.gone(gone);
        if self.transport.is_websocket() {
            return self.transport.close();
        }
        // A polling client fetches what is left for it, and closes by itself.
        self.close_later();
    }

    /// The client's own `disconnect()`: the others hear of it at once.
    fn goodbye(&self) {
        self.gone(Gone::ClientDisconnect);
        self.transport.close();
    }

    /// The transport is closed.
    pub fn closed(&self, how: Closed) {
        let gone = match how {
            Closed::ByClient => Gone::TransportClose,
            Closed::Broken => Gone::TransportError,
            Closed::Silent => Gone::PingTimeout,
            Closed::ByServer => Gone::ServerClose,
        };
        self.gone(gone);
    }

    fn gone(&self, gone: Gone) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.outbox.close();
        self.inbox.close();
        if let Some(who) = self.who.get() {
            self.leave(*who, gone);
        }
    }

    /// Takes the device out of the hub, once, whoever notices first.
    fn leave(&self, who: Who, gone: Gone) {
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let metrics = &self.services.metrics;
        match gone {
            Gone::ClientDisconnect => metrics.disconnects_client.increment(1),
            Gone::TransportClose | Gone::TransportError => metrics.disconnects_transport.increment(1),
            Gone::PingTimeout => metrics.disconnects_heartbeat.increment(1),
            Gone::ServerClose | Gone::ServerDisconnect => metrics.disconnects_server.increment(1),
        }
        metrics.sockets.decrement(1);
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.services.shares.forget(who.user);
        self.services.expiry.forget(who.connection, self.token_ends());
        self.services.mailbox.left(who.device, who.connection);
        self.services.devices.leave(who.user, who.device, who.connection, gone);
        let (user, device, connection) = (who.user, who.device, who.connection);
        let reason = gone.as_str();
        tracing::info!(user.id = %user, device.id = %device, connection.id = %connection, reason, "device disconnected");
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
