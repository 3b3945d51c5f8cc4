//! REST requests that are wrong: each gets its code, and the next good one works.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Env, Node, RawTcp, Reply, Rest};

async fn register_with(rest: &Rest, content_type: &str, body: impl Into<String>) -> Reply {
    let request = rest.request(Method::POST, "/api/auth/register");
    Rest::send(request.header("content-type", content_type).body(body.into())).await
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let node = Node::start(&Env::new()).await;
    let rest = node.rest();
    let json = "application/json";
    for body in ["", "{", r#"{"email": "a@b.test", "#, "\u{0}", "nonsense"] {
        let reply = register_with(&rest, json, body).await;
        assert_eq!(reply.status, 400, "{body:?}: {}", reply.text);
        reply.expect_error(400, "invalid_json");
    }
    for body in ["null", "3", r#""text""#, "[]"] {
        let reply = register_with(&rest, json, body).await;
        assert_eq!(reply.status, 400, "{body:?}: {}", reply.text);
    }
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_eq!(register_with(&rest, json, deep).await.status, 400);

    node.register("canary").await;
}

#[tokio::test]
async fn a_body_of_another_type_is_refused() {
    let node = Node::start(&Env::new()).await;
    let body = r#"{"email": "a@b.test", "password": "a long password"}"#;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let reply = register_with(&node.rest(), content_type, body).await;
        reply.expect_error(415, "unsupported_media_type");
    }
    let gzip = node.rest().request(Method::POST, "/api/auth/register");
    let gzip = gzip.header("content-type", "application/json").header("content-encoding", "gzip");
    Rest::send(gzip.body(body)).await.expect_error(415, "unsupported_media_type");

    register_with(&node.rest(), "application/json; charset=utf-8", body).await.expect(201);
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused_and_the_next_request_served() {
    let node = Node::start(&Env::new()).await;
    let padding = "x".repeat(600 * 1_024);
    let body = json!({"email": "a@b.test", "password": "a long password", "padding": padding});

    node.rest().post("/api/auth/register", &body).await.expect_error(413, "too_large");

    node.register("canary").await;
}

#[tokio::test]
async fn a_chunked_body_past_the_limit_is_refused() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    let head = "POST /api/auth/register HTTP/1.1\r\nHost: tandem\r\n\
        Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    tcp.write(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..12 {
        // The server may answer and close before it has everything.
        if tcp.write(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    drop(tcp.write(b"0\r\n\r\n").await);

    let answer = tcp.read_until("\r\n\r\n").await;

    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    node.register("canary").await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    for path in ["/api/nothing", "/api", "/api/auth", "/nothing%00", "/api/session/../../etc"] {
        let reply = node.rest_of(&ann).get(path).await;
        assert_eq!(reply.status, 404, "{path}: {}", reply.text);
        reply.expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn the_one_error_shape_is_used_for_a_wrong_method_too() {
    let node = Node::start(&Env::new()).await;
    let reply = node.rest().get("/api/auth/login").await;
    assert!([404, 405].contains(&reply.status), "{}", reply.status);
    assert!(reply.body["error"]["code"].is_string(), "{}", reply.text);
}

#[tokio::test]
async fn two_hundred_headers_do_no_harm() {
    let node = Node::start(&Env::new()).await;
    let mut request = node.rest().request(Method::GET, "/api/health");
    for number in 0..200 {
        request = request.header(format!("x-{number}"), "x");
    }
    let reply = Rest::send(request).await;
    assert!([200, 431].contains(&reply.status), "{}", reply.status);

    node.register("canary").await;
}

#[tokio::test]
async fn a_wrong_authorization_is_unauthorized_with_a_challenge() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let token = &ann.token;
    let flipped = flip_last_bit(token);
    let headers = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Basic {token}")),
        Some(format!("Bearer {token} {token}")),
        Some(format!("Bearer {flipped}")),
        Some(format!("Bearer {}", "x".repeat(16 * 1_024))),
    ];
    for header in headers {
        let request = node.rest().request(Method::GET, "/api/session");
        let reply = Rest::send(match &header {
            Some(value) => request.header("authorization", value),
            None => request,
        })
        .await;
        assert_eq!(reply.status, 401, "{header:?}: {}", reply.text);
        reply.expect_error(401, "unauthorized");
        let challenge = reply.header("www-authenticate");
        assert!(challenge.is_some_and(|value| value.starts_with("Bearer")), "{challenge:?}");
    }
    let twice = node.rest().request(Method::GET, "/api/session");
    let twice = twice.header("authorization", format!("Bearer {flipped}"));
    let twice = Rest::send(twice.header("authorization", format!("Bearer {token}"))).await;
    twice.expect_error(401, "unauthorized");

    node.rest_of(&ann).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn unknown_fields_and_duplicate_keys_break_nothing() {
    let node = Node::start(&Env::new()).await;
    let body = r#"{"email":"a@b.test","password":"a long password","extra":{"deep":[1]},"email":"a@b.test"}"#;
    let reply = register_with(&node.rest(), "application/json", body).await;
    assert!([201, 400].contains(&reply.status), "{}", reply.text);
    let known = matches!(reply.body["error"]["code"].as_str(), None | Some("invalid_field" | "invalid_json"));
    assert!(known, "{}", reply.text);
    let extra = json!({"email": "b@b.test", "password": "a long password", "extra": Value::Null});
    node.rest().post("/api/auth/register", &extra).await.expect(201);
}

/// The same token with one bit of its signature changed (not one of the last character's unused bits).
fn flip_last_bit(token: &str) -> String {
    let (kept, signature) = token.rsplit_once('.').expect("a JWT has three parts");
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{kept}.{first}{}", &signature[1..])
}
