//! What operators and their tools ask a node.

use reqwest::Method;
use serde_json::json;

use crate::support::{Device, Env, Node, Rest};

#[tokio::test]
async fn health_tells_people_how_the_node_is() {
    let node = Node::start(&Env::new().set("NODE_ID", "node-7")).await;
    let health = node.rest().get("/api/health").await.expect(200);
    assert_eq!(health["status"], "ok");
    assert_eq!(health["node"], "node-7");
    assert!(health["version"].is_string() && health["uptimeSeconds"].is_number(), "{health}");
    assert_eq!(health["checks"]["store"], "ok", "{health}");
    assert!(!health["checks"]["backplane"].is_null(), "{health}");
}

#[tokio::test]
async fn live_and_ready_answer_probes() {
    let node = Node::start(&Env::new()).await;
    node.rest().get("/api/health/live").await.expect(200);
    node.rest().get("/api/health/ready").await.expect(200);
}

#[tokio::test]
async fn the_health_subcommand_probes_a_running_node() {
    let node = Node::start(&Env::new()).await;
    let port = node.address().rsplit(':').next().unwrap().to_owned();
    let healthy = crate::support::run_to_exit(&Env::new().set("PORT", port).arg("health")).await;
    assert_eq!(healthy.code, Some(0), "{}", healthy.output);
    let free = crate::support::run_to_exit(&Env::new().set("PORT", 1).arg("health")).await;
    assert_ne!(free.code, Some(0), "{}", free.output);
}

#[tokio::test]
async fn metrics_are_for_prometheus_on_this_machine() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    device.update("k", json!(1)).await;

    let reply = node.rest().get("/metrics").await;

    assert_eq!(reply.status, 200, "{}", reply.text);
    let content_type = reply.header("content-type").unwrap_or_default();
    assert!(content_type.starts_with("text/plain"), "{content_type}");
    assert!(reply.text.contains("\ntandem_sockets 1\n"), "{}", reply.text);
    let build = |line: &&str| line.starts_with("tandem_build_info{") && line.contains("version=");
    assert!(reply.text.lines().any(|line| build(&line)), "{}", reply.text);
    let names = reply.text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in names {
        assert!(line.starts_with("tandem_") || line.starts_with("process_"), "{line}");
    }
    for id in [device.id(), &ann.id, &ann.email] {
        assert!(!reply.text.contains(id), "no ids in metrics");
    }
}

#[tokio::test]
async fn nothing_waits_for_a_commit_where_nothing_is_going_on() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    Device::connect(&node, &ann).await.update("k", json!(1)).await;
    crate::support::eventually("the queue is empty", || async {
        (node.metric("tandem_store_queue").await < 0.5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn metrics_are_not_for_those_behind_a_proxy() {
    let node = Node::start(&Env::new()).await;
    for header in ["x-forwarded-for", "forwarded", "x-real-ip"] {
        let request = node.rest().request(Method::GET, "/metrics").header(header, "203.0.113.7");
        let reply = Rest::send(request).await;
        assert_ne!(reply.status, 200, "{header}");
        assert!(!reply.text.contains("tandem_sockets"), "{header}");
    }
}

#[tokio::test]
async fn gauges_go_back_to_zero_when_the_devices_are_gone() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    for _ in 0..5 {
        let device = Device::connect(&node, &ann).await;
        device.update("k", json!(1)).await;
        device.disconnect().await;
    }
    crate::support::eventually("no socket and no user is counted", || async {
        let metrics = node.rest().get("/metrics").await.text;
        let zero = ["\ntandem_sockets 0\n", "\ntandem_users 0\n"];
        zero.iter().all(|line| metrics.contains(line)).then_some(())
    })
    .await;
}
