//! REST requests that are wrong: each gets its code, and the next good one works.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Canary, Env, Node, RawTcp, Reply, Rest};

async fn register_with(rest: &Rest, content_type: &str, body: impl Into<String>) -> Reply {
    let request = rest.request(Method::POST, "/api/auth/register");
    Rest::send(request.header("content-type", content_type).body(body.into())).await
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let in_a_field = format!(r#"{{"email": "a@b.test", "password": {}}}"#, deep(129));
    let table = [
        ("nothing", String::new()),
        ("half an object", "{".to_owned()),
        ("cut JSON", r#"{"email": "a@b.test", "#.to_owned()),
        ("a NUL", "\u{0}".to_owned()),
        ("words", "nonsense".to_owned()),
        ("a byte order mark", "\u{feff}{}".to_owned()),
        ("two objects", "{}{}".to_owned()),
        ("null", "null".to_owned()),
        ("a number", "3".to_owned()),
        ("a number past all", "1e400".to_owned()),
        ("a text", r#""text""#.to_owned()),
        ("a list", "[]".to_owned()),
        ("129 lists", deep(129)),
        ("129 lists in a field", in_a_field),
        ("100,000 lists", deep(100_000)),
    ];
    for (what, body) in table {
        register_with(&node.rest(), "application/json", body).await.expect_error(400, "invalid_json");
        canary.sings_after(what).await;
    }
}

#[tokio::test]
async fn a_field_of_another_type_is_named() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let table = [
        ("/api/auth/register", json!({"email": ["a@b.test"], "password": "a long password"}), "email"),
        ("/api/auth/register", json!({"email": "a@b.test", "password": {"a": 1}}), "password"),
        ("/api/auth/register", json!({}), "email"),
        ("/api/auth/login", json!({"email": null, "password": "a long password"}), "email"),
        ("/api/auth/login", json!({"email": "a@b.test", "password": 12_345_678}), "password"),
        ("/api/auth/login", json!({"Email": "a@b.test", "password": "a long password"}), "email"),
        ("/api/auth/refresh", json!({"refreshToken": true}), "refreshToken"),
        ("/api/auth/refresh", json!({}), "refreshToken"),
        ("/api/auth/password", json!({"current": 1, "new": "a long password"}), "current"),
        ("/api/auth/password", json!({"current": ann.password}), "new"),
        ("/api/session/k/restore", json!({"version": "1"}), "version"),
        ("/api/session/k/restore", json!({"version": -1}), "version"),
        ("/api/session/k/restore", json!({"version": 1.5}), "version"),
    ];
    for (path, body, field) in table {
        let reply = node.rest_of(&ann).post(path, &body).await;
        assert_eq!(reply.expect_error(400, "invalid_field")["field"], field, "{path} {body}");
        canary.sings_after(&format!("{path} {body}")).await;
    }
    let half_a_pair = r#"{"email": "\ud800@b.test", "password": "a long password"}"#;
    let reply = register_with(&node.rest(), "application/json", half_a_pair).await;
    assert_eq!(reply.expect_error(400, "invalid_field")["field"], "email");
}

#[tokio::test]
async fn a_state_too_deep_for_a_device_is_too_deep_over_rest() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    for depth in [65, 129, 100_000] {
        for method in [Method::PUT, Method::PATCH] {
            let body = "[".repeat(depth) + &"]".repeat(depth);
            let request = node.rest_of(&ann).request(method.clone(), "/api/session/k");
            let reply = Rest::send(request.header("content-type", "application/json").body(body)).await;
            assert_eq!(reply.expect_error(413, "too_deep")["limit"], "depth", "{method} {depth}");
            canary.sings_after(&format!("{method} of {depth} lists")).await;
        }
    }
    node.rest_of(&ann).get("/api/session/k").await.expect_error(404, "unknown_key");
}

#[tokio::test]
async fn a_body_of_another_type_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let body = r#"{"email": "a@b.test", "password": "a long password"}"#;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "é"] {
        let reply = register_with(&node.rest(), content_type, body).await;
        reply.expect_error(415, "unsupported_media_type");
        canary.sings_after(content_type).await;
    }
    let bare = node.rest().request(Method::POST, "/api/auth/register").body(body);
    Rest::send(bare).await.expect_error(415, "unsupported_media_type");
    canary.sings_after("no content type").await;

    register_with(&node.rest(), "application/json; charset=utf-8", body).await.expect(201);
}

