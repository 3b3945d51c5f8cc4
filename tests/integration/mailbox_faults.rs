//! Device messages when something breaks: nodes, Redis, the network, the sender's patience.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tandem::merge;
use tandem::model::{Clock, DeviceId, MessageId, Secret, UserId};
use tandem::store::{self, Bounds, Command, Database, PostMessage};
use tokio::sync::watch;

use crate::answers::{accepted, refused};
use crate::support::{
    ChaosProxy, Cluster, Device, Env, Node, Postgres, Random, eventually, short_or_long, within_secs,
};

/// What is promised for a message whose publish is lost and which nothing follows.
const FOUND_WITHIN_SECONDS: u64 = 6;

/// What is promised of a message while Redis hangs; and a commit, on a machine that has much to do.
const WAITS_AT_MOST: Duration = Duration::from_millis(1_400);

fn to(target: &str, message: impl Into<Value>) -> Value {
    json!({"targetDeviceId": target, "message": message.into()})
}

fn contents(device: &Device) -> Vec<Value> {
    device.events("device-message").iter().map(|event| event["message"].clone()).collect()
}

#[tokio::test]
async fn a_message_whose_keeping_was_not_answered_is_not_overtaken() {
    let database = Postgres::start().await;
    let node = Node::start(&Env::new().set("DATABASE_URL", database.url())).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let send = async |message: &str, id: Option<&str>| {
        let mut sent = json!({"targetDeviceId": laptop.id(), "message": message});
        if let Some(id) = id {
            sent["messageId"] = json!(id);
        }
        phone.emit_ack("device-message", sent).await
    };
    assert_eq!(send("zero", None).await["status"], "delivered");

    // Commits happen, and are answered when a standby that is not there has them, too.
    database.waits_for_standby("away").await;
    let unknown = send("one", Some("m-1")).await;
    assert_eq!(unknown["error"]["unknown"], true, "{unknown}");
    database.waits_for_standby("").await;
    assert_eq!(send("two", None).await["ok"], true);

    let mut heard = Vec::new();
    while heard.len() < 3 {
        heard.push(laptop.next("device-message").await["message"].clone());
    }
    assert_eq!(heard, ["zero", "one", "two"]);
    // Once the device has them, nothing is in the way of the next one.
    eventually("messages go straight to their device again", || async {
        (send("more", None).await["status"] == "delivered").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_waits_a_second_for_a_redis_that_hangs_and_then_is_kept() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.next("device-connected").await;
    assert_eq!(phone.emit_ack("device-message", to(laptop.id(), 0)).await["status"], "delivered");
    cluster.redis.stop();

    let mut waits = Vec::new();
    for n in 1..=3 {
        let began = Instant::now();
        let ack = phone.emit_ack("device-message", to(laptop.id(), n)).await;
        waits.push(began.elapsed());
        assert_eq!(ack["status"], "queued", "{ack}");
    }
    cluster.redis.cont();

    println!("messages waited {waits:?}");
    assert!(waits[0] < WAITS_AT_MOST, "{waits:?}");
    laptop.until("device-message", 10, |seen| (seen.len() >= 4).then_some(())).await;
    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop), (0..4).map(Value::from).collect::<Vec<_>>(), "in order, each once");
}

#[tokio::test]
async fn waiting_for_word_of_a_message_holds_up_no_other_event() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let silent = Device::options(&node, &ann).named("Silent").auth("messageAcks", true).connect().await;

    let began = Instant::now();
    let message = async {
        let ack = phone.emit_ack("device-message", to(silent.id(), 1)).await;
        (began.elapsed(), ack)
    };
    let others = async {
        silent.next("device-message").await;
        phone.update("k", json!(1)).await;
        accepted(&phone.emit_ack("realtime-event", json!({"type": "t", "payload": 1})).await);
        began.elapsed()
    };
    let ((waited, ack), served) = join(message, others).await;

    assert_eq!(ack["status"], "queued", "{ack}");
    assert!(waited >= Duration::from_secs(1) && served < waited, "{served:?}, {waited:?}");
}

