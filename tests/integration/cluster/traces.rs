//! Traces over OTLP: one from a client's event through commit and Redis to its delivery on another node.

use serde_json::json;

use crate::support::{Cluster, CollectedSpan, Collector, Env, Node, Rest, eventually};

fn traced(collector: &Collector, ratio: &str) -> Env {
    Env::new()
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .set("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a key")
        .set("OTEL_TRACES_SAMPLER_ARG", ratio)
        .set("OTEL_BSP_SCHEDULE_DELAY", 20)
}

/// Spans of the one trace whose first has this name, once they are `count`.
async fn trace(collector: &Collector, first: &str, count: usize) -> Vec<CollectedSpan> {
    eventually(format!("{count} spans of {first}"), || async {
        let spans = collector.spans();
        let root = spans.iter().find(|span| span.name == first)?;
        let trace: Vec<_> = spans.iter().filter(|span| span.trace == root.trace).cloned().collect();
        (trace.len() >= count).then_some(trace)
    })
    .await
}

/// `name@node <- parent's name@node`, sorted.
fn shape(trace: &[CollectedSpan]) -> Vec<String> {
    let called = |span: &CollectedSpan| format!("{}@{}", span.name, span.node);
    let mut lines: Vec<_> = trace
        .iter()
        .map(|span| {
            let parent = trace.iter().find(|other| other.id == span.parent).map_or("-".to_owned(), called);
            format!("{} <- {parent}", called(span))
        })
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn one_trace_goes_from_a_write_through_its_commit_to_its_delivery_on_another_node() {
    let collector = Collector::start().await;
    let cluster = Cluster::start_with(2, &traced(&collector, "1")).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;

    phone.update("k", json!("a state")).await;
    laptop.next("session-updated").await;
    let event = json!({"type": "t", "payload": 1});
    phone.emit_ack("realtime-event", event).await;
    laptop.next("realtime-event").await;

    let write = trace(&collector, "session-update", 5).await;
    assert_eq!(
        shape(&write),
        [
            "backplane.publish@node-0 <- deliver@node-0",
            "deliver@node-0 <- session-update@node-0",
            "deliver@node-1 <- backplane.publish@node-0",
            "session-update@node-0 <- -",
            "store.commit@node-0 <- session-update@node-0",
        ]
    );
    let root = write.iter().find(|span| span.name == "session-update").unwrap();
    assert_eq!(root.service, "tandem");
    assert_eq!(root.attribute("user.id"), Some(ann.id.as_str()));
    assert_eq!(root.attribute("device.id"), Some(phone.id()));
    assert_eq!(root.attribute("outcome"), Some("ok"));
    let relayed = trace(&collector, "realtime-event", 3).await;
    assert_eq!(
        shape(&relayed),
        [
            "backplane.publish@node-0 <- realtime-event@node-0",
            "deliver@node-1 <- backplane.publish@node-0",
            "realtime-event@node-0 <- -",
        ]
    );
    assert!(collector.keys().iter().all(|key| key == "a key") && !collector.keys().is_empty());
    let all = format!("{:?}", collector.spans());
    assert!(!all.contains("a state") && !all.contains(&ann.token) && !all.contains(&ann.email), "{all}");
}

#[tokio::test]
async fn a_request_goes_on_with_its_callers_trace() {
    let collector = Collector::start().await;
    let node = Node::start(&traced(&collector, "1")).await;
    let ann = node.register("ann").await;
    let caller = "0af7651916cd43dd8448eb211c80319c";

    let traceparent = format!("00-{caller}-b7ad6b7169203331-01");
    let request = node
        .rest_of(&ann)
        .request(reqwest::Method::GET, "/api/session/none")
        .header("traceparent", traceparent);
    assert_eq!(Rest::send(request).await.status, 404);

    let spans = trace(&collector, "GET /api/session/{key}", 1).await;
    assert_eq!((spans[0].trace.as_str(), spans[0].parent.as_str()), (caller, "b7ad6b7169203331"));
    assert_eq!(spans[0].attribute("outcome"), Some("404"));
}

#[tokio::test]
async fn what_is_not_sampled_leaves_no_span_and_the_last_ones_leave_before_the_end() {
    let collector = Collector::start().await;
    let silent = Node::start(&traced(&collector, "0")).await;
    silent.register("ann").await;
    let mut node = Node::start(
        &traced(&collector, "1")
            .set("OTEL_BSP_SCHEDULE_DELAY", 60_000)
            .set("DRAIN_SECONDS", 0)
            .set("DRAIN_LAG_SECONDS", 0),
    )
    .await;
    node.register("bob").await;
    assert_eq!(collector.spans().len(), 0);

    node.terminate();
    node.wait_exit().await;

    let names: Vec<_> = collector.spans().iter().map(|span| span.name.clone()).collect();
    assert!(names.contains(&"POST /api/auth/register".to_owned()), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("POST")).count(), 1, "{names:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nothing_up() {
    let away = Env::new()
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .set("OTEL_TRACES_SAMPLER_ARG", 1)
        .set("OTEL_BSP_SCHEDULE_DELAY", 20)
        .set("DRAIN_SECONDS", 0)
        .set("DRAIN_LAG_SECONDS", 0);
    let mut node = Node::start(&away).await;
    let ann = node.register("ann").await;
    for n in 0..50 {
        node.rest_of(&ann).put("/api/session/k", &json!(n)).await.expect(200);
    }

    node.terminate();

    assert_eq!(node.wait_exit().await.code, Some(0));
}

#[tokio::test]
async fn a_scraper_that_takes_openmetrics_is_led_to_a_trace() {
    let collector = Collector::start().await;
    let node = Node::start(&traced(&collector, "1")).await;
    let ann = node.register("ann").await;
    node.rest_of(&ann).put("/api/session/k", &json!(1)).await.expect(200);
    let trace = trace(&collector, "PUT /api/session/{key}", 2).await[0].trace.clone();

    let request = node.rest().request(reqwest::Method::GET, "/metrics");
    let open =
        Rest::send(request.header("accept", "application/openmetrics-text;version=1.0.0;q=0.8,*/*;q=0.1"))
            .await;
    let plain = node.rest().get("/metrics").await;

    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.text.ends_with("# EOF\n"));
    let named = |line: &&str| line.starts_with("tandem_store_commit_seconds_bucket") && line.contains(&trace);
    assert!(open.text.lines().any(|line| named(&line)), "{}", open.text);
    assert!(plain.header("content-type").unwrap().starts_with("text/plain"));
    assert!(!plain.text.contains("trace_id") && !plain.text.contains("# EOF"));
}
