//! Events that are wrong: each is answered by name, harms nobody, and is never met with silence.

use serde_json::{Value, json};

use crate::answers::{is_error, refused};
use crate::support::{Canary, Device, Env, Node, RawSocket};

#[tokio::test]
async fn an_unknown_event_is_answered() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let canary = Canary::on(&node).await;
    for event in ["no-such-event", "", "session-restored", "ping"] {
        refused(&device.emit_ack(event, json!({})).await, "unknown_event");
        canary.sings_after(event).await;
    }
    refused(&device.emit_ack_args("no-such-event", vec![]).await, "unknown_event");
    assert_eq!(node.metric(r#"tandem_events_refused_total{code="unknown_event"}"#).await, 5.0);
    assert_eq!(node.metric(r#"tandem_events_refused_total{code="internal"}"#).await, 0.0);
}

#[tokio::test]
async fn a_failure_that_nobody_waits_for_comes_as_an_error_event() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let table = [
        ("no-such-event", json!({}), "unknown_event"),
        ("session-update", json!({"sessionKey": "", "state": 1}), "invalid_key"),
        ("realtime-event", json!({"payload": 1}), "invalid_field"),
        ("device-message", json!({"targetDeviceId": uuid::Uuid::now_v7(), "message": 1}), "unknown_device"),
    ];
    let canary = Canary::on(&node).await;
    for (event, payload, code) in table {
        device.emit(event, payload).await;
        let error = device.next("error").await;
        is_error(&error, code);
        assert_eq!(error["event"], event);
        canary.sings_after(event).await;
    }
}

#[tokio::test]
async fn a_malformed_event_is_refused_and_the_next_one_works() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let malformed = ["invalid_json", "invalid_field", "invalid_key", "invalid_operation"];
    let long_key = "k".repeat(129);
    let update = |extra: Value| {
        let mut payload = json!({"sessionKey": "k", "state": 1});
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        vec![payload]
    };
    let table: Vec<(&str, Vec<Value>)> = vec![
        ("session-update", vec![]),
        ("session-update", vec![json!(null)]),
        ("session-update", vec![json!(3)]),
        ("session-update", vec![json!("text")]),
        ("session-update", vec![json!([])]),
        ("session-update", vec![json!({})]),
        ("session-update", vec![json!({"sessionKey": "k"})]),
        ("session-update", vec![json!({"state": 1})]),
        ("session-update", vec![json!({"sessionKey": null, "state": 1})]),
        ("session-update", vec![json!({"sessionKey": 3, "state": 1})]),
        ("session-update", vec![json!({"sessionKey": ["k"], "state": 1})]),
        ("session-update", update(json!({"sessionKey": ""}))),
        ("session-update", update(json!({"sessionKey": long_key}))),
        ("session-update", update(json!({"sessionKey": "a\nb"}))),
        ("session-update", update(json!({"sessionKey": "a\u{0}b"}))),
        ("session-update", update(json!({"patch": {}}))),
        ("session-update", update(json!({"baseVersion": -1}))),
        ("session-update", update(json!({"baseVersion": 1.5}))),
        ("session-update", update(json!({"baseVersion": "3"}))),
        ("session-update", update(json!({"baseVersion": 1, "onConflict": "shrug"}))),
        ("session-update", update(json!({"opId": ""}))),
        ("session-update", update(json!({"opId": 3}))),
        ("session-update", update(json!({"opId": "o".repeat(65)}))),
        ("realtime-event", vec![]),
        ("realtime-event", vec![json!(null)]),
        ("realtime-event", vec![json!({"payload": 1})]),
        ("realtime-event", vec![json!({"type": 3, "payload": 1})]),
        ("realtime-event", vec![json!({"type": "t", "payload": 1, "to": "not a list"})]),
        ("realtime-event", vec![json!({"type": "t", "payload": 1, "to": [3]})]),
        ("device-message", vec![]),
        ("device-message", vec![json!({})]),
        ("device-message", vec![json!({"message": 1})]),
        ("device-message", vec![json!({"targetDeviceId": 3, "message": 1})]),
        ("device-message", vec![json!({"targetDeviceId": device.id()})]),
    ];
    let canary = Canary::on(&node).await;
    for (event, args) in table {
        let ack = device.emit_ack_args(event, args.clone()).await;
        let code = ack["error"]["code"].as_str().unwrap_or_default();
        assert!(malformed.contains(&code), "{event} {args:?}: {ack}");
        refused(&ack, code);
        canary.sings_after(&format!("{event} {args:?}")).await;
    }

    device.update("k", json!("still here")).await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 1, "a refused write takes no seq");
    assert_eq!(session["sessionData"], json!({"k": "still here"}));
}

