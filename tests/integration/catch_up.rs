//! Getting only what changed, or only some keys: over REST, in the handshake, and by event.

use serde_json::{Value, json};

use crate::support::{Account, Device, Env, Node, RawSocket};

/// A session of five keys with some history; head is 7: `a` twice, `gone` written and deleted.
async fn written() -> (Node, Account, Device) {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::named(&node, &ann, "Writer").await;
    for key in ["a", "b", "c"] {
        writer.update(key, json!(key)).await;
    }
    writer.update("gone", json!(1)).await;
    writer.update("a", json!("a again")).await;
    let ack = writer.emit_ack("session-delete", json!({"sessionKey": "gone"})).await;
    assert_eq!(ack["seq"], 6, "{ack}");
    writer.update("d", json!("d")).await;
    (node, ann, writer)
}

#[tokio::test]
async fn what_changed_since_any_position_gives_the_full_state() {
    let (node, ann, _writer) = written().await;
    let rest = node.rest_of(&ann);
    let full = rest.get("/api/session").await.expect(200);
    let epoch = full["epoch"].as_str().unwrap();
    // What the session was at each seq, to lay the change over.
    let held_at: [Value; 8] = [
        json!({}),
        json!({"a": "a"}),
        json!({"a": "a", "b": "b"}),
        json!({"a": "a", "b": "b", "c": "c"}),
        json!({"a": "a", "b": "b", "c": "c", "gone": 1}),
        json!({"a": "a again", "b": "b", "c": "c", "gone": 1}),
        json!({"a": "a again", "b": "b", "c": "c"}),
        json!({"a": "a again", "b": "b", "c": "c", "d": "d"}),
    ];
    for (seq, held) in held_at.into_iter().enumerate() {
        let delta = rest.get(&format!("/api/session?since={epoch}:{seq}")).await.expect(200);
        assert_eq!((&delta["seq"], &delta["epoch"]), (&json!(7), &full["epoch"]));
        let mut laid = held.as_object().unwrap().clone();
        for removed in delta["removed"].as_array().into_iter().flatten() {
            laid.remove(removed.as_str().unwrap());
        }
        laid.extend(delta["sessionData"].as_object().unwrap().clone());
        assert_eq!(Value::Object(laid), full["sessionData"], "since {seq}: {delta}");
    }
    let newest = rest.get(&format!("/api/session?since={epoch}:7")).await.expect(200);
    assert_eq!(newest["sessionData"], json!({}), "nothing new, nothing sent");
}

#[tokio::test]
async fn a_position_of_another_past_or_the_future_gets_everything() {
    let (node, ann, _writer) = written().await;
    let rest = node.rest_of(&ann);
    let full = rest.get("/api/session").await.expect(200);
    let epoch = full["epoch"].as_str().unwrap();
    for since in ["another-epoch:3".to_owned(), format!("{epoch}:99")] {
        let reply = rest.get(&format!("/api/session?since={since}")).await.expect(200);
        assert_eq!(reply["sessionData"], full["sessionData"], "{since}");
    }
}

#[tokio::test]
async fn only_the_keys_asked_for_are_sent() {
    let (node, ann, writer) = written().await;
    let some = json!({"a": "a again", "c": "c"});
    let session = node.rest_of(&ann).get("/api/session?keys=a,c,missing").await.expect(200);
    assert_eq!(session["sessionData"], some);
    let got = writer.emit_ack("session-get", json!({"keys": ["a", "c", "missing"]})).await;
    assert_eq!(got["sessionData"], some);

    let picky = Device::options(&node, &ann).auth("keys", json!(["a", "c"])).connect().await;
    assert_eq!(picky.restored()["sessionData"], some);
    writer.update("b", json!("unheard")).await;
    writer.update("c", json!("heard")).await;
    assert_eq!(picky.next("session-updated").await["state"], "heard");
}

#[tokio::test]
async fn a_device_that_says_what_it_has_gets_only_what_changed() {
    let (node, ann, _writer) = written().await;
    let full = node.rest_of(&ann).get("/api/session").await.expect(200);
    let since = json!({"epoch": full["epoch"], "seq": 4});

    let device = Device::options(&node, &ann).auth("since", since).connect().await;

    let restored = device.restored();
    assert_eq!(restored["mode"], "delta");
    assert_eq!(restored["sessionData"], json!({"a": "a again", "d": "d"}));
    assert_eq!(restored["removed"], json!(["gone"]));
    assert_eq!(restored["seq"], 7);

    let stranger = json!({"epoch": "another", "seq": 4});
    let device = Device::options(&node, &ann).auth("since", stranger).connect().await;
    assert_eq!(device.restored()["mode"], "full");
    assert_eq!(device.restored()["sessionData"], full["sessionData"]);
}

#[tokio::test]
async fn session_get_answers_as_rest_does() {
    let (node, ann, writer) = written().await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    let got = writer.emit_ack("session-get", json!({})).await;
    for field in ["sessionData", "versions", "seq", "epoch"] {
        assert_eq!(got[field], session[field], "{field}");
    }
    let got = writer.emit_ack("session-get", json!({"since": {"epoch": got["epoch"], "seq": 6}})).await;
    assert_eq!(got["sessionData"], json!({"d": "d"}));
}

#[tokio::test]
async fn what_a_lost_connection_still_sent_reaches_its_device_that_is_back() {
    let node = Node::start(&Env::new().set("LIMIT_EVENTS_PER_SECOND", 0)).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    let (mut socket, restored) = RawSocket::connect(&node, &ann).await;
    let device = payload_of(&restored)["deviceId"].clone();
    let mut restored_early = 0;
    for round in 0..5 {
        // More than a connection has on its way to the store at a time.
        for key in 0..400 {
            let write = json!(["session-update", {"sessionKey": format!("k{key}"), "state": round}]);
            socket.send(&format!("42{write}")).await;
        }
        drop(socket);
        socket = RawSocket::open(&node).await;
        socket.join(&json!({"token": ann.token, "deviceId": device})).await;
        let restored = payload_of(&socket.next_event("session-restored").await);
        let mut view = restored["sessionData"].as_object().unwrap().clone();
        let mut seq = restored["seq"].clone();
        loop {
            let session = rest.get("/api/session").await.expect(200);
            restored_early += usize::from(seq != session["seq"]);
            if seq == session["seq"] && session["sessionData"]["k399"] == round {
                assert_eq!(Value::Object(view), session["sessionData"]);
                break;
            }
            let change = payload_of(&socket.next_event("session-updated").await);
            seq = change["seq"].clone();
            view.insert(change["sessionKey"].as_str().unwrap().to_owned(), change["state"].clone());
        }
    }
    assert!(restored_early > 0, "every restore held everything: nothing was tried");
}

fn payload_of(event: &str) -> Value {
    let event: Value = serde_json::from_str(event.trim_start_matches("42")).unwrap();
    event[1].clone()
}
