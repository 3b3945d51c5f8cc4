//! Redis in memory for the simulation (`src/simulation`), and a node's backplane on it.
//!
//! Presence, claims, the link and the table of subscriptions are the real ones; what stands for fred
//! and Redis is here: commands that take their time, time out and lose their answer, channels that
//! delay, lose, repeat and reorder, connections that break. The steps of the scripts in `lua/` are
//! written here once more, each under one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::link::Link;
use super::presence::Presence;
use super::presence::table::{Beat, Claim, Placing, Stood, Table};
use super::subscriptions::Subscriptions;
use crate::backplane::envelope::{Envelope, Kind, PresenceChange, PresenceEvent};
use crate::backplane::inbound::{self, InboundLimits, InboundSender};
use crate::backplane::presence::{NODE_LOST, NodeLife, Online, Placed, Roster, Row};
use crate::backplane::{Backplane, Joined, Rate, Stamp, Taken, Timing, Unavailable};
use crate::drain::Tasks;
use crate::model::{ConnectionId, DeviceId, UserId};
use crate::simulation::fate::{Lane, lane_of};
use crate::simulation::weather::{Defect, Host, Way, Weather};

/// Messages on their way between a node and Redis.
const ON_THE_WAY_MAX: usize = 100_000;

/// After a failure that left the connection standing, as in `subscriptions`.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// One Redis. Clones are the same.
#[derive(Clone)]
pub struct SimulatedRedis(Arc<Server>);

struct Server {
    weather: Arc<Weather>,
    data: Mutex<Data>,
    ports: Mutex<Vec<Arc<Port>>>,
    announced: Mutex<Vec<Announced>>,
}

/// What a claimer said of a dead node's device.
#[derive(Clone, Debug)]
pub struct Announced {
    pub life: NodeLife,
    pub connection: ConnectionId,
    pub at: Instant,
}

#[derive(Default)]
struct Data {
    alive: BTreeMap<NodeLife, Instant>,
    claimed: BTreeSet<NodeLife>,
    claimers: BTreeMap<NodeLife, (NodeLife, Instant)>,
    nodes: BTreeSet<NodeLife>,
    users: BTreeMap<NodeLife, BTreeSet<UserId>>,
    rows: BTreeMap<UserId, BTreeMap<DeviceId, Row>>,
}

impl Data {
    fn is_alive(&self, life: &NodeLife) -> bool {
        self.alive.get(life).is_some_and(|until| *until > Instant::now())
    }
}

/// A node's subscriber, as Redis sees it.
struct Port {
    host: Arc<Host>,
    /// On which connection each user is subscribed.
    subscribed: Mutex<BTreeMap<UserId, u64>>,
    pipe: mpsc::Sender<Arriving>,
    inbound: InboundSender,
}

struct Arriving {
    at: Instant,
    connection: u64,
    user: UserId,
    envelope: Envelope,
}

impl Port {
    async fn arrive(&self, arriving: Arriving) {
        sleep_until(arriving.at).await;
        self.host.running().await;
        if self.host.way() == (Way { is_cut: false, connection: arriving.connection }) {
            self.inbound.offer(arriving.user, arriving.envelope);
        }
    }
}

impl SimulatedRedis {
    /// An empty one.
    pub fn new(weather: Arc<Weather>) -> Self {
        Self(Arc::new(Server {
            weather,
            data: Mutex::default(),
            ports: Mutex::default(),
            announced: Mutex::default(),
        }))
    }

    /// It forgets everything, as after a restart without a disk.
    pub fn wipe(&self) {
        *self.0.data() = Data::default();
    }

