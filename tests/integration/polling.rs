//! Sessions that poll send more than can be handled at once: what they post waits, and nothing else does.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Account, Env, Node, Polling, RawTcp, within, within_secs};

/// Events of one payload: more than half of what an inbox takes, so that reading rests.
const EVENTS: usize = 300;

async fn joined(node: &Node, account: &Account) -> Arc<Polling> {
    let polling = Polling::open(node).await;
    polling.post(format!("40{}", json!({"token": account.token}))).await;
    while !polling.poll().await.iter().any(|packet| packet.contains("session-restored")) {}
    Arc::new(polling)
}

/// `EVENTS` events that ask for acks from this number on.
fn payload(first: usize) -> String {
    let event = |n| format!(r#"42{n}["session-get",{{"keys":["k"]}}]"#);
    (first..first + EVENTS).map(event).collect::<Vec<_>>().join("\u{1e}")
}

/// Polls until so many acks have come.
fn acks(polling: &Arc<Polling>, count: usize) -> JoinHandle<Vec<Value>> {
    let polling = polling.clone();
    tokio::spawn(async move {
        let mut acks = Vec::new();
        while acks.len() < count {
            for packet in polling.poll().await {
                match packet.find('[').filter(|_| packet.starts_with("43")) {
                    Some(at) => {
                        acks.push(serde_json::from_str::<Value>(&packet[at..]).unwrap()[0].take());
                    }
                    None if packet == "2" => drop(polling.post("3").await),
                    None => {}
                }
            }
        }
        acks
    })
}

#[tokio::test]
async fn what_a_polling_client_posts_waits_while_it_is_ahead_of_the_server() {
    const POSTS: usize = 10;
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let polling = joined(&node, &ann).await;

    let acks = acks(&polling, POSTS * EVENTS);
    for post in 0..POSTS {
        assert_eq!(polling.post(payload(post * EVENTS)).await.status, 200);
    }

    for ack in within_secs(60, acks).await.unwrap() {
        assert_eq!(ack["ok"], true, "{ack}");
    }
}

#[tokio::test]
async fn a_connection_that_a_session_has_polled_on_serves_others_while_the_session_rests() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    for round in 0..5 {
        let polling = joined(&node, &ann).await;
        let mut connection = RawTcp::open(&node).await;
        let poll = format!("GET {} HTTP/1.1\r\nHost: tandem\r\n\r\n", polling.path());
        connection.write(poll.as_bytes()).await.unwrap();
        assert_eq!(polling.post(payload(0)).await.status, 200);
        let answer = connection.read_until("43").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{round}: {answer}");
        // What follows comes over other connections, as from behind a proxy.
        let acks = acks(&polling, 1);
        assert_eq!(polling.post(payload(EVENTS)).await.status, 200);
        acks.abort();

        connection.write(b"GET /api/health/live HTTP/1.1\r\nHost: tandem\r\n\r\n").await.unwrap();
        let answer = within(connection.read_until("HTTP/1.1 200")).await;
        assert!(answer.contains("HTTP/1.1 200"), "{round}: {answer}");
    }
}
