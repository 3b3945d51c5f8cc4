//! Which device a client is when it comes to another node, and what the others hear of it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{all_list_online, is_not_sent_away, sorted};
use crate::answers::is_error;
use crate::support::{Account, ChaosProxy, Cluster, Device, RawSocket, short_or_long};

/// How long a node is frozen, so that it notices when it goes on.
const STANDSTILL: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn of_two_live_sockets_with_one_device_id_on_two_nodes_the_newer_wins() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(2, &ann, "Watcher").await;
    let older = cluster.named(0, &ann, "Phone").await;
    watcher.next("device-connected").await;

    let newer = Device::options(&cluster.nodes[1], &ann).auth("deviceId", older.id()).connect().await;

    assert_eq!(newer.id(), older.id());
    is_error(&older.next("error").await, "replaced");
    let gone = older.next("$disconnect").await;
    assert_eq!(gone, json!({"reason": "io server disconnect", "retries": false}), "the older stays away");
    newer.update("k", json!("the newer writes")).await;
    assert_eq!(watcher.next("session-updated").await["state"], "the newer writes");
    // Nobody hears of it: the device was there all the time.
    grace_is_over(&cluster, &ann, &watcher).await;
    watcher.expect_none("device-disconnected").await;
    assert_eq!(watcher.events("device-connected").len(), 1 + 1, "the phone's first coming and the marker's");
    all_list_online(&cluster, &ann, &sorted([watcher.id(), newer.id()])).await;
}

#[tokio::test]
async fn a_device_that_describes_itself_anew_on_another_node_is_told_as_updated_everywhere() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let watchers = [cluster.named(1, &ann, "Watcher 1").await, cluster.named(2, &ann, "Watcher 2").await];
    let older = cluster.named(0, &ann, "Phone").await;
    for watcher in &watchers {
        watcher.next_where("device-connected", |one| one["deviceId"] == older.id()).await;
    }

    let newer = Device::options(&cluster.nodes[1], &ann).named("Tablet").auth("deviceId", older.id());
    let newer = newer.connect().await;

    for watcher in &watchers {
        let updated = watcher.next("device-updated").await;
        let info = json!({"name": "Tablet", "type": "test"});
        assert_eq!(updated, json!({"deviceId": newer.id(), "deviceInfo": info}));
        watcher.caught_up_with(&newer).await;
        watcher.expect_none("device-updated").await;
        let came = watcher.events("device-connected").into_iter().filter(|one| one["deviceId"] == newer.id());
        assert_eq!(came.count(), 1, "it was there all the time");
    }
}

#[tokio::test]
async fn of_two_live_sockets_with_one_device_id_the_newer_wins_without_redis_too() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let older = cluster.named(0, &ann, "Phone").await;
    cluster.redis.stop();
    cluster.all_say("degraded").await;

    let newer = Device::options(&cluster.nodes[1], &ann).auth("deviceId", older.id()).connect().await;

    assert_eq!(newer.id(), older.id());
    is_error(&older.next("error").await, "replaced");
    assert_eq!(older.disconnected().await, "io server disconnect");
    assert_eq!(newer.update("k", json!(1)).await["ok"], true);
    cluster.redis.cont();
}

#[tokio::test]
async fn a_node_that_stood_still_does_not_take_a_device_from_where_its_client_went_meanwhile() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let mut gone = RawSocket::open(&cluster.nodes[1]).await;

    cluster.nodes[1].stop();
    // Its client says CONNECT to the frozen node, gives up, and goes to the other.
    gone.send(&format!("40{}", json!({"token": ann.token, "deviceId": phone.id()}))).await;
    drop(gone);
    let frozen = Instant::now();
    while frozen.elapsed() < STANDSTILL {
        // It may have been frozen while it held the database.
        drop(phone.try_emit_ack("session-get", vec![json!({})]).await);
    }
    cluster.nodes[1].cont();

    is_not_sent_away(&cluster.nodes[0], &phone).await;
}

#[tokio::test]
async fn a_device_id_that_goes_from_node_to_node_leaves_one_socket() {
    let rounds = short_or_long(6, 60);
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(2, &ann, "Watcher").await;
    let first = cluster.named(0, &ann, "Phone").await;
    let id = first.id().to_owned();
    let mut sockets = vec![first];
    for round in 1..=rounds {
        let next =
            Device::options(&cluster.nodes[round % 3], &ann).auth("deviceId", id.as_str()).connect().await;
        sockets.push(next);
    }
    let last = sockets.pop().unwrap();
    for replaced in &sockets {
        assert_eq!(replaced.disconnected().await, "io server disconnect");
    }
    last.update("k", json!(1)).await;
    watcher.next("session-updated").await;
    all_list_online(&cluster, &ann, &sorted([watcher.id(), &id])).await;
    assert_eq!(last.events("$disconnect"), Vec::<Value>::new());
}