    /// All that claimers said.
    pub fn announced(&self) -> Vec<Announced> {
        self.0.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rows of a life.
    pub fn rows_of(&self, life: &NodeLife) -> Vec<(UserId, DeviceId, Row)> {
        let data = self.0.data();
        let rows = data.rows.iter().flat_map(|(user, devices)| devices.iter().map(move |row| (user, row)));
        let rows = rows.filter(|(_, (_, row))| row.node == *life);
        rows.map(|(user, (device, row))| (*user, *device, row.clone())).collect()
    }

    /// A node's backplane.
    pub fn join(&self, host: Arc<Host>, tasks: &Tasks) -> Joined {
        let (timing, server) = (Timing::default(), self.0.clone());
        let limits = if server.weather.kinds.narrow {
            InboundLimits { messages_max: 2, ..InboundLimits::default() }
        } else {
            InboundLimits::default()
        };
        let (inbound, receiver) = inbound::queue(limits, Arc::default());
        let link = Arc::new(Link::new(inbound.clone(), timing));
        let client = Arc::new(Client { host: host.clone(), server: server.clone(), timing });
        let presence =
            Presence::new(&host.name, client.clone(), link.clone(), inbound.clone(), Arc::default(), timing);
        let (pipe, arriving) = mpsc::channel(ON_THE_WAY_MAX);
        let port = Arc::new(Port { host: host.clone(), subscribed: Mutex::default(), pipe, inbound });
        server.ports.lock().unwrap_or_else(PoisonError::into_inner).push(port.clone());
        let (outgoing, published) = mpsc::channel(ON_THE_WAY_MAX);
        let node = Arc::new(Node {
            subscriptions: Subscriptions::default(),
            presence: Arc::new(presence),
            link,
            client,
            port,
            outgoing,
            tasks: tasks.clone(),
        });
        let (_, stop) = tasks.parts();
        tasks.spawn(node.clone().receive(arriving, stop.clone()));
        tasks.spawn(node.clone().send(published, stop.clone()));
        tasks.spawn(node.clone().settle(stop.clone()));
        tasks.spawn(node.clone().probe(stop.clone()));
        tasks.spawn(node.presence.clone().run(stop));
        Joined { backplane: node, inbound: receiver }
    }
}

impl Server {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To every subscribed node but the one it comes from.
    fn publish(&self, from: Option<&Host>, user: UserId, envelope: &Envelope) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports.iter().filter(|port| from.is_none_or(|from| from.lane != port.host.lane)) {
            let subscribed = port.subscribed.lock().unwrap_or_else(PoisonError::into_inner);
            let way = port.host.way();
            if way.is_cut || subscribed.get(&user) != Some(&way.connection) {
                continue;
            }
            let at = Instant::now() + self.weather.redis_trip(lane_of(user));
            let envelope = envelope.clone();
            let arriving = Arriving { at, connection: way.connection, user, envelope };
            send(&port.pipe, arriving);
        }
    }
}

/// Puts something on its way; a node that has ended hears nothing.
fn send<T>(way: &mpsc::Sender<T>, what: T) {
    let is_full = matches!(way.try_send(what), Err(TrySendError::Full(_)));
    assert!(!is_full, "far fewer are on their way");
}

/// A node's connection for commands.
struct Client {
    host: Arc<Host>,
    server: Arc<Server>,
    timing: Timing,
}

impl Client {
    /// One command: there, its step, and back.
    async fn command<T>(&self, lane: Lane, step: impl FnOnce(&mut Data) -> T) -> Result<T, Unavailable> {
        let weather = &self.server.weather;
        self.host.running().await;
        sleep(weather.redis_trip(lane)).await;
        self.reached().await?;
        let answer = step(&mut self.server.data());
        sleep(weather.redis_trip(lane)).await;
        self.host.running().await;
        self.reached().await?;
        Ok(answer)
    }

    async fn reached(&self) -> Result<(), Unavailable> {
        if !self.host.way().is_cut {
            return Ok(());
        }
        sleep(self.timing.command_within).await;
        self.host.running().await;
        Err(Unavailable("cut off".into()))
    }
}

