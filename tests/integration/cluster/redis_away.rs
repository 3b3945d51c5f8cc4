//! Redis gone, hanging, emptied, flapping or losing messages, under load: writes go on being acknowledged, a node's
//! own devices notice nothing, other nodes' devices converge by asking the store, and nothing stays broken.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::interval;

use super::{all_list_online, session_everywhere, sorted};
use crate::replica::Replica;
use crate::support::{Account, Cluster, Device, Env, eventually, short_or_long};

const NODES: usize = 3;

/// Within this every device holds what the store holds, without any action of a client.
const CONVERGED_WITHIN_SECONDS: u64 = 10;

/// A write that waits longer has waited for Redis: its own path is one commit.
const ACKED_WITHIN: Duration = Duration::from_secs(2);

/// Within this a link that hangs is known to.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

/// A user with a writer on each node and a watcher on each, and one whose two devices are on one node.
struct Load {
    cluster: Cluster,
    ann: Account,
    writers: Vec<Device>,
    watchers: Vec<Device>,
    bobs_writer: Device,
    bobs_watcher: Device,
}

impl Load {
    async fn on(cluster: Cluster) -> Self {
        let (ann, bob) = (cluster.register("ann").await, cluster.register("bob").await);
        let (mut writers, mut watchers) = (Vec::new(), Vec::new());
        for node in 0..NODES {
            writers.push(cluster.named(node, &ann, &format!("writer {node}")).await);
            watchers.push(cluster.named(node, &ann, &format!("watcher {node}")).await);
        }
        let bobs_writer = cluster.named(0, &bob, "one").await;
        let bobs_watcher = cluster.named(0, &bob, "other").await;
        Self { cluster, ann, writers, watchers, bobs_writer, bobs_watcher }
    }

    /// Everybody writes until `fault` is over.
    async fn during<T>(&self, fault: impl Future<Output = T>) -> T {
        let over = watch::Sender::new(false);
        let writing = self.writers.iter().map(|writer| write_until(writer, over.subscribe()));
        let same_node = self.same_node_until(over.subscribe());
        let fault = async {
            let done = fault.await;
            over.send_replace(true);
            done
        };
        let (waits, (), done) = tokio::join!(join_all(writing), same_node, fault);
        let mut waits: Vec<_> = waits.into_iter().flatten().collect();
        waits.sort_unstable();
        assert!(!waits.is_empty());
        let (p50, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
        println!("  {} acks: p50 {p50:?}, worst {worst:?}", waits.len());
        assert!(worst < ACKED_WITHIN, "a write waited {worst:?}");
        done
    }

    /// What one device of a node writes reaches another of the same node, whatever Redis does.
    async fn same_node_until(&self, over: watch::Receiver<bool>) {
        while !*over.borrow() {
            let mark = json!(uuid::Uuid::new_v4().to_string());
            let began = Instant::now();
            self.bobs_writer.update("k", mark.clone()).await;
            self.bobs_watcher.next_where("session-updated", |update| update["state"] == mark).await;
            assert!(began.elapsed() < ACKED_WITHIN, "same-node delivery took {:?}", began.elapsed());
        }
    }

    /// Every device of ann holds what the store holds, in time.
    async fn converges(&self, when: &str) {
        let began = Instant::now();
        let session = session_everywhere(&self.cluster, &self.ann).await;
        for device in &self.watchers {
            let converged = |_: &[Value]| Replica::of(&device.seen()).equals(&session).then_some(());
            device.until("session-updated", CONVERGED_WITHIN_SECONDS, converged).await;
        }
        println!("  {when}: converged {:?} after the last write", began.elapsed());
    }

    /// After the fault: well, and delivering at once again.
    async fn recovers(&self) {
        let began = Instant::now();
        self.cluster.all_say("ok").await;
        println!("  well again after {:?}", began.elapsed());
        self.during(async { self.round_trip().await }).await;
        self.converges("after the fault").await;
        let everyone = sorted(self.writers.iter().chain(&self.watchers).map(Device::id));
        all_list_online(&self.cluster, &self.ann, &everyone).await;
        for device in self.writers.iter().chain(&self.watchers) {
            assert_eq!(device.events("$disconnect"), Vec::<Value>::new(), "no socket broke");
            assert_eq!(device.events("device-disconnected"), Vec::<Value>::new(), "nobody was ever gone");
        }
    }

    /// An event crosses from every node to every other: through Redis, there is no other way for it.
    async fn round_trip(&self) {
        for (node, writer) in self.writers.iter().enumerate() {
            let mark = uuid::Uuid::new_v4().to_string();
            for (other, watcher) in self.watchers.iter().enumerate().filter(|(other, _)| *other != node) {
                eventually(format!("an event gets from node {node} to node {other}"), || async {
                    // One that falls into the moment of a reconnection is lost, as promised.
                    writer.emit("realtime-event", json!({"type": mark, "payload": other})).await;
                    watcher.events("realtime-event").iter().any(|event| event["type"] == mark).then_some(())
                })
                .await;
            }
        }
    }
}

/// Writes without a pause until told to stop; how long each ack took.
async fn write_until(writer: &Device, over: watch::Receiver<bool>) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !*over.borrow() {
        let began = Instant::now();
        writer.update(&format!("k{}", waits.len() % 5), json!(waits.len())).await;
        waits.push(began.elapsed());
    }
    waits
}

