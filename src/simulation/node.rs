//! One node: the real hub, writer and device service on a simulated store and Redis, and the way of a
//! socket through them, as `socket/connect.rs` goes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::connection::{Connection, Heard};
use super::fate::lane_of;
use super::store::{Database, SimulatedStore};
use super::weather::{Defect, Host, Weather};
use crate::auth::Identity;
use crate::backplane::simulated::SimulatedRedis;
use crate::backplane::{Backplane, NodeLife};
use crate::devices::{self, DeviceService};
use crate::drain::Tasks;
use crate::hub::{self, Arrival, Gone, Hub, Member};
use crate::merge::OnConflict;
use crate::model::{BootId, Clock, Seq, SessionKey, Timestamp, UserId};
use crate::store::writer::Committed;
use crate::store::{
    Command, Reply, Selection, SessionWrite, Snapshot, Store, StoreError, WriteChange, Writer,
};
use crate::telemetry::metrics::Metrics;
use crate::wire;

/// Before a lost device is announced, as by default.
const GRACE: Duration = Duration::from_secs(3);

/// As in the backplane's `Timing`.
const JOIN_WITHIN: Duration = Duration::from_secs(1);

/// What is under way when the tasks are told to end, publishes above all, has so long.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Over which a drain sends its sockets away.
const DRAIN_WINDOW: Duration = Duration::from_secs(2);

/// Metrics are of no interest here and expensive to make.
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Arc::new(Metrics::new()));

/// See the module's comment.
pub struct Node {
    pub host: Arc<Host>,
    pub hub: Hub,
    weather: Arc<Weather>,
    store: Arc<dyn Store>,
    backplane: Arc<dyn Backplane>,
    devices: DeviceService,
    writer: Writer,
    tasks: Tasks,
    is_ready: AtomicBool,
    is_leaving: AtomicBool,
}

impl Node {
    /// Starts the node with that number.
    pub fn start(
        number: u64,
        weather: &Arc<Weather>,
        redis: &SimulatedRedis,
        database: &Arc<Database>,
    ) -> Self {
        let host = Arc::new(Host::new(number));
        let tasks = Tasks::default();
        let joined = redis.join(host.clone(), &tasks);
        let store: Arc<dyn Store> =
            Arc::new(SimulatedStore { host: host.clone(), database: database.clone() });
        let (committed, committed_rx) = mpsc::channel::<Committed>(64);
        let writer = Writer::start(store.clone(), None, committed, &tasks, METRICS.clone());
        // Nobody sends messages; what is heard of them goes nowhere.
        let (mail, _) = mpsc::channel(1);
        let hub = Hub::new(hub::Parts {
            store: store.clone(),
            backplane: joined.backplane.clone(),
            clustered: true,
            tasks: tasks.clone(),
            metrics: METRICS.clone(),
            grace: GRACE,
            sockets_per_user: 32,
            mail,
        });
        tasks.spawn(hub::listen(hub.clone(), joined.inbound));
        if weather.defect != Defect::NoAsk {
            tasks.spawn(hub::ask_regularly(hub.clone()));
        }
        tasks.spawn(hub::relay(hub.clone(), committed_rx));
        let boot = BootId(Uuid::from_u128(u128::from(host.lane)));
        let window = Duration::from_secs(600);
        let devices =
            DeviceService::new(store.clone(), writer.clone(), hub.clone(), boot, window, tasks.clone());
        Self {
            host,
            hub,
            weather: weather.clone(),
            store,
            backplane: joined.backplane,
            devices,
            writer,
            tasks,
            is_ready: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
        }
    }

