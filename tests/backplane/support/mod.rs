//! Real servers on free ports in temporary folders, and waits that end.

mod proxy;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tandem::backplane::*;
use tandem::model::*;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use proxy::Proxy;
pub use servers::{RedisCluster, RedisServer, Sentinels, TlsFiles, free_port};

/// Nothing in these tests takes this long unless it never ends.
pub const LONG: Duration = Duration::from_secs(20);

#[track_caller]
pub fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let at = std::panic::Location::caller();
    async move {
        tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("nothing within {LONG:?} at {at}"))
    }
}

/// Looks again until it is so.
#[track_caller]
pub fn until<F: Future<Output = bool>>(mut so: impl FnMut() -> F) -> impl Future<Output = ()> {
    within(async move {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !so().await {
            looks.tick().await;
        }
    })
}

/// Short waits, so that outages of tests are short too.
pub fn quick() -> Timing {
    Timing {
        join_within: Duration::from_secs(10),
        probe_every: Duration::from_millis(200),
        heartbeat_every: Duration::from_millis(200),
        heartbeat_ttl: Duration::from_millis(1000),
        claim_after: Duration::from_millis(500),
        ..Timing::default()
    }
}

/// Where nodes meet.
pub enum World {
    Memory(MemoryBus),
    Redis(RedisServer),
    Cluster(RedisCluster),
}

impl World {
    pub fn memory() -> Self {
        World::Memory(MemoryBus::default())
    }

    pub async fn redis() -> Self {
        World::Redis(RedisServer::start().await)
    }

    pub async fn cluster() -> Self {
        World::Cluster(RedisCluster::start().await)
    }

    pub fn is_memory(&self) -> bool {
        matches!(self, World::Memory(_))
    }

    pub async fn node(&self, name: &str) -> Node {
        self.node_with(name, InboundLimits::default()).await
    }

    pub async fn node_with(&self, name: &str, limits: InboundLimits) -> Node {
        let settings = settings(name, quick(), limits);
        match self {
            World::Memory(bus) => Node::of(bus.join_as(settings.clone()), settings),
            World::Redis(redis) => Node::join(&redis.url(), settings).await,
            World::Cluster(cluster) => Node::join(&cluster.url(), settings).await,
        }
    }

    /// Ends the node as a kill would: without leaving.
    pub fn crash(&self, node: &Node) {
        node.stop.cancel();
        if let World::Memory(bus) = self {
            bus.crash(&node.backplane.node());
        }
    }
}

/// `LOG=debug cargo test -- --nocapture` shows what the nodes say.
fn log() {
    let filter = tracing_subscriber::EnvFilter::from_env("LOG");
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

pub fn settings(name: &str, timing: Timing, limits: InboundLimits) -> Settings {
    log();
    Settings {
        node_id: name.into(),
        timing,
        limits,
        observed: Arc::default(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    }
}

pub struct Node {
    pub backplane: Arc<dyn Backplane>,
    pub inbound: InboundReceiver,
    pub observed: Arc<Observed>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl Node {
    pub async fn join(url: &str, settings: Settings) -> Node {
        let mut node = Node::of(open(Some(url), settings.clone()).await.unwrap(), settings);
        if node.backplane.is_up() {
            // Notices coalesce: a "down" before this one was read would be nothing new.
            node.notice(Inbound::Up).await;
        }
        node
    }

    fn of(joined: Joined, settings: Settings) -> Node {
        Node {
            backplane: joined.backplane,
            inbound: joined.inbound,
            observed: settings.observed,
            stop: settings.stop,
            tasks: settings.tasks,
        }
    }

    pub fn received(&self) -> u64 {
        self.observed.received.load(Relaxed)
    }

    /// The next envelope, whatever notices come before it.
    #[track_caller]
    pub fn envelope(&mut self) -> impl Future<Output = (UserId, Envelope)> {
        within(async {
            loop {
                match self.inbound.recv().await.unwrap() {
                    Inbound::Envelope { user, envelope } => return (user, envelope),
                    notice => tracing::debug!(?notice, "passed over"),
                }
            }
        })
    }

    #[track_caller]
    pub fn seq(&mut self) -> impl Future<Output = (UserId, u64)> {
        let envelope = self.envelope();
        async {
            let (user, envelope) = envelope.await;
            (user, seq_of(&envelope))
        }
    }

    /// Skips what comes before `notice`.
    #[track_caller]
    pub fn notice(&mut self, notice: Inbound) -> impl Future<Output = ()> {
        within(async move { while self.inbound.recv().await.unwrap() != notice {} })
    }

    #[track_caller]
    pub fn up(&mut self) -> impl Future<Output = ()> {
        let backplane = self.backplane.clone();
        until(move || {
            let up = backplane.is_up();
            async move { up }
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn user() -> UserId {
    UserId::fresh()
}

pub fn change(seq: u64) -> Envelope {
    let change = Changed {
        seq: Seq(seq),
        key: "editor".into(),
        version: Version(seq),
        device: Some(DeviceId::fresh()),
        at_ms: 1_700_000_000_000,
        deleted: false,
    };
    Envelope::new(
        Kind::Change(change),
        Some(Bytes::from_static(b"{ \"n\": 1e400, \"n\": 12345678901234567890 }")),
    )
}

pub fn seq_of(envelope: &Envelope) -> u64 {
    match &envelope.kind {
        Kind::Change(change) => change.seq.0,
        other => panic!("not a change: {other:?}"),
    }
}

pub fn online(fence: u64) -> Online {
    online_in("epoch", fence)
}

pub fn online_in(epoch: &str, fence: u64) -> Online {
    let connection = ConnectionId::fresh();
    Online { connection, since_ms: 1_700_000_000_000, fence, epoch: Epoch(epoch.into()) }
}

pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}
