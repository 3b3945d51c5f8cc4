//! All that knows how Socket.IO's packets travel: the layer in front of the
//! engine, and a session's transport as the rest of `socket` sees it.
//!
//! WebSockets are served here (`websocket`), since they are what a device costs:
//! an event is relayed by the task that read it, in one buffer for all its
//! receivers, and an idle socket keeps none. Long polling, and the way from
//! there to a WebSocket, is engineioxide's part (`polling`), the Engine.IO half of
//! socketioxide. What either would let pass is refused in front (`request`).

mod polling;
mod request;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::Service;
use uuid::Uuid;

#[cfg(any(test, fuzzing))]
pub(crate) use self::websocket::frame;

use self::polling::{Engine, Flow, Flows, Upgrade};
use self::request::{
    Asked, BadRequest, bad_request, is_good_upgrade, slim, switching_protocols, unavailable,
};
use self::websocket::pipe::Pipe;
use self::websocket::{Connection, Io};
use super::Services;
use super::session::Session;
use crate::failure::{Code, Failure};
use crate::net::{Peer, RequestBody};
use crate::wire::Frame;

/// Where Socket.IO lives.
pub const PATH: &str = "/socket.io/";

/// How often a pump that waits for room looks for itself. Polling clients and
/// an engine that is full give no sign.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// There is no room now.
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
pub enum Transport {
    /// A session that began as a WebSocket.
    WebSocket(Arc<Pipe>),
    /// One that began with polling, and may have become a WebSocket.
    Polling(Arc<Flow>),
}

impl Transport {
    /// Sends a frame, if there is room.
    pub fn send(&self, frame: &Frame) -> Sent {
        match self {
            Transport::WebSocket(pipe) => pipe.send(frame.websocket()),
            Transport::Polling(flow) => flow.send(frame),
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
        match self {
            Transport::WebSocket(pipe) => pipe.close(1000),
            Transport::Polling(flow) => flow.close(),
        }
    }

    /// Closes the transport now, also under a peer that reads nothing.
    pub fn cut(&self) {
        match self {
            Transport::WebSocket(pipe) => pipe.kill(),
            Transport::Polling(flow) => flow.cut(),
        }
    }

    /// Stops reading from the client.
    pub fn pause(&self) {
        match self {
            Transport::WebSocket(pipe) => pipe.pause(),
            Transport::Polling(flow) => flow.pause(),
        }
    }

    /// Reads again.
    pub fn resume(&self) {
        match self {
            Transport::WebSocket(pipe) => pipe.resume(),
            Transport::Polling(flow) => flow.resume(),
        }
    }

    /// Waits until there may be room.
    pub async fn room(&self) {
        let wait = async {
            match (self.pipe(), self) {
                (Some(pipe), _) => pipe.room().await,
                (None, Transport::Polling(flow)) => flow.heard().await,
                (None, Transport::WebSocket(_)) => {}
            }
        };
        // Either way the caller looks for itself.
        drop(tokio::time::timeout(ROOM_CHECK, wait).await);
    }

    /// Resolves when the client answered a ping.
    pub async fn ping(&self) {
        match (self.pipe(), self) {
            (Some(pipe), _) => {
                let before = pipe.reads();
                pipe.ping();
                while pipe.reads() == before && !pipe.is_killed() {
                    drop(tokio::time::timeout(ROOM_CHECK, pipe.heard()).await);
                }
                if pipe.is_killed() {
                    std::future::pending::<()>().await;
                }
            }
            (None, Transport::Polling(flow)) => flow.ping().await,
            (None, Transport::WebSocket(_)) => {}
        }
    }

    /// Whether it is a WebSocket by now.
    pub fn is_websocket(&self) -> bool {
        self.pipe().is_some()
    }

    fn pipe(&self) -> Option<&Arc<Pipe>> {
        match self {
            Transport::WebSocket(pipe) => Some(pipe),
            Transport::Polling(flow) => flow.pipe(),
        }
    }
}

/// The HTTP service of [`PATH`].
#[derive(Clone)]
pub struct SocketService {
    engine: Engine,
    flows: Flows,
    services: Arc<Services>,
}

impl SocketService {
    /// Opens sessions that work with `services`.
    pub fn new(services: Arc<Services>) -> Self {
        Self { engine: polling::engine(&services), flows: Flows::default(), services }
    }

    async fn answer(self, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        let Some(asked) = Asked::of(&request) else { return bad_request(BadRequest::Malformed) };
        if asked.sid.is_none()
            && let Some(refusal) = self.refusal(&request)
        {
            return refusal;
        }
        if asked.is_websocket { self.websocket(&asked, request) } else { self.poll(&asked, request).await }
    }