#[tokio::test]
async fn a_message_whose_node_died_before_it_said_so_arrives_without_further_traffic() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.next("device-connected").await;

    // The commit of a third node, which is heard of no more.
    let database = match cluster.nodes[0].database().strip_prefix("sqlite://") {
        Some(path) => Database::Sqlite { path: path.into(), full_sync: true },
        None => Database::Postgres { url: Secret::new(cluster.nodes[0].database().to_owned()) },
    };
    let bounds = Bounds {
        merge: merge::Limits::default(),
        keys_per_user: 1_000,
        bytes_per_user: 1 << 20,
        devices_per_user: 200,
    };
    let dying = store::open(&database, bounds).await.unwrap();
    let now = Clock::now();
    let message = PostMessage {
        user: UserId::parse(&ann.id).unwrap(),
        target: DeviceId::parse(laptop.id()).unwrap(),
        source: DeviceId::parse(phone.id()).unwrap(),
        id: MessageId::fresh(),
        json: "\"unheard of\"".into(),
        sent_at: now,
        expires_at: now.plus_ms(60_000),
        content_hash: None,
        at: now,
    };
    dying.commit(&[Command::PostMessage(Arc::new(message.clone()))]).await.unwrap();
    dying.close().await;

    let arrived = within_secs(FOUND_WITHIN_SECONDS, laptop.next("device-message")).await;
    assert_eq!((&arrived["message"], &arrived["queued"]), (&json!("unheard of"), &json!(true)));
    let told = phone.next("device-message-status").await;
    assert_eq!((&told["messageId"], &told["status"]), (&json!(message.id.as_str()), &json!("delivered")));
}

#[tokio::test]
async fn a_sender_that_goes_to_another_node_does_not_overtake_itself() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    let phone = cluster.named(1, &ann, "Phone").await;
    // Node 1 knows the way, and that nothing is kept.
    assert_eq!(phone.emit_ack("device-message", to(laptop.id(), 0)).await["status"], "delivered");
    let there = |node: usize| Device::options(&cluster.nodes[node], &ann).auth("deviceId", phone.id());
    let away = there(0).connect().await;
    cluster.links[1].lose_messages(1.0);
    assert_eq!(away.emit_ack("device-message", to(laptop.id(), 1)).await["status"], "queued");

    let back = there(1).connect().await;
    accepted(&back.emit_ack("device-message", to(laptop.id(), 2)).await);

    laptop.until("device-message", FOUND_WITHIN_SECONDS, |seen| (seen.len() >= 3).then_some(())).await;
    assert_eq!(contents(&laptop), (0..3).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_node_that_goes_away_answers_the_messages_in_flight() {
    let env = Env::new().set("DRAIN_LAG_SECONDS", 0).set("DRAIN_SECONDS", 0);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let phone = Device::options(&node, &ann).named("Phone").without_reconnection().connect().await;
    let silent = Device::options(&node, &ann).named("Silent").auth("messageAcks", true);
    let silent = silent.without_reconnection().connect().await;

    let sending = phone.try_emit_ack("device-message", vec![to(silent.id(), 1)]);
    let terminating = async {
        silent.next("device-message").await;
        node.terminate();
    };
    let (answer, ()) = join(sending, terminating).await;

    assert_eq!(answer.expect("an answer")["status"], "queued");
}

#[tokio::test]
async fn a_repeat_of_a_message_that_expired_is_told_so_and_sent_no_more() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    laptop.disconnect().await;
    phone.next("device-disconnected").await;
    let mut brief = to(laptop.id(), "brief");
    (brief["messageId"], brief["ttlSeconds"]) = (json!("brief"), json!(1));
    assert_eq!(phone.emit_ack("device-message", brief.clone()).await["status"], "queued");
    assert_eq!(phone.next("device-message-status").await["status"], "expired");

    let repeat = phone.emit_ack("device-message", brief).await;

    assert_eq!(
        repeat,
        json!({"ok": true, "messageId": "brief", "status": "expired", "duplicate": true}),
        "{repeat}"
    );
    let back = Device::options(&node, &ann).auth("deviceId", laptop.id()).connect().await;
    assert_eq!(back.restored()["queuedMessages"], 0);
}

