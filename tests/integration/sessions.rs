//! Session changes: acknowledged after the commit, told to the user's other devices, and to nobody else.

use serde_json::{Value, json};

use crate::answers::{accepted, is_time};
use crate::support::{Device, Env, Node};

#[tokio::test]
async fn an_update_is_acknowledged_with_its_version_and_seq() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;

    let first = device.update("a", json!(1)).await;
    let second = device.update("a", json!(2)).await;
    let other_key = device.update("b", json!(3)).await;

    assert_eq!(first, json!({"ok": true, "sessionKey": "a", "version": 1, "seq": 1}));
    assert_eq!(second, json!({"ok": true, "sessionKey": "a", "version": 2, "seq": 2}));
    assert_eq!(other_key, json!({"ok": true, "sessionKey": "b", "version": 1, "seq": 3}));
}

#[tokio::test]
async fn an_acknowledged_update_is_in_the_store() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;

    device.update("k", json!({"acked": true})).await;
    node.kill_9();
    node.restart().await;

    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({"k": {"acked": true}}));
    assert_eq!((&session["versions"], &session["seq"]), (&json!({"k": 1}), &json!(1)));
}

#[tokio::test]
async fn the_users_other_devices_are_told() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    phone.update("k", json!({"x": [1, null, "é"]})).await;

    let updated = laptop.next("session-updated").await;
    assert_eq!(updated["sessionKey"], "k");
    assert_eq!(updated["state"], json!({"x": [1, null, "é"]}));
    assert_eq!(updated["deviceId"], phone.id());
    assert_eq!((&updated["version"], &updated["seq"]), (&json!(1), &json!(1)));
    is_time(&updated["updatedAt"]);
    assert!([json!(false), Value::Null].contains(&updated["deleted"]), "{updated}");
}

#[tokio::test]
async fn the_sender_is_not_told_of_its_own_update() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    phone.update("k", json!(1)).await;
    phone.caught_up_with(&laptop).await;

    phone.expect_none("session-updated").await;
}

#[tokio::test]
async fn another_user_is_told_nothing() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let (anns, bobs) = (Device::connect(&node, &ann).await, Device::connect(&node, &bob).await);
    let bobs_second = Device::connect(&node, &bob).await;

    anns.update("k", json!("ann's")).await;
    accepted(&anns.emit_ack("realtime-event", json!({"type": "t", "payload": "ann's"})).await);
    bobs.caught_up_with(&bobs_second).await;

    bobs.expect_none("session-updated").await;
    bobs.expect_none("realtime-event").await;
    let session = node.rest_of(&bob).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"]["k"], Value::Null);
}

#[tokio::test]
async fn updates_of_one_device_are_handled_in_the_order_it_sent_them() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    let updates = (0..400).map(|n| json!({"sessionKey": format!("k{}", n % 7), "state": n}));
    let acks = phone.emit_ack_all("session-update", updates.collect()).await;

    let seqs: Vec<_> = acks.iter().map(|ack| ack.as_ref().unwrap()["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=400).collect::<Vec<_>>());
    let told =
        laptop.until("session-updated", 10, |updates| (updates.len() >= 400).then(|| updates.to_vec())).await;
    let states: Vec<_> = told.iter().map(|update| update["state"].clone()).collect();
    assert_eq!(states, (0..400).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn null_is_a_state() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    phone.update("k", json!(null)).await;

    let updated = laptop.next("session-updated").await;
    assert!(updated.as_object().unwrap().contains_key("state"), "{updated}");
    assert_ne!(updated["deleted"], true);
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({"k": null}));
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_still_a_change() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    phone.update("k", json!({"same": 1})).await;
    let again = phone.update("k", json!({"same": 1})).await;

    assert_eq!((&again["version"], &again["seq"]), (&json!(2), &json!(2)));
    laptop.next_where("session-updated", |update| update["seq"] == 2).await;
}

#[tokio::test]
async fn any_key_of_1_to_128_bytes_without_control_characters_is_a_key() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let keys = ["__proto__", "constructor", "*", "a/b?c#d%00", "ключ", " ", ".", "..", &"k".repeat(128)];
    for key in keys {
        device.update(key, json!(key)).await;
    }
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    for key in keys {
        assert_eq!(session["sessionData"][key], key);
    }
}
