//! Many writers with one base, over three nodes: one winner a round, and every loser told what won.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Cluster, short_or_long};

const WRITERS: u64 = 10;

fn rounds() -> u64 {
    short_or_long(200, 1_000)
}

#[tokio::test]
async fn of_ten_writers_on_three_nodes_with_one_base_exactly_one_wins_each_round() {
    let cluster = Cluster::start(3).await;
    let ann = cluster.register("ann").await;
    let connecting = (0..WRITERS).map(|writer| cluster.connect(writer as usize % 3, &ann));
    let devices = join_all(connecting).await;

    for round in 0..rounds() {
        let writing = devices.iter().zip(0..).map(|(device, writer)| {
            let state = json!({"round": round, "writer": writer});
            device
                .emit_ack("session-update", json!({"sessionKey": "k", "state": state, "baseVersion": round}))
        });
        let acks = join_all(writing).await;

        let winners: Vec<_> = (0..WRITERS).zip(&acks).filter(|(_, ack)| ack["ok"] == true).collect();
        let [(winner, won)] = winners[..] else { panic!("round {round}: {winners:?}") };
        assert_eq!(won["version"], round + 1, "{won}");
        for lost in acks.iter().filter(|ack| ack["ok"] == false) {
            let error = &lost["error"];
            assert_eq!(
                (&error["code"], &error["version"]),
                (&json!("conflict"), &json!(round + 1)),
                "{lost}"
            );
            assert_eq!(error["state"], json!({"round": round, "writer": winner}), "{lost}");
        }
    }
    let session = cluster.nodes[2].rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["versions"]["k"], rounds());
}
