//! Sessions that poll: engineioxide serves them, and the way from there to a
//! WebSocket.
//!
//! An upgrade goes as in the Engine.IO protocol: the client probes the new
//! transport while it still polls, stops polling, and says so; what the engine
//! still holds for it then, and what is sent meanwhile, goes over the WebSocket
//! first. The engine's session ends quietly; ours goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use engineioxide::config::EngineIoConfig;
use engineioxide::handler::EngineIoHandler;
use engineioxide::service::{EngineIoService, NotFoundService};
use engineioxide::{DisconnectReason, Socket, Str};
use futures_util::FutureExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::sync::{Notify, oneshot};
use tower::Service;

use super::websocket::pipe::Pipe;
use super::websocket::take_engine_packet;
use super::{Closed, PATH, Sent, Transport};
use crate::net::Link;
use crate::socket::Services;
use crate::socket::session::Session;
use crate::wire::{self, Frame};

/// Packets that the engine takes for one session; [`IN_FLIGHT_MAX`] bounds their
/// bytes.
const ENGINE_PACKETS_MAX: usize = 1_024;

/// Bytes that may be on their way between here and a polling client.
const IN_FLIGHT_MAX: u64 = 256 * 1024;

/// What the engine still holds is there by then, since the client polls no more.
const LEFTOVER_WITHIN: Duration = Duration::from_secs(5);

/// The engine's packet that says nothing.
const NOOP: &str = "6";

/// The engine that serves polling sessions.
pub(super) type Engine = EngineIoService<Handler, NotFoundService>;

/// Its settings for `services`.
pub(super) fn engine(services: &Arc<Services>) -> Engine {
    let settings = &services.settings;
    let config = EngineIoConfig::builder()
        .req_path(PATH.trim_end_matches('/'))
        .ping_interval(settings.ping_interval)
        .ping_timeout(settings.ping_timeout)
        .max_payload(settings.frame_bytes as u64)
        .max_buffer_size(ENGINE_PACKETS_MAX)
        .build();
    EngineIoService::with_config(Arc::new(Handler { services: services.clone() }), config)
}

/// The engine's callbacks.
pub(super) struct Handler {
    services: Arc<Services>,
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

/// The session of an engine's socket, and its flow.
#[derive(Default)]
pub(super) struct Slot(OnceLock<(Arc<Session>, Arc<Flow>)>);

impl EngineIoHandler for Handler {
    type Data = Slot;

    fn on_connect(self: Arc<Self>, socket: Arc<Socket<Slot>>) {
        let flow = socket.req_parts.extensions.get::<Arc<Flow>>().cloned().unwrap_or_default();
        assert!(flow.socket.set(Arc::downgrade(&socket)).is_ok(), "a session begins once");
        let transport = Transport::Polling(flow.clone());
        let session = Session::open(self.services.clone(), transport, flow.device_info.get().cloned());
        assert!(socket.data.0.set((session, flow)).is_ok(), "a socket connects once");
    }

    fn on_disconnect(&self, socket: Arc<Socket<Slot>>, reason: DisconnectReason) {
        let how = match reason {
            DisconnectReason::TransportClose => Closed::ByClient,
            DisconnectReason::TransportError => Closed::Broken,
            DisconnectReason::HeartbeatTimeout => Closed::Silent,
            DisconnectReason::PacketParsingError
            | DisconnectReason::MultipleHttpPollingError
            | DisconnectReason::ClosingServer => Closed::ByServer,
        };
        if let Some((session, flow)) = socket.data.0.get()
            && flow.end()
        {
            session.closed(how);
        }
    }

    fn on_message(self: &Arc<Self>, message: Str, socket: Arc<Socket<Slot>>) {
        if let Some((session, _)) = socket.data.0.get() {
            session.text(message.as_str());
        }
    }

