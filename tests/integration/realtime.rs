//! Realtime events: relayed to the user's other devices in order, never back to their sender.

use serde_json::{Value, json};

use crate::answers::accepted;
use crate::support::{Device, Env, Node};

#[tokio::test]
async fn an_event_reaches_every_other_device_with_its_source() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let others = [Device::connect(&node, &ann).await, Device::connect(&node, &ann).await];

    let event = json!({"type": "cursor-move", "payload": {"position": 10}});
    assert_eq!(phone.emit_ack("realtime-event", event).await, json!({"ok": true}));

    for other in &others {
        let seen = other.next("realtime-event").await;
        let expected = json!({
            "type": "cursor-move",
            "payload": {"position": 10},
            "sourceDeviceId": phone.id(),
        });
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn an_event_never_comes_back_to_its_sender() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    accepted(&phone.emit_ack("realtime-event", json!({"type": "t", "payload": 1})).await);
    laptop.next("realtime-event").await;
    phone.caught_up_with(&laptop).await;

    phone.expect_none("realtime-event").await;
}

#[tokio::test]
async fn events_of_one_sender_arrive_in_order() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    for round in 0..10 {
        let events = (0..100).map(|n| json!({"type": "tick", "payload": round * 100 + n}));
        for ack in phone.emit_ack_all("realtime-event", events.collect()).await {
            accepted(&ack.unwrap());
        }
    }

    let seen =
        laptop.until("realtime-event", 10, |events| (events.len() >= 1_000).then(|| events.to_vec())).await;
    let payloads: Vec<_> = seen.iter().map(|event| event["payload"].clone()).collect();
    assert_eq!(payloads, (0..1_000).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_with_recipients_reaches_them_only() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let wanted = Device::connect(&node, &ann).await;
    let unwanted = Device::connect(&node, &ann).await;

    let event = json!({"type": "t", "payload": 1, "to": [wanted.id()]});
    accepted(&phone.emit_ack("realtime-event", event).await);

    assert_eq!(wanted.next("realtime-event").await["payload"], 1);
    unwanted.caught_up_with(&phone).await;
    unwanted.expect_none("realtime-event").await;
}

#[tokio::test]
async fn an_event_without_an_ack_is_relayed_too() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;
    phone.emit("realtime-event", json!({"type": "t", "payload": null})).await;
    let seen = laptop.next("realtime-event").await;
    assert_eq!(seen, json!({"type": "t", "payload": null, "sourceDeviceId": phone.id()}));
}

#[tokio::test]
async fn an_event_without_a_payload_is_relayed_too() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;
    accepted(&phone.emit_ack("realtime-event", json!({"type": "bare"})).await);
    let seen = laptop.next("realtime-event").await;
    assert_eq!((&seen["type"], &seen["payload"]), (&json!("bare"), &Value::Null));
}