#[async_trait]
impl Table for Client {
    async fn beat(&self, life: &NodeLife, ttl: Duration) -> Result<Beat, Unavailable> {
        self.command(self.host.lane, |data| {
            if data.claimed.contains(life) {
                return Beat::Claimed;
            }
            let known = data.is_alive(life);
            data.alive.insert(life.clone(), Instant::now() + ttl);
            if known { Beat::Known } else { Beat::New }
        })
        .await
    }

    async fn place(&self, placing: Placing) -> Result<Stood, Unavailable> {
        let is_fenced = self.server.weather.defect != Defect::NoFencing;
        let Placing { user, device, row, restores } = placing;
        let (fence, name) = (row.fence, self.host.name.clone());
        let stood = self
            .command(lane_of(user), |data| {
                let rows = data.rows.entry(user).or_default();
                if let Some(old) = rows.get(&device)
                    && is_fenced
                    && old.outranks(&row, restores)
                {
                    return Stood::Refused(old.clone());
                }
                Stood::Placed(rows.insert(device, row).filter(|_| is_fenced))
            })
            .await?;
        let became = match &stood {
            Stood::Placed(None) => "placed",
            Stood::Placed(Some(_)) => "placed over another",
            Stood::Refused(_) => "refused",
        };
        let line = format_args!("{name} row {} fence {fence} {became}", device.0.as_u128());
        self.server.weather.fate.note(lane_of(user), line);
        Ok(stood)
    }

    async fn remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        self.command(lane_of(user), |data| {
            let Some(rows) = data.rows.get_mut(&user) else { return false };
            let is_it = rows.get(&device).is_some_and(|row| row.connection == connection);
            is_it && rows.remove(&device).is_some()
        })
        .await
    }

    async fn rows(&self, user: UserId) -> Result<Vec<(DeviceId, Row)>, Unavailable> {
        self.command(lane_of(user), |data| {
            let rows = data.rows.get(&user).into_iter().flatten();
            rows.map(|(device, row)| (*device, row.clone())).collect()
        })
        .await
    }

    async fn list(&self, life: &NodeLife) -> Result<(), Unavailable> {
        self.command(self.host.lane, |data| data.nodes.insert(life.clone())).await.map(drop)
    }

    async fn unlist(&self, life: &NodeLife) -> Result<(), Unavailable> {
        self.command(self.host.lane, |data| data.nodes.remove(life)).await.map(drop)
    }

    async fn lives(&self) -> Result<Vec<NodeLife>, Unavailable> {
        self.command(self.host.lane, |data| data.nodes.iter().cloned().collect()).await
    }

    async fn is_alive(&self, life: &NodeLife) -> Result<bool, Unavailable> {
        self.command(self.host.lane, |data| data.is_alive(life)).await
    }

    async fn note_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable> {
        self.command(self.lane(users), |data| data.users.entry(life.clone()).or_default().extend(users)).await
    }

    async fn drop_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable> {
        self.command(self.lane(users), |data| {
            let noted = data.users.entry(life.clone()).or_default();
            noted.retain(|user| !users.contains(user));
        })
        .await
    }

    async fn noted_users(&self, life: &NodeLife, max: u16) -> Result<Vec<UserId>, Unavailable> {
        self.command(self.host.lane, |data| {
            data.users.get(life).into_iter().flatten().take(max.into()).copied().collect()
        })
        .await
    }

    async fn forget(&self, life: &NodeLife) -> Result<(), Unavailable> {
        self.command(self.host.lane, |data| {
            data.alive.remove(life);
            data.users.remove(life);
        })
        .await
    }

    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable> {
        let is_exclusive = self.server.weather.defect != Defect::NoClaims;
        self.command(self.host.lane, |data| {
            let now = Instant::now();
            let other = data.claimers.get(&claim.dead).filter(|(by, until)| *by != claim.by && *until > now);
            if data.is_alive(&claim.dead) || (is_exclusive && other.is_some()) {
                return false;
            }
            data.claimers.insert(claim.dead.clone(), (claim.by.clone(), now + claim.claim_for));
            data.claimed.insert(claim.dead.clone());
            true
        })
        .await
    }

    async fn bury(&self, dead: &NodeLife, user: UserId) -> Result<usize, Unavailable> {
        let server = &self.server;
        self.command(lane_of(user), |data| {
            let Some(rows) = data.rows.get_mut(&user) else { return 0 };
            let removed: Vec<_> = rows.iter().filter(|(_, row)| row.node == *dead).collect();
            let removed: Vec<_> = removed.into_iter().map(|(device, row)| (*device, row.clone())).collect();
            for (device, row) in &removed {
                if server.weather.defect != Defect::NoClaims {
                    rows.remove(device);
                }
                if server.weather.defect != Defect::SilentClaims {
                    server.announce(user, *device, row);
                }
            }
            removed.len()
        })
        .await
    }

    async fn end_claim(&self, dead: &NodeLife) -> Result<(), Unavailable> {
        self.command(self.host.lane, |data| data.claimers.remove(dead)).await.map(drop)
    }

    async fn reconnect_if_stuck(&self) {}
}

