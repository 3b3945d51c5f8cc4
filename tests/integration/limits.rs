//! Past a limit: a clear error, and nothing else breaks.

use serde_json::{Value, json};

use crate::answers::{accepted, refused};
use crate::support::{Account, Device, Env, Node, RawSocket, Rest, within_secs};

async fn one_device(env: &Env) -> (Node, Account, Device) {
    let node = Node::start(env).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    (node, ann, device)
}

async fn update(device: &Device, key: &str, state: Value) -> Value {
    device.emit_ack("session-update", json!({"sessionKey": key, "state": state})).await
}

/// A JSON string of exactly so many bytes, its quotes included.
fn text_of(bytes: usize) -> Value {
    json!("x".repeat(bytes - 2))
}

/// So many arrays, one in the other.
fn nested(depth: usize) -> Value {
    (1..depth).fold(json!([]), |inner, _| json!([inner]))
}

#[tokio::test]
async fn a_state_of_256_kib_fits_and_a_byte_more_does_not() {
    let (_node, _ann, device) = one_device(&Env::new()).await;
    accepted(&update(&device, "k", text_of(262_144)).await);
    let ack = update(&device, "k", text_of(262_145)).await;
    assert_eq!(refused(&ack, "too_large")["limit"], "LIMIT_STATE_BYTES", "{ack}");
    accepted(&update(&device, "k", json!(1)).await);
}

#[tokio::test]
async fn a_state_64_deep_fits_and_one_deeper_does_not() {
    let (_node, _ann, device) = one_device(&Env::new()).await;
    accepted(&update(&device, "k", nested(64)).await);
    refused(&update(&device, "k", nested(65)).await, "too_deep");
    refused(&update(&device, "k", nested(120)).await, "too_deep");
    accepted(&update(&device, "k", json!(1)).await);
}