    fn on_binary(self: &Arc<Self>, _data: Bytes, socket: Arc<Socket<Slot>>) {
        if let Some((session, _)) = socket.data.0.get() {
            session.binary();
        }
    }
}

/// A polling session's way to its client: with its polls, until there is a
/// WebSocket.
#[derive(Default)]
pub struct Flow {
    socket: OnceLock<Weak<Socket<Slot>>>,
    pipe: OnceLock<Arc<Pipe>>,
    way: Mutex<Way>,
    /// An upgrade is under way: polls are answered at once, so that the client
    /// can stop.
    probing: AtomicBool,
    /// Bytes handed to the engine, never less than what left it.
    emitted: AtomicU64,
    polled_bytes: AtomicU64,
    /// The client polled, or went a step of its upgrade.
    heard: Notify,
    /// The connection of the poll that waits; between polls it serves other requests, a proxy's those of other users.
    link: Mutex<Option<Arc<Link>>>,
    /// What the client posts is not read now.
    paused: AtomicBool,
    /// It is again, or never more.
    resumed: Notify,
    /// The deviceInfo of the handshake's query.
    device_info: OnceLock<String>,
    /// The session's entry in the map of flows, if it has one.
    entry: OnceLock<(String, Flows)>,
}

/// How frames get to the client.
#[derive(Default)]
enum Way {
    /// With its polls.
    #[default]
    Polling,
    /// Not now: its WebSocket is about to take over.
    Held(Vec<Frame>),
    /// Over its WebSocket.
    Upgraded,
    /// Not any more: the engine's session has ended, and ours with it.
    Ended,
}

/// Polling sessions by their id, for the requests that follow the first.
pub(super) type Flows = Arc<DashMap<String, Weak<Flow>>>;

impl Flow {
    /// The flow of a handshake.
    pub fn new(device_info: Option<String>) -> Arc<Self> {
        let flow = Self::default();
        if let Some(device_info) = device_info {
            flow.device_info.get_or_init(|| device_info);
        }
        Arc::new(flow)
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self) -> Option<Arc<Socket<Slot>>> {
        self.socket.get().and_then(Weak::upgrade)
    }

