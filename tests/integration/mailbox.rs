//! Device messages that wait: kept in order, delivered once, expired, bounded; on one node and across nodes.

use serde_json::{Value, json};

use crate::answers::refused;
use crate::support::{Account, Cluster, Device, Env, Node, eventually, within_secs};

/// What is promised for a message whose publish is lost and which nothing follows.
const FOUND_WITHIN_SECONDS: u64 = 6;

fn to(target: &str, message: impl Into<Value>) -> Value {
    json!({"targetDeviceId": target, "message": message.into()})
}

fn contents(device: &Device) -> Vec<Value> {
    device.events("device-message").iter().map(|event| event["message"].clone()).collect()
}

async fn has_messages(device: &Device, count: usize) -> Vec<Value> {
    device.until("device-message", 15, |seen| (seen.len() >= count).then_some(())).await;
    contents(device)
}

/// The same device again, as a client that knows its id.
async fn again(node: &Node, account: &Account, id: &str, acks: bool) -> Device {
    let options = Device::options(node, account).auth("deviceId", id);
    if acks { options.auth("messageAcks", true).connect().await } else { options.connect().await }
}

async fn gone(device: &Device, watcher: &Device) {
    device.disconnect().await;
    let id = device.id().to_owned();
    watcher.next_where("device-disconnected", |event| event["deviceId"] == *id).await;
}

#[tokio::test]
async fn only_what_waited_for_its_device_says_so() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let send = |text: &str, id: Option<&str>| {
        let mut message = json!({"targetDeviceId": laptop.id(), "message": text});
        if let Some(id) = id {
            message["messageId"] = json!(id);
        }
        phone.emit_ack("device-message", message)
    };

    send("plain", None).await;
    send("named", Some("m-1")).await;
    for text in ["plain", "named"] {
        let heard = laptop.next("device-message").await;
        assert_eq!((&heard["message"], &heard["queued"]), (&json!(text), &json!(false)));
    }
    laptop.disconnect().await;
    phone.next("device-disconnected").await;
    assert_eq!(send("late", Some("m-2")).await["status"], "queued");
    laptop.reconnect().await;
    let heard = laptop.next("device-message").await;
    assert_eq!((&heard["message"], &heard["queued"]), (&json!("late"), &json!(true)));
}

#[tokio::test]
async fn messages_for_an_offline_device_wait_in_order_and_their_sender_hears_when_they_arrive() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    gone(&laptop, &phone).await;

    let mut ids = Vec::new();
    for n in 0..100 {
        let ack = phone.emit_ack("device-message", to(&id, n)).await;
        assert_eq!((&ack["ok"], &ack["status"]), (&json!(true), &json!("queued")), "{ack}");
        ids.push(ack["messageId"].clone());
    }
    let laptop = again(&node, &ann, &id, false).await;

    assert_eq!(laptop.restored()["queuedMessages"], 100);
    assert_eq!(has_messages(&laptop, 100).await, (0..100).map(Value::from).collect::<Vec<_>>());
    let first = &laptop.events("device-message")[0];
    assert_eq!((&first["queued"], &first["messageId"]), (&json!(true), &ids[0]), "{first}");
    assert_eq!(first["sourceDeviceId"], phone.id());
    let statuses =
        phone.until("device-message-status", 10, |seen| (seen.len() >= 100).then(|| seen.to_vec())).await;
    assert!(statuses.iter().all(|status| status["status"] == "delivered" && status["deviceId"] == *id));
    let told: Vec<_> = statuses.iter().map(|status| status["messageId"].clone()).collect();
    assert_eq!(told, ids);

    let live = phone.emit_ack("device-message", to(&id, "live")).await;
    assert_eq!(live["status"], "delivered", "nothing is before it any more: {live}");
    gone(&laptop, &phone).await;
    let laptop = again(&node, &ann, &id, false).await;
    assert_eq!(laptop.restored()["queuedMessages"], 0, "each comes once");
}

