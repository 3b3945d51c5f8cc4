//! A relayed event does not wait for a timer on its way.

use std::time::Instant;

use crate::support::{Env, Node, RawSocket};

/// Nagle's algorithm against a delayed ACK costs 40 ms; without them an event takes about one.
const MEDIAN_MS_MAX: f64 = 20.0;

#[tokio::test]
async fn relayed_events_do_not_wait_for_delayed_acks() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut sender, _) = RawSocket::connect(&node, &ann).await;
    let (mut receiver, _) = RawSocket::connect(&node, &ann).await;

    let mut times = Vec::new();
    for number in 0..60 {
        // A receiver that speaks itself delays its ACKs, hoping to send them along with its next words.
        receiver.emit_ack("realtime-event", r#"{"type":"t","payload":"an answer"}"#).await;
        let started = Instant::now();
        // Two small events in a row: the second is the one that Nagle's algorithm would hold back.
        for part in 0..2 {
            let event = format!(r#"{{"type":"t","payload":"{number}.{part}"}}"#);
            sender.emit_ack("realtime-event", &event).await;
        }
        let second = format!(r#""payload":"{number}.1""#);
        receiver.next_where(|text| text.contains(&second)).await;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }

    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    assert!(median < MEDIAN_MS_MAX, "median {median:.1} ms");
}