#[tokio::test]
async fn a_bad_key_is_called_an_invalid_key() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let long = "k".repeat(129);
    let (kib, canary) = ("k".repeat(1_024), Canary::on(&node).await);
    for key in ["", long.as_str(), kib.as_str(), "a\r\nb", "a\nb", "a\rb", "a\u{0}b", "a\u{7f}b"] {
        for (event, payload) in [
            ("session-update", json!({"sessionKey": key, "state": 1})),
            ("session-delete", json!({"sessionKey": key})),
            ("session-get", json!({"keys": [key]})),
        ] {
            refused(&device.emit_ack(event, payload).await, "invalid_key");
            canary.sings_after(&format!("{event} of {key:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let ack = device.emit_ack("realtime-event", json!({"payload": 1})).await;
    assert_eq!(refused(&ack, "invalid_field")["field"], "type");
    let ack = device.emit_ack("device-message", json!({"message": 1})).await;
    assert_eq!(refused(&ack, "invalid_field")["field"], "targetDeviceId");
}

#[tokio::test]
async fn extra_arguments_break_nothing() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let args = vec![json!({"sessionKey": "k", "state": 1}), json!("extra"), json!(null)];
    let ack = device.emit_ack_args("session-update", args).await;
    assert!(ack["ok"].is_boolean(), "{ack}");
    device.update("k", json!(2)).await;
}

#[tokio::test]
async fn frames_that_no_client_sends_harm_nobody() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let frames = [
        "42",
        "42{}",
        "42[]",
        "42[1]",
        "42[null]",
        r#"42[{"a":1}]"#,
        r#"42["session-update""#,
        r#"42["session-update",{"sessionKey":"k","state":1e400}]"#,
        r#"42["session-update",{"sessionKey":"k","state":"\ud800"}]"#,
        r#"42["disconnect"]"#,
        r#"42["connect",{}]"#,
        r#"4299999999999999999999999["session-update",{}]"#,
        r#"43[{"nobody":"waits"}]"#,
        r#"4399["nobody waits"]"#,
        r#"451-["session-update",{"_placeholder":true,"num":7}]"#,
        r#"4599999999999-["x"]"#,
        "45-[]",
        "4",
        "49",
        "9",
        "",
        "40",
        "é",
        "4é",
        "42é",
        "421é[\"session-update\"]",
        "42/é,1[\"session-update\",{}]",
        "45é-[]",
        "\u{1f600}",
        "42[\"é",
        "42[\"\u{1f600}",
    ];
    for frame in frames {
        let (mut socket, _) = RawSocket::connect(&node, &ann).await;
        socket.send(frame).await;
        // Either the connection is closed, or it goes on working: never stuck.
        let ping = r#"427["session-update",{"sessionKey":"after","state":true}]"#;
        drop(socket.try_send(ping.into()).await);
        loop {
            match socket.next_or_end().await {
                Some(text) if text.starts_with("437[{\"ok\":true") => break,
                Some(_) => {}
                None => break,
            }
        }
        canary.sings_after(frame).await;
    }
}

#[tokio::test]
async fn an_odd_event_that_asks_for_an_ack_gets_one() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut socket, _) = RawSocket::connect(&node, &ann).await;
    let table = [
        (r#""session-update",{"sessionKey":"k","state":1,"baseVersion":18446744073709551616}"#, false),
        (r#""session-update",{"sessionKey":"k","state":1e400}"#, true),
        (r#""session-update",{"sessionKey":"k","sessionKey":"l","state":1}"#, true),
        (r#""session-update",{"__proto__":{"sessionKey":"k"},"state":1}"#, false),
    ];
    let canary = Canary::on(&node).await;
    for (number, (text, may_pass)) in table.into_iter().enumerate() {
        socket.send(&format!("42{number}[{text}]")).await;
        let ack = socket.next_where(|frame| frame.starts_with(&format!("43{number}["))).await;
        let refused = ack.contains(r#""ok":false"#);
        assert!(refused || may_pass, "{text}: {ack}");
        assert!(!ack.contains("internal"), "{text}: {ack}");
        canary.sings_after(text).await;
    }
}

#[tokio::test]
async fn an_ack_id_of_23_digits_comes_back_digit_for_digit() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut socket, _) = RawSocket::connect(&node, &ann).await;
    for id in ["1234567890123456", "12345678901234567890123"] {
        socket.send(&format!("42{id}[\"session-update\",{{\"sessionKey\":\"k\",\"state\":1}}]")).await;
        let wanted = format!("43{id}[{{\"ok\":true");
        socket.next_where(|frame| frame.starts_with(&wanted)).await;
    }
}

#[tokio::test]
async fn what_is_passed_on_is_nested_no_deeper_than_a_state() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (phone, laptop) = (Device::connect(&node, &ann).await, Device::connect(&node, &ann).await);
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    for (event, with) in [
        (
            "realtime-event",
            Box::new(|payload: Value| json!({"type": "t", "payload": payload}))
                as Box<dyn Fn(Value) -> Value>,
        ),
        ("device-message", Box::new(|message| json!({"targetDeviceId": laptop.id(), "message": message}))),
    ] {
        let error = phone.emit_ack(event, with(nested(65))).await;
        assert_eq!(refused(&error, "too_deep")["limit"], "depth", "{event}");
        assert_eq!(phone.emit_ack(event, with(nested(64))).await["ok"], true, "{event}");
    }
}

#[tokio::test]
async fn an_event_before_connect_is_not_handled() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut socket = RawSocket::open(&node).await;
    socket.send(r#"420["session-update",{"sessionKey":"k","state":"unauthenticated"}]"#).await;
    let answers = socket.closed().await;
    assert!(answers.iter().all(|answer| !answer.contains(r#""ok":true"#)), "{answers:?}");
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({}));
}

#[tokio::test]
async fn nothing_is_asked_for_with_null_too() {
    let node = Node::start(&Env::new()).await;
    let device = Device::connect(&node, &node.register("ann").await).await;
    device.update("k", json!(1)).await;
    // What `emit("session-get", undefined, callback)` sends.
    let got = device.emit_ack("session-get", Value::Null).await;
    assert_eq!((&got["ok"], &got["sessionData"]), (&json!(true), &json!({"k": 1})), "{got}");
}

#[tokio::test]
async fn a_whole_number_may_be_written_with_a_point_or_an_exponent() {
    let node = Node::start(&Env::new()).await;
    let (mut socket, restored) = RawSocket::connect(&node, &node.register("ann").await).await;
    let restored: Value = serde_json::from_str(&restored[2..]).unwrap();
    for (version, base) in ["0.0", "1.0", "2e0", "0.3e1"].into_iter().enumerate() {
        let update = format!(r#"{{"sessionKey":"k","state":{version},"baseVersion":{base}}}"#);
        let ack = socket.emit_ack("session-update", &update).await;
        assert!(ack.contains(r#""ok":true"#), "{base}: {ack}");
    }
    let since = format!(r#"{{"since":{{"epoch":{},"seq":3.0}}}}"#, restored[1]["epoch"]);
    let got = socket.emit_ack("session-get", &since).await;
    assert!(got.contains(r#""mode":"delta""#), "{got}");
    let message = |ttl: &str| format!(r#"{{"targetDeviceId":"*","message":1,"ttlSeconds":{ttl}}}"#);
    let sent = socket.emit_ack("device-message", &message("60.0")).await;
    assert!(sent.contains(r#""ok":true"#), "{sent}");
    for bad in ["1.5", "-1.0", "1e300", "\"1\""] {
        let update = format!(r#"{{"sessionKey":"k","state":0,"baseVersion":{bad}}}"#);
        let ack = socket.emit_ack("session-update", &update).await;
        assert!(ack.contains(r#""code":"invalid_field""#), "{bad}: {ack}");
    }
}
