//! A user's own devices over REST: renamed, described, revoked.

use serde_json::{Value, json};

use crate::support::{Account, Cluster, Device, Env, Node, within_secs};

async fn sent_away(device: &Device) {
    let error = device.next("error").await;
    assert_eq!(error["code"], "device_revoked", "{error}");
    assert_eq!(device.disconnected().await, "io server disconnect");
    assert_eq!(device.inspect().await["active"], false, "the client would come back");
}

fn at(id: &str) -> String {
    format!("/api/devices/{id}")
}

async fn ids(node: &Node, account: &Account) -> Vec<String> {
    let body = node.rest_of(account).get("/api/devices").await.expect(200);
    let devices = body["devices"].as_array().unwrap().iter();
    devices.map(|device| device["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_renamed_device_is_told_to_the_others_and_keeps_its_name() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Phone", "type": "mobile", "viewport": "390x844"});
    let phone = Device::options(&node, &ann).device_info(&info).connect().await;
    let laptop = Device::named(&node, &ann, "Laptop").await;

    let device = node.rest_of(&ann).patch(&at(phone.id()), &json!({"name": "Ann's phone"})).await.expect(200);
    assert_eq!((&device["name"], &device["type"]), (&json!("Ann's phone"), &json!("mobile")));
    assert_eq!((&device["online"], &device["metadata"]), (&json!(true), &json!({"viewport": "390x844"})));

    let told = laptop.next("device-updated").await;
    let expected = json!({"name": "Ann's phone", "type": "mobile", "viewport": "390x844"});
    assert_eq!(told, json!({"deviceId": phone.id(), "deviceInfo": expected}));
    phone.expect_none("device-updated").await;
    let back = Device::options(&node, &ann).device_info(&info).auth("deviceId", phone.id()).connect().await;
    let list = &back.restored()["devices"];
    let own = list.as_array().unwrap().iter().find(|device| device["id"] == back.id()).unwrap();
    assert_eq!(own["name"], "Ann's phone");
}

#[tokio::test]
async fn metadata_is_replaced_as_a_whole() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let rest = node.rest_of(&ann);

    rest.patch(&at(phone.id()), &json!({"metadata": {"a": 1, "b": [2]}})).await.expect(200);
    let device = rest.patch(&at(phone.id()), &json!({"metadata": {"c": null}})).await.expect(200);

    assert_eq!((&device["name"], &device["metadata"]), (&json!("Phone"), &json!({"c": null})));
}

#[tokio::test]
async fn what_is_no_change_of_a_device_is_refused() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let big = "x".repeat(5_000);
    for bad in [
        json!({}),
        json!({"type": "tablet"}),
        json!({"name": null}),
        json!({"name": 3}),
        json!({"name": big}),
        json!({"metadata": "text"}),
        json!({"metadata": {"x": big}}),
    ] {
        node.rest_of(&ann).patch(&at(phone.id()), &bad).await.expect_error(400, "invalid_field");
    }
    node.rest_of(&ann).patch(&at(phone.id()), &json!([])).await.expect_error(400, "invalid_json");
    assert_eq!(node.rest().delete(&at(phone.id())).await.status, 401);
}

#[tokio::test]
async fn a_revoked_device_is_sent_away_for_good_and_the_others_hear_of_it() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let lost = Device::named(&node, &ann, "Lost").await;
    let own = ann.log_in(&node).await;
    let kept = Device::named(&node, &own, "Kept").await;

    node.rest_of(&own).delete(&at(lost.id())).await.expect(204);

    sent_away(&lost).await;
    assert_eq!(kept.next("device-removed").await, json!({"deviceId": lost.id()}));
    within_secs(2, kept.next_where("device-disconnected", |gone| gone["deviceId"] == lost.id())).await;
    assert_eq!(ids(&node, &own).await, [kept.id()]);
    // Its login has ended with it; and with a good login it is still revoked.
    node.rest_of(&ann).get("/api/session").await.expect_error(401, "unauthorized");
    let again = Device::options(&node, &own).auth("deviceId", lost.id()).open().await;
    assert_eq!(again.refused().await, "device_revoked");
    kept.update("still", json!("here")).await;
}

#[tokio::test]
async fn a_login_that_another_device_is_online_with_outlives_a_revoked_one() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (lost, kept) = (Device::named(&node, &ann, "Lost").await, Device::named(&node, &ann, "Kept").await);

    node.rest_of(&ann).delete(&at(lost.id())).await.expect(204);

    sent_away(&lost).await;
    kept.next("device-removed").await;
    kept.update("still", json!("here")).await;
    assert_eq!(kept.inspect().await["connected"], true);
    node.rest_of(&ann).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn an_offline_device_can_be_revoked_too() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let lost = Device::named(&node, &ann, "Lost").await;
    let own = ann.log_in(&node).await;
    let kept = Device::named(&node, &own, "Kept").await;
    lost.disconnect().await;
    kept.next("device-disconnected").await;

    node.rest_of(&own).delete(&at(lost.id())).await.expect(204);

    assert_eq!(kept.next("device-removed").await, json!({"deviceId": lost.id()}));
    lost.reconnect().await;
    assert_eq!(lost.refused().await, "unauthorized");
}

