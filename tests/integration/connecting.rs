//! Connecting with the stock client, on each of its transports, and what comes first.

use serde_json::{Value, json};

use crate::answers::{is_id, is_time};
use crate::support::{Device, Env, Node, RawSocket, eventually};

#[tokio::test]
async fn an_existing_client_works_unmodified() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Chrome Desktop", "type": "desktop", "viewport": "1920x1080"});
    let desktop = Device::options(&node, &ann).stock().device_info(&info).connect().await;
    let phone = Device::options(&node, &ann).stock().named("Phone").connect().await;

    desktop.emit("session-update", json!({"sessionKey": "editor", "state": {"cursor": 5}})).await;

    let updated = phone.next("session-updated").await;
    assert_eq!(updated["sessionKey"], "editor");
    assert_eq!(updated["state"], json!({"cursor": 5}));
    assert_eq!(updated["deviceId"], desktop.id());
}

#[tokio::test]
async fn an_empty_device_info_is_none() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;

    Device::options(&node, &ann).query("deviceInfo", "").connect().await;

    let connected = watcher.next("device-connected").await;
    assert_eq!(connected["deviceInfo"], json!({"name": "", "type": "unknown"}));
}

#[tokio::test]
async fn a_client_on_websocket_sends_and_receives() {
    sends_and_receives(&["websocket"], "websocket").await;
}

#[tokio::test]
async fn a_client_on_polling_sends_and_receives() {
    sends_and_receives(&["polling"], "polling").await;
}

#[tokio::test]
async fn a_client_that_starts_with_polling_upgrades_and_loses_nothing() {
    sends_and_receives(&["polling", "websocket"], "websocket").await;
}

async fn sends_and_receives(transports: &[&str], ends_on: &str) {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::options(&node, &ann).transports(transports).connect().await;
    let other = Device::connect(&node, &ann).await;

    for number in 0..50 {
        device.update("mine", json!(number)).await;
        other.update("others", json!(number)).await;
    }
    eventually("the transport is the one it ends on", || async {
        (device.inspect().await["transport"] == ends_on).then_some(())
    })
    .await;
    for number in 50..100 {
        device.update("mine", json!(number)).await;
        other.update("others", json!(number)).await;
    }

    let all: Vec<Value> = (0..100).map(Value::from).collect();
    for (receiver, sender) in [(&device, &other), (&other, &device)] {
        receiver.caught_up_with(sender).await;
        let updates = receiver.events("session-updated");
        let states = updates.iter().filter(|update| update["sessionKey"] != "sentinel");
        let states: Vec<_> = states.map(|update| update["state"].clone()).collect();
        assert_eq!(states, all);
    }
}

#[tokio::test]
async fn session_restored_comes_before_every_other_event() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::connect(&node, &ann).await;
    for round in 0..20 {
        let busy = (0..50).map(|n| json!({"sessionKey": "k", "state": [round, n]})).collect();
        let (newcomer, _) =
            tokio::join!(Device::connect(&node, &ann), writer.emit_ack_all("session-update", busy));
        let events = newcomer.names();
        let first = events.iter().find(|name| !name.starts_with('$'));
        assert_eq!(first.unwrap(), "session-restored", "{events:?}");
    }
}

#[tokio::test]
async fn session_restored_tells_everything_a_client_needs() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    phone.update("a", json!({"x": 1})).await;
    phone.update("a", json!({"x": 2})).await;
    phone.update("b", json!(null)).await;

    let laptop = Device::named(&node, &ann, "Laptop").await;

    let restored = laptop.restored();
    assert_eq!(restored["sessionData"], json!({"a": {"x": 2}, "b": null}));
    assert_eq!(restored["versions"], json!({"a": 2, "b": 1}));
    assert_eq!(restored["seq"], 3);
    assert_eq!(restored["mode"], "full");
    assert!(restored["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()), "{restored}");
    is_id(&restored["deviceId"]);
    assert_ne!(restored["deviceId"], phone.id());
    is_time(&restored["tokenExpiresAt"]);
    assert!(restored["devices"].is_array(), "{restored}");
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    for field in ["sessionData", "versions", "seq", "epoch"] {
        assert_eq!(restored[field], session[field], "{field}");
    }
}

#[tokio::test]
async fn a_new_accounts_session_is_empty_and_at_seq_0() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    assert_eq!(device.restored()["sessionData"], json!({}));
    assert_eq!(device.restored()["versions"], json!({}));
    assert_eq!(device.restored()["seq"], 0);
}

