//! The parts that tests are made of do what they say: a fault that is not made proves nothing.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{ChaosProxy, Device, DiskImage, Env, Node, Postgres, RedisServer};

#[tokio::test]
async fn the_proxy_loses_the_share_of_acks_it_is_told_to() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let device = Device::options_at(&proxy.url(), &ann).connect().await;

    proxy.lose_acks(0.5);
    let updates = (0..100).map(|n| json!({"sessionKey": "k", "state": n})).collect();
    let acks = device.emit_ack_all("session-update", updates).await;

    let lost = acks.iter().filter(|ack| ack.is_err()).count();
    assert!((20..80).contains(&lost), "{lost} of 100");
    assert_eq!(lost as u64, proxy.acks_lost());
}

#[tokio::test]
async fn the_proxy_delays_partitions_and_lets_through_again() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let mut device = Device::options_at(&proxy.url(), &ann).named("Phone").connect().await;

    proxy.delay(Duration::from_millis(100));
    let started = Instant::now();
    device.update("k", json!(1)).await;
    assert!(started.elapsed() >= Duration::from_millis(200), "there and back");

    proxy.partition();
    device.disconnected().await;
    device.next("$connect_error").await;
    proxy.restore();
    device.restored_again().await;
    device.update("k", json!(2)).await;
}

#[tokio::test]
async fn a_frozen_proxy_passes_nothing_and_loses_nothing() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let behind = Device::options_at(&proxy.url(), &ann).connect().await;
    let direct = Device::connect(&node, &ann).await;

    proxy.freeze();
    for n in 0..10 {
        behind.emit("session-update", json!({"sessionKey": "k", "state": n})).await;
    }
    direct.update("other", json!(1)).await;
    assert!(direct.events("session-updated").is_empty());
    assert!(behind.events("session-updated").is_empty());

    proxy.restore();
    direct.next_where("session-updated", |update| update["state"] == 9).await;
    behind.next("session-updated").await;
}

#[tokio::test]
async fn redis_can_be_frozen_killed_and_brought_back() {
    let mut redis = RedisServer::start().await;
    redis.cli(&["set", "k", "v"]);
    redis.stop();
    redis.cont();
    assert_eq!(redis.cli(&["get", "k"]), "v");
    redis.kill();
    redis.restart().await;
    assert_eq!(redis.cli(&["get", "k"]), "", "nothing durable lives in it");
}

#[tokio::test]
async fn postgres_can_crash_and_come_back_with_its_data() {
    let mut postgres = Postgres::start().await;
    postgres.query("create table t (a int); insert into t values (3)");
    postgres.crash().await;
    postgres.restart().await;
    assert_eq!(postgres.query("select a from t"), "3");
}

#[tokio::test]
async fn a_power_cut_keeps_what_was_synced_and_nothing_else() {
    let disk = match DiskImage::mount() {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("SKIPPED, and so unproven here: {reason}"),
    };
    let synced = std::fs::File::create(disk.path().join("synced")).unwrap();
    std::io::Write::write_all(&mut &synced, b"synced").unwrap();
    synced.sync_all().unwrap();
    std::fs::write(disk.path().join("unsynced"), "unsynced").unwrap();

    let after = disk.after_power_cut();

    assert_eq!(std::fs::read_to_string(after.path().join("synced")).unwrap(), "synced");
    assert!(!after.path().join("unsynced").exists());
}