#[tokio::test]
async fn a_foreign_a_missing_and_a_revoked_device_answer_alike() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let bobs = Device::named(&node, &bob, "Bob's").await;
    let lost = Device::named(&node, &ann, "Lost").await;
    let own = ann.log_in(&node).await;
    node.rest_of(&own).delete(&at(lost.id())).await.expect(204);
    let missing = uuid::Uuid::now_v7().to_string();

    let rest = node.rest_of(&own);
    let mut answers = Vec::new();
    for id in [bobs.id(), &missing, lost.id(), "no-uuid", "%00", &"x".repeat(10_000)] {
        for reply in [rest.delete(&at(id)).await, rest.patch(&at(id), &json!({"name": "Mine"})).await] {
            reply.expect_error(404, "unknown_device");
            answers.push(reply.text);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");

    bobs.expect_none("device-updated").await;
    let devices = node.rest_of(&bob).get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"][0]["name"], "Bob's");
}

#[tokio::test]
async fn a_device_forgotten_past_the_limit_is_told_as_removed() {
    let node = Node::start(&Env::new().set("LIMIT_DEVICES_PER_USER", 2)).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let old = Device::named(&node, &ann, "Old").await;
    old.disconnect().await;
    watcher.next("device-disconnected").await;

    Device::named(&node, &ann, "New").await;

    assert_eq!(watcher.next("device-removed").await, json!({"deviceId": old.id()}));
}

#[tokio::test]
async fn the_device_longest_offline_is_forgotten_with_its_messages_and_its_login_lives_on() {
    let node = Node::start(&Env::new().set("LIMIT_DEVICES_PER_USER", 3)).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let olds_login = ann.log_in(&node).await;
    let old = Device::named(&node, &olds_login, "Old").await;
    let older = Device::named(&node, &ann, "Older").await;
    // Not the order of their making, nor of their connecting: the order of their going.
    for device in [&older, &old] {
        device.disconnect().await;
        watcher.next_where("device-disconnected", |gone| gone["deviceId"] == device.id()).await;
        let message = json!({"targetDeviceId": device.id(), "message": "wait"});
        assert_eq!(watcher.emit_ack("device-message", message).await["status"], "queued");
    }

    let new = Device::named(&node, &ann, "New").await;
    assert_eq!(watcher.next("device-removed").await, json!({"deviceId": older.id()}));
    let back = Device::options(&node, &ann).auth("deviceId", new.id()).connect().await;
    assert_eq!(back.id(), new.id());
    watcher.expect_none("device-removed").await;
    Device::named(&node, &ann, "Newer").await;
    assert_eq!(watcher.next("device-removed").await, json!({"deviceId": old.id()}));

    node.rest_of(&olds_login).get("/api/session").await.expect(200);
    let message = json!({"targetDeviceId": old.id(), "message": "nobody"});
    let unknown = watcher.emit_ack("device-message", message).await;
    assert_eq!(unknown["error"]["code"], "unknown_device", "{unknown}");
    // It is told nothing of that: it comes back as a new device, on the login that it had.
    let again = Device::options(&node, &olds_login).auth("deviceId", old.id()).connect().await;
    assert_ne!(again.id(), old.id());
    assert_eq!(again.restored()["queuedMessages"], 0);
}

#[tokio::test]
async fn devices_of_other_nodes_are_renamed_and_revoked_as_those_of_this() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let own = ann.log_in(&cluster.nodes[0]).await;
    let (near, far) = (cluster.connect(0, &own).await, cluster.connect(1, &ann).await);
    let witness = cluster.connect(1, &own).await;
    let rest = cluster.nodes[0].rest_of(&own);

    rest.patch(&at(far.id()), &json!({"name": "Far"})).await.expect(200);
    for device in [&near, &witness] {
        assert_eq!(device.next("device-updated").await["deviceInfo"]["name"], "Far");
    }
    rest.delete(&at(far.id())).await.expect(204);

    within_secs(2, sent_away(&far)).await;
    for device in [&near, &witness] {
        assert_eq!(device.next("device-removed").await, json!({"deviceId": far.id()}));
    }
    cluster.nodes[1].rest_of(&ann).get("/api/session").await.expect_error(401, "unauthorized");
    assert_eq!(cluster.nodes[0].rest_of(&own).post("/api/auth/logout", &Value::Null).await.status, 204);
    within_secs(2, async {
        assert_eq!(witness.next("error").await["code"], "unauthorized");
    })
    .await;
}