#[tokio::test]
async fn kept_messages_survive_a_crash_of_the_node() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    gone(&laptop, &phone).await;
    for n in 0..20 {
        assert_eq!(phone.emit_ack("device-message", to(&id, n)).await["status"], "queued");
    }

    node.kill_9();
    node.restart().await;

    let laptop = again(&node, &ann, &id, false).await;
    assert_eq!(has_messages(&laptop, 20).await, (0..20).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_acknowledges_gets_a_message_again_until_it_does() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::options(&node, &ann).named("Laptop").auth("messageAcks", true).connect().await;
    let id = laptop.id().to_owned();

    // It has the message and does not say so: the sender's answer waits a second, then it is kept.
    let sent = phone.emit_ack("device-message", to(&id, "important")).await;
    assert_eq!(sent["status"], "queued", "{sent}");
    assert_eq!(has_messages(&laptop, 1).await, [json!("important")]);
    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop).len(), 1, "not twice on one connection");

    gone(&laptop, &phone).await;
    let laptop = again(&node, &ann, &id, true).await;
    assert_eq!(has_messages(&laptop, 1).await, [json!("important")]);
    let message_id = laptop.events("device-message")[0]["messageId"].clone();
    assert_eq!(message_id, sent["messageId"], "under the same id");
    let ack = json!({"messageId": message_id});
    assert_eq!(laptop.emit_ack("device-message-ack", ack.clone()).await, json!({"ok": true}));
    assert_eq!(laptop.emit_ack("device-message-ack", ack).await, json!({"ok": true}), "again does no harm");
    let status = phone.next("device-message-status").await;
    assert_eq!((&status["messageId"], &status["status"]), (&message_id, &json!("delivered")));

    gone(&laptop, &phone).await;
    assert_eq!(again(&node, &ann, &id, true).await.restored()["queuedMessages"], 0);
}

#[tokio::test]
async fn an_acknowledged_message_is_delivered_and_not_kept() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::options(&node, &ann).named("Laptop").auth("messageAcks", true).connect().await;

    let sending = phone.emit_ack("device-message", to(laptop.id(), 1));
    let acknowledging = async {
        let message = laptop.next("device-message").await;
        laptop.emit_ack("device-message-ack", json!({"messageId": message["messageId"]})).await
    };
    let (sent, _) = tokio::join!(sending, acknowledging);
    assert_eq!(sent["status"], "delivered", "{sent}");
    phone.expect_none("device-message-status").await;
}

#[tokio::test]
async fn lists_and_everybody_are_told_apart_by_their_targets() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let tablet = Device::named(&node, &ann, "Tablet").await;
    gone(&tablet, &phone).await;

    let all = phone.emit_ack("device-message", json!({"targetDeviceId": "*", "message": "all"})).await;
    assert_eq!((&all["ok"], &all["status"]), (&json!(true), &json!("queued")), "{all}");
    let mut targets: Vec<_> = all["targets"].as_array().unwrap().clone();
    targets.sort_by_key(|target| target["status"].to_string());
    assert_eq!(
        targets,
        [
            json!({"deviceId": laptop.id(), "status": "delivered"}),
            json!({"deviceId": tablet.id(), "status": "queued"}),
        ]
    );
    let list = json!({"targetDeviceId": [laptop.id(), laptop.id()], "message": "list"});
    let list = phone.emit_ack("device-message", list).await;
    assert_eq!(list["targets"], json!([{"deviceId": laptop.id(), "status": "delivered"}]), "{list}");
    assert_eq!(has_messages(&laptop, 2).await, [json!("all"), json!("list")]);
    phone.expect_none("device-message").await;

    let stranger = uuid::Uuid::now_v7().to_string();
    let mixed = json!({"targetDeviceId": [laptop.id(), stranger], "message": "mixed"});
    refused(&phone.emit_ack("device-message", mixed).await, "unknown_device");
    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop).len(), 2, "all or none");
    let tablet = again(&node, &ann, tablet.id(), false).await;
    assert_eq!(has_messages(&tablet, 1).await, [json!("all")]);
}