impl Client {
    fn lane(&self, users: &[UserId]) -> Lane {
        if let [user] = users { lane_of(*user) } else { self.host.lane }
    }
}

impl Server {
    fn announce(&self, user: UserId, device: DeviceId, row: &Row) {
        let event = PresenceEvent {
            event: PresenceChange::Disconnected,
            device,
            connection: Some(row.connection),
            at_ms: 0,
            reason: Some(NODE_LOST.into()),
        };
        let announced = Announced { life: row.node.clone(), connection: row.connection, at: Instant::now() };
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).push(announced);
        let line = format_args!("device {} is lost with its node", device.0.as_u128());
        self.weather.fate.note(lane_of(user), line);
        self.publish(None, user, &Envelope::new(Kind::Presence(event), None));
    }
}

/// One node's backplane.
struct Node {
    subscriptions: Subscriptions,
    presence: Arc<Presence>,
    link: Arc<Link>,
    client: Arc<Client>,
    port: Arc<Port>,
    outgoing: mpsc::Sender<(Instant, UserId, Envelope)>,
    tasks: Tasks,
}

impl Node {
    fn weather(&self) -> &Weather {
        &self.client.server.weather
    }

    fn reorders(&self) -> bool {
        self.weather().kinds.reorder && !self.weather().is_calm()
    }

    async fn receive(self: Arc<Self>, mut pipe: mpsc::Receiver<Arriving>, stop: CancellationToken) {
        while let Some(Some(arriving)) = stop.run_until_cancelled(pipe.recv()).await {
            if self.reorders() {
                let node = self.clone();
                self.tasks.spawn(async move { node.port.arrive(arriving).await });
            } else {
                self.port.arrive(arriving).await;
            }
        }
    }

    async fn send(
        self: Arc<Self>,
        mut published: mpsc::Receiver<(Instant, UserId, Envelope)>,
        stop: CancellationToken,
    ) {
        let host = &self.port.host;
        // As the real publisher: what waits when the node stops goes out first.
        let mut stopped = std::pin::pin!(stop.cancelled());
        loop {
            let next = tokio::select! {
                biased;
                next = published.recv() => next,
                () = &mut stopped, if !published.is_closed() => {
                    published.close();
                    continue;
                }
            };
            let Some((at, user, envelope)) = next else { return };
            if !self.reorders() {
                sleep_until(at).await;
            }
            host.running().await;
            let (weather, lane) = (self.weather(), lane_of(user));
            if host.way().is_cut || weather.strikes(lane, weather.kinds.loss) {
                continue;
            }
            self.client.server.publish(Some(host), user, &envelope);
            if weather.strikes(lane, weather.kinds.twice) {
                self.client.server.publish(Some(host), user, &envelope);
            }
        }
    }