#[tokio::test]
async fn a_stock_client_whose_transport_breaks_is_the_same_device_on_another_node_and_nobody_hears_of_it() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(2, &ann, "Watcher").await;
    let proxy = ChaosProxy::start(cluster.nodes[0].address()).await;
    let mut phone = Device::options_at(&proxy.url(), &ann).named("Phone").connect().await;
    let id = phone.id().to_owned();
    watcher.next("device-connected").await;
    for node in [1, 2, 0] {
        proxy.retarget(cluster.nodes[node].address());
        proxy.cut();
        phone.restored_again().await;
        assert_eq!(phone.id(), id, "on node {node}");
    }

    grace_is_over(&cluster, &ann, &watcher).await;
    watcher.expect_none("device-disconnected").await;
    assert_eq!(watcher.events("device-connected").len(), 1 + 1, "the phone's first coming and the marker's");
    all_list_online(&cluster, &ann, &sorted([watcher.id(), &id])).await;
}

#[tokio::test]
async fn a_client_whose_old_connection_on_another_node_fell_silent_is_the_same_device_again() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let proxy = ChaosProxy::start(cluster.nodes[0].address()).await;
    let silent = Device::options_at(&proxy.url(), &ann).named("Phone").without_reconnection().connect().await;
    all_list_online(&cluster, &ann, &sorted([silent.id()])).await;
    proxy.freeze();

    let back = cluster.named(1, &ann, "Phone").await;

    assert_eq!(back.id(), silent.id());
}

#[tokio::test]
async fn a_live_device_never_loses_its_identity_to_a_twin_on_another_node() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let first = cluster.named(0, &ann, "Phone").await;
    all_list_online(&cluster, &ann, &sorted([first.id()])).await;

    let twin = cluster.named(1, &ann, "Phone").await;

    assert_ne!(twin.id(), first.id());
    first.update("k", json!(1)).await;
    assert_eq!(twin.next("session-updated").await["deviceId"], first.id());
    assert_eq!(first.events("$disconnect"), Vec::<Value>::new());
}

#[tokio::test]
async fn twins_that_connect_to_several_nodes_at_the_same_moment_are_several_devices() {
    let cluster = Cluster::start(3).await;
    for round in 0..short_or_long(10, 100) {
        let ann = cluster.register(&format!("ann{round}")).await;
        let twins = join_all((0..3).map(|node| cluster.named(node, &ann, "Phone"))).await;
        let mut ids = sorted(twins.iter().map(Device::id));
        ids.dedup();
        assert_eq!(ids.len(), 3, "round {round}: each is a device of its own");
        for twin in &twins {
            twin.update("k", json!(1)).await;
        }
    }
}

#[tokio::test]
async fn twins_that_lose_their_network_together_come_back_as_themselves_on_other_nodes() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(2, &ann, "Watcher").await;
    let proxies = [
        ChaosProxy::start(cluster.nodes[0].address()).await,
        ChaosProxy::start(cluster.nodes[1].address()).await,
        ChaosProxy::start(cluster.nodes[2].address()).await,
    ];
    let mut twins = Vec::new();
    for proxy in proxies.iter().chain(&proxies) {
        twins.push(Device::options_at(&proxy.url(), &ann).named("Phone").connect().await);
    }
    let before = sorted(twins.iter().map(Device::id));

    for (n, proxy) in proxies.iter().enumerate() {
        proxy.retarget(cluster.nodes[(n + 1) % 3].address());
        proxy.cut();
    }
    for twin in &mut twins {
        twin.restored_again().await;
    }

    assert_eq!(sorted(twins.iter().map(Device::id)), before, "six devices before and after, none shared");
    grace_is_over(&cluster, &ann, &watcher).await;
    watcher.expect_none("device-disconnected").await;
}

#[tokio::test]
async fn a_device_that_comes_and_goes_at_once_is_not_left_online() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(1, &ann, "Watcher").await;
    for n in 0..short_or_long(30, 300) {
        let device = cluster.named(0, &ann, &format!("hasty {n}")).await;
        device.disconnect().await;
    }
    all_list_online(&cluster, &ann, &sorted([watcher.id()])).await;
}

/// A device that goes without a word and is announced marks the time by which others would have been.
async fn grace_is_over(cluster: &Cluster, account: &Account, watcher: &Device) {
    let marker = Device::options(&cluster.nodes[0], account).named("Marker").without_reconnection();
    let marker = marker.connect().await;
    watcher.next_where("device-connected", |one| one["deviceId"] == marker.id()).await;
    marker.break_transport().await;
    watcher.next_where("device-disconnected", |one| one["deviceId"] == marker.id()).await;
}
