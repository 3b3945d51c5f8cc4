//! A device in somebody's hand: it connects, writes, moves, loses its way and comes back, and holds
//! everything it hears against what it was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;
use uuid::Uuid;

use super::connection::{Connection, Heard, Whose};
use super::fate::{Lane, lane_of};
use super::world::World;
use crate::hub::{Ending, Gone};
use crate::model::{Change, ConnectionId, DeviceId, Seq, SessionKey, UserId};
use crate::store::Snapshot;
use crate::wire::Frame;

/// How long a client waits for its restore, as the stock client does.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keys a user writes to.
const KEYS: u64 = 4;

/// See the module's comment.
pub struct Client {
    pub user: UserId,
    pub device: DeviceId,
    state: Mutex<State>,
}

/// What the client knows.
#[derive(Default)]
struct State {
    /// Its socket, from the restore until it has lost it.
    connection: Option<Arc<Connection>>,
    /// Sockets it has made.
    made: u64,
    has_retired: bool,
    view: View,
}

/// What the client has heard.
#[derive(Default)]
struct View {
    /// All changes up to here were heard, acked, or are in the restore; or are `owed`.
    position: Option<Seq>,
    /// Writes of this socket that were acked.
    acked: BTreeSet<Seq>,
    /// Its own changes that it was not told of in their turn, and whose acks have not come.
    owed: BTreeSet<Seq>,
    /// The change that each key has its state from.
    keys: BTreeMap<SessionKey, Seq>,
    /// Writes without an answer yet.
    unanswered: usize,
    /// The next restore has to be a full one.
    is_unsure: bool,
    /// Other devices that are online.
    online: BTreeSet<DeviceId>,
}

/// What the client does next.
enum Act {
    Write,
    /// The transport breaks.
    Blip,
    /// Goodbye, for a while.
    Goodbye,
    /// It goes to another network; the old socket stays open.
    Wander,
    /// It goes for good, saying goodbye or not.
    Retire,
    /// Its node died and it does not come back before others are told.
    StayAway,
}

impl Client {
    /// A device that was never online.
    pub fn new(user: UserId, device: DeviceId) -> Self {
        Self { user, device, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self) -> Lane {
        lane_of(self.user)
    }

    /// Its socket, while it has one that was restored.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.state().connection.clone()
    }

    /// It is not meant to be online any more.
    pub fn has_retired(&self) -> bool {
        self.state().has_retired
    }

    /// Goes on until the schedule ends.
    pub async fn live(self: Arc<Self>, world: Arc<World>) {
        let mut pause = (0, 1_500);
        loop {
            let (from, to) = if world.weather.is_calm() { (0, 300) } else { pause };
            sleep(world.fate().millis(self.lane(), from, to)).await;
            pause = (50, 1_500);
            let Some((connection, mut heard)) = self.connect(&world).await else { continue };
            self.state().connection = Some(connection.clone());
            let act = self.stay(&world, &connection, &mut heard).await;
            {
                let mut state = self.state();
                state.connection = None;
                let view = &mut state.view;
                view.is_unsure |= std::mem::take(&mut view.unanswered) > 0;
            }
            match act {
                Some(Act::Wander) => pause = (0, 200),
                Some(Act::StayAway) => sleep(world.fate().millis(self.lane(), 14_000, 17_000)).await,
                Some(Act::Goodbye) => {
                    pause = (500, 6_000);
                    connection.closed(Gone::ClientDisconnect);
                }
                Some(Act::Retire) => {
                    self.state().has_retired = true;
                    if world.fate().chance(self.lane(), 50) {
                        connection.closed(Gone::ClientDisconnect);
                    }
                    return close(&connection);
                }
                _ => close(&connection),
            }
        }
    }

    async fn connect(&self, world: &World) -> Option<(Arc<Connection>, Receiver<Heard>)> {
        let open = world.open_nodes();
        let node = open.get(world.fate().below(self.lane(), open.len().max(1) as u64) as usize)?.clone();
        let (number, since) = {
            let mut state = self.state();
            state.made += 1;
            (state.made, state.view.position.filter(|_| !state.view.is_unsure))
        };
        let id = ConnectionId(Uuid::from_u128(self.device.0.as_u128() << 32 | u128::from(number)));
        let whose = Whose { user: self.user, device: self.device, id, number };
        let (connection, mut heard) = Connection::open(whose, node.clone(), world.weather.fate.clone());
        world.keep(connection.clone());
        connection.note(format_args!("connects since {since:?}"));
        node.spawn(node.clone().connect(connection.clone(), since));
        let restored = async {
            let first = heard.recv().await;
            node.host.running().await;
            first
        };
        // What lies between it and the node may break, too, and the node sees that at once.
        let breaks_early = async {
            match world.fate().chance(self.lane(), if world.weather.is_calm() { 0 } else { 10 }) {
                true => sleep(world.fate().millis(self.lane(), 0, 1_500)).await,
                false => std::future::pending().await,
            }
            node.host.running().await;
        };
        let first = tokio::select! {
            biased;
            () = node.host.died() => None,
            first = restored => first,
            () = breaks_early => None,
            () = sleep(PATIENCE) => None,
        };
        match first {
            Some(Heard::Restored(snapshot, listed)) => {
                connection.note(format_args!("is restored at {}", snapshot.seq));
                self.restored(world, since, &snapshot, &listed);
                Some((connection, heard))
            }
            Some(Heard::Ended(Ending::Replaced)) => {
                self.replaced(world, &connection);
                None
            }
            _ => {
                close(&connection);
                None
            }
        }
    }

