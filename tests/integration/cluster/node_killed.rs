//! A node killed with -9: nothing acknowledged is lost, everybody converges, its devices are announced as gone, once.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::Value;

use super::{all_list_online, session_everywhere, sorted};
use crate::replica::{Replica, number};
use crate::support::{Cluster, Device, Env, Node, short_or_long, within_secs};
use crate::writers::{History, stored_changes, versions_are_1_to_n, write_until_acked};

const NODES: usize = 3;

/// Within this a dead node's devices are announced.
const ANNOUNCED_WITHIN_SECONDS: u64 = 15;

/// Within this, after the last reconnection, everybody holds the same.
const CONVERGED_WITHIN_SECONDS: u64 = 5;

#[tokio::test]
async fn kill_9_of_one_node_after_the_other_loses_no_acked_update_and_everybody_converges() {
    let (users, writes_each, kills) = short_or_long((4, 60, 4), (16, 200, 20));
    let mut cluster = Cluster::start(NODES).await;
    let mut accounts = Vec::new();
    let mut devices = Vec::new();
    for user in 0..users {
        let account = cluster.register(&format!("user{user}")).await;
        for node in 0..NODES {
            devices.push((user, cluster.named(node, &account, &format!("device {node}")).await));
        }
        accounts.push(account);
    }
    let all = devices.len() * writes_each;
    let history = History::default();

    let writing = devices
        .iter()
        .enumerate()
        .map(|(index, (user, device))| write_until_acked(&history, *user, index, device, writes_each));
    let killing = async {
        let mut count = history.count.subscribe();
        for kill in 1..=kills {
            let kill_at = all * kill / (kills + 1);
            within_secs(60, count.wait_for(|count| *count >= kill_at)).await.unwrap();
            let node = &mut cluster.nodes[kill % NODES];
            node.kill_9();
            node.restart().await;
        }
    };
    within_secs(short_or_long(90, 900), async { tokio::join!(join_all(writing), killing) }).await;

    let began = Instant::now();
    let acked = history.acked.into_inner().unwrap();
    assert_eq!(acked.len(), all);
    for (user, account) in accounts.iter().enumerate() {
        let session = session_everywhere(&cluster, account).await;
        for (index, (_, device)) in devices.iter().enumerate().filter(|(_, (owner, _))| *owner == user) {
            let own = acked.iter().filter(|one| one.device == index);
            let own: Vec<_> = own.map(|one| (one.key.as_str(), &one.state, &one.ack)).collect();
            let converged = |_: &[Value]| {
                let replica = Replica::of(&device.seen()).with_acks(own.iter().copied());
                replica.equals(&session).then_some(())
            };
            device.until("session-updated", CONVERGED_WITHIN_SECONDS, converged).await;
        }
        let stored = stored_changes(&cluster.nodes[0], &account.id).await;
        let head = number(&session["seq"]);
        assert_eq!(stored.keys().copied().collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
        for one in acked.iter().filter(|one| one.user == user) {
            let row = &stored[&number(&one.ack["seq"])];
            let expected = (one.key.clone(), number(&one.ack["version"]), one.state.clone());
            assert_eq!(*row, expected, "an acked write is stored as it was acked");
        }
        versions_are_1_to_n(&stored);
    }
    println!("{all} acked updates over {kills} kills; all checked as converged after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_killed_nodes_devices_are_announced_once_within_15_s_and_listed_as_offline_everywhere() {
    const LOST: usize = 3;
    let mut cluster = Cluster::start_with(NODES, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let watchers = [cluster.named(0, &ann, "one").await, cluster.named(1, &ann, "two").await];
    let mut lost = Vec::new();
    for n in 0..LOST {
        let device =
            Device::options(&cluster.nodes[2], &ann).named(&format!("lost {n}")).without_reconnection();
        lost.push(device.connect().await);
    }
    let here = sorted(watchers.iter().map(Device::id));
    let everyone = sorted(watchers.iter().chain(&lost).map(Device::id));
    all_list_online(&cluster, &ann, &everyone).await;

    let began = Instant::now();
    cluster.nodes[2].kill_9();
    for watcher in &watchers {
        let gone = watcher
            .until("device-disconnected", ANNOUNCED_WITHIN_SECONDS, |seen| {
                (seen.len() >= LOST).then(|| seen.to_vec())
            })
            .await;
        assert_eq!(
            sorted(gone.iter().map(|one| one["deviceId"].as_str().unwrap())),
            sorted(lost.iter().map(Device::id))
        );
    }
    println!("a killed node's devices were announced after {:?}", began.elapsed());

    cluster.nodes[2].restart().await;
    all_list_online(&cluster, &ann, &here).await;
    for (watcher, other) in [(&watchers[0], &watchers[1]), (&watchers[1], &watchers[0])] {
        watcher.caught_up_with(other).await;
        assert_eq!(watcher.events("device-disconnected").len(), LOST, "each once");
    }
}

#[tokio::test]
async fn a_stopped_node_that_was_taken_for_dead_comes_back_with_its_devices() {
    let env = Env::new().set("PING_INTERVAL_SECONDS", 60).set("PING_TIMEOUT_SECONDS", 60);
    let cluster = Cluster::start_with(NODES, &env).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(0, &ann, "Watcher").await;
    let sleeper = cluster.named(1, &ann, "Sleeper").await;
    watcher.next("device-connected").await;

    cluster.nodes[1].stop();
    let gone =
        watcher.until("device-disconnected", ANNOUNCED_WITHIN_SECONDS, |seen| seen.first().cloned()).await;
    assert_eq!(gone["deviceId"], sleeper.id());
    cluster.nodes[1].cont();

    // Its socket never broke: it is announced again, and what was missed meanwhile arrives.
    watcher.next_where("device-connected", |one| one["deviceId"] == sleeper.id()).await;
    watcher.update("k", Value::from(1)).await;
    sleeper.next_where("session-updated", |update| update["state"] == 1).await;
    all_list_online(&cluster, &ann, &sorted([watcher.id(), sleeper.id()])).await;
}

/// Waits until each of these nodes counts `count` alive.
async fn counted<'a>(nodes: impl IntoIterator<Item = &'a Node>, count: f64) {
    for node in nodes {
        let counting = async { while node.metric("tandem_backplane_nodes").await != count {} };
        within_secs(30, counting).await;
    }
}

#[tokio::test]
async fn every_node_counts_those_that_are_alive_in_its_redis() {
    let mut cluster = Cluster::start(NODES).await;
    counted(&cluster.nodes, 3.0).await;
    cluster.nodes[0].kill_9();
    counted(&cluster.nodes[1..], 2.0).await;
    cluster.redis.kill();
    counted(&cluster.nodes[1..], 0.0).await;
}