    fn link(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its WebSocket, once it has one.
    pub fn pipe(&self) -> Option<&Arc<Pipe>> {
        self.pipe.get()
    }

    /// Learns the session's id, by which the requests that follow find it.
    pub fn enter(self: &Arc<Self>, sid: String, flows: &Flows) {
        if self.entry.set((sid.clone(), flows.clone())).is_ok() {
            flows.insert(sid, Arc::downgrade(self));
        }
    }

    /// A poll arrives on this connection.
    pub fn begin_poll(&self, link: Option<Arc<Link>>) {
        *self.link() = link;
        if self.probing.load(Ordering::Acquire) {
            self.emit(&wire::nudge());
        }
        self.heard.notify_waiters();
    }

    /// The poll on this connection was answered with so many bytes.
    pub fn end_poll(&self, link: Option<&Arc<Link>>, bytes: usize) {
        let mut polling = self.link();
        // It may be a second poll's by now.
        if polling.as_ref().map(Arc::as_ptr) == link.map(Arc::as_ptr) {
            *polling = None;
        }
        drop(polling);
        self.polled_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Sends a frame, if there is room.
    pub fn send(&self, frame: &Frame) -> Sent {
        if let Some(pipe) = self.pipe() {
            return pipe.send(frame.websocket());
        }
        let mut way = self.way();
        let (emitted, polled) =
            (self.emitted.load(Ordering::Relaxed), self.polled_bytes.load(Ordering::Relaxed));
        if emitted.saturating_sub(polled) >= IN_FLIGHT_MAX {
            return Sent::Full;
        }
        let sent = match &mut *way {
            Way::Polling => self.emit(frame),
            Way::Held(held) => {
                held.push(frame.clone());
                Sent::Yes
            }
            Way::Ended => Sent::Gone,
            Way::Upgraded => {
                drop(way);
                return self.pipe().map_or(Sent::Gone, |pipe| pipe.send(frame.websocket()));
            }
        };
        if sent == Sent::Yes {
            // Heartbeats are polled but not emitted; so the count catches up whenever the way is
            // free.
            self.emitted.store(emitted.max(polled) + frame.len() as u64, Ordering::Relaxed);
        }
        sent
    }

    /// Hands a frame to the engine.
    fn emit(&self, frame: &Frame) -> Sent {
        use tokio::sync::mpsc::error::TrySendError;
        let Some(socket) = self.socket() else { return Sent::Gone };
        match socket.emit(Str::from(frame.as_str().to_owned())) {
            Ok(()) => Sent::Yes,
            Err(TrySendError::Full(_)) => Sent::Full,
            Err(TrySendError::Closed(_)) => Sent::Gone,
        }
    }

    /// Closes the session after what is on its way.
    pub fn close(&self) {
        match (self.pipe(), self.socket()) {
            (Some(pipe), _) => pipe.close(1000),
            (None, Some(socket)) => socket.close(DisconnectReason::ClosingServer),
            (None, None) => {}
        }
    }

    /// Closes the session now.
    pub fn cut(&self) {
        if let Some(pipe) = self.pipe() {
            return pipe.kill();
        }
        if let Some(link) = &*self.link() {
            link.kill();
        }
        self.close();
    }

    /// Stops reading from the client: what it posts next waits. Its connections are not touched, since they are its own
    /// only while they carry a request of its.
    pub fn pause(&self) {
        match self.pipe() {
            Some(pipe) => pipe.pause(),
            None => self.paused.store(true, Ordering::Release),
        }
    }

    /// Reads again.
    pub fn resume(&self) {
        // Paused as a polling session, it may be a WebSocket by now.
        self.read_posts();
        if let Some(pipe) = self.pipe() {
            pipe.resume();
        }
    }

    fn read_posts(&self) {
        if self.paused.swap(false, Ordering::AcqRel) {
            self.resumed.notify_waiters();
        }
    }

    /// Waits until what the client posts may be read.
    pub async fn readable(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.paused.load(Ordering::Acquire) {
                return;
            }
            resumed.await;
        }
    }

    /// The engine's session has ended; whether ours ends with it, and does not go on over a WebSocket.
    fn end(&self) -> bool {
        let mut way = self.way();
        let ends = self.pipe().is_none();
        if ends {
            *way = Way::Ended;
        }
        drop(way);
        self.read_posts();
        ends
    }

    /// Goes over to a WebSocket with what the engine has left and what was held; false when there is nothing to go on
    /// with.
    fn take_over(&self, pipe: &Arc<Pipe>, leftover: &[String]) -> bool {
        let mut way = self.way();
        let Way::Held(held) = &mut *way else { return false };
        for packet in leftover {
            match packet.strip_prefix('4') {
                Some(text) => pipe.send_in_any_case(Frame::new(text).websocket().clone()),
                None if packet == NOOP => continue,
                // A heartbeat: the WebSocket has its own. Or the engine has closed the session.
                None if packet.starts_with('2') => continue,
                None => return false,
            };
        }
        for frame in held.drain(..) {
            pipe.send_in_any_case(frame.websocket().clone());
        }
        *way = Way::Upgraded;
        // Before the way is free: whoever finds the session upgraded, or ends it, finds the pipe.
        self.pipe.set(pipe.clone()).is_ok()
    }

    /// Waits until the client is heard.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Makes the client poll again, if it still can.
    pub async fn ping(&self) {
        // A polling client that gets something asks again, unless it is on its way to a WebSocket.
        let heard = self.heard.notified();
        if self.pipe().is_some() {
            return; // it has arrived there this moment
        }
        if self.send(&wire::nudge()) == Sent::Full {
            self.close();
        }
        heard.await;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some((sid, flows)) = self.entry.get() {
            flows.remove(sid);
        }
    }
}

/// A polling session that is becoming a WebSocket.
pub(super) struct Upgrade {
    flow: Arc<Flow>,
    engine: Engine,
    services: Arc<Services>,
    leftover: Option<oneshot::Receiver<Vec<String>>>,
    /// What the client sent right after its last word as a polling one.
    early: Vec<String>,
}

impl Upgrade {
    /// Of the session with this flow.
    pub fn new(flow: Arc<Flow>, engine: Engine, services: Arc<Services>) -> Self {
        Self { flow, engine, services, leftover: None, early: Vec::new() }
    }

