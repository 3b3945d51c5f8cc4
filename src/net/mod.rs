//! The accept loop: from a TCP connection to a request with its [`Link`] and [`RequestBody`].
//!
//! `axum::serve` leaves Nagle's algorithm on and waits for ever for a request
//! head; so the server accepts by itself: TCP_NODELAY, a deadline for the head
//! (which is also the one for silence after connect and between requests), a
//! cap on connections, and a [`Guarded`] stream below hyper.

mod body;
pub mod files;
pub mod link;
pub mod network;
pub mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

pub use body::{BODY_DEADLINE, RequestBody};
pub use link::Link;
use link::{Guarded, OpenConnection};
pub use tls::Tls;

use crate::drain::Tasks;
use crate::telemetry::metrics::Metrics;

/// A request head must have arrived by then; so must the next one on a
/// connection that is kept alive.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Room for a request's head. Bigger heads are answered 431 by hyper.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Over the cap so many connections more are still answered with a 503; beyond
/// that they are closed without a word.
const ANSWERED_OVER_CAP: usize = 256;

/// Where a request came from; an extension of every request.
#[derive(Clone)]
pub struct Peer {
    /// The TCP peer; behind a load balancer that is the balancer.
    pub address: IpAddr,
    /// The connection below.
    pub link: Arc<Link>,
    /// The node has more connections than it may: answer 503.
    pub over_cap: bool,
}

/// What the accept loop needs to know.
pub struct Limits {
    /// TCP connections that are served at a time.
    pub connections_max: usize,
    /// TLS on every connection; nothing: none.
    pub tls: Option<Tls>,
}

/// Accepts until `tasks` is told to stop listening; every connection is a task
/// of `tasks`.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    tasks: Tasks,
    metrics: Arc<Metrics>,
) where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stop_listening() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let already_open = open.fetch_add(1, Ordering::Relaxed);
                let closing = OpenConnection::new({
                    let (open, metrics) = (open.clone(), metrics.clone());
                    move || {
                        open.fetch_sub(1, Ordering::Relaxed);
                        metrics.tcp_connections.decrement(1);
                    }
                });
                metrics.tcp_connections.increment(1);
                let over_cap = already_open >= limits.connections_max;
                if over_cap {
                    metrics.refused_connections.increment(1);
                }
                if already_open < limits.connections_max + ANSWERED_OVER_CAP {
                    let accepted = Accepted { stream, address, over_cap, closing, tasks: tasks.clone() };
                    let (service, tls) = (service.clone(), limits.tls.clone());
                    match tls {
                        None => tasks.spawn(plain(accepted, service)),
                        Some(tls) => tasks.spawn(encrypted(accepted, service, tls)),
                    };
                }
            }
            Err(error) => wait_after_failed_accept(&error).await,
        }
    }
}

/// Out of file descriptors is the usual cause; accepting again at once would
/// only spin.
async fn wait_after_failed_accept(error: &std::io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// A connection that nobody has spoken on yet.
struct Accepted<S> {
    stream: S,
    address: SocketAddr,
    over_cap: bool,
    closing: OpenConnection,
    tasks: Tasks,
}

async fn plain<S, B>(accepted: Accepted<TcpStream>, service: S)
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Without it a relayed event waits up to 40 ms for the peer's delayed ACK.
    if accepted.stream.set_nodelay(true).is_ok() {
        http(accepted, service).await;
    }
}

/// The same over TLS. What is guarded is what goes into the encryption.
async fn encrypted<S, B>(accepted: Accepted<TcpStream>, service: S, tls: Tls)
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Accepted { stream, address, over_cap, closing, tasks } = accepted;
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match tokio::time::timeout(HEAD_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            http(Accepted { stream: Box::new(stream), address, over_cap, closing, tasks }, service).await
        }
        Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
        Err(_) => tracing::debug!("no TLS handshake in time"),
    }
}

async fn http<T, S, B>(accepted: Accepted<T>, service: S)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Accepted { stream, address, over_cap, closing, tasks } = accepted;
    let link = Arc::new(Link::default());
    let peer = Peer { address: address.ip().to_canonical(), link: link.clone(), over_cap };
    let stamp = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(peer.clone());
        let (body, rest) = RequestBody::new(body, parts.headers.contains_key(header::EXPECT));
        let answer = service.clone().call(Request::from_parts(parts, body));
        async move {
            let mut response = answer.await?;
            if !rest.discard().await {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(true)
        .serve_connection(TokioIo::new(Guarded::new(stream, link, closing)), stamp)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let served = tokio::select! {
        served = &mut served => served,
        () = tasks.stop_listening() => {
            // What is being answered is; a connection kept for later would hold up the end.
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
