//! A client that reads nothing is cut, and slows nobody down.

use serde_json::json;

use crate::answers::accepted;
use crate::support::{Device, Env, Node, RawSocket, RawTcp};

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_and_the_others_go_on() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    let sender = Device::connect(&node, &ann).await;
    let reader = Device::connect(&node, &ann).await;
    // It reads as far as the restore, and never again.
    let (_stalled, _) = RawTcp::joined(&node, &ann.token).await;
    let stalled_id = reader.next("device-connected").await["deviceId"].as_str().unwrap().to_owned();

    // More than the socket buffers of both sides and the outbox can take.
    let mut cut = None;
    for round in 0..400 {
        let payload = json!({"round": round, "padding": "x".repeat(60 * 1_024)});
        let event = json!({"type": "t", "payload": payload});
        accepted(&sender.emit_ack("realtime-event", event).await);
        cut = reader.events("device-disconnected").into_iter().next();
        if cut.is_some() {
            break;
        }
    }

    // A stalled write ends within 12 s of a full outbox.
    let cut = match cut {
        Some(cut) => cut,
        None => reader.until("device-disconnected", 15, |events| events.first().cloned()).await,
    };
    assert_eq!(cut["deviceId"], stalled_id.as_str());
    reader.caught_up_with(&sender).await;
    let seen = reader.events("realtime-event").len();
    assert!(seen > 0, "the reader got its events");
}

#[tokio::test]
async fn a_device_that_fell_behind_ends_up_with_the_newest_state_of_every_key() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::connect(&node, &ann).await;
    let (mut slow, _) = RawSocket::connect(&node, &ann).await;

    // While it reads nothing, far more is written than its outbox may hold.
    for round in 0..40 {
        let state = |n: usize| json!({"round": round, "n": n, "padding": "x".repeat(20 * 1_024)});
        let updates = (0..10).map(|n| json!({"sessionKey": format!("k{n}"), "state": state(n)}));
        for ack in writer.emit_ack_all("session-update", updates.collect()).await {
            accepted(&ack.unwrap());
        }
    }

    // Either it is still connected and the newest of each key arrives, or it was cut and restores.
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    let head = session["seq"].as_u64().unwrap();
    let newest = format!(r#""seq":{head}"#);
    let mut seqs = Vec::new();
    let mut ended = false;
    loop {
        match slow.next_or_end().await {
            Some(text) if text.contains("session-updated") => {
                let update: serde_json::Value = serde_json::from_str(&text[2..]).unwrap();
                seqs.push(update[1]["seq"].as_u64().unwrap());
                if text.contains(&newest) {
                    break;
                }
            }
            Some(_) => {}
            None => {
                ended = true;
                break;
            }
        }
    }
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    if ended {
        let (_, restored) = RawSocket::connect(&node, &ann).await;
        assert!(restored.contains(&newest), "the restore is up to date");
    }
}