    /// The client has probed the WebSocket: it is to stop polling.
    pub fn begin(&self) {
        self.flow.probing.store(true, Ordering::Release);
        self.flow.heard.notify_waiters();
        self.flow.emit(&wire::nudge());
    }

    /// The client polls no more: what is sent from now on is held, and what the
    /// engine has not got rid of is fetched.
    pub fn switch(mut self) -> Self {
        let mut way = self.flow.way();
        if matches!(*way, Way::Polling) {
            *way = Way::Held(Vec::new());
        }
        drop(way);
        // So that the poll below is answered at once.
        self.flow.emit(&wire::nudge());
        let (fetched, leftover) = oneshot::channel();
        self.leftover = Some(leftover);
        let (engine, sid) = (self.engine.clone(), self.flow.entry.get().map(|(sid, _)| sid.clone()));
        self.services.tasks.spawn(async move {
            let polled = tokio::time::timeout(LEFTOVER_WITHIN, poll_once(engine, sid?)).await.ok()??;
            // Nobody may wait for it any more.
            fetched.send(polled).ok()
        });
        self
    }

    /// Keeps a packet that came before the switch was done.
    pub fn keep(&mut self, packet: &str) {
        self.early.push(packet.to_owned());
    }

    /// Ready: the session goes on over `pipe`, or there is none any more.
    pub fn poll_switched(&mut self, cx: &mut Context<'_>, pipe: &Arc<Pipe>) -> Poll<Option<Arc<Session>>> {
        let Some(leftover) = &mut self.leftover else { return Poll::Ready(None) };
        let Ok(leftover) = ready!(leftover.poll_unpin(cx)) else { return Poll::Ready(None) };
        let Some(session) = self.finish(pipe, &leftover) else { return Poll::Ready(None) };
        let all_taken = self.early.drain(..).all(|packet| take_engine_packet(&session, &packet));
        if !all_taken {
            pipe.close(1000);
        }
        Poll::Ready(Some(session))
    }

    fn finish(&self, pipe: &Arc<Pipe>, leftover: &[String]) -> Option<Arc<Session>> {
        let flow = &self.flow;
        let socket = flow.socket()?;
        let (session, _) = socket.data.0.get()?;
        if !flow.take_over(pipe, leftover) {
            return None;
        }
        flow.heard.notify_waiters();
        socket.close(DisconnectReason::ClosingServer);
        if let Some((sid, flows)) = flow.entry.get() {
            flows.remove(sid);
        }
        Some(session.clone())
    }

    /// The WebSocket is gone before it took over: the session goes on polling,
    /// unless its client had stopped already.
    pub fn abandon(self) {
        self.flow.probing.store(false, Ordering::Release);
        if self.leftover.is_some() && self.flow.pipe().is_none() {
            self.flow.close();
        }
    }
}

/// Polls in the client's place; the packets that were waiting.
async fn poll_once(mut engine: Engine, sid: String) -> Option<Vec<String>> {
    let uri = format!("{PATH}?EIO=4&transport=polling&sid={sid}");
    let request = Request::builder().uri(uri).body(Full::<Bytes>::default()).ok()?;
    let Ok(response) = engine.call(request).await;
    if !response.status().is_success() {
        return None;
    }
    let body = response.into_body().collect().await.ok()?.to_bytes();
    let text = std::str::from_utf8(&body).ok()?;
    Some(text.split('\u{1e}').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests;