    /// Until the socket is gone, or the client lets it go to do something else.
    async fn stay(
        self: &Arc<Self>,
        world: &Arc<World>,
        connection: &Arc<Connection>,
        heard: &mut Receiver<Heard>,
    ) -> Option<Act> {
        let host = &connection.node.host;
        loop {
            let next = async {
                host.running().await;
                let next = heard.recv().await;
                host.running().await;
                next
            };
            let idle = async {
                if world.weather.is_calm() {
                    return std::future::pending().await;
                }
                sleep(world.fate().millis(self.lane(), 20, 900)).await;
            };
            tokio::select! {
                biased;
                () = host.died() => {
                    // Its client notices when it sends something.
                    sleep(world.fate().millis(self.lane(), 0, 1_500)).await;
                    return world.fate().chance(self.lane(), 30).then_some(Act::StayAway);
                }
                next = next => {
                    self.hear(world, connection, next?);
                    if connection.is_closed() && heard.is_empty() {
                        return None;
                    }
                }
                () = idle => match self.choose(world, host.is_running()) {
                    Some(Act::Write) => self.write(world, connection),
                    Some(act) => return Some(act),
                    None => {}
                }
            }
        }
    }

    fn choose(&self, world: &World, node_runs: bool) -> Option<Act> {
        if world.weather.is_calm() {
            return None;
        }
        Some(match world.fate().below(self.lane(), 100) {
            // Its pings are not answered.
            0..20 if !node_runs => Act::Wander,
            0..80 => Act::Write,
            80..86 => Act::Blip,
            86..90 if node_runs => Act::Goodbye,
            90..95 => Act::Wander,
            95..96 if node_runs => Act::Retire,
            _ => return None,
        })
    }

    fn write(self: &Arc<Self>, world: &World, connection: &Arc<Connection>) {
        for _ in 0..=world.fate().below(self.lane(), 3) {
            let key = format!("key-{}", world.fate().below(self.lane(), KEYS));
            let key = SessionKey::parse(&key).expect("a short name");
            let state = world.fate().below(self.lane(), 1_000_000).to_string();
            self.state().view.unanswered += 1;
            connection.node.spawn(connection.node.clone().write(connection.clone(), key, state));
        }
    }

    /// One more write, where it has a socket.
    pub fn write_if_online(self: &Arc<Self>, world: &World) {
        if let Some(connection) = self.connection() {
            self.write(world, &connection);
        }
    }

    fn hear(&self, world: &World, connection: &Arc<Connection>, heard: Heard) {
        match heard {
            Heard::Changed(change) => self.changed(world, connection, &change),
            Heard::Told(frame) => self.told(&frame),
            Heard::Acked(key, seq) => {
                let mut state = self.state();
                let view = &mut state.view;
                view.unanswered -= 1;
                let at = view.keys.entry(key).or_default();
                *at = (*at).max(seq);
                view.owed.remove(&seq);
                view.acked.insert(seq);
                while let Some(next) = view.position.map(Seq::next).filter(|next| view.acked.contains(next)) {
                    view.position = Some(next);
                }
            }
            Heard::Refused => self.state().view.unanswered -= 1,
            Heard::Unknown => {
                let mut state = self.state();
                state.view.unanswered -= 1;
                state.view.is_unsure = true;
            }
            Heard::Ended(Ending::Replaced) => self.replaced(world, connection),
            Heard::Ended(_) | Heard::Closed => {}
            Heard::Restored(..) => world.fate().violation(format!("{} was restored twice", self.name())),
        }
    }

    /// The newest socket of a device is never the one that has to go, whoever claimed the device last.
    fn replaced(&self, world: &World, connection: &Connection) {
        if connection.number == self.state().made && !world.another_died_on_the_way(connection) {
            world.fate().violation(format!("{} was replaced by an older socket", self.name()));
        }
    }

