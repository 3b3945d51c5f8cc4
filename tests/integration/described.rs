//! What REST says of itself is what it does: the description names every route and no other, answers look as it says,
//! and every answer carries the headers that keep it what it is.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Env, Node};

async fn described(node: &Node) -> Value {
    node.rest().get("/api/openapi.json").await.expect(200)
}

fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, methods): (&String, &Value)| -> Vec<_> {
        methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect()
    };
    paths.iter().flat_map(of_path).collect()
}

#[tokio::test]
async fn every_described_call_exists_and_answers_only_what_is_described() {
    let node = Node::start(&Env::new()).await;
    let document = described(&node).await;
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (method, path) in operations(&document) {
        let at = path.replace("{id}", "00000000-0000-0000-0000-000000000000").replace("{key}", "k");
        let request = node.rest().request(Method::from_bytes(method.as_bytes()).unwrap(), &at);
        let answer = request.json(&json!({})).send().await.unwrap();
        let status = answer.status().as_u16().to_string();
        let possible = &document["paths"][&path][method.to_lowercase()]["responses"];
        assert!(possible.get(&status).is_some(), "{method} {path} answered {status}: {possible}");
        assert_ne!(status, "405", "{method} {path}");
    }
}

/// The rows of docs/PROTOCOL.md are kept beside the routes; both must name the same calls.
#[tokio::test]
async fn the_description_and_the_protocol_name_the_same_calls() {
    let node = Node::start(&Env::new()).await;
    let described: BTreeSet<String> =
        operations(&described(&node).await).into_iter().map(|(_, path)| path).collect();
    let protocol = include_str!("../../docs/PROTOCOL.md");
    for path in &described {
        let as_documented = path.replace("{id}", ":id").replace("{key}", ":key");
        assert!(protocol.contains(&as_documented), "docs/PROTOCOL.md does not name {as_documented}");
    }
    for path in ["/api/auth/register", "/api/devices/{id}", "/api/session/{key}/history", "/metrics"] {
        assert!(described.contains(path), "{path}");
    }
}

#[tokio::test]
async fn every_answer_says_that_it_is_data_and_which_request_it_answers() {
    let node = Node::start(&Env::new()).await;
    let rest = node.rest();
    for path in ["/api/health", "/api/session", "/nowhere", "/docs", "/docs/events"] {
        let answer =
            rest.request(Method::GET, path).header("X-Request-Id", "my-own.id_1").send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("x-request-id").as_deref(), Some("my-own.id_1"), "{path}");
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        assert_eq!(header("referrer-policy").as_deref(), Some("no-referrer"), "{path}");
        let policy = header("content-security-policy").unwrap();
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
    }
    for odd in ["two words", &"x".repeat(65), "<script>"] {
        let answer =
            rest.request(Method::GET, "/api/health").header("X-Request-Id", odd).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap();
        assert!(uuid::Uuid::try_parse(id).is_ok(), "{odd:?} became {id:?}");
    }
}

#[tokio::test]
async fn the_pages_that_show_it_need_nothing_from_elsewhere_and_hold_nothing_inline() {
    let node = Node::start(&Env::new()).await;
    let files = [
        ("/docs", "text/html"),
        ("/docs/events", "text/html"),
        ("/docs/page.js", "text/javascript"),
        ("/docs/events.js", "text/javascript"),
        ("/docs/element.js", "text/javascript"),
        ("/docs/page.css", "text/css"),
    ];
    for (path, kind) in files {
        let answer = node.rest().request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(kind), "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        let text = answer.text().await.unwrap();
        if kind == "text/html" {
            assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{path}: {policy}");
            assert!(text.contains("href=\"/docs\"") && text.contains("href=\"/docs/events\""), "{path}");
            let inline =
                text.split("<script").skip(1).filter(|tag| !tag.starts_with(" type=\"module\" src="));
            assert_eq!(inline.count(), 0, "{path}");
            assert!(!text.contains("style=") && !text.contains("onclick"), "{path}");
        }
        assert!(!text.contains("https://") && !text.contains("http://"), "{path} names another host");
    }
    node.rest().get("/docs/other.js").await.expect_error(404, "not_found");
}

#[tokio::test]
async fn the_described_events_are_those_of_the_protocol_and_references_lead_somewhere() {
    let node = Node::start(&Env::new()).await;
    let document = node.rest().get("/api/asyncapi.json").await.expect(200);
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let protocol = include_str!("../../docs/PROTOCOL.md");
    let messages = document["components"]["messages"].as_object().unwrap();
    let events: BTreeSet<_> = messages.keys().filter_map(|name| name.split_once('.')).collect();
    for (_, event) in &events {
        assert!(protocol.contains(&format!("`{event}`")), "docs/PROTOCOL.md does not name {event}");
    }
    // What the protocol has a heading for is described.
    for heading in protocol.lines().filter(|line| line.starts_with("### `")) {
        for event in heading.split('`').skip(1).step_by(2) {
            assert!(events.iter().any(|(_, described)| *described == event), "{event} is not described");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
    }
}

/// `docs/GUARANTEES.md` sets each promise beside the tests that show it: there is such a test.
#[test]
fn every_test_that_a_guarantee_names_exists() {
    let page = include_str!("../../docs/GUARANTEES.md");
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
    assert!(named.len() > 40, "{}", named.len());
    for name in named {
        let (module, test) = name.rsplit_once("::").unwrap();
        let path = format!("tests/integration/{}", module.replace("::", "/"));
        let source = std::fs::read_to_string(format!("{path}.rs"));
        let source = source.or_else(|_| std::fs::read_to_string(format!("{path}/mod.rs")));
        let source = source.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(source.contains(&format!("async fn {test}(")), "there is no test {name}");
    }
}