    /// Makes Redis agree with the table of subscriptions, as `Settling` does through fred.
    async fn settle(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = Way::default();
        let mut stands_on = 0;
        let mut retry = true;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.port.host.way_changed(seen) => {}
                () = self.subscriptions.changed.notified(), if !retry => {}
                () = sleep(RETRY_AFTER), if retry => {}
            }
            self.port.host.running().await;
            let way = self.port.host.way();
            seen = way;
            retry = way.is_cut || !self.settle_all(way, &mut stands_on).await;
        }
    }

    /// False if it has to be tried again.
    async fn settle_all(&self, way: Way, stands_on: &mut u64) -> bool {
        let again = way.connection != *stands_on;
        if again && self.weather().defect != Defect::NoResubscription {
            self.link.unsubscribed();
            self.subscriptions.forget_standing();
        }
        let lane = self.port.host.lane;
        while let Some(round) = self.subscriptions.next_round() {
            sleep(self.weather().redis_trip(lane)).await;
            let stands = self.port.host.way() == way;
            if stands {
                let mut subscribed = self.port.subscribed.lock().unwrap_or_else(PoisonError::into_inner);
                subscribed.retain(|user, _| !round.unsubscribe.contains(user));
                subscribed.extend(round.subscribe.iter().map(|user| (*user, way.connection)));
            }
            sleep(self.weather().redis_trip(lane)).await;
            self.port.host.running().await;
            if !stands || self.port.host.way() != way {
                self.subscriptions.put_back(&round.subscribe);
                return false;
            }
            self.port.inbound.missed(self.subscriptions.confirm(&round.subscribe));
        }
        *stands_on = way.connection;
        if again {
            self.link.subscribed();
        }
        true
    }

    /// As `Probe` does through fred.
    async fn probe(self: Arc<Self>, stop: CancellationToken) {
        let host = &self.port.host;
        let mut ticks = interval(self.client.timing.probe_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.link.probe_now.notified() => {}
                _ = ticks.tick() => {}
            }
            host.running().await;
            self.link.check_silence();
            let (stamp, way) = (self.link.probe_stamp(), host.way());
            let trip = self.weather().redis_trip(host.lane) + self.weather().redis_trip(host.lane);
            sleep(trip).await;
            host.running().await;
            if !way.is_cut && host.way() == way {
                self.link.heard(stamp);
            }
        }
    }
}

#[async_trait]
impl Backplane for Node {
    fn node(&self) -> NodeLife {
        self.presence.life()
    }

    async fn subscribe(&self, user: UserId) -> Result<(), Unavailable> {
        let within = if self.is_up() { self.client.timing.subscribe_within } else { Duration::ZERO };
        self.subscriptions.want(user, within).await
    }

    fn unsubscribe(&self, user: UserId) {
        self.subscriptions.unwant(user);
    }

    fn publish(&self, user: UserId, envelope: &Envelope) {
        let at = Instant::now() + self.weather().redis_trip(lane_of(user));
        send(&self.outgoing, (at, user, envelope.clone()));
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    async fn presence_set(
        &self,
        user: UserId,
        device: DeviceId,
        online: Online,
    ) -> Result<Placed, Unavailable> {
        self.presence.set(user, device, online).await
    }

    async fn presence_remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        self.presence.remove(user, device, connection).await
    }

    async fn presence_of(&self, user: UserId) -> Roster {
        self.presence.of(user).await
    }

    async fn is_alive(&self, node: &NodeLife) -> Result<bool, Unavailable> {
        self.presence.is_alive(node).await
    }

    async fn snapshot_get(&self, _user: UserId, _stamp: &Stamp) -> Option<Bytes> {
        None
    }

    fn snapshot_put(&self, _user: UserId, _stamp: &Stamp, _snapshot: Bytes) {}

    async fn take_token(&self, _bucket: &str, _rate: Rate) -> Taken {
        Taken::Allowed
    }

    async fn leave(&self) {
        self.presence.leave().await;
    }
}