#[tokio::test]
async fn a_message_id_is_taken_once() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    let with_id = |message: &str| json!({"targetDeviceId": id, "message": message, "messageId": "once"});

    let first = phone.emit_ack("device-message", with_id("a")).await;
    assert_eq!((&first["messageId"], &first["status"]), (&json!("once"), &json!("delivered")), "{first}");
    let repeat = phone.emit_ack("device-message", with_id("a")).await;
    assert_eq!((&repeat["ok"], &repeat["duplicate"]), (&json!(true), &json!(true)), "{repeat}");
    assert_eq!(repeat["status"], "delivered");
    refused(&phone.emit_ack("device-message", with_id("b")).await, "message_id_reused");
    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop), [json!("a")]);

    gone(&laptop, &phone).await;
    let waiting = json!({"targetDeviceId": id, "message": 1, "messageId": "waits"});
    let acks = phone.emit_ack_all("device-message", vec![waiting.clone(), waiting.clone(), waiting]).await;
    assert!(acks.iter().all(|ack| ack.as_ref().unwrap()["status"] == "queued"), "{acks:?}");
    assert_eq!(again(&node, &ann, &id, false).await.restored()["queuedMessages"], 1);
}

#[tokio::test]
async fn a_message_that_waits_too_long_goes_and_its_sender_hears_of_it() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    gone(&laptop, &phone).await;

    let brief = json!({"targetDeviceId": id, "message": "brief", "ttlSeconds": 1});
    let sent = phone.emit_ack("device-message", brief).await;
    assert_eq!(sent["status"], "queued");
    let lasting = phone.emit_ack("device-message", to(&id, "lasting")).await;

    let status = phone.next("device-message-status").await;
    assert_eq!(
        status,
        json!({"messageId": sent["messageId"], "deviceId": id, "status": "expired"}),
        "{status}"
    );
    let laptop = again(&node, &ann, &id, false).await;
    assert_eq!(has_messages(&laptop, 1).await, [json!("lasting")]);
    assert_ne!(sent["messageId"], lasting["messageId"]);
}

#[tokio::test]
async fn a_full_mailbox_refuses_and_loses_nothing() {
    let node = Node::start(&Env::new().set("LIMIT_EVENTS_PER_SECOND", 0)).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    gone(&laptop, &phone).await;

    let acks = phone.emit_ack_all("device-message", (0..1_001).map(|n| to(&id, n)).collect()).await;
    let (last, kept) = acks.split_last().unwrap();
    assert!(kept.iter().all(|ack| ack.as_ref().unwrap()["status"] == "queued"));
    let error = refused(last.as_ref().unwrap(), "mailbox_full");
    assert_eq!((&error["limit"], &error["retryable"]), (&json!("messages"), &json!(false)), "{error}");

    let laptop = again(&node, &ann, &id, false).await;
    assert_eq!(has_messages(&laptop, 1_000).await, (0..1_000).map(Value::from).collect::<Vec<_>>());
    assert_eq!(phone.emit_ack("device-message", to(&id, "room again")).await["ok"], true);
}

#[tokio::test]
async fn four_mebibytes_of_messages_reach_a_device_without_cutting_it() {
    let node = Node::start(&Env::new().set("LIMIT_EVENTS_PER_SECOND", 0)).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    gone(&laptop, &phone).await;
    let big = "x".repeat(60_000);
    let messages = (0..70).map(|n| to(&id, json!([n, big])));
    let acks = phone.emit_ack_all("device-message", messages.collect()).await;
    let kept = acks.iter().filter(|ack| ack.as_ref().unwrap()["ok"] == true).count();
    assert_eq!(kept, 69, "4 MiB are 69 of them");

    let laptop = again(&node, &ann, &id, false).await;
    let seen = has_messages(&laptop, kept).await;
    assert!(seen.iter().enumerate().all(|(n, message)| message[0] == n));
}

#[tokio::test]
async fn bad_messages_are_refused_by_name() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let with = |name: &str, value: Value| {
        let mut message = to(laptop.id(), 1);
        message[name] = value;
        message
    };
    for (payload, field) in [
        (json!({"targetDeviceId": laptop.id()}), "message"),
        (json!({"message": 1}), "targetDeviceId"),
        (json!({"targetDeviceId": [], "message": 1}), "targetDeviceId"),
        (json!({"targetDeviceId": 7, "message": 1}), "targetDeviceId"),
        (json!({"targetDeviceId": [7], "message": 1}), "targetDeviceId"),
        (with("messageId", json!("")), "messageId"),
        (with("messageId", json!("x".repeat(65))), "messageId"),
        (with("messageId", json!(7)), "messageId"),
        (with("ttlSeconds", json!(0)), "ttlSeconds"),
        (with("ttlSeconds", json!(-1)), "ttlSeconds"),
        (with("ttlSeconds", json!(1.5)), "ttlSeconds"),
        (with("ttlSeconds", json!(604_801)), "ttlSeconds"),
    ] {
        let ack = phone.emit_ack("device-message", payload.clone()).await;
        assert_eq!(refused(&ack, "invalid_field")["field"], field, "{payload}");
    }
    for payload in [json!({}), json!({"messageId": ""}), json!({"messageId": 1})] {
        refused(&laptop.emit_ack("device-message-ack", payload).await, "invalid_field");
    }
    let unknown = json!({"messageId": "never seen"});
    assert_eq!(laptop.emit_ack("device-message-ack", unknown).await, json!({"ok": true}));
    assert_eq!(phone.emit_ack("device-message", to(laptop.id(), 1)).await["status"], "delivered");
}

