//! All that knows the connection engine, and the layer in front of it.
//!
//! The engine is engineioxide, the Engine.IO half of socketioxide. Its callbacks
//! come inline from the task that reads, its packets are shared text, and its
//! sockets close without a farewell that keeps stock clients away; the Socket.IO
//! half would spawn a task an event and encode a packet a device. The layer in
//! front refuses what the engine would let pass, bounds bodies in size and time,
//! and hands the engine small copies of requests, because slices of the
//! originals would keep hyper's 16 KiB read buffer alive as long as the socket.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use engineioxide::config::EngineIoConfig;
use engineioxide::handler::EngineIoHandler;
use engineioxide::service::{EngineIoService, NotFoundService};
use engineioxide::{DisconnectReason, Socket, Str, TransportType};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tower::Service;

use super::Services;
use super::session::Session;
use crate::failure::{Code, Failure};
use crate::net::{Link, Peer};
use crate::wire::{self, Frame};

/// Where Socket.IO lives.
pub const PATH: &str = "/socket.io/";

/// Packets that the engine takes for one socket; the outbox bounds their bytes.
const ENGINE_PACKETS_MAX: usize = 1_024;

/// Bytes that the WebSocket layer reads at a time; it keeps such a buffer for
/// every socket.
const READ_BUFFER_BYTES: usize = 512;

/// A body must have arrived by then.
const BODY_DEADLINE: Duration = Duration::from_secs(20);

/// How often a pump that waits for room looks for itself. Polling clients and
/// an engine that is full give no sign.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The engine has no room now.
    Full,
    /// The socket is closed.
    Gone,
}

/// How a transport ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client closed it.
    ByClient,
    /// It broke.
    Broken,
    /// The client answered no heartbeat.
    Silent,
    /// The server closed it.
    ByServer,
}

/// One session's way to its client, whichever transport it uses now.
#[derive(Clone)]
pub struct Transport {
    socket: Weak<Socket<Slot>>,
    flow: Arc<Flow>,
}

impl Transport {
    /// Hands a frame to the engine.
    pub fn send(&self, frame: &Frame) -> Sent {
        use tokio::sync::mpsc::error::TrySendError;
        let Some(socket) = self.socket.upgrade() else { return Sent::Gone };
        // SAFETY: a frame's bytes are always UTF-8, since it is made from a String.
        let text = unsafe { Str::from_bytes_unchecked(frame.bytes().clone()) };
        match socket.emit(text) {
            Ok(()) => Sent::Yes,
            Err(TrySendError::Full(_)) => Sent::Full,
            Err(TrySendError::Closed(_)) => Sent::Gone,
        }
    }

    /// Sends a frame that must not get lost, or closes the transport.
    pub fn send_or_close(&self, frame: &Frame) {
        if self.send(frame) == Sent::Full {
            self.close();
        }
    }

