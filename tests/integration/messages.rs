//! Device messages to a connected device.

use serde_json::{Value, json};

use crate::answers::{is_id, is_time, refused};
use crate::support::{Device, Env, Node};

#[tokio::test]
async fn a_message_reaches_its_device_and_no_other() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;
    let tablet = Device::connect(&node, &ann).await;

    let message = json!({"targetDeviceId": laptop.id(), "message": {"type": "ping", "data": {}}});
    let ack = phone.emit_ack("device-message", message).await;

    assert_eq!((&ack["ok"], &ack["status"]), (&json!(true), &json!("delivered")), "{ack}");
    is_id(&ack["messageId"]);
    let seen = laptop.next("device-message").await;
    assert_eq!(seen["message"], json!({"type": "ping", "data": {}}));
    assert_eq!(seen["sourceDeviceId"], phone.id());
    assert_eq!(seen["messageId"], ack["messageId"]);
    is_time(&seen["sentAt"]);
    assert!([json!(false), Value::Null].contains(&seen["queued"]), "{seen}");
    tablet.caught_up_with(&phone).await;
    tablet.expect_none("device-message").await;
    phone.expect_none("device-message").await;
}

#[tokio::test]
async fn messages_of_one_sender_arrive_in_order() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    let messages = (0..200).map(|n| json!({"targetDeviceId": laptop.id(), "message": n}));
    for ack in phone.emit_ack_all("device-message", messages.collect()).await {
        assert_eq!(ack.unwrap()["ok"], true);
    }

    let seen = laptop
        .until("device-message", 10, |messages| (messages.len() >= 200).then(|| messages.to_vec()))
        .await;
    let numbers: Vec<_> = seen.iter().map(|message| message["message"].clone()).collect();
    assert_eq!(numbers, (0..200).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_foreign_device_answers_exactly_like_one_that_does_not_exist() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let anns = Device::connect(&node, &ann).await;
    let bobs = Device::connect(&node, &bob).await;
    let bobs_second = Device::connect(&node, &bob).await;

    let to = |id: &str| json!({"targetDeviceId": id, "message": "from ann"});
    let missing = anns.emit_ack("device-message", to(&uuid::Uuid::now_v7().to_string())).await;
    let foreign = anns.emit_ack("device-message", to(bobs.id())).await;

    refused(&missing, "unknown_device");
    assert_eq!(foreign, missing);
    bobs.caught_up_with(&bobs_second).await;
    bobs.expect_none("device-message").await;
}
