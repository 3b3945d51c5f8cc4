//! Socket.IO's CONNECT and DISCONNECT where they do not belong, or with what cannot be: refused by name, or the end
//! of that connection.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Canary, Env, Node, RawSocket};

/// An event that asks for an ack, to hear whether a socket is still served.
const WRITE: &str = r#"427["session-update",{"sessionKey":"after","state":true}]"#;

#[tokio::test]
async fn a_connect_without_a_usable_token_is_refused_for_good() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let token = &ann.token;
    let twice = format!(r#"40{{"token":"{token}","token":"{token}"}}"#);
    let table = [
        ("nothing", "40".to_owned()),
        ("null", "40null".to_owned()),
        ("an empty object", "40{}".to_owned()),
        ("a list", format!("40[\"{token}\"]")),
        ("a list of an object", format!(r#"40[{{"token":"{token}"}}]"#)),
        ("a text", format!("40\"{token}\"")),
        ("a number", "40,17".to_owned()),
        ("half an object", format!(r#"40{{"token":"{token}""#)),
        ("broken JSON", r#"40{"token":}"#.to_owned()),
        ("two objects", format!(r#"40{{"token":"{token}"}}{{}}"#)),
        ("single quotes", format!("40{{'token':'{token}'}}")),
        ("the token twice", twice),
        ("a token in a list", format!(r#"40{{"token":["{token}"]}}"#)),
        ("half a surrogate pair", r#"40{"token":"\ud800"}"#.to_owned()),
        ("100,000 lists", format!(r#"40{{"token":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000))),
        ("400 KiB", format!(r#"40{{"token":"{}"}}"#, "x".repeat(400 * 1_024))),
    ];
    // At the same time: who is refused has three seconds to read why.
    let rows = table.into_iter().map(async |(what, connect)| {
        let mut socket = RawSocket::open(&node).await;
        socket.send(&connect).await;
        // What it sends along is not handled either.
        drop(socket.try_send(WRITE.into()).await);
        let answers = socket.closed().await;
        let first = answers.first().map_or("", String::as_str);
        assert!(first.starts_with("44{"), "{what}: {answers:?}");
        assert!(first.contains(r#""message":"unauthorized""#), "{what}: {first}");
        assert!(answers.iter().all(|answer| !answer.starts_with("437[")), "{what}: {answers:?}");
        canary.sings_after(what).await;
    });
    join_all(rows).await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 0);
}

#[tokio::test]
async fn what_else_a_connect_says_wrongly_costs_nobody_the_connection() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let many: Vec<_> = (0..1_001).map(|n| format!("k{n}")).collect();
    let table = [
        json!({"deviceId": 3}),
        json!({"deviceId": "../.."}),
        json!({"deviceId": "x".repeat(10_240)}),
        json!({"deviceId": null}),
        json!({"since": 3}),
        json!({"since": {"epoch": 3, "seq": "x"}}),
        json!({"since": {"epoch": "x".repeat(10_240), "seq": u64::MAX}}),
        json!({"keys": "k"}),
        json!({"keys": [3]}),
        json!({"keys": [""]}),
        json!({"keys": many}),
        json!({"messageAcks": "yes"}),
        json!({"unknown": {"deep": [[[]]]}}),
        json!({"__proto__": {"token": "x"}}),
    ];
    for mut auth in table {
        let row: String = auth.to_string().chars().take(60).collect();
        auth["token"] = json!(ann.token);
        auth["deviceInfo"] = json!({"name": uuid::Uuid::new_v4()});
        let mut socket = RawSocket::open(&node).await;
        socket.join(&auth).await;
        socket.next_event("session-restored").await;
        let ack = socket.emit_ack("session-update", r#"{"sessionKey":"k","state":1}"#).await;
        assert!(ack.contains(r#""ok":true"#), "{row}: {ack}");
        canary.sings_after(&row).await;
    }
}

#[tokio::test]
async fn a_second_connect_is_refused_by_name_and_changes_nothing() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let canary = Canary::on(&node).await;
    let own = format!("40{}", json!({"token": ann.token}));
    let anothers = format!("40{}", json!({"token": bob.token}));
    for (what, again) in
        [("own", own.as_str()), ("another's", &anothers), ("nothing", "40"), ("broken", "40{")]
    {
        let (mut socket, _) = RawSocket::connect(&node, &ann).await;
        socket.send(again).await;
        let error = socket.next_event("error").await;
        assert!(error.contains(r#""code":"invalid_operation""#), "{what}: {error}");
        assert!(error.contains(r#""event":"connect""#), "{what}: {error}");
        socket.send(WRITE).await;
        socket.next_where(|text| text.starts_with("437[{\"ok\":true")).await;
        canary.sings_after(what).await;
    }
    let session = node.rest_of(&bob).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 0, "it is still ann's");
}

#[tokio::test]
async fn two_connects_at_once_make_one_device() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let connect = format!("40{}", json!({"token": ann.token}));
    let mut socket = RawSocket::open(&node).await;
    socket.send(&connect).await;
    socket.send(&connect).await;

    socket.next_event("session-restored").await;
    socket.send(WRITE).await;
    socket.next_where(|text| text.starts_with("437[{\"ok\":true")).await;

    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"].as_array().map(Vec::len), Some(1), "{devices}");
    Canary::on(&node).await.sings_after("two connects at once").await;
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_and_the_socket_goes_on() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let long = format!("/{}", "n".repeat(10_240));
    for namespace in ["/admin", "//", "/../", "/\u{0}", "/ключ", "/a\"b", long.as_str()] {
        let (mut socket, _) = RawSocket::connect(&node, &ann).await;
        socket.send(&format!("40{namespace},{}", json!({"token": ann.token}))).await;
        let answer = socket.next_where(|text| text.starts_with("44")).await;
        assert!(answer.starts_with(&format!("44{namespace},{{")), "{answer:.80}");
        socket.send(WRITE).await;
        socket.next_where(|text| text.starts_with("437[{\"ok\":true")).await;
        canary.sings_after(&format!("{namespace:.40}")).await;
    }
}

#[tokio::test]
async fn an_event_in_a_namespace_that_nobody_joined_is_not_handled() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    for (what, frame) in [
        ("an event", r#"42/admin,7["session-update",{"sessionKey":"k","state":1}]"#),
        ("an ack", "43/admin,7[]"),
        ("a goodbye", "41/admin,"),
        ("a refusal, which only servers say", "44{\"message\":\"no\"}"),
    ] {
        let (mut socket, _) = RawSocket::connect(&node, &ann).await;
        socket.send(frame).await;
        let answers = socket.closed().await;
        assert!(answers.iter().all(|answer| !answer.contains("\"ok\":true")), "{what}: {answers:?}");
        canary.sings_after(what).await;
    }
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 0);
}

#[tokio::test]
async fn after_its_goodbye_a_client_is_not_heard_any_more() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let connect = format!("40{}", json!({"token": ann.token}));
    for (goodbye, then) in
        [("41", WRITE), ("1", WRITE), ("41", connect.as_str()), ("1", connect.as_str()), ("41", "41")]
    {
        let (mut socket, _) = RawSocket::connect(&node, &ann).await;
        socket.send(goodbye).await;
        drop(socket.try_send(then.into()).await);
        let answers = socket.closed().await;
        let handled = |answer: &&String| answer.starts_with("437[") || answer.starts_with("40");
        assert_eq!(answers.iter().find(handled), None, "{goodbye}, then {then:.20}");
        canary.sings_after(&format!("{goodbye}, then {then:.20}")).await;
    }
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 0, "{session}");
}
