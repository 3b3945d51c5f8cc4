//! Much at once on one socket: everything that asks for an answer gets one, and the others hardly notice.

use serde_json::{Value, json};

use crate::answers::{accepted, refused};
use crate::support::{Canary, Device, Env, Node, RawSocket, RawTcp, client_frame};

#[tokio::test]
async fn ten_thousand_updates_in_one_write_are_all_answered_in_order() {
    const UPDATES: usize = 10_000;
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
    let mut bytes = Vec::new();
    for n in 0..UPDATES {
        let event = format!(r#"42{n}["session-update",{{"sessionKey":"k{}","state":{n}}}]"#, n % 100);
        bytes.extend(client_frame(0x81, event.as_bytes()));
    }

    let last = format!("43{}[", UPDATES - 1);
    let mut looked_at = 0;
    let said = tcp.write_and_read(&bytes, 60, |read| {
        let found = read[looked_at..].contains(&last);
        // Not in the middle of a character, nor of what is looked for.
        looked_at =
            (0..=read.len().saturating_sub(32)).rev().find(|at| read.is_char_boundary(*at)).unwrap_or(0);
        found
    });
    let said = said.await;

    let mut seqs = Vec::new();
    let mut limited = 0;
    for n in 0..UPDATES {
        let start = said.find(&format!("43{n}[")).unwrap_or_else(|| panic!("no ack for {n}"));
        let end = start + said[start..].find(']').unwrap();
        let ack: Value = serde_json::from_str(&said[start + format!("43{n}[").len()..end]).unwrap();
        if ack["ok"] == true {
            seqs.push(ack["seq"].as_u64().unwrap());
        } else {
            refused(&ack, "rate_limited");
            limited += 1;
        }
    }
    let expected: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, expected, "each seq once, in the order of the writes; {limited} were limited");
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], expected.len());
    canary.sings_after("10,000 updates").await;
}

#[tokio::test]
async fn ten_thousand_pings_do_no_harm() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    for (what, ping) in [("Engine.IO", client_frame(0x81, b"2")), ("WebSocket", client_frame(0x89, b"x"))] {
        let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
        // It may be cut for that.
        drop(tcp.write(&ping.repeat(10_000)).await);
        canary.sings_after(what).await;
    }
}

#[tokio::test]
async fn more_keys_than_a_user_may_have_can_be_asked_for_but_not_be_written() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let device = Device::connect(&node, &ann).await;
    let writes = (0..1_001).map(|n| json!({"sessionKey": format!("k{n}"), "state": n}));
    let acks: Vec<_> = device
        .emit_ack_all("session-update", writes.collect())
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    acks[..1_000].iter().for_each(accepted);
    assert_eq!(refused(&acks[1_000], "quota_exceeded")["limit"], "LIMIT_KEYS_PER_USER");
    canary.sings_after("1,001 keys written").await;

    // As many as a frame holds; a database has its own bound of parameters.
    for count in [1_001, 40_000] {
        let keys: Vec<_> = (0..count).map(|n| format!("k{n}")).collect();
        let got = device.emit_ack("session-get", json!({"keys": keys})).await;
        accepted(&got);
        assert_eq!(got["sessionData"].as_object().map(serde_json::Map::len), Some(1_000), "{count}");
        let mut socket = RawSocket::open(&node).await;
        let info = json!({"name": count});
        socket.join(&json!({"token": ann.token, "keys": keys, "deviceInfo": info})).await;
        let restored = socket.next_event("session-restored").await;
        assert!(restored.contains(r#""k999":999"#), "{restored:.200}");
        canary.sings_after(&format!("{count} keys asked for")).await;
    }
    let names: Vec<_> = (0..1_001).map(|n| format!("k{n}")).collect();
    let session = node.rest_of(&ann).get(&format!("/api/session?keys={}", names.join(","))).await.expect(200);
    assert_eq!(session["sessionData"].as_object().map(serde_json::Map::len), Some(1_000));
}

#[tokio::test]
async fn a_thousand_targets_are_answered_and_nobody_else_is_told() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let (phone, laptop) = (Device::connect(&node, &ann).await, Device::connect(&node, &ann).await);
    let nobody: Vec<_> = (0..1_001).map(|_| uuid::Uuid::now_v7()).collect();
    for (event, payload) in [
        ("realtime-event", json!({"type": "t", "payload": 1, "to": nobody})),
        ("device-message", json!({"targetDeviceId": nobody, "message": 1})),
    ] {
        let ack = phone.emit_ack(event, payload).await;
        assert!(ack["ok"].is_boolean(), "{event}: {ack}");
        laptop.expect_none(event).await;
        canary.sings_after(event).await;
    }
}