    /// Waits a moment for Redis, as a starting node does before it serves.
    pub async fn settle(self: Arc<Self>) {
        let up = async {
            while !self.backplane.is_up() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        drop(tokio::time::timeout(JOIN_WITHIN, up).await);
        self.host.running().await;
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Whether a load balancer would send somebody here.
    pub fn is_open(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed) && !self.host.is_dead() && !self.is_leaving()
    }

    /// Whether it drains, or has.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// This life of the node.
    pub fn life(&self) -> NodeLife {
        self.backplane.node()
    }

    /// Starts a task that dies with the node.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// From CONNECT to `session-restored`. `since`: what the client has already.
    pub async fn connect(self: Arc<Self>, connection: Arc<Connection>, since: Option<Seq>) {
        self.host.running().await;
        // Whoever is gone after a standstill answers no ping (`socket/standstill.rs`).
        if connection.is_closed() {
            return;
        }
        if self.tasks.refuses_sockets() || self.admit(&connection, since).await.is_err() {
            connection.closed(Gone::ServerClose);
        }
    }

    async fn admit(&self, connection: &Arc<Connection>, since: Option<Seq>) -> Result<(), Refused> {
        let (user, device, id) = (connection.user, connection.device, connection.id);
        let since = since.map(|seq| (self.store.epoch(), seq));
        let selection = Selection { keys: None, since };
        let too_early = match self.weather.defect {
            Defect::SnapshotFirst => Some(self.snapshot(user, &selection).await?),
            _ => None,
        };
        let _visit = self.hub.visit(user).await;
        let identity =
            Identity { user, login: None, issued_at: Timestamp(1), expires_at: Timestamp(i64::MAX) };
        let info = devices::parse_info(None).expect("no info is fine");
        let connected =
            self.devices.connect(&identity, Some(device), info.clone(), id, connection.clone()).await;
        let connected = connected.map_err(|_| Refused)?;
        let described = devices::info_of(&connected.description);
        let member = Member {
            device,
            connection: id,
            fence: connected.fence,
            login: None,
            token_issued_at: identity.issued_at,
            fingerprint: info.fingerprint,
            info: described.clone(),
            connected_at: Clock::now(),
            keys: None,
            recipient: connection.clone(),
        };
        let joined = self.hub.join(user, member).map_err(|_| Refused)?;
        if !connection.become_device(connected.fence) {
            return Ok(());
        }
        let (mut snapshot, listed) = match too_early {
            Some(snapshot) => (snapshot, self.listed(user).await?),
            None => tokio::try_join!(self.snapshot(user, &selection), self.listed(user))?,
        };
        if connection.is_closed() {
            return Ok(());
        }
        loop {
            let seq = snapshot.seq;
            connection.restores(snapshot, listed.clone());
            if self.hub.restored(user, id, wire::event("session-restored", "{}"), seq) {
                break;
            }
            snapshot = self.snapshot(user, &selection).await?;
        }
        self.hub.arrived(Arrival {
            user,
            device,
            connection: id,
            fence: connected.fence,
            info: described,
            described_anew: connected.described_anew,
            at: Clock::now(),
            still_known: joined.still_known,
        });
        Ok(())
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> Result<Snapshot, Refused> {
        self.store.snapshot(user, selection).await.ok().flatten().ok_or(Refused)
    }

    async fn listed(&self, user: UserId) -> Result<String, Refused> {
        self.devices.list(user).await.map_err(|_| Refused)
    }

    /// A socket of the node ended.
    pub fn left(&self, connection: &Connection, gone: Gone) {
        self.devices.leave(connection.user, connection.device, connection.id, gone);
    }

    /// A device writes; its answer comes on its connection.
    pub async fn write(self: Arc<Self>, connection: Arc<Connection>, key: SessionKey, state: String) {
        self.host.running().await;
        if connection.is_closed() {
            return;
        }
        let write = SessionWrite {
            user: connection.user,
            device: Some(connection.device),
            key: key.clone(),
            change: WriteChange::State(state.into()),
            base_version: None,
            on_conflict: OnConflict::Overwrite,
            op_id: None,
            at: Timestamp(1),
        };
        let outcome = match self.writer.enqueue(Command::Write(Arc::new(write)), Some(connection.id)) {
            Ok(submitted) => submitted.answered().await,
            Err(full) => Err(full),
        };
        self.host.running().await;
        connection.tell(match outcome {
            Ok(Reply::Written(Ok(written))) => Heard::Acked(key, written.seq),
            Ok(other) => unreachable!("nothing refuses it: {other:?}"),
            Err(StoreError::Unavailable { unknown: true }) => Heard::Unknown,
            Err(_) => Heard::Refused,
        });
    }

    /// Takes the node down in order.
    pub async fn drain(self: Arc<Self>) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.weather.fate.note(self.host.lane, format_args!("{} drains", self.host.name));
        self.tasks.begin_draining();
        if self.weather.defect != Defect::NoFarewell {
            self.host.while_running(self.hub.farewell(DRAIN_WINDOW)).await;
        }
        self.tasks.end();
        drop(tokio::time::timeout(END_WITHIN, self.tasks.ended()).await);
        self.weather.fate.note(self.host.lane, format_args!("{} is drained", self.host.name));
        self.host.kill();
    }

    /// Who is online, as this node knows it.
    pub async fn roster(&self, user: UserId) -> crate::backplane::Roster {
        let roster = self.hub.roster(user).await;
        self.weather.fate.note(lane_of(user), format_args!("{} knows {}", self.host.name, roster.rows.len()));
        roster
    }
}

/// The device comes again.
struct Refused;
