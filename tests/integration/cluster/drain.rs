//! SIGTERM under load: load balancers are told first, then sockets go one after the other, and nothing is lost.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{all_list_online, session_everywhere, sorted};
use crate::replica::{Replica, number};
use crate::support::{Cluster, Device, Env, HaProxy, Node, Rest, eventually, short_or_long, within_secs};

const NODES: usize = 3;

/// A stopping node may take this long beyond its drain.
const BEYOND_SECONDS: u64 = 15;

#[tokio::test]
async fn a_node_terminated_under_load_lets_its_clients_go_one_after_the_other_and_nothing_is_lost() {
    let (sockets, users, lag, drain) = short_or_long((240, 20, 1, 3), (2_000, 100, 5, 15));
    let env = Env::new().set("DRAIN_LAG_SECONDS", lag).set("DRAIN_SECONDS", drain);
    let mut cluster = Cluster::start_with(NODES, &env).await;
    let mut accounts = Vec::new();
    let mut devices = Vec::new();
    for user in 0..users {
        accounts.push(cluster.register(&format!("user{user}")).await);
    }
    for n in 0..sockets {
        let options = Device::options(&cluster.nodes[0], &accounts[n % users]).named(&format!("device {n}"));
        devices.push(options.without_reconnection().connect().await);
    }

    let began = Instant::now();
    let node = &mut cluster.nodes[0];
    let leaving = join_all(devices.iter().map(|device| async {
        let reason = within_secs(lag + drain + BEYOND_SECONDS, wait_gone(device)).await;
        (began.elapsed(), reason)
    }));
    let busy = join_all(devices.iter().map(write_until_gone));
    let asking = async {
        node.terminate();
        let rest = node.rest();
        eventually("it is not ready", || async {
            let ready = rest.request(reqwest::Method::GET, "/api/health/ready");
            (Rest::try_status(ready).await == Some(503)).then_some(())
        })
        .await;
        let not_ready = began.elapsed();
        // It still takes what a balancer sends that has not noticed yet.
        let late = Device::options(&*node, &accounts[0]).named("late").without_reconnection().connect().await;
        late.update("late", json!(1)).await;
        let exit = within_secs(lag + drain + BEYOND_SECONDS, node.wait_exit()).await;
        (not_ready, late, exit, began.elapsed())
    };
    let (gone, acks, (not_ready, late, exit, exited)) = tokio::join!(leaving, busy, asking);

    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert!(exited < Duration::from_secs(lag + drain + BEYOND_SECONDS), "{exited:?}");
    assert!(!exit.output.contains("did not end in time"), "{}", exit.output);
    assert!(not_ready < Duration::from_secs(1), "not ready only after {not_ready:?}");
    for (at, reason) in &gone {
        assert_eq!(reason, "transport close", "a goodbye would keep stock clients away");
        assert!(*at >= Duration::from_secs(lag), "it served for {at:?} only");
    }
    for device in devices.iter().chain([&late]) {
        assert_eq!(device.events("server-draining").len(), 1, "each is told once");
        assert!(device.events("server-draining")[0]["reconnectInMs"].is_u64());
    }
    // Spread: no quarter of the window takes more than half of the sockets.
    let window = Duration::from_secs(drain);
    for quarter in 0..4 {
        let from = Duration::from_secs(lag) + window * quarter / 4;
        let share = gone.iter().filter(|(at, _)| (from..from + window / 4).contains(at)).count();
        assert!(share < sockets / 2, "{share} of {sockets} in quarter {quarter}");
    }
    let last = gone.iter().map(|(at, _)| *at).max().unwrap();
    let acked: usize = acks.iter().sum();
    println!(
        "{acked} acked; not ready after {not_ready:?}, last socket after {last:?}, exit after {exited:?}"
    );

    cluster.nodes[0].restart().await;
    let mut stored = 0;
    for account in &accounts {
        stored += number(&session_everywhere(&cluster, account).await["seq"]);
    }
    assert_eq!(stored as usize, acked + 1, "every write that was taken was answered, and none without a row");
}

/// Writes without a pause until its connection ends; how many were acknowledged. A refusal is an answer too.
async fn write_until_gone(device: &Device) -> usize {
    let mut acked = 0;
    // What is written without a connection waits for one, which does not come.
    while device.events("$disconnect").is_empty() {
        let update = json!({"sessionKey": device.id(), "state": acked});
        match device.try_emit_ack("session-update", vec![update]).await {
            Ok(ack) if ack["ok"] == true => acked += 1,
            Ok(ack) => assert_eq!(ack["error"]["retryable"], true, "{ack}"),
            Err(_) => break,
        }
    }
    acked
}

async fn wait_gone(device: &Device) -> String {
    let reason = |gone: &[Value]| gone.first().map(|gone| gone["reason"].as_str().unwrap().to_owned());
    device.until("$disconnect", 600, reason).await
}

