//! What several nodes promise together: real processes that share a database and a real Redis.
//!
//! Each test has a cluster of its own. Figures are those of docs/GUARANTEES.md with `TANDEM_LONG` set, else shorter.

mod balancer;
mod clock;
mod delivery;
mod drain;
mod identity;
mod lost_publish;
mod node_killed;
mod redis_away;
mod storm;
mod throttles;
mod traces;
mod watched;

use serde_json::{Value, json};

use crate::support::{Account, Cluster, Device, Node, within_secs};

/// `GET /api/devices` of one node: who is online.
async fn online(cluster: &Cluster, node: usize, account: &Account) -> Vec<String> {
    let listed = cluster.rest_of(node, account).get("/api/devices").await.expect(200);
    let devices = listed["devices"].as_array().unwrap().iter().filter(|device| device["online"] == true);
    let mut ids: Vec<_> = devices.map(|device| device["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn sorted<'a>(ids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut ids: Vec<_> = ids.into_iter().map(str::to_owned).collect();
    ids.sort();
    ids
}

/// Waits until every node lists exactly these devices as online.
async fn all_list_online(cluster: &Cluster, account: &Account, ids: &[String]) {
    for node in 0..cluster.nodes.len() {
        crate::support::eventually(format!("node {node} lists {ids:?} as online"), || async {
            (online(cluster, node, account).await == ids).then_some(())
        })
        .await;
    }
}

/// The session as every node tells it, which is the same.
async fn session_everywhere(cluster: &Cluster, account: &Account) -> Value {
    let session = cluster.rest_of(0, account).get("/api/session").await.expect(200);
    for node in 1..cluster.nodes.len() {
        assert_eq!(
            cluster.rest_of(node, account).get("/api/session").await.expect(200),
            session,
            "node {node}"
        );
    }
    session
}

/// What another node did to `phone` would be known to its own with the next regular ask.
pub async fn is_not_sent_away(node: &Node, phone: &Device) {
    let asks = node.metric("tandem_store_asks_total").await;
    // Two of them: up to ten seconds.
    within_secs(30, async {
        while node.metric("tandem_store_asks_total").await < asks + 2.0 {
            drop(phone.try_emit_ack("session-get", vec![json!({})]).await);
        }
    })
    .await;
    phone.update("k", json!(1)).await;
    assert_eq!(phone.events("$disconnect"), Vec::<Value>::new());
    assert_eq!(phone.events("error"), Vec::<Value>::new());
}
