//! A client's JSON reaches other clients as it was written: digits, spacing, duplicate keys, escapes.

use serde_json::json;

use crate::support::{Account, Env, Node, RawSocket, Rest};

/// Everything a careless re-encoding would change.
const ODD: &str = concat!(
    r#"{ "big":12345678901234567890123,"precise" : 0.10000000000000000555,"exp":1E5,"neg":-0.0,"#,
    "\t",
    r#""dup":1, "dup":2,"nul":"a\u0000b","esc":"\u00e9\/é\ud83d\ude00😀","empty":{ },"list":[1 ,  2]}"#
);

async fn pair(node: &Node, account: &Account) -> (RawSocket, RawSocket, String) {
    let (sender, _) = RawSocket::connect(node, account).await;
    let (receiver, restored) = RawSocket::connect(node, account).await;
    let restored: serde_json::Value = serde_json::from_str(&restored[2..]).unwrap();
    let receiver_id = restored[1]["deviceId"].as_str().unwrap().to_owned();
    (sender, receiver, receiver_id)
}

#[tokio::test]
async fn a_session_state_is_relayed_and_kept_byte_for_byte() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, _) = pair(&node, &ann).await;

    let update = format!(r#"{{"sessionKey":"k", "state": {ODD} }}"#);
    let ack = sender.emit_ack("session-update", &update).await;
    assert!(ack.contains(r#""ok":true"#), "{ack}");

    let exactly = format!(r#""state":{ODD}"#);
    let updated = receiver.next_event("session-updated").await;
    assert!(updated.contains(&exactly), "{updated}");
    let kept = format!(r#""k":{ODD}"#);
    let session = node.rest_of(&ann).get("/api/session").await;
    assert!(session.text.contains(&kept), "{}", session.text);
    node.kill_9();
    node.restart().await;
    let (_, restored) = RawSocket::connect(&node, &ann).await;
    assert!(restored.contains(&kept), "{restored}");
}

#[tokio::test]
async fn a_bare_number_of_many_digits_is_a_state_too() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, _) = pair(&node, &ann).await;
    for number in ["9007199254740993", "-123456789012345678901234567890", "1.10", "1e0", "1E-7"] {
        let update = format!(r#"{{"sessionKey":"n","state":{number}}}"#);
        sender.emit_ack("session-update", &update).await;
        let updated = receiver.next_event("session-updated").await;
        assert!(updated.contains(&format!(r#""state":{number},"#)), "{number}: {updated}");
        let session = node.rest_of(&ann).get("/api/session").await;
        assert!(session.text.contains(&format!(r#""n":{number}"#)), "{}", session.text);
    }
}

#[tokio::test]
async fn a_realtime_payload_is_relayed_byte_for_byte() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, _) = pair(&node, &ann).await;
    sender.emit_ack("realtime-event", &format!(r#"{{"type":"t","payload":{ODD}}}"#)).await;
    let seen = receiver.next_event("realtime-event").await;
    assert!(seen.contains(&format!(r#""payload":{ODD}"#)), "{seen}");
}

#[tokio::test]
async fn a_device_message_is_relayed_byte_for_byte() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, receiver_id) = pair(&node, &ann).await;
    let message = format!(r#"{{"targetDeviceId":"{receiver_id}","message":{ODD}}}"#);
    let ack = sender.emit_ack("device-message", &message).await;
    assert!(ack.contains(r#""ok":true"#), "{ack}");
    let seen = receiver.next_event("device-message").await;
    assert!(seen.contains(&format!(r#""message":{ODD}"#)), "{seen}");
}

#[tokio::test]
async fn the_fields_of_an_event_may_come_in_any_order_and_escaped() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, _) = pair(&node, &ann).await;
    let update = r#"{"state":[1, 2],"session\u004bey":"\u006b","unknown":{"x":[{}]}}"#;
    let ack = sender.emit_ack("session-update", update).await;
    assert!(ack.contains(r#""sessionKey":"k""#), "{ack}");
    let updated = receiver.next_event("session-updated").await;
    assert!(updated.contains(r#""state":[1, 2]"#), "{updated}");
}

#[tokio::test]
async fn a_key_is_written_as_json_wherever_it_appears() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, mut receiver, _) = pair(&node, &ann).await;
    let key = r#"quote " backslash \ é"#;
    let update = json!({"sessionKey": key, "state": 1}).to_string();
    sender.emit_ack("session-update", &update).await;
    let updated = receiver.next_event("session-updated").await;
    let updated: serde_json::Value = serde_json::from_str(&updated[2..]).unwrap();
    assert_eq!(updated[1]["sessionKey"], key);
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"][key], 1);
}

/// What a client makes of an emoji that it cut in two, and numbers past what a double holds.
const STRANGE: &str = r#""big":12345678901234567890123,"huge":1e400,"cut":"\ud83d","\udc00":[-0.0]"#;

#[tokio::test]
async fn what_a_device_says_of_itself_may_be_any_json() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut watcher, _) = RawSocket::connect(&node, &ann).await;
    let info = format!(r#"{{ "name":"abc\ud83d", "type" : "mobile",{STRANGE} }}"#);
    let in_query: String = form_urlencoded::byte_serialize(info.as_bytes()).collect();
    let known = format!(r#"{{"name":"abc{}","type":"mobile",{STRANGE}}}"#, '\u{fffd}');

    let token = serde_json::json!(ann.token);
    let as_text = serde_json::json!(info);
    for (query, auth) in [
        (format!("&deviceInfo={in_query}"), format!(r#"{{"token":{token}}}"#)),
        (String::new(), format!(r#"{{"token":{token},"deviceInfo":{info}}}"#)),
        (String::new(), format!(r#"{{"token":{token},"deviceInfo":{as_text}}}"#)),
    ] {
        let mut socket = RawSocket::open_at(node.address(), &query).await;
        socket.send(&format!("40{auth}")).await;
        let restored = socket.next_event("session-restored").await;
        assert!(restored.contains(&format!(r#""metadata":{{{STRANGE}}}"#)), "{restored}");
        let connected = watcher.next_event("device-connected").await;
        assert!(connected.contains(&format!(r#""deviceInfo":{known},"#)), "{connected}");
        // The same said again is the same device.
        socket.send("41").await;
        watcher.next_event("device-disconnected").await;
    }

    let listed = node.rest_of(&ann).get("/api/devices").await;
    assert_eq!(listed.text.matches(&format!(r#""metadata":{{{STRANGE}}}"#)).count(), 1, "{}", listed.text);
}

#[tokio::test]
async fn fields_that_rest_has_no_use_for_may_be_any_json() {
    let node = Node::start(&Env::new()).await;
    let send = async |method: &str, path: &str, token: &str, body: String| {
        let rest = if token.is_empty() { node.rest() } else { node.rest().with_token(token) };
        let request = rest.request(method.parse().unwrap(), path).header("content-type", "application/json");
        Rest::send(request.body(body)).await
    };
    let ann = r#""email":"ann@example.test","password":"a long password""#;

    let body = format!(r#"{{{ann},"deviceInfo":{{"name":"abc\ud83d",{STRANGE}}},{STRANGE}}}"#);
    let account = send("POST", "/api/auth/register", "", body).await.expect(201);
    send("POST", "/api/auth/login", "", format!(r#"{{{ann},{STRANGE}}}"#)).await.expect(200);

    let token = account["token"].as_str().unwrap();
    let account = Account { token: token.to_owned(), ..node.register("bob").await };
    let (_phone, restored) = RawSocket::connect(&node, &account).await;
    let restored: serde_json::Value = serde_json::from_str(&restored[2..]).unwrap();
    let path = format!("/api/devices/{}", restored[1]["deviceId"].as_str().unwrap());
    let body = format!(r#"{{"name":"Phone \ud83d","metadata":{{{STRANGE}}},{STRANGE}}}"#);
    let renamed = send("PATCH", &path, token, body).await;
    assert_eq!(renamed.status, 200, "{}", renamed.text);
    assert!(renamed.text.contains(&format!(r#""metadata":{{{STRANGE}}}"#)), "{}", renamed.text);
    assert!(renamed.text.contains("\"name\":\"Phone \u{fffd}\""), "{}", renamed.text);
    // Where it matters which text it is, none is made up.
    let cut = r#"{"email":"ann@example.test","password":"a long \ud83d password"}"#.to_owned();
    let refused = send("POST", "/api/auth/login", "", cut).await;
    assert_eq!(refused.expect_error(400, "invalid_field")["field"], "password");
}

#[tokio::test]
async fn fields_that_an_event_has_no_use_for_may_be_any_json() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut socket, _) = RawSocket::connect(&node, &ann).await;

    let ack =
        socket.emit_ack("session-update", &format!(r#"{{"sessionKey":"k","state":1,{STRANGE}}}"#)).await;
    assert!(ack.contains(r#""ok":true"#), "{ack}");
    let ack = socket.emit_ack("session-get", &format!("{{{STRANGE}}}")).await;
    assert!(ack.contains(r#""ok":true"#), "{ack}");
    let ack = socket
        .emit_ack("realtime-event", &format!(r#"{{"type":"t\ud83d","payload":{{{STRANGE}}},{STRANGE}}}"#))
        .await;
    assert!(ack.contains(r#""ok":true"#), "{ack}");
    for key in [r#""k\ud83d""#, r#""\udc00""#] {
        let ack = socket.emit_ack("session-update", &format!(r#"{{"sessionKey":{key},"state":1}}"#)).await;
        assert!(ack.contains(r#""code":"invalid_key""#), "{ack}");
    }
}