#[tokio::test]
async fn messages_wait_for_a_device_whichever_node_it_comes_to() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    let id = laptop.id().to_owned();
    phone.next("device-connected").await;
    gone(&laptop, &phone).await;
    for n in 0..30 {
        assert_eq!(phone.emit_ack("device-message", to(&id, n)).await["status"], "queued");
    }

    let laptop = again(&cluster.nodes[2], &ann, &id, false).await;
    // Some more while the kept ones are on their way: behind them.
    let more = phone.emit_ack_all("device-message", (30..60).map(|n| to(&id, n)).collect()).await;
    assert!(more.iter().all(|ack| ack.as_ref().unwrap()["ok"] == true), "{more:?}");
    assert_eq!(has_messages(&laptop, 60).await, (0..60).map(Value::from).collect::<Vec<_>>());
    phone.until("device-message-status", 10, |seen| (seen.len() >= 30).then_some(())).await;
    eventually("the way is free again", || async {
        let ack = phone.emit_ack("device-message", to(&id, "free")).await;
        (ack["status"] == "delivered").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_acknowledgement_crosses_nodes() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let options = Device::options(&cluster.nodes[1], &ann).named("Laptop").auth("messageAcks", true);
    let laptop = options.connect().await;
    phone.next("device-connected").await;

    let sending = phone.emit_ack("device-message", to(laptop.id(), 1));
    let acknowledging = async {
        let message = laptop.next("device-message").await;
        laptop.emit_ack("device-message-ack", json!({"messageId": message["messageId"]})).await
    };
    let (sent, _) = tokio::join!(sending, acknowledging);
    assert_eq!(sent["status"], "delivered", "{sent}");

    let unheard = phone.emit_ack("device-message", to(laptop.id(), 2)).await;
    assert_eq!(unheard["status"], "queued", "{unheard}");
    assert_eq!(has_messages(&laptop, 2).await, [json!(1), json!(2)]);
    // Late, but it was handed over once and is only taken away.
    laptop.emit_ack("device-message-ack", json!({"messageId": unheard["messageId"]})).await;
    assert_eq!(phone.next("device-message-status").await["messageId"], unheard["messageId"]);
    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop).len(), 2);
}

#[tokio::test]
async fn a_message_whose_publish_is_lost_is_kept_and_arrives_without_a_reconnect() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.next("device-connected").await;
    assert_eq!(phone.emit_ack("device-message", to(laptop.id(), 0)).await["status"], "delivered");

    cluster.links[1].lose_messages(1.0);
    let sent = phone.emit_ack("device-message", to(laptop.id(), 1)).await;
    assert_eq!(sent["status"], "queued", "nobody confirmed it: {sent}");
    let found = laptop.next_where("device-message", |event| event["message"] == 1);
    within_secs(FOUND_WITHIN_SECONDS, found).await;
    cluster.links[1].lose_messages(0.0);

    laptop.caught_up_with(&phone).await;
    assert_eq!(contents(&laptop), [json!(0), json!(1)], "each once");
}

#[tokio::test]
async fn without_redis_messages_go_through_the_store() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.next("device-connected").await;
    cluster.redis.stop();
    cluster.all_say("degraded").await;

    for n in 0..5 {
        let ack = phone.emit_ack("device-message", to(laptop.id(), n)).await;
        assert_eq!((&ack["ok"], &ack["status"]), (&json!(true), &json!("queued")), "{ack}");
    }
    assert_eq!(has_messages(&laptop, 5).await, (0..5).map(Value::from).collect::<Vec<_>>());
    cluster.redis.cont();
}
