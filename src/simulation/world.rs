//! One schedule: the machines, the devices, what befalls them, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::checks;
use super::client::Client;
use super::connection::Connection;
use super::fate::{self, FAULTS, Fate};
use super::node::Node;
use super::store::Database;
use super::weather::{Defect, Weather};
use crate::backplane::simulated::SimulatedRedis;
use crate::drain::Tasks;
use crate::model::DeviceId;

/// How long faults go on.
const FAULTS_MS: (u64, u64) = (6_000, 16_000);

/// After this much calm everything is as promised: drains are over, and everyone has asked twice.
const CALM: Duration = Duration::from_secs(12);

/// A claim takes 15 s, and begins once the link has been up for 6 s.
const CALM_AFTER_KILLS: Duration = Duration::from_secs(24);

/// What is written in the calm is heard everywhere within this.
const HEARD_WITHIN: Duration = Duration::from_millis(300);

/// What became of a schedule.
pub struct Outcome {
    pub violations: Vec<String>,
    pub trace_hash: u64,
    pub story: String,
}

/// See the module's comment.
pub struct World {
    pub weather: Arc<Weather>,
    pub database: Arc<Database>,
    pub redis: SimulatedRedis,
    pub clients: Vec<Arc<Client>>,
    tasks: Tasks,
    nodes: Mutex<Vec<Arc<Node>>>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// When a node last went, killed or drained.
    last_went: Mutex<Option<Instant>>,
}

/// Plays the schedule of a seed on a build with that defect.
pub fn play(seed: u64, defect: Defect) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let world = World::new(Weather::new(seed, defect));
        world.play().await;
        let fate = world.fate();
        Outcome { violations: fate.violations(), trace_hash: fate.trace_hash(), story: fate.story() }
    })
}

impl World {
    fn new(weather: Weather) -> Arc<Self> {
        let weather = Arc::new(weather);
        let fate = &weather.fate;
        let mut devices = Vec::new();
        for user in 0..1 + fate.below(FAULTS, 3) {
            for number in 0..2 + fate.below(FAULTS, 2) {
                let id = DeviceId(Uuid::from_u128(u128::from(10 * (user + 1) + number)));
                devices.push((fate::user(user), id));
            }
        }
        let clients = devices.iter().map(|(user, device)| Arc::new(Client::new(*user, *device)));
        Arc::new(Self {
            database: Arc::new(Database::new(weather.clone(), &devices)),
            redis: SimulatedRedis::new(weather.clone()),
            clients: clients.collect(),
            tasks: Tasks::default(),
            nodes: Mutex::default(),
            connections: Mutex::default(),
            last_went: Mutex::default(),
            weather,
        })
    }

    /// What is left to chance.
    pub fn fate(&self) -> &Fate {
        &self.weather.fate
    }

    async fn play(self: &Arc<Self>) {
        for _ in 0..2 + self.fate().below(FAULTS, 3) {
            self.start_node();
        }
        for client in &self.clients {
            self.tasks.spawn(client.clone().live(self.clone()));
        }
        self.tasks.spawn(checks::watch_twins(self.clone()));
        let until = Instant::now() + self.fate().millis(FAULTS, FAULTS_MS.0, FAULTS_MS.1);
        while Instant::now() < until {
            sleep(self.fate().millis(FAULTS, 200, 2_500)).await;
            self.strike();
        }
        self.weather.calm_down();
        self.fate().note(FAULTS, format_args!("calm"));
        for node in self.nodes() {
            node.host.thaw();
            node.host.heal();
        }
        sleep(if self.weather.kinds.kills { CALM_AFTER_KILLS } else { CALM }).await;
        // Sooner than anybody asks the store: the ways between the nodes work again by themselves.
        for client in &self.clients {
            client.write_if_online(self);
        }
        sleep(HEARD_WITHIN).await;
        checks::everything(self).await;
    }

    fn start_node(&self) {
        let mut nodes = self.lock_nodes();
        let number = nodes.len() as u64;
        let node = Arc::new(Node::start(number, &self.weather, &self.redis, &self.database));
        node.spawn(node.clone().settle());
        nodes.push(node);
    }