    /// Closes the transport after what is on its way. Stock clients come back.
    pub fn close(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.close(DisconnectReason::ClosingServer);
        }
    }

    /// Closes the transport now, also under a peer that reads nothing.
    pub fn cut(&self) {
        self.flow.kill();
        self.close();
    }

    /// Bytes that have left for the kernel so far, over all transports.
    pub fn written(&self) -> u64 {
        self.flow.written()
    }

    /// Stops reading from the client.
    pub fn pause(&self) {
        self.flow.each_link(Link::pause);
    }

    /// Reads again.
    pub fn resume(&self) {
        self.flow.each_link(Link::resume);
    }

    /// Waits until there may be room.
    pub async fn room(&self) {
        let link = self.flow.links().websocket.clone();
        let wait = async {
            match link {
                Some(link) => link.room().await,
                None => self.flow.polled.notified().await,
            }
        };
        // Either way the caller looks for itself.
        drop(tokio::time::timeout(ROOM_CHECK, wait).await);
    }

    /// Resolves when the client answered a ping.
    pub async fn ping(&self) {
        let link = self.flow.links().websocket.clone();
        match link.filter(|_| self.is_websocket()) {
            Some(link) => {
                let before = link.reads();
                link.ping_with_next_frame();
                self.send_or_close(&wire::nudge());
                while link.reads() == before && !link.is_killed() {
                    drop(tokio::time::timeout(ROOM_CHECK, link.heard()).await);
                }
                if link.is_killed() {
                    std::future::pending::<()>().await;
                }
            }
            None => {
                // A polling client that gets something asks again.
                let asked = self.flow.polled.notified();
                self.send_or_close(&wire::nudge());
                asked.await;
            }
        }
    }

    /// Whether it is a WebSocket by now.
    pub fn is_websocket(&self) -> bool {
        let transport = self.socket.upgrade().map(|socket| socket.transport_type());
        matches!(transport, Some(TransportType::Websocket))
    }

    /// The deviceInfo of the handshake's query; once.
    pub fn take_device_info(&self) -> Option<String> {
        self.flow.device_info.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the layer in front knows of one Engine.IO session.
#[derive(Default)]
struct Flow {
    links: Mutex<Links>,
    polled_bytes: std::sync::atomic::AtomicU64,
    polled: Notify,
    device_info: Mutex<Option<String>>,
    /// The session's entry in the map of flows, if it has one.
    entry: OnceLock<(String, Flows)>,
}

#[derive(Default)]
struct Links {
    websocket: Option<Arc<Link>>,
    polling: Option<Arc<Link>>,
}

/// Polling sessions by their id, for the requests that follow the first.
type Flows = Arc<DashMap<String, Weak<Flow>>>;

impl Flow {
    fn of_handshake(device_info: Option<String>) -> Arc<Self> {
        let flow = Self::default();
        *flow.device_info.lock().unwrap_or_else(PoisonError::into_inner) = device_info;
        Arc::new(flow)
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each_link(&self, act: impl Fn(&Link)) {
        let links = self.links();
        links.websocket.iter().chain(&links.polling).for_each(|link| act(link));
    }

    fn kill(&self) {
        self.each_link(Link::kill);
    }

    fn written(&self) -> u64 {
        let websocket = self.links().websocket.as_ref().map_or(0, |link| link.written());
        websocket + self.polled_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some((sid, flows)) = self.entry.get() {
            flows.remove(sid);
        }
    }
}

/// The engine's callbacks.
struct Handler {
    services: Arc<Services>,
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

/// The session of an engine's socket.
#[derive(Default)]
pub struct Slot(OnceLock<Arc<Session>>);

impl EngineIoHandler for Handler {
    type Data = Slot;

    fn on_connect(self: Arc<Self>, socket: Arc<Socket<Slot>>) {
        let flow = socket.req_parts.extensions.get::<Arc<Flow>>().cloned().unwrap_or_default();
        let transport = Transport { socket: Arc::downgrade(&socket), flow };
        let session = Session::open(self.services.clone(), transport);
        assert!(socket.data.0.set(session).is_ok(), "a socket connects once");
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
        if let Some(session) = socket.data.0.get() {
            session.closed(how);
        }
    }

    fn on_message(self: &Arc<Self>, message: Str, socket: Arc<Socket<Slot>>) {
        if let Some(session) = socket.data.0.get() {
            session.text(message.as_str());
        }
    }

    fn on_binary(self: &Arc<Self>, _data: Bytes, socket: Arc<Socket<Slot>>) {
        if let Some(session) = socket.data.0.get() {
            session.binary();
        }
    }
}

/// The HTTP service of [`PATH`].
#[derive(Clone)]
pub struct SocketService {
    engine: EngineIoService<Handler, NotFoundService>,
    flows: Flows,
    services: Arc<Services>,
}

impl SocketService {
    /// Opens sessions that work with `services`.
    pub fn new(services: Arc<Services>) -> Self {
        let settings = &services.settings;
        let config = EngineIoConfig::builder()
            .req_path(PATH.trim_end_matches('/'))
            .ping_interval(settings.ping_interval)
            .ping_timeout(settings.ping_timeout)
            .max_payload(settings.frame_bytes as u64)
            .max_buffer_size(ENGINE_PACKETS_MAX)
            .ws_read_buffer_size(READ_BUFFER_BYTES)
            .build();
        let config = EngineIoConfig {
            ws_max_message_size: settings.frame_bytes,
            ws_max_frame_size: settings.frame_bytes,
            ..config
        };
        let handler = Arc::new(Handler { services: services.clone() });
        Self { engine: EngineIoService::with_config(handler, config), flows: Flows::default(), services }
    }

    async fn answer(mut self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(asked) = Asked::of(&request) else { return bad_request("Bad request") };
        if asked.sid.is_none()
            && let Some(refusal) = self.refusal(&request)
        {
            return refusal;
        }
        if asked.is_websocket && !is_good_upgrade(&request) {
            return bad_request("Bad request");
        }
        let flow = self.attach(&asked, &request);
        let is_poll = request.method() == Method::GET && !asked.is_websocket;
        if let (Some(flow), true, true) = (&flow, is_poll, asked.sid.is_some()) {
            flow.polled.notify_waiters();
        }
        let slim = match slim(request, &asked, flow.clone(), self.services.settings.frame_bytes).await {
            Ok(slim) => slim,
            Err(refusal) => return refusal,
        };
        let Ok(response) = self.engine.call(slim).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if let (Some(flow), true) = (flow, is_poll) {
            flow.polled_bytes.fetch_add(body.len() as u64, std::sync::atomic::Ordering::Relaxed);
            if asked.sid.is_none() {
                self.remember(&flow, &body);
            }
        }
        Response::from_parts(parts, Full::new(body))
    }

    /// A new session that cannot be served now: the client comes back later,
    /// perhaps to another node.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let over_cap = request.extensions().get::<Peer>().is_some_and(|peer| peer.over_cap);
        if self.services.tasks.refuses_sockets() {
            Some(unavailable(&Failure::new(Code::Draining, "This node is going away.")))
        } else if over_cap {
            Some(unavailable(&Failure::new(Code::TooManyConnections, "This node has too many connections.")))
        } else {
            None
        }
    }

    /// The flow of the request's session: a new one for a handshake.
    fn attach(&self, asked: &Asked, request: &Request<Incoming>) -> Option<Arc<Flow>> {
        let link = request.extensions().get::<Peer>().map(|peer| peer.link.clone());
        let flow = match &asked.sid {
            Some(sid) => self.flows.get(sid)?.upgrade()?,
            None => Flow::of_handshake(asked.device_info.clone()),
        };
        let mut links = flow.links();
        if asked.is_websocket {
            links.websocket = link;
        } else if request.method() == Method::GET {
            links.polling = link;
        }
        drop(links);
        Some(flow)
    }

    /// Learns a polling session's id from the answer to its handshake.
    fn remember(&self, flow: &Arc<Flow>, body: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Open {
            sid: String,
        }
        let open = body.strip_prefix(b"0").and_then(|json| serde_json::from_slice::<Open>(json).ok());
        if let Some(Open { sid }) = open
            && flow.entry.set((sid.clone(), self.flows.clone())).is_ok()
        {
            self.flows.insert(sid, Arc::downgrade(flow));
        }
    }
}

impl Service<Request<Incoming>> for SocketService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}

/// What a request's query asks for.
struct Asked {
    /// The parts of the query that the engine reads, as they came.
    engine_query: String,
    sid: Option<String>,
    is_websocket: bool,
    device_info: Option<String>,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Option<Self> {
        let query = request.uri().query().unwrap_or_default();
        let engine_query = query
            .split('&')
            .filter(|pair| ["EIO=", "transport=", "sid="].iter().any(|name| pair.starts_with(name)))
            .collect::<Vec<_>>()
            .join("&");
        let value = |name: &str| {
            form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        Some(Self {
            sid: value("sid"),
            is_websocket: value("transport").as_deref() == Some("websocket"),
            device_info: value("deviceInfo"),
            engine_query,
        })
    }
}

/// Whether a request is an upgrade as RFC 6455, 4.2.1 wants it. The engine
/// answers 101 to less.
fn is_good_upgrade<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let has_token = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name);
        values
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let is = |name: header::HeaderName, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let key_bytes = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).ok());
    request.method() == Method::GET
        && has_token(header::UPGRADE, "websocket")
        && has_token(header::CONNECTION, "upgrade")
        && is(header::SEC_WEBSOCKET_VERSION, "13")
        && key_bytes.is_some_and(|key| key.len() == 16)
}