#[tokio::test]
async fn stock_clients_of_a_terminated_node_come_back_to_another_through_the_balancer_unnoticed() {
    let devices_each = short_or_long(2, 6);
    let env = Env::new().set("DRAIN_LAG_SECONDS", 3).set("DRAIN_SECONDS", 2);
    let mut cluster = Cluster::start_with(NODES, &env).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    let ann = cluster.register("ann").await;
    let mut devices = Vec::new();
    for n in 0..devices_each * NODES {
        let options = Device::options_at(&balancer.url(), &ann).stock().named(&format!("device {n}"));
        devices.push(options.option("reconnectionDelay", 100).connect().await);
    }
    let ids = sorted(devices.iter().map(Device::id));
    let over = watch::Sender::new(false);

    let writing = write_until_told(&devices[0], over.subscribe());
    let stopping = async {
        cluster.nodes[1].terminate();
        let exit = within_secs(30, cluster.nodes[1].wait_exit()).await;
        over.send_replace(true);
        exit
    };
    let (acked, exit) = tokio::join!(writing, stopping);
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert!(acked > 0);

    let session = cluster.rest_of(0, &ann).get("/api/session").await.expect(200);
    assert!(number(&session["seq"]) >= acked);
    let mut moved = 0;
    for device in &devices {
        let converged = |_: &[Value]| {
            let own = device.id() == devices[0].id();
            (own || Replica::of(&device.seen()).equals(&session)).then_some(())
        };
        device.until("session-updated", 20, converged).await;
        moved += device.events("$disconnect").len();
        assert_eq!(device.inspect().await["connected"], true);
    }
    assert!(moved >= 1, "somebody was on the node that stopped");
    for node in [0, 2] {
        eventually("everybody is who they were", || async {
            (super::online(&cluster, node, &ann).await == ids).then_some(())
        })
        .await;
    }
    for device in &devices {
        assert_eq!(
            device.events("device-disconnected"),
            Vec::<Value>::new(),
            "nobody was gone for longer than the grace"
        );
    }
    cluster.nodes[1].restart().await;
    all_list_online(&cluster, &ann, &ids).await;
}

#[tokio::test]
async fn a_rolling_restart_of_all_nodes_behind_the_balancer_loses_no_acked_write() {
    let env = Env::new().set("DRAIN_LAG_SECONDS", 3).set("DRAIN_SECONDS", 1);
    let mut cluster = Cluster::start_with(NODES, &env).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    let mut writers = Vec::new();
    for n in 0..2 * NODES {
        let account = cluster.register(&format!("user{n}")).await;
        let options = Device::options_at(&balancer.url(), &account).stock().option("reconnectionDelay", 100);
        writers.push((options.connect().await, account));
    }
    let over = watch::Sender::new(false);

    let writing = join_all(writers.iter().map(|(device, _)| write_until_told(device, over.subscribe())));
    let restarting = async {
        for node in 0..NODES {
            cluster.nodes[node].terminate();
            let exit = within_secs(30, cluster.nodes[node].wait_exit()).await;
            assert_eq!(exit.code, Some(0), "{}", exit.output);
            cluster.nodes[node].restart().await;
        }
        over.send_replace(true);
    };
    let (acked, ()) = tokio::join!(writing, restarting);

    for ((_, account), acked) in writers.iter().zip(acked) {
        let session = cluster.rest_of(0, account).get("/api/session").await.expect(200);
        assert!(acked > 0 && number(&session["seq"]) >= acked, "{session} after {acked} acks");
    }
    let moved: usize = writers.iter().map(|(device, _)| device.events("$disconnect").len()).sum();
    assert!(moved >= writers.len(), "everybody was on a node that stopped: {moved}");
}

/// Writes again and again, over reconnections; how many were acknowledged.
async fn write_until_told(device: &Device, over: watch::Receiver<bool>) -> u64 {
    let mut acked = 0;
    while !*over.borrow() {
        let update = json!({"sessionKey": "k", "state": acked});
        if let Ok(ack) = device.try_emit_ack("session-update", vec![update]).await {
            assert!(ack["ok"] == true || ack["error"]["retryable"] == true, "{ack}");
            acked += u64::from(ack["ok"] == true);
        }
    }
    acked
}

#[tokio::test]
async fn the_devices_of_a_terminated_node_that_do_not_come_back_are_announced_once() {
    let env =
        Env::new().set("DRAIN_LAG_SECONDS", 0).set("DRAIN_SECONDS", 1).set("DISCONNECT_GRACE_SECONDS", 1);
    let mut cluster = Cluster::start_with(2, &env).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(0, &ann, "Watcher").await;
    let leaving = |node: &Node, name: &str| Device::options(node, &ann).named(name).without_reconnection();
    let mut gone = Vec::new();
    for n in 0..3 {
        gone.push(leaving(&cluster.nodes[1], &format!("gone {n}")).connect().await);
    }
    let ids = sorted(gone.iter().map(Device::id));
    watcher.until("device-connected", 10, |seen| (seen.len() >= 3).then_some(())).await;

    cluster.nodes[1].terminate();
    let exit = within_secs(30, cluster.nodes[1].wait_exit()).await;

    assert_eq!(exit.code, Some(0), "{}", exit.output);
    let told =
        watcher.until("device-disconnected", 10, |seen| (seen.len() >= 3).then(|| seen.to_vec())).await;
    assert_eq!(sorted(told.iter().map(|one| one["deviceId"].as_str().unwrap())), ids);
    cluster.nodes[1].restart().await;
    all_list_online(&cluster, &ann, &sorted([watcher.id()])).await;
    watcher.expect_none("nothing but a round trip").await;
    assert_eq!(watcher.events("device-connected").len(), 3);
    assert_eq!(watcher.events("device-disconnected").len(), 3, "each once");
}