/// Lets the load go on while nothing else happens: a number of beats, the part of a fault that is time.
async fn lasts(duration: Duration) {
    let mut beats = interval(Duration::from_millis(100));
    for _ in 0..=duration.as_millis() / 100 {
        beats.tick().await;
    }
}

async fn degraded_in_time(cluster: &Cluster) {
    let began = Instant::now();
    cluster.all_say("degraded").await;
    println!("  noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < NOTICED_WITHIN, "noticed after {:?}", began.elapsed());
}

#[tokio::test]
async fn redis_killed_and_restarted() {
    let mut load = Load::on(Cluster::start(NODES).await).await;
    load.cluster.redis.kill();
    load.during(async {
        degraded_in_time(&load.cluster).await;
        lasts(Duration::from_secs(short_or_long(2, 60))).await;
    })
    .await;
    load.converges("without Redis").await;
    load.cluster.redis.restart().await;
    load.recovers().await;
}

#[tokio::test]
async fn redis_that_hangs_and_goes_on() {
    let load = Load::on(Cluster::start(NODES).await).await;
    load.cluster.redis.stop();
    load.during(async {
        degraded_in_time(&load.cluster).await;
        lasts(Duration::from_secs(short_or_long(1, 25))).await;
    })
    .await;
    load.converges("while Redis hangs").await;
    load.cluster.redis.cont();
    load.recovers().await;
}

#[tokio::test]
async fn redis_that_flaps() {
    let (flaps, apart) = short_or_long((4, 500), (10, 2_000));
    let mut load = Load::on(Cluster::start(NODES).await).await;
    for _ in 0..flaps {
        load.cluster.redis.kill();
        load.during(lasts(Duration::from_millis(apart / 2))).await;
        load.cluster.redis.restart().await;
        load.during(lasts(Duration::from_millis(apart / 2))).await;
    }
    load.converges("right after the last flap").await;
    load.recovers().await;
}

#[tokio::test]
async fn redis_that_forgets_everything() {
    let load = Load::on(Cluster::start(NODES).await).await;
    load.during(async {
        for _ in 0..short_or_long(5, 50) {
            assert_eq!(load.cluster.redis.cli(&["FLUSHALL"]), "OK");
            load.round_trip().await;
        }
    })
    .await;
    load.recovers().await;
}

#[tokio::test]
async fn subscriber_connections_killed_again_and_again() {
    let load = Load::on(Cluster::start(NODES).await).await;
    load.during(async {
        let mut kills = interval(Duration::from_millis(500));
        for _ in 0..short_or_long(8, 60) {
            kills.tick().await;
            load.cluster.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
    })
    .await;
    load.converges("right after the last kill").await;
    load.recovers().await;
}

#[tokio::test]
async fn a_twentieth_of_all_messages_lost() {
    let load = Load::on(Cluster::start_with_links(NODES, &Env::new()).await).await;
    load.cluster.links.iter().for_each(|link| link.lose_messages(0.05));
    load.during(lasts(Duration::from_secs(short_or_long(4, 30)))).await;
    load.converges("with losses going on").await;
    let lost: u64 = load.cluster.links.iter().map(crate::support::ChaosProxy::messages_lost).sum();
    println!("  {lost} messages lost");
    assert!(lost > 0);
    load.cluster.links.iter().for_each(|link| link.lose_messages(0.0));
    load.recovers().await;
}

#[tokio::test]
async fn one_node_cut_off_from_redis_without_a_word() {
    let load = Load::on(Cluster::start_with_links(NODES, &Env::new()).await).await;
    let cut = &load.cluster.nodes[1];
    load.cluster.links[1].freeze();
    load.during(async {
        let began = Instant::now();
        eventually("the node knows that it is cut off", || async {
            (cut.rest().get("/api/health").await.body["status"] == "degraded").then_some(())
        })
        .await;
        println!("  noticed after {:?}", began.elapsed());
        assert!(began.elapsed() < NOTICED_WITHIN);
        assert_eq!(load.cluster.statuses().await, ["ok", "degraded", "ok"]);
        lasts(Duration::from_secs(short_or_long(0, 2))).await;
    })
    .await;
    load.converges("with one node cut off").await;
    load.cluster.links[1].restore();
    load.recovers().await;
}

#[tokio::test]
async fn a_device_that_leaves_a_node_cut_off_from_redis_is_offline_everywhere_in_the_end() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(0, &ann, "Watcher").await;
    let phone = cluster.named(1, &ann, "Phone").await;
    all_list_online(&cluster, &ann, &sorted([watcher.id(), phone.id()])).await;

    cluster.links[1].partition();
    eventually("the node is cut off", || async { (cluster.statuses().await[1] == "degraded").then_some(()) })
        .await;
    phone.disconnect().await;
    let rest = cluster.rest_of(1, &ann);
    eventually("its own node lists it as offline", || async {
        let listed = rest.get("/api/devices").await.expect(200);
        let devices = listed["devices"].as_array().unwrap();
        devices.iter().any(|one| one["id"] == phone.id() && one["online"] == false).then_some(())
    })
    .await;
    cluster.links[1].restore();
    cluster.all_say("ok").await;

    all_list_online(&cluster, &ann, &sorted([watcher.id()])).await;
}

#[tokio::test]
async fn a_device_that_moves_while_its_new_node_is_cut_off_is_online_everywhere_in_the_end() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let watcher = cluster.named(0, &ann, "Watcher").await;
    let older = cluster.named(0, &ann, "Phone").await;
    all_list_online(&cluster, &ann, &sorted([watcher.id(), older.id()])).await;

    cluster.links[1].partition();
    eventually("the node is cut off", || async { (cluster.statuses().await[1] == "degraded").then_some(()) })
        .await;
    let newer = Device::options(&cluster.nodes[1], &ann).auth("deviceId", older.id()).connect().await;
    assert_eq!(newer.id(), older.id());
    cluster.links[1].restore();
    cluster.all_say("ok").await;

    // The two nodes find out which of the two is the device now.
    assert_eq!(older.disconnected().await, "io server disconnect");
    all_list_online(&cluster, &ann, &sorted([watcher.id(), newer.id()])).await;
    assert_eq!(newer.events("$disconnect"), Vec::<Value>::new(), "the newer stays");
}

#[tokio::test]
async fn without_redis_a_live_device_keeps_its_identity_and_one_that_left_gets_its_own_back() {
    let mut cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let live = cluster.named(0, &ann, "Phone").await;
    let gone = cluster.named(0, &ann, "Laptop").await;
    cluster.redis.kill();
    cluster.all_say("degraded").await;
    gone.disconnect().await;
    live.next("device-disconnected").await;

    let twin = cluster.named(1, &ann, "Phone").await;
    assert_ne!(twin.id(), live.id());
    assert_eq!(live.events("$disconnect"), Vec::<Value>::new());
    // The goodbye is noted a moment after it is told.
    eventually("the laptop is itself again", || async {
        let back = cluster.named(1, &ann, "Laptop").await;
        (back.id() == gone.id()).then_some(())
    })
    .await;
}