    /// One fault, if the weather knows it.
    fn strike(self: &Arc<Self>) {
        let fate = self.fate();
        let open = self.open_nodes();
        let chosen = fate.below(FAULTS, open.len().max(1) as u64) as usize;
        let Some(node) = open.get(chosen).cloned() else { return };
        let (kinds, name) = (self.weather.kinds, node.host.name.clone());
        match fate.below(FAULTS, 7) {
            0 if kinds.freezes => {
                fate.note(FAULTS, format_args!("{name} freezes"));
                node.host.freeze();
                self.later(200, 12_000, move || node.host.thaw());
            }
            1 if kinds.cuts => {
                fate.note(FAULTS, format_args!("{name} is cut off"));
                node.host.cut();
                self.later(100, 12_000, move || node.host.heal());
            }
            2 if kinds.cuts => {
                fate.note(FAULTS, format_args!("{name} loses its connection"));
                node.host.reconnect();
            }
            3 if kinds.wipes => {
                fate.note(FAULTS, format_args!("Redis forgets"));
                self.redis.wipe();
            }
            4 if kinds.kills && open.len() > 1 => {
                fate.note(FAULTS, format_args!("{name} dies"));
                checks::watch_burial(self, &node);
                node.host.kill();
                self.went();
            }
            5 if kinds.drains && open.len() > 1 => {
                self.went();
                self.tasks.spawn(checks::drain(self.clone(), node));
            }
            6 if (kinds.kills || kinds.drains) && self.lock_nodes().len() < 8 => {
                fate.note(FAULTS, format_args!("another node starts"));
                self.start_node();
            }
            _ => {}
        }
    }

    fn later(&self, from: u64, to: u64, then: impl FnOnce() + Send + 'static) {
        let after = self.fate().millis(FAULTS, from, to);
        self.tasks.spawn(async move {
            sleep(after).await;
            then();
        });
    }

    fn went(&self) {
        *self.last_went.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When a node last went.
    pub fn last_went(&self) -> Option<Instant> {
        *self.last_went.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts something that goes on beside the schedule.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// All there ever were.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.lock_nodes().clone()
    }

    /// Where devices may connect.
    pub fn open_nodes(&self) -> Vec<Arc<Node>> {
        self.lock_nodes().iter().filter(|node| node.is_open()).cloned().collect()
    }

    fn lock_nodes(&self) -> MutexGuard<'_, Vec<Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a socket until the end.
    pub fn keep(&self, connection: Arc<Connection>) {
        self.lock_connections().push(connection);
    }

    /// All sockets there ever were, by device.
    pub fn connections(&self) -> BTreeMap<DeviceId, Vec<Arc<Connection>>> {
        let mut by_device: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for connection in self.lock_connections().iter() {
            by_device.entry(connection.device).or_default().push(connection.clone());
        }
        by_device
    }

    /// Whether the store has let in another socket of the device since, as far as
    /// can be told: a node may die on the way to the store, and its word arrive.
    pub fn newer_exists(&self, connection: &Connection) -> bool {
        self.lock_connections().iter().any(|other| {
            let is_newer = other.fence() > connection.fence() || died_on_the_way(other);
            other.device == connection.device && is_newer
        })
    }

    /// Whether a node may have died while it claimed the same device for another socket.
    pub fn another_died_on_the_way(&self, connection: &Connection) -> bool {
        let connections = self.lock_connections();
        connections.iter().any(|other| other.device == connection.device && died_on_the_way(other))
    }

    fn lock_connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Users' devices that are online, as their clients know it.
    pub fn truth(&self) -> BTreeMap<crate::model::UserId, BTreeMap<DeviceId, Arc<Connection>>> {
        let mut truth: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for client in &self.clients {
            let online = truth.entry(client.user).or_default();
            online.extend(client.connection().map(|connection| (client.device, connection)));
        }
        truth
    }

    /// The ids of one user's.
    pub fn online_of(truth: &BTreeMap<DeviceId, Arc<Connection>>) -> BTreeSet<DeviceId> {
        truth.keys().copied().collect()
    }
}

fn died_on_the_way(connection: &Connection) -> bool {
    connection.fence().is_none() && connection.node.host.is_dead()
}