#[tokio::test]
async fn an_id_that_the_server_gave_to_a_waiting_message_names_no_other() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    laptop.disconnect().await;
    phone.next("device-disconnected").await;
    let first = phone.emit_ack("device-message", to(laptop.id(), "first")).await;

    let mut second = to(laptop.id(), "second");
    second["messageId"] = first["messageId"].clone();
    refused(&phone.emit_ack("device-message", second).await, "message_id_reused");

    let back = Device::options(&node, &ann).auth("deviceId", laptop.id()).connect().await;
    assert_eq!(back.next("device-message").await["message"], "first");
}

#[tokio::test]
async fn a_revoked_device_gets_nothing_and_is_unknown() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let own = ann.log_in(&node).await;
    let phone = Device::named(&node, &own, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    laptop.disconnect().await;
    phone.next("device-disconnected").await;
    assert_eq!(phone.emit_ack("device-message", to(laptop.id(), 1)).await["status"], "queued");

    node.rest_of(&own).delete(&format!("/api/devices/{}", laptop.id())).await.expect(204);

    let revoked = phone.emit_ack("device-message", to(laptop.id(), 2)).await;
    let nobody = phone.emit_ack("device-message", to(&uuid::Uuid::now_v7().to_string(), 2)).await;
    refused(&revoked, "unknown_device");
    assert_eq!(revoked, nobody);
    let everybody = phone.emit_ack("device-message", json!({"targetDeviceId": "*", "message": 3})).await;
    assert_eq!((&everybody["ok"], &everybody["targets"]), (&json!(true), &json!([])), "{everybody}");
}

#[tokio::test]
async fn messages_with_an_id_arrive_once_however_often_they_are_sent() {
    const SENDERS: usize = 4;
    let messages = short_or_long(60, 500);
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let connecting = (0..SENDERS).map(|index| {
        let options = Device::options_at(&proxy.url(), &ann).named(&format!("sender {index}"));
        options.option("retries", 5).option("ackTimeout", 500).connect()
    });
    let senders = join_all(connecting).await;
    proxy.lose_acks(0.2);

    let sending = senders.iter().enumerate().map(|(index, sender)| {
        let target = laptop.id();
        async move {
            let mut acked = 0;
            for n in 0..messages {
                let mut message = to(target, json!([index, n]));
                message["messageId"] = json!(format!("{index}-{n}"));
                let answer = sender.try_emit_ack("device-message", vec![message]).await;
                acked += usize::from(answer.is_ok_and(|ack| ack["ok"] == true));
            }
            acked
        }
    });
    let acked: usize = join_all(sending).await.into_iter().sum();
    let lost = proxy.acks_lost();
    proxy.restore();

    assert!(lost as usize > messages / 4, "only {lost} acks were lost: this would prove nothing");
    laptop.caught_up_with(&senders[0]).await;
    let seen = contents(&laptop);
    println!("{acked} of {} acked, {lost} acks lost, {} arrived", SENDERS * messages, seen.len());
    assert!(seen.len() >= acked, "{acked} acked, {} arrived", seen.len());
    each_once_and_in_order(&seen);
}