#[tokio::test]
async fn a_compressed_body_is_refused_and_never_inflated() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    // 200 KiB, below the limit of a body, that would be 32 MiB.
    let bomb = gzip_of_zeros(200 * 1_024);
    let body = |encoding: &str| {
        if encoding == "gzip" { bomb.clone() } else { b"{\"email\": \"a@b.test\"}".to_vec() }
    };
    for encoding in ["gzip", "gzip, gzip", "deflate", "br", "zstd", "identity, gzip", "nonsense"] {
        for path in ["/api/auth/register", "/api/auth/login", "/api/auth/refresh"] {
            let request = node.rest().request(Method::POST, path).header("content-type", "application/json");
            let request = request.header("content-encoding", encoding).body(body(encoding));
            Rest::send(request).await.expect_error(415, "unsupported_media_type");
            canary.sings_after(&format!("{encoding} to {path}")).await;
        }
    }
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused_and_the_next_request_served() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let padding = "x".repeat(600 * 1_024);
    let body = json!({"email": "a@b.test", "password": "a long password", "padding": padding});

    node.rest().post("/api/auth/register", &body).await.expect_error(413, "too_large");

    canary.sings_after("600 KiB").await;
}

#[tokio::test]
async fn a_chunked_body_past_the_limit_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
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
    canary.sings_after("a chunked body past the limit").await;
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_or_breaks_its_framing_makes_nothing() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let whole = r#"{"email": "cut@b.test", "password": "a long password"}"#;
    let table = [
        ("a length past the body", format!("Content-Length: 500\r\n\r\n{whole}")),
        ("half a body", format!("Content-Length: {}\r\n\r\n{}", whole.len(), &whole[..20])),
        ("two lengths", format!("Content-Length: 5\r\nContent-Length: {}\r\n\r\n{whole}", whole.len())),
        ("a negative length", format!("Content-Length: -1\r\n\r\n{whole}")),
        ("a length past all", format!("Content-Length: 99999999999999999999\r\n\r\n{whole}")),
        ("half a chunk", format!("Transfer-Encoding: chunked\r\n\r\n100\r\n{whole}")),
        ("a chunk of no size", format!("Transfer-Encoding: chunked\r\n\r\nxyz\r\n{whole}\r\n0\r\n\r\n")),
        ("no last chunk", format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{whole}\r\n", whole.len())),
        ("another framing", format!("Transfer-Encoding: gzip\r\n\r\n{whole}")),
    ];
    for (what, rest) in table {
        let mut tcp = RawTcp::open(&node).await;
        let head = "POST /api/auth/register HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\n";
        tcp.write(format!("{head}{rest}").as_bytes()).await.unwrap();
        tcp.finish().await;
        let answer = tcp.read_to_close(9).await;
        // Nobody may be there any more to read an answer; one that comes is a refusal.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        canary.sings_after(what).await;
    }
    let login = json!({"email": "cut@b.test", "password": "a long password"});
    node.rest().post("/api/auth/login", &login).await.expect_error(401, "invalid_credentials");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let node = Node::start(&Env::new()).await;
    let (ann, canary) = (node.register("ann").await, Canary::on(&node).await);
    for path in ["/api/nothing", "/api", "/api/auth", "/nothing%00", "/api/session/../../etc"] {
        let reply = node.rest_of(&ann).get(path).await;
        assert_eq!(reply.status, 404, "{path}: {}", reply.text);
        reply.expect_error(404, "not_found");
        canary.sings_after(path).await;
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

    Canary::on(&node).await.sings_after("200 headers").await;
}

#[tokio::test]
async fn a_wrong_authorization_is_unauthorized_with_a_challenge() {
    let node = Node::start(&Env::new()).await;
    let (ann, canary) = (node.register("ann").await, Canary::on(&node).await);
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
        canary.sings_after(&format!("{:.40}", header.unwrap_or_default())).await;
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

/// A request without a token whose body is `bytes` long.
fn refused_request(line: &str, headers: &str, bytes: usize) -> Vec<u8> {
    let head = format!("{line} HTTP/1.1\r\nHost: tandem\r\n{headers}Content-Length: {bytes}\r\n\r\n");
    [head.into_bytes(), vec![b'1'; bytes]].concat()
}

#[tokio::test]
async fn the_connection_serves_on_after_a_refusal_of_a_request_with_a_body() {
    let node = Node::start(&Env::new()).await;
    let json = "Content-Type: application/json\r\n";
    let token = "Authorization: Bearer nonsense\r\nContent-Type: application/json\r\n";
    let poll = "/socket.io/?EIO=4&transport=polling";
    let table = [
        ("PUT /api/session/k".to_owned(), token, "401", 100 << 10),
        ("PUT /api/session/k".to_owned(), token, "401", 5 << 20),
        ("POST /api/nothing".to_owned(), json, "404", 100 << 10),
        ("POST /api/session/k".to_owned(), json, "405", 100 << 10),
        ("POST /api/auth/register".to_owned(), "Content-Type: text/plain\r\n", "415", 100 << 10),
        ("POST /api/auth/register".to_owned(), json, "413", 5 << 20),
        (format!("POST {poll}&sid=unknown"), "", "400", 100 << 10),
        (format!("POST {poll}&sid=unknown"), "", "413", 5 << 20),
    ];
    for (line, headers, status, bytes) in table {
        let mut tcp = RawTcp::open(&node).await;
        let next = b"GET /api/health/live HTTP/1.1\r\nHost: tandem\r\n\r\n";
        let both = [refused_request(&line, headers, bytes), next.to_vec()].concat();

        let read = tcp.write_and_read(&both, 9, |read| read.contains(r#"{"status":"ok"}"#)).await;

        assert!(read.starts_with(&format!("HTTP/1.1 {status}")), "{line}, {bytes} bytes: {read}");
        assert!(read.contains(r#"{"status":"ok"}"#), "{line}, {bytes} bytes: {read}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_a_body_is_refused_without_it() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    let head = "PUT /api/session/k HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\n\
        Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n";
    tcp.write(head.as_bytes()).await.unwrap();

    let read = tcp.read_to_close(9).await.to_ascii_lowercase();

    assert!(read.starts_with("http/1.1 401"), "{read}");
    assert!(read.contains("connection: close"), "{read}");
}

#[tokio::test]
async fn a_body_past_all_bounds_ends_the_connection_and_the_answer_says_so() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    // No more than the head and what the server discards is sent, so that nothing unread resets the connection.
    let mut request = refused_request("PUT /api/session/k", "", (8 << 20) + 1);
    let head = request.len() - ((8 << 20) + 1);
    let claimed =
        String::from_utf8_lossy(&request[..head]).replace(&((8 << 20) + 1).to_string(), "999999999");
    request.splice(..head, claimed.bytes());

    let read = tcp.write_and_read(&request, 9, |_| false).await.to_ascii_lowercase();

    assert!(read.starts_with("http/1.1 401"), "{read}");
    assert!(read.contains("connection: close"), "{read}");
}

/// The same token with one bit of its signature changed (not one of the last character's unused bits).
fn flip_last_bit(token: &str) -> String {
    let (kept, signature) = token.rsplit_once('.').expect("a JWT has three parts");
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{kept}.{first}{}", &signature[1..])
}

/// A gzip stream (RFC 1951 and 1952) of about `bytes` bytes that inflates to 158 times as many zeros. Its checksum is
/// left off: whoever gets there has inflated it.
fn gzip_of_zeros(bytes: usize) -> Vec<u8> {
    let mut bits = Bits(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], 0);
    // The last block, of fixed codes: a zero, then "258 bytes as the one before" again and again.
    bits.push("1 10 00110000");
    while bits.0.len() < bytes {
        bits.push("11000101 00000");
    }
    bits.push("0000000");
    bits.0
}

/// Bytes that are filled from their lowest bit, and how many bits of the last one are used.
struct Bits(Vec<u8>, u8);

impl Bits {
    fn push(&mut self, bits: &str) {
        for bit in bits.bytes().filter(|bit| *bit != b' ') {
            if self.1 == 0 {
                self.0.push(0);
            }
            *self.0.last_mut().unwrap() |= (bit - b'0') << self.1;
            self.1 = (self.1 + 1) % 8;
        }
    }
}
