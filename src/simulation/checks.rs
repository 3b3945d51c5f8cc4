//! What must hold, always and in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::connection::Connection;
use super::node::Node;
use super::world::World;
use crate::hub::Ending;

/// A dead node's devices are announced within this.
const BURIED_WITHIN: Duration = Duration::from_secs(15);

/// Two sockets of a device may both live for this long: a regular ask, with its way to the store.
const TWINS_MAX: Duration = Duration::from_secs(6);

/// How often is looked for them.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Everything that must be right once it was calm for long enough.
pub async fn everything(world: &Arc<World>) {
    let truth = world.truth();
    for client in &world.clients {
        if client.has_retired() {
            continue;
        }
        if client.connection().is_none() {
            world.fate().violation(format!("{} did not come back", client.name()));
            continue;
        }
        client.check_view(world);
        if world.weather.kinds.is_clean() {
            client.check_online(world, &World::online_of(&truth[&client.user]));
        }
    }
    for node in world.open_nodes() {
        for (user, online) in &truth {
            check_roster(world, &node, *user, online).await;
        }
    }
    sockets(world);
    burials(world);
}

async fn check_roster(
    world: &World,
    node: &Node,
    user: crate::model::UserId,
    online: &BTreeMap<crate::model::DeviceId, Arc<Connection>>,
) {
    let roster = node.roster(user).await;
    let known: BTreeSet<_> = roster.rows.iter().map(|(device, row)| (*device, row.connection)).collect();
    let is: BTreeSet<_> = online.iter().map(|(device, connection)| (*device, connection.id)).collect();
    if !roster.complete || known != is {
        let wrong: Vec<_> = known.symmetric_difference(&is).map(|(device, _)| device.0.as_u128()).collect();
        let complete = roster.complete;
        let what = format!("{} knows wrong of devices {wrong:?}, complete: {complete}", node.host.name);
        world.fate().violation(what);
    }
}

/// Whether the server takes this socket for a live one.
fn is_live(connection: &Connection) -> bool {
    connection.fence().is_some() && !connection.is_closed() && connection.node.host.is_running()
}

/// One live socket a device, the newest; whatever was replaced made way for a newer one.
fn sockets(world: &World) {
    for (device, connections) in world.connections() {
        let live: Vec<_> = connections.iter().filter(|connection| is_live(connection)).collect();
        let newest = connections.iter().max_by_key(|connection| connection.fence());
        let is_newest = |live: &Connection| newest.is_some_and(|newest| newest.id == live.id);
        if live.len() > 1 || !live.iter().all(|live| is_newest(live)) {
            let live: Vec<_> = live.iter().map(|live| live.number).collect();
            let what = format!("device {} has sockets {live:?} open", device.0.as_u128());
            world.fate().violation(what);
        }
        for replaced in connections.iter().filter(|one| one.ended() == Some(Ending::Replaced)) {
            if !world.newer_exists(replaced) {
                let (device, number) = (device.0.as_u128(), replaced.number);
                world.fate().violation(format!("device {device}.{number} was replaced by an older socket"));
            }
        }
    }
}

/// Nothing of a dead node is left, and nobody was announced twice.
fn burials(world: &World) {
    for node in world.nodes().iter().filter(|node| node.host.is_dead()) {
        let left = world.redis.rows_of(&node.life());
        if !left.is_empty() {
            world.fate().violation(format!("{} is gone and has {} rows", node.host.name, left.len()));
        }
    }
    let mut seen = BTreeSet::new();
    for announced in world.redis.announced() {
        if !seen.insert((announced.life, announced.connection)) {
            world.fate().violation("a device was lost twice with its node".to_owned());
        }
    }
}

/// Looks for devices with two live sockets, where nothing keeps nodes from hearing of it.
pub async fn watch_twins(world: Arc<World>) {
    let kinds = world.weather.kinds;
    if kinds.freezes || kinds.kills || kinds.store_fails > 0 {
        return;
    }
    let mut since = BTreeMap::new();
    loop {
        sleep(LOOK_EVERY).await;
        for (device, connections) in world.connections() {
            if connections.iter().filter(|connection| is_live(connection)).count() < 2 {
                since.remove(&device);
                continue;
            }
            let began = *since.entry(device).or_insert_with(Instant::now);
            if began.elapsed() > TWINS_MAX {
                let what = format!("device {} had two live sockets for long", device.0.as_u128());
                return world.fate().violation(what);
            }
        }
    }
}

/// A node dies now: its devices that do not come back elsewhere are announced in time, once.
pub fn watch_burial(world: &Arc<World>, node: &Node) {
    let kinds = world.weather.kinds;
    if kinds.cuts || kinds.freezes || kinds.wipes {
        return;
    }
    let (died, life) = (Instant::now(), node.life());
    let rows = world.redis.rows_of(&life);
    let watching = world.clone();
    world.spawn(async move {
        sleep(BURIED_WITHIN).await;
        if watching.last_went() > Some(died) {
            // The claimer may have gone itself.
            return;
        }
        let announced = watching.redis.announced();
        let connections = watching.connections();
        for (_, device, row) in rows {
            let times = announced.iter().filter(|one| one.connection == row.connection).count();
            let came_back = connections[&device].iter().any(|one| one.fence() > Some(row.fence));
            if times != 1 && !(times == 0 && came_back) {
                let device = device.0.as_u128();
                watching.fate().violation(format!("device {device} died with its node, told {times} times"));
            }
        }
    });
}

/// Drains a node; none of its sockets is forgotten.
pub async fn drain(world: Arc<World>, node: Arc<Node>) {
    let name = node.host.name.clone();
    node.drain().await;
    for connection in world.connections().values().flatten() {
        let was_let_in = connection.fence().is_some();
        if connection.node.host.name == name && was_let_in && !connection.is_closed() {
            world.fate().violation(format!("{name} drained and left a socket open"));
        }
    }
}