#[tokio::test]
async fn what_redis_loses_arrives_once_and_in_order_all_the_same() {
    const NODES: usize = 3;
    let messages = short_or_long(40, 400);
    let cluster = Cluster::start_with_links(NODES, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let laptop = cluster.named(0, &ann, "Laptop").await;
    let mut senders = Vec::new();
    for node in 0..NODES {
        senders.push(cluster.named(node, &ann, &format!("sender {node}")).await);
    }
    eventually("all have heard of all", || async {
        (senders[0].events("device-connected").len() >= NODES - 1).then_some(())
    })
    .await;
    cluster.links.iter().for_each(|link| link.lose_messages(0.2));

    let sending = senders.iter().enumerate().map(|(index, sender)| {
        let target = laptop.id();
        async move {
            for half in 0..2 {
                // Some at once, the others one after the other.
                let numbers = half * messages / 2..(half + 1) * messages / 2;
                let payloads = numbers.map(|n| to(target, json!([index, n])));
                if half == 0 {
                    let acks = sender.emit_ack_all("device-message", payloads.collect()).await;
                    acks.iter().for_each(|ack| accepted(ack.as_ref().unwrap()));
                } else {
                    for payload in payloads {
                        accepted(&sender.emit_ack("device-message", payload).await);
                    }
                }
            }
        }
    });
    join_all(sending).await;
    let lost: u64 = cluster.links.iter().map(ChaosProxy::messages_lost).sum();
    cluster.links.iter().for_each(|link| link.lose_messages(0.0));

    println!("{lost} messages between nodes were lost");
    assert!(lost > 0);
    let all = NODES * messages;
    laptop.until("device-message", 20, |seen| (seen.len() >= all).then_some(())).await;
    laptop.caught_up_with(&senders[1]).await;
    let seen = contents(&laptop);
    assert_eq!(seen.len(), all);
    each_once_and_in_order(&seen);
}

#[tokio::test]
async fn a_client_that_acknowledges_gets_everything_in_order_wherever_it_is_thrown() {
    const NODES: usize = 3;
    const SEED: u64 = 20_261_125;
    let messages = short_or_long(60, 600);
    let cluster = Cluster::start_with_links(NODES, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let proxy = ChaosProxy::start(cluster.nodes[0].address()).await;
    let laptop = Device::options_at(&proxy.url(), &ann).named("Laptop").auth("messageAcks", true);
    let laptop = laptop.connect().await;
    laptop.set_auth(json!({"token": ann.token, "deviceId": laptop.id(), "messageAcks": true})).await;
    let mut senders = Vec::new();
    for node in 0..NODES {
        senders.push(cluster.named(node, &ann, &format!("sender {node}")).await);
    }
    cluster.links.iter().for_each(|link| link.lose_messages(0.05));
    let over = watch::Sender::new(false);

    let sending = async {
        let each = senders.iter().enumerate().map(|(index, sender)| {
            let target = laptop.id();
            async move {
                for n in 0..messages {
                    accepted(&sender.emit_ack("device-message", to(target, json!([index, n]))).await);
                }
            }
        });
        join_all(each).await;
        over.send_replace(true);
    };
    let throwing = async {
        let (mut random, mut over) = (Random::seeded(SEED), over.subscribe());
        loop {
            let pause = Duration::from_millis(200 + random.below(900));
            if tokio::time::timeout(pause, over.wait_for(|over| *over)).await.is_ok() {
                return;
            }
            let node = usize::try_from(random.below(NODES as u64)).unwrap();
            proxy.retarget(cluster.nodes[node].address());
            proxy.cut();
        }
    };
    let all = NODES * messages;
    let acknowledging = async {
        let mut acknowledged = 0;
        let mut seen_once = HashMap::new();
        while seen_once.len() < all {
            let news = laptop
                .until("device-message", 60, |seen| {
                    (seen.len() > acknowledged).then(|| seen[acknowledged..].to_vec())
                })
                .await;
            acknowledged += news.len();
            for event in news {
                laptop.emit("device-message-ack", json!({"messageId": event["messageId"]})).await;
                seen_once.entry(event["message"].to_string()).or_insert_with(|| event["message"].clone());
            }
        }
    };
    tokio::join!(sending, throwing, acknowledging);

    let mut first_seen: Vec<Value> = Vec::new();
    let seen = contents(&laptop);
    let connections = laptop.events("session-restored").len();
    for message in &seen {
        if !first_seen.contains(message) {
            first_seen.push(message.clone());
        }
    }
    println!("{all} messages over {connections} connections, {} came again", seen.len() - first_seen.len());
    assert!(connections > 2, "this would prove nothing");
    assert_eq!(first_seen.len(), all);
    each_once_and_in_order(&first_seen);
    // What was acknowledged does not wait any more.
    cluster.links.iter().for_each(|link| link.lose_messages(0.0));
    eventually("nothing is left", || async {
        let again = Device::options(&cluster.nodes[0], &ann).auth("deviceId", laptop.id());
        let again = again.auth("messageAcks", true).connect().await;
        (again.restored()["queuedMessages"] == 0).then_some(())
    })
    .await;
}

/// Messages `[sender, n]`: those of one sender ascend.
#[track_caller]
fn each_once_and_in_order(messages: &[Value]) {
    let mut last: HashMap<u64, u64> = HashMap::new();
    for message in messages {
        let [sender, n] = [0, 1].map(|place| message[place].as_u64().unwrap());
        if let Some(before) = last.insert(sender, n) {
            assert!(n > before, "sender {sender}: {n} after {before} in {messages:?}");
        }
    }
}