#[tokio::test]
async fn events_sent_before_the_restore_wait_for_it_and_are_answered() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut socket = RawSocket::open(&node).await;

    socket.send(&format!("40{}", json!({"token": ann.token}))).await;
    for number in 1..=20 {
        let update = json!(["session-update", {"sessionKey": "k", "state": number}]);
        socket.send(&format!("42{number}{update}")).await;
    }

    let restored = socket.next_event("session-restored").await;
    let restored: Value = serde_json::from_str(&restored[2..]).unwrap();
    assert_eq!(restored[1]["seq"], 0, "{restored}");
    for number in 1..=20 {
        let ack = socket.next().await;
        let start = format!("43{number}[");
        let body = ack.strip_prefix(&start).unwrap_or_else(|| panic!("{start} expected: {ack}"));
        let body: Value = serde_json::from_str(body.strip_suffix(']').unwrap()).unwrap();
        assert_eq!((&body["ok"], &body["seq"]), (&json!(true), &json!(number)), "{body}");
    }
}

#[tokio::test]
async fn a_client_without_device_info_is_a_nameless_device_of_unknown_type() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;

    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);

    let listed = &devices["devices"][0];
    assert_eq!(listed["id"], device.id());
    assert_eq!((&listed["name"], &listed["type"]), (&json!(""), &json!("unknown")));
}

#[tokio::test]
async fn devices_lists_what_a_device_said_of_itself_and_whether_it_is_online() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Phone", "type": "mobile", "viewport": "390x844"});
    let phone = Device::options(&node, &ann).device_info(&info).connect().await;

    let rest = node.rest_of(&ann);
    let devices = rest.get("/api/devices").await.expect(200);

    let listed = &devices["devices"][0];
    assert_eq!(listed["id"], phone.id());
    assert_eq!((&listed["name"], &listed["type"]), (&json!("Phone"), &json!("mobile")));
    assert_eq!(listed["metadata"]["viewport"], "390x844");
    assert_eq!(listed["online"], true);
    for time in ["connectedAt", "lastSeen", "createdAt"] {
        is_time(&listed[time]);
    }

    phone.disconnect().await;
    eventually("the phone is offline", || async {
        let devices = rest.get("/api/devices").await.expect(200);
        (devices["devices"][0]["online"] == false).then_some(())
    })
    .await;
}

#[tokio::test]
async fn device_info_may_come_in_auth_instead() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Phone", "type": "mobile"});
    let _phone = Device::options(&node, &ann).auth("deviceInfo", info).connect().await;
    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"][0]["name"], "Phone");
}

#[tokio::test]
async fn device_info_that_is_no_object_of_at_most_4_kib_is_refused_for_good() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let padded = |bytes: usize| {
        let bare = json!({"name": "Phone", "x": ""}).to_string().len();
        json!({"name": "Phone", "x": "x".repeat(bytes - bare)}).to_string()
    };
    for info in ["{", "nonsense", "3", "null", "[]", r#""text""#, &padded(4_097)] {
        let device = Device::options(&node, &ann).query("deviceInfo", info).open().await;
        let error = device.next("$connect_error").await;
        let start = &info[..info.len().min(20)];
        assert_eq!(error["message"], "invalid_device_info", "{start}");
        assert_eq!(error["retries"], false, "{start}");
    }
    Device::options(&node, &ann).query("deviceInfo", padded(4_096)).connect().await;
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_and_the_default_one_works() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut socket = RawSocket::open(&node).await;
    socket.send(&format!("40/admin,{}", json!({"token": ann.token}))).await;
    let answer = socket.next_or_end().await;
    if let Some(answer) = answer {
        assert!(answer.starts_with("44/admin,"), "{answer}");
    }
    Device::connect(&node, &ann).await;
}