/// A small copy of a request, its body read in bounds.
async fn slim(
    mut request: Request<Incoming>,
    asked: &Asked,
    flow: Option<Arc<Flow>>,
    body_bytes_max: usize,
) -> Result<Request<Full<Bytes>>, Response<Full<Bytes>>> {
    let mut builder =
        Request::builder().method(request.method().clone()).uri(format!("{PATH}?{}", asked.engine_query));
    if let Some(headers) = builder.headers_mut() {
        for name in [header::CONTENT_TYPE, header::SEC_WEBSOCKET_KEY] {
            copy_header(request.headers(), headers, name);
        }
    }
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let body = match *request.method() {
        Method::POST => {
            let body = Limited::new(request.into_body(), body_bytes_max).collect();
            match tokio::time::timeout(BODY_DEADLINE, body).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(_)) => return Err(plain(StatusCode::PAYLOAD_TOO_LARGE)),
                Err(_) => return Err(plain(StatusCode::REQUEST_TIMEOUT)),
            }
        }
        _ => Bytes::new(),
    };
    let mut slim = builder.body(Full::new(body)).map_err(|_| bad_request("Bad request"))?;
    if let Some(upgrade) = upgrade {
        slim.extensions_mut().insert(upgrade);
    }
    if let Some(flow) = flow {
        slim.extensions_mut().insert(flow);
    }
    Ok(slim)
}

fn copy_header(from: &HeaderMap, to: &mut HeaderMap, name: header::HeaderName) {
    let copy = from.get(&name).and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
    if let Some(value) = copy {
        to.insert(name, value);
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    // What is left of the body is not read.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The shape in which Engine.IO servers answer what they cannot serve.
fn bad_request(message: &str) -> Response<Full<Bytes>> {
    json(StatusCode::BAD_REQUEST, format!("{{\"code\":3,\"message\":\"{message}\"}}"))
}

fn unavailable(failure: &Failure) -> Response<Full<Bytes>> {
    let body = format!("{{\"error\":{}}}", wire::json(failure));
    let mut response = json(StatusCode::SERVICE_UNAVAILABLE, body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