#[tokio::test]
async fn a_state_a_hundred_thousand_deep_is_refused_or_ends_the_connection() {
    let (node, ann, device) = one_device(&Env::new()).await;
    let (mut socket, _) = RawSocket::connect(&node, &ann).await;
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    socket.send(&format!(r#"421["session-update",{{"sessionKey":"k","state":{open}{close}}}]"#)).await;
    if let Some(answer) = socket.next_or_end().await {
        assert!(answer.contains(r#""ok":false"#), "{answer}");
    }
    accepted(&update(&device, "k", json!(1)).await);
}

#[tokio::test]
async fn one_key_too_many_is_refused_and_the_others_still_change() {
    let (_node, _ann, device) = one_device(&Env::new().set("LIMIT_KEYS_PER_USER", 3)).await;
    for key in ["a", "b", "c"] {
        accepted(&update(&device, key, json!(1)).await);
    }
    let ack = update(&device, "d", json!(1)).await;
    assert_eq!(refused(&ack, "quota_exceeded")["limit"], "LIMIT_KEYS_PER_USER", "{ack}");
    let ack = update(&device, "a", json!(2)).await;
    assert_eq!((&ack["version"], &ack["seq"]), (&json!(2), &json!(4)), "refused takes no seq");
}

#[tokio::test]
async fn more_live_state_than_a_user_may_keep_is_refused_until_some_goes() {
    let (_node, _ann, device) = one_device(&Env::new().set("LIMIT_USER_BYTES", 10_000)).await;
    accepted(&update(&device, "a", text_of(6_000)).await);
    let ack = update(&device, "b", text_of(6_000)).await;
    assert!(refused(&ack, "quota_exceeded")["limit"].is_string(), "{ack}");
    accepted(&update(&device, "a", json!(1)).await);
    accepted(&update(&device, "b", text_of(6_000)).await);
}

#[tokio::test]
async fn a_realtime_payload_past_64_kib_is_refused() {
    let (node, ann, device) = one_device(&Env::new()).await;
    let other = Device::connect(&node, &ann).await;
    let event = |bytes| json!({"type": "t", "payload": text_of(bytes)});
    refused(&device.emit_ack("realtime-event", event(65_537)).await, "too_large");
    accepted(&device.emit_ack("realtime-event", event(65_536)).await);
    assert_eq!(other.next("realtime-event").await["payload"], text_of(65_536));
    other.expect_none("realtime-event").await;
}

#[tokio::test]
async fn a_device_message_past_64_kib_is_refused() {
    let (node, ann, device) = one_device(&Env::new()).await;
    let other = Device::connect(&node, &ann).await;
    let message = |bytes| json!({"targetDeviceId": other.id(), "message": text_of(bytes)});
    refused(&device.emit_ack("device-message", message(65_537)).await, "too_large");
    accepted(&device.emit_ack("device-message", message(65_536)).await);
    assert_eq!(other.next("device-message").await["message"], text_of(65_536));
}

#[tokio::test]
async fn a_twin_that_is_a_socket_too_many_leaves_no_device_behind() {
    let env = Env::new().set("LIMIT_SOCKETS_PER_USER", 2).set("LIMIT_DEVICES_PER_USER", 3);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let offline = Device::named(&node, &ann, "Offline").await;
    offline.disconnect().await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let listed = || async {
        let body = node.rest_of(&ann).get("/api/devices").await.expect(200);
        let ids = body["devices"].as_array().unwrap().iter().map(|device| device["id"].clone());
        ids.collect::<Vec<_>>()
    };
    let before = listed().await;

    let mut twin = RawSocket::open(&node).await;
    twin.send(&format!("40{}", json!({"token": ann.token, "deviceInfo": {"name": "Phone", "type": "test"}})))
        .await;
    assert_eq!(twin.closed().await, Vec::<String>::new());

    assert_eq!(listed().await, before);
    laptop.caught_up_with(&phone).await;
    laptop.expect_none("device-removed").await;
}

#[tokio::test]
async fn a_frame_past_the_limit_ends_its_connection_and_no_other() {
    let (node, ann, device) = one_device(&Env::new()).await;
    let (mut socket, _) = RawSocket::connect(&node, &ann).await;
    let frame = format!(r#"421["session-update",{{"sessionKey":"k","state":{}}}]"#, text_of(600 * 1_024));
    // The server may close before it has read all of it.
    drop(socket.try_send(frame.into()).await);
    let rest = socket.closed().await;
    assert!(rest.iter().all(|text| !text.contains(r#""ok":true"#)), "{rest:?}");
    accepted(&update(&device, "k", json!(1)).await);
}

#[tokio::test]
async fn events_past_the_rate_are_refused_with_the_time_to_wait() {
    let (_node, _ann, device) = one_device(&Env::new().set("LIMIT_EVENTS_PER_SECOND", 10)).await;
    let events = (0..60).map(|n| json!({"sessionKey": "k", "state": n})).collect();
    let acks = device.emit_ack_all("session-update", events).await;
    let acks: Vec<_> = acks.into_iter().map(Result::unwrap).collect();
    let limited: Vec<_> = acks.iter().filter(|ack| ack["ok"] == false).collect();
    assert!(!limited.is_empty() && limited.len() < 60, "{} of 60 limited", limited.len());
    for ack in &limited {
        let error = refused(ack, "rate_limited");
        assert!(error["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{error}");
        assert_eq!(error["retryable"], true);
    }
    assert_eq!(acks[0]["ok"], true, "a burst is fine at first");
}

#[tokio::test]
async fn a_socket_too_many_waits_until_another_goes() {
    let node = Node::start(&Env::new().set("LIMIT_SOCKETS_PER_USER", 2)).await;
    let ann = node.register("ann").await;
    let first = Device::connect(&node, &ann).await;
    let _second = Device::connect(&node, &ann).await;
    let mut third = Device::options(&node, &ann).open().await;

    // Refused for now, never for good: the stock client comes back by itself.
    let attempts = |seen: &[crate::support::Received]| {
        let tried = ["$reconnect_attempt", "$disconnect", "$connect_error"];
        seen.iter().any(|entry| tried.contains(&entry.name.as_str()))
    };
    crate::support::eventually("a first attempt has failed", || async {
        attempts(&third.seen()).then_some(())
    })
    .await;
    assert!(third.events("session-restored").is_empty());
    first.disconnect().await;

    third.restored_again().await;
    assert_eq!(third.restored()["sessionData"], json!({}));
}

#[tokio::test]
async fn past_the_device_limit_the_longest_offline_is_forgotten() {
    let env = Env::new().set("LIMIT_DEVICES_PER_USER", 2).set("RESUME_WINDOW_SECONDS", 0);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let old = Device::named(&node, &ann, "Old").await;
    old.disconnect().await;
    watcher.next("device-disconnected").await;

    let new = Device::named(&node, &ann, "New").await;

    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);
    let mut ids: Vec<_> = devices["devices"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    ids.sort_by_key(|id| id.to_string());
    let mut expected = [json!(watcher.id()), json!(new.id())];
    expected.sort_by_key(|id| id.to_string());
    assert_eq!(ids, expected.iter().collect::<Vec<_>>());
}

/// What a node says of proxies, from its start to its end, after two logins that came through one.
async fn said_of_proxies(env: Env) -> usize {
    let mut node = Node::start(&env.set("DRAIN_SECONDS", 0).set("DRAIN_LAG_SECONDS", 0)).await;
    for _ in 0..2 {
        let login = node.rest().request(reqwest::Method::POST, "/api/auth/login");
        let login = login.header("x-forwarded-for", "203.0.113.7");
        Rest::send(login.json(&json!({"email": "a@example.test", "password": "wrong"}))).await.expect(401);
    }
    node.terminate();
    let said = within_secs(20, node.wait_exit()).await.output;
    said.lines().filter(|line| line.contains("TRUSTED_PROXIES") && line.contains("127.0.0.1")).count()
}

#[tokio::test]
async fn a_proxy_that_is_not_trusted_is_told_of_once() {
    assert_eq!(said_of_proxies(Env::new()).await, 1);
    assert_eq!(said_of_proxies(Env::new().set("TRUSTED_PROXIES", "127.0.0.0/8")).await, 0);
}