    /// A new session that cannot be served now: the client comes back later,
    /// perhaps to another node.
    fn refusal(&self, request: &Request<RequestBody>) -> Option<Response<Full<Bytes>>> {
        let over_cap = request.extensions().get::<Peer>().is_some_and(|peer| peer.over_cap);
        if self.services.tasks.refuses_sockets() {
            Some(unavailable(&Failure::new(Code::Draining, "This node is going away.")))
        } else if over_cap {
            Some(unavailable(&Failure::new(Code::TooManyConnections, "This node has too many connections.")))
        } else {
            None
        }
    }

    /// A WebSocket: of a new session, or of one that polls so far.
    fn websocket(&self, asked: &Asked, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        if !asked.is_revision_4 {
            return bad_request(BadRequest::UnsupportedRevision);
        }
        if !is_good_upgrade(&request) {
            return bad_request(BadRequest::Malformed);
        }
        let upgrade = match &asked.sid {
            None => None,
            Some(sid) => match self.flow(sid) {
                None => return bad_request(BadRequest::UnknownSession),
                Some(flow) => Some(Upgrade::new(flow, self.engine.clone(), self.services.clone())),
            },
        };
        let response = switching_protocols(request.headers());
        let (services, device_info) = (self.services.clone(), asked.device_info.clone());
        self.services.tasks.spawn(async move {
            let upgraded = hyper::upgrade::on(request).await;
            if let Some(connection) =
                upgraded.ok().and_then(Io::of).map(|io| begin(io, upgrade, services, device_info))
            {
                connection.await;
            }
        });
        response
    }

    async fn poll(mut self, asked: &Asked, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        let link = request.extensions().get::<Peer>().map(|peer| peer.link.clone());
        let is_poll = request.method() == Method::GET;
        let flow = match &asked.sid {
            Some(sid) => self.flow(sid),
            None => Some(Flow::new(asked.device_info.clone())),
        };
        if let (Some(flow), true) = (&flow, request.method() == Method::POST) {
            flow.readable().await;
        }
        let mut slim = match slim(request, asked, self.services.settings.frame_bytes).await {
            Ok(slim) => slim,
            Err(refusal) => return refusal,
        };
        if let Some(flow) = &flow {
            slim.extensions_mut().insert(flow.clone());
            if is_poll {
                flow.begin_poll(link.clone());
            }
        }
        let Ok(response) = self.engine.call(slim).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if let (Some(flow), true) = (flow, is_poll) {
            flow.end_poll(link.as_ref(), body.len());
            if let (None, Some(sid)) = (&asked.sid, session_id(&body)) {
                flow.enter(sid, &self.flows);
            }
        }
        let body = if parts.status == StatusCode::BAD_REQUEST { with_a_number_as_code(body) } else { body };
        Response::from_parts(parts, Full::new(body))
    }

    fn flow(&self, sid: &str) -> Option<Arc<Flow>> {
        self.flows.get(sid)?.upgrade()
    }
}

/// A refusal of the engine's, which writes `{"code":"1",...}`: the Node.js server
/// and its clients have numbers there.
fn with_a_number_as_code(body: Bytes) -> Bytes {
    let digits = body.strip_prefix(b"{\"code\":\"").and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        rest[..end].iter().all(u8::is_ascii_digit).then(|| rest.split_at(end))
    });
    match digits {
        Some((code, rest)) => [b"{\"code\":", code, &rest[1..]].concat().into(),
        None => body,
    }
}

/// The connection of a WebSocket that has just been agreed on.
fn begin(
    io: Io,
    upgrade: Option<Upgrade>,
    services: Arc<Services>,
    device_info: Option<String>,
) -> Connection {
    let settings = websocket::Settings {
        ping_interval: services.settings.ping_interval,
        ping_timeout: services.settings.ping_timeout,
        message_bytes_max: services.settings.frame_bytes,
    };
    let (reader, writer) = io.into_parts();
    let pipe = Arc::new(Pipe::new(writer));
    match upgrade {
        Some(upgrade) => Connection::probing(reader, pipe, upgrade, settings),
        None => {
            pipe.send_in_any_case(websocket::hello(Uuid::new_v4(), settings));
            let session = Session::open(services, Transport::WebSocket(pipe.clone()), device_info);
            Connection::open(reader, pipe, session, settings)
        }
    }
}

/// A polling session's id, from the answer to its handshake.
fn session_id(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Open {
        sid: String,
    }
    let json = body.strip_prefix(b"0")?;
    Some(serde_json::from_slice::<Open>(json).ok()?.sid)
}

impl Service<Request<RequestBody>> for SocketService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}
