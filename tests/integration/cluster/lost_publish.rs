//! A publish that is lost: nothing later reveals it, so the regular ask has to.

use std::time::Instant;

use serde_json::json;

use crate::replica::Replica;
use crate::support::{Cluster, Env, within_secs};

/// What is promised for a change whose publish is lost and which nothing follows.
const FOUND_WITHIN_SECONDS: u64 = 6;

#[tokio::test]
async fn a_last_change_whose_publish_is_lost_is_delivered_within_6_s_without_further_traffic() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    // Early in a node's life and later: each loss is found by another ask.
    for round in 0..3 {
        phone.update("before", json!(round)).await;
        laptop.next_where("session-updated", |update| update["sessionKey"] == "before").await;

        cluster.links[1].lose_messages(1.0);
        let lost_before = cluster.links[1].messages_lost();
        let began = Instant::now();
        phone.update("last", json!(round)).await;
        let found = laptop.next_where("session-updated", |update| update["sessionKey"] == "last");
        let update = within_secs(FOUND_WITHIN_SECONDS, found).await;
        cluster.links[1].lose_messages(0.0);

        println!("round {round}: a lost last change was delivered after {:?}", began.elapsed());
        assert_eq!(update["state"], round);
        assert!(cluster.links[1].messages_lost() > lost_before, "the publish was lost");
    }
    let session = cluster.rest_of(0, &ann).get("/api/session").await.expect(200);
    assert!(Replica::of(&laptop.seen()).equals(&session));
}

#[tokio::test]
async fn a_hole_that_a_later_change_reveals_is_repaired_at_once() {
    let cluster = Cluster::start_with_links(2, &Env::new()).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.update("k", json!(0)).await;
    laptop.next("session-updated").await;

    cluster.links[1].lose_messages(1.0);
    for n in 1..=5 {
        phone.update("k", json!(n)).await;
    }
    // The swallowed ones have passed the proxy when the node has heard what came after them.
    crate::support::eventually("five messages are lost", || async {
        (cluster.links[1].messages_lost() >= 5).then_some(())
    })
    .await;
    cluster.links[1].lose_messages(0.0);
    let began = Instant::now();
    phone.update("k", json!(6)).await;

    laptop.next_where("session-updated", |update| update["state"] == 6).await;
    println!("a revealed hole was repaired after {:?}", began.elapsed());
    let seen: Vec<_> =
        laptop.events("session-updated").iter().map(|update| update["state"].clone()).collect();
    assert_eq!(seen, (0..=6).map(|n| json!(n)).collect::<Vec<_>>(), "in order, each once");
}
