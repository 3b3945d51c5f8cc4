//! A TCP proxy that misbehaves on demand: cuts, refuses, freezes (half-open), delays, and loses acks or, between a
//! node and Redis, the messages of users' channels.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::chaos_frames::AckFilter;
use super::chaos_resp::MessageFilter;

/// Pieces of a stream that may wait for their time in one direction; beyond them the sender is slowed.
const PIECES_WAITING_MAX: usize = 4_096;

pub struct ChaosProxy {
    address: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    upstream: Mutex<String>,
    mood: watch::Sender<Mood>,
    lost: watch::Sender<u64>,
    is_before_redis: bool,
}

#[derive(Clone, Copy)]
struct Mood {
    /// Connections of an earlier generation end.
    generation: u64,
    refusing: bool,
    frozen: bool,
    delay: Duration,
    loss: f64,
}

/// What finds the units of a stream that may be lost.
enum Filter {
    Acks(AckFilter),
    Messages(MessageFilter),
}

impl Filter {
    fn pass(&mut self, bytes: &[u8], loss: f64) -> (Vec<u8>, u64) {
        match self {
            Self::Acks(filter) => filter.pass(bytes, loss),
            Self::Messages(filter) => filter.pass(bytes, loss),
        }
    }
}

impl ChaosProxy {
    /// Listens on a port of its own and passes everything to `upstream` (`host:port`).
    pub async fn start(upstream: &str) -> Self {
        Self::start_as(upstream, false).await
    }

    /// The same between a node and its Redis, for `lose_messages`.
    pub async fn start_before_redis(upstream: &str) -> Self {
        Self::start_as(upstream, true).await
    }

    async fn start_as(upstream: &str, is_before_redis: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address").to_string();
        let calm = Mood { generation: 0, refusing: false, frozen: false, delay: Duration::ZERO, loss: 0.0 };
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream.to_owned()),
            mood: watch::Sender::new(calm),
            lost: watch::Sender::new(0),
            is_before_redis,
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, accepting }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends new connections elsewhere.
    pub fn retarget(&self, upstream: &str) {
        upstream.clone_into(&mut self.shared.upstream.lock().unwrap());
    }

    /// Ends every connection; new ones are let through.
    pub fn cut(&self) {
        self.shared.mood.send_modify(|mood| mood.generation += 1);
    }

    /// Ends every connection and, until `restore`, every new one at once.
    pub fn partition(&self) {
        self.shared.mood.send_modify(|mood| {
            mood.generation += 1;
            mood.refusing = true;
        });
    }

    /// Half-open: connections stay, and nothing passes in either direction, not even an end.
    pub fn freeze(&self) {
        self.shared.mood.send_modify(|mood| mood.frozen = true);
    }

    /// Everything passes again, what waited in a freeze first.
    pub fn restore(&self) {
        self.shared.mood.send_modify(|mood| {
            mood.refusing = false;
            mood.frozen = false;
            mood.delay = Duration::ZERO;
            mood.loss = 0.0;
        });
    }

    /// Holds every byte back for this long, each way.
    pub fn delay(&self, delay: Duration) {
        self.shared.mood.send_modify(|mood| mood.delay = delay);
    }

    /// Drops this share (0 to 1) of the Socket.IO ack frames that come from upstream over WebSocket.
    pub fn lose_acks(&self, share: f64) {
        self.shared.mood.send_modify(|mood| mood.loss = share);
    }

    /// How many acks it has dropped so far.
    pub fn acks_lost(&self) -> u64 {
        *self.shared.lost.borrow()
    }

    /// Drops this share (0 to 1) of what Redis sends to a node on users' channels; nothing else, so that the node
    /// has no reason to think that its link is down.
    pub fn lose_messages(&self, share: f64) {
        assert!(self.shared.is_before_redis, "started with `start`");
        self.shared.mood.send_modify(|mood| mood.loss = share);
    }

    /// How many messages it has dropped so far.
    pub fn messages_lost(&self) -> u64 {
        *self.shared.lost.borrow()
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if !shared.mood.borrow().refusing {
            tokio::spawn(join(client, shared.clone()));
        }
    }
}

async fn join(client: TcpStream, shared: Arc<Shared>) {
    let born = shared.mood.borrow().generation;
    let upstream = shared.upstream.lock().unwrap().clone();
    // Without an upstream the client sees its connection end, as through any proxy.
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    client.set_nodelay(true).expect("a fresh TCP stream");
    server.set_nodelay(true).expect("a fresh TCP stream");
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let filter = match shared.is_before_redis {
        true => Filter::Messages(MessageFilter::default()),
        false => Filter::Acks(AckFilter::default()),
    };
    let mut mood = shared.mood.subscribe();
    tokio::select! {
        () = pump(from_client, to_server, &shared, None) => {}
        () = pump(from_server, to_client, &shared, Some(filter)) => {}
        _ = mood.wait_for(|mood| mood.generation != born) => {}
    }
}

/// Moves one direction until either side ends.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf, shared: &Shared, filter: Option<Filter>) {
    let (pieces, waiting) = mpsc::channel(PIECES_WAITING_MAX);
    tokio::join!(read(from, pieces, shared, filter), write(to, waiting, shared));
}

async fn read(
    mut from: OwnedReadHalf,
    pieces: mpsc::Sender<(Instant, Vec<u8>)>,
    shared: &Shared,
    mut filter: Option<Filter>,
) {
    let mut mood = shared.mood.subscribe();
    let mut buffer = vec![0; 64 * 1_024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut piece = buffer[..count].to_vec();
        if let Some(filter) = &mut filter {
            let (passed, lost) = filter.pass(&piece, mood.borrow().loss);
            shared.lost.send_modify(|total| *total += lost);
            piece = passed;
        }
        if thawed(&mut mood).await.is_none() || pieces.send((Instant::now(), piece)).await.is_err() {
            return;
        }
    }
    // Not even the end passes while frozen.
    thawed(&mut mood).await;
}

async fn write(mut to: OwnedWriteHalf, mut waiting: mpsc::Receiver<(Instant, Vec<u8>)>, shared: &Shared) {
    let mut mood = shared.mood.subscribe();
    while let Some((came, piece)) = waiting.recv().await {
        let delay = mood.borrow().delay;
        sleep_until(came + delay).await;
        if thawed(&mut mood).await.is_none() || to.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// Waits while frozen; `None` when the proxy is gone.
async fn thawed(mood: &mut watch::Receiver<Mood>) -> Option<()> {
    mood.wait_for(|mood| !mood.frozen).await.ok().map(drop)
}
