//! Stock clients with default options (polling first, then an upgrade) through the shipped HAProxy configuration.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{all_list_online, session_everywhere, sorted};
use crate::replica::Replica;
use crate::support::{Cluster, Device, HaProxy, eventually, short_or_long};

const NODES: usize = 3;

/// Default options; how long it waits before it comes back is a client's own matter.
async fn stock(balancer: &HaProxy, account: &crate::support::Account, n: usize) -> Device {
    Device::options_at(&balancer.url(), account).stock().named(&format!("device {n}")).connect().await
}

#[tokio::test]
async fn stock_clients_connect_upgrade_and_agree_on_different_nodes() {
    let count = short_or_long(12, 48);
    let cluster = Cluster::start(NODES).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    let ann = cluster.register("ann").await;
    let mut devices = Vec::new();
    for n in 0..count {
        devices.push(stock(&balancer, &ann, n).await);
    }
    for device in &devices {
        eventually("it is a WebSocket by now", || async {
            (device.inspect().await["transport"] == "websocket").then_some(())
        })
        .await;
        assert_eq!(device.events("$connect").len(), 1, "at the first attempt: {}", balancer.log());
    }
    for node in &cluster.nodes {
        let sockets = node.metric("tandem_sockets").await;
        assert!(sockets >= 1.0, "every node has its share of {count}: {sockets}");
    }

    let writes =
        |n: usize| (0..20).map(move |i| json!({"sessionKey": format!("k{}", i % 4), "state": [n, i]}));
    let acks = join_all(
        devices
            .iter()
            .enumerate()
            .map(|(n, device)| device.emit_ack_all("session-update", writes(n).collect())),
    );
    assert!(acks.await.iter().flatten().all(|ack| ack.as_ref().unwrap()["ok"] == true));
    let session = session_everywhere(&cluster, &ann).await;
    assert_eq!(session["seq"], count * 20);
    for device in &devices {
        device.until("session-updated", 20, |seen| (seen.len() >= (count - 1) * 20).then_some(())).await;
        Replica::of(&device.seen());
    }
    all_list_online(&cluster, &ann, &sorted(devices.iter().map(Device::id))).await;
}

#[tokio::test]
async fn clients_that_only_poll_stay_with_their_node() {
    let cluster = Cluster::start(NODES).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    let ann = cluster.register("ann").await;
    let mut devices = Vec::new();
    for n in 0..6 {
        let options = Device::options_at(&balancer.url(), &ann).stock().transports(&["polling"]);
        devices.push(options.named(&format!("device {n}")).connect().await);
    }
    for n in 0..20 {
        devices[n % 6].update("k", json!(n)).await;
    }
    let session = session_everywhere(&cluster, &ann).await;
    for (n, device) in devices.iter().enumerate() {
        let own = (0..20).filter(|write| write % 6 == n).count();
        device.until("session-updated", 20, |seen| (seen.len() >= 20 - own).then_some(())).await;
        assert_eq!(device.events("$disconnect"), Vec::<Value>::new(), "no session was unknown to a node");
        assert_eq!(device.inspect().await["transport"], "polling");
    }
    assert_eq!(session["sessionData"]["k"], 19);
}

#[tokio::test]
async fn clients_of_a_killed_node_come_back_to_another_through_the_balancer() {
    let mut cluster = Cluster::start(NODES).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    let ann = cluster.register("ann").await;
    let mut devices = Vec::new();
    for n in 0..6 {
        devices.push(stock(&balancer, &ann, n).await);
    }
    devices[0].update("k", json!("before")).await;

    cluster.nodes[1].kill_9();
    for device in &devices {
        eventually("it is connected", || async {
            (device.inspect().await["connected"] == true).then_some(())
        })
        .await;
    }
    let rest = balancer.rest().with_token(&ann.token);
    rest.put("/api/session/k", &json!("after")).await.expect(200);
    for device in &devices {
        let has = |_: &[Value]| {
            let replica = Replica::of(&device.seen());
            replica.session.get("k").is_some_and(|held| held.state == "after").then_some(())
        };
        device.until("session-updated", 15, has).await;
    }
}

#[tokio::test]
async fn metrics_are_not_for_those_outside() {
    let cluster = Cluster::start(NODES).await;
    let balancer = HaProxy::start(&cluster.nodes).await;
    for path in ["/metrics", "/metrics/", "/Metrics", "/%6detrics", "//metrics", "/metrics?x=1"] {
        let reply = balancer.rest().get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.text.contains("tandem_sockets"), "{path}");
    }
}