    fn restored(&self, world: &World, since: Option<Seq>, snapshot: &Snapshot, listed: &str) {
        let mut state = self.state();
        let view = &mut state.view;
        if snapshot.delta != since.is_some() {
            world.fate().violation(format!("{} got another restore than it asked for", self.name()));
        }
        if !snapshot.delta {
            view.keys.clear();
        }
        view.keys.extend(snapshot.entries.iter().map(|entry| (entry.key.clone(), entry.seq)));
        view.position = Some(snapshot.seq);
        view.acked.clear();
        view.owed.clear();
        view.is_unsure = false;
        let listed: Vec<Value> = serde_json::from_str(listed).expect("a list of devices");
        let online = listed.iter().filter(|device| device["online"] == true);
        view.online = online.filter_map(|device| id(&device["id"])).collect();
        view.online.remove(&self.device);
    }

    /// Each change once, in order, and none left out but those that an ack tells of.
    fn changed(&self, world: &World, connection: &Connection, change: &Change) {
        connection.note(format_args!("hears seq {}", change.seq));
        let mut state = self.state();
        let position = state.view.position.unwrap_or_default();
        let name = self.name();
        let told = |what: String| world.fate().violation(what);
        // Where a repair read it from the store before the room was told whose ack it is.
        if state.view.acked.contains(&change.seq) && change.seq <= position {
            return;
        }
        if change.seq <= position {
            return told(format!("{name} heard seq {} again or late, at {position}", change.seq));
        }
        let committed = world.database.changes_above(self.user, position);
        if !committed.iter().any(|committed| **committed == *change) {
            told(format!("{name} heard seq {} otherwise than it was committed", change.seq));
        }
        for passed in committed.iter().take_while(|committed| committed.seq < change.seq) {
            if passed.device != Some(self.device) {
                told(format!("{name} heard seq {} but missed {}", change.seq, passed.seq));
            } else if !state.view.acked.contains(&passed.seq) {
                state.view.owed.insert(passed.seq);
            }
        }
        state.view.position = Some(change.seq);
        // Acks are not ordered against what is heard: what has the highest seq counts.
        let at = state.view.keys.entry(change.key.clone()).or_default();
        *at = (*at).max(change.seq);
    }

    fn told(&self, frame: &Frame) {
        let Ok(Value::Array(event)) = serde_json::from_str(&frame.as_str()[1..]) else { return };
        let body = &event[1];
        let mut state = self.state();
        match event[0].as_str() {
            Some("device-connected") => state.view.online.extend(id(&body["deviceId"])),
            Some("device-disconnected") => {
                if let Some(gone) = id(&body["deviceId"]) {
                    state.view.online.remove(&gone);
                }
            }
            _ => {}
        }
    }

    /// What it knows is what is: asked when all is calm and it is connected.
    pub fn check_view(&self, world: &World) {
        let state = self.state();
        let (view, name) = (&state.view, self.name());
        let position = view.position.unwrap_or_default();
        let unheard = world.database.changes_above(self.user, position);
        let unheard = unheard.iter().map(|change| change.seq).filter(|seq| !view.acked.contains(seq));
        for missed in unheard.chain(view.owed.iter().copied()) {
            world.fate().violation(format!("{name} never heard seq {missed}, it is at {position}"));
        }
        for entry in world.database.entries(self.user) {
            let known = view.keys.get(&entry.key).copied();
            if known != Some(entry.seq) {
                world.fate().violation(format!(
                    "{name} has {} from seq {known:?}, the store from {}",
                    entry.key, entry.seq
                ));
            }
        }
    }

    /// The events it heard name those who are online.
    pub fn check_online(&self, world: &World, truth: &BTreeSet<DeviceId>) {
        let mut others = truth.clone();
        others.remove(&self.device);
        let online = &self.state().view.online;
        if *online != others {
            let names = |ids: &BTreeSet<DeviceId>| ids.iter().map(|id| id.0.as_u128()).collect::<Vec<_>>();
            let (known, is) = (names(online), names(&others));
            world.fate().violation(format!("{} takes {known:?} for online, it is {is:?}", self.name()));
        }
    }

    /// The device as the trace names it.
    pub fn name(&self) -> String {
        format!("device {}", self.device.0.as_u128())
    }
}

/// The client closes its end; the node sees it once it runs.
fn close(connection: &Arc<Connection>) {
    let closing = connection.clone();
    connection.node.spawn(async move {
        closing.node.host.running().await;
        closing.closed(Gone::TransportClose);
    });
}

fn id(value: &Value) -> Option<DeviceId> {
    DeviceId::parse(value.as_str()?)
}
