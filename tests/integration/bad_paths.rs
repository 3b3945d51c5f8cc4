//! Ids in a path that name nothing, or nothing that may be: answered by their code, and never by a file or a 500.

use serde_json::{Value, json};

use crate::support::{Account, Canary, Device, Env, Node, RawTcp};

/// Sends the path as it stands, which no HTTP client would. The status and the error's code.
async fn ask(node: &Node, account: &Account, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut tcp = RawTcp::open(node).await;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: tandem\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        account.token,
        body.len()
    );
    tcp.write(request.as_bytes()).await.unwrap();
    let answer = tcp.read_to_close(9).await;
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// Ids that no device, and no key that was written here, has. `may_be_a_key`: it is one as well as any other.
fn odd_ids() -> Vec<(&'static str, String, bool)> {
    vec![
        ("up", "..%2f".to_owned(), true),
        ("further up", "%2e%2e%2f%2e%2e%2fetc%2fpasswd".to_owned(), true),
        ("twice encoded", "%252e%252e%252f".to_owned(), true),
        ("a NUL", "%00".to_owned(), false),
        ("a NUL at the end", "k%00".to_owned(), false),
        ("a line break", "k%0d%0aX:%20y".to_owned(), false),
        ("no UTF-8", "%ff%fe".to_owned(), false),
        ("half a character", "%c3".to_owned(), false),
        ("half an escape", "k%".to_owned(), true),
        ("no escape", "%zz".to_owned(), true),
        ("10 KiB", "k".repeat(10 * 1_024), false),
        ("129 bytes", "k".repeat(129), false),
        ("SQL", "'%20OR%201=1%20--".to_owned(), true),
        ("a star", "*".to_owned(), true),
        ("__proto__", "__proto__".to_owned(), true),
        ("a space", "%20".to_owned(), true),
        ("a UUID and more", format!("{}x", uuid::Uuid::nil()), true),
        ("a UUID in braces", format!("%7B{}%7D", uuid::Uuid::nil()), true),
        ("the nil UUID", uuid::Uuid::nil().to_string(), true),
    ]
}

#[tokio::test]
async fn an_id_of_no_device_is_unknown_whatever_it_is() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let canary = Canary::on(&node).await;
    let bobs = Device::connect(&node, &bob).await;
    let mut ids = odd_ids();
    ids.push(("another's device", bobs.id().to_owned(), false));
    ids.push(("another's device in capitals", bobs.id().to_uppercase(), false));
    ids.push(("another user", bob.id.clone(), false));
    for (what, id, _) in ids {
        for (method, body) in [("PATCH", r#"{"name":"taken"}"#), ("DELETE", "")] {
            let answer = ask(&node, &ann, method, &format!("/api/devices/{id}"), body).await;
            assert_eq!(answer, (404, "unknown_device".to_owned()), "{method} of {what}");
        }
        canary.sings_after(what).await;
    }
    bobs.update("k", json!("still here")).await;
}

#[tokio::test]
async fn an_odd_key_is_unknown_to_read_and_invalid_to_write() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    for (what, id, may_be_a_key) in odd_ids() {
        let path = format!("/api/session/{id}");
        for (method, path, body) in [
            ("GET", &path, ""),
            ("GET", &format!("{path}/history"), ""),
            ("DELETE", &path, ""),
            ("POST", &format!("{path}/restore"), r#"{"version":1}"#),
        ] {
            let answer = ask(&node, &ann, method, path, body).await;
            let known = [(404, "unknown_key".to_owned()), (400, "invalid_key".to_owned())];
            assert!(known.contains(&answer), "{method} of {what}: {answer:?}");
        }
        for (method, body) in [("PUT", "1"), ("PATCH", "{}")] {
            let answer = ask(&node, &ann, method, &path, body).await;
            if may_be_a_key {
                assert_eq!(answer, (200, String::new()), "{method} of {what}");
            } else {
                assert_eq!(answer, (400, "invalid_key".to_owned()), "{method} of {what}");
            }
        }
        canary.sings_after(what).await;
    }
}

#[tokio::test]
async fn a_path_that_climbs_is_a_path_like_any_other() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let long = format!("/api/session/{}", "k".repeat(70 * 1_024));
    let paths = [
        "/..",
        "/../../etc/passwd",
        "/assets/../../../etc/passwd",
        "/assets/..%2f..%2fetc%2fpasswd",
        "/assets/%00",
        "/assets/%ff",
        "/api/session/../devices",
        "/api/devices/../../session",
        "/api//session",
        "//",
        "/api/session?keys=%00",
        "/api/session?since=x",
        "/api/session?since=:",
        "/api/session?since=a:-1",
        "/api/session?since=a:18446744073709551616",
        "/api/session?keys=a&keys=b",
        "/api/session?keys=",
        &long,
    ];
    for path in paths {
        let (status, _) = ask(&node, &ann, "GET", path, "").await;
        assert!((400..500).contains(&status), "{path:.80}: {status}");
        canary.sings_after(&format!("{path:.80}")).await;
    }
}

#[tokio::test]
async fn a_request_line_that_is_none_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let table = [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET /api/health\r\n\r\n",
        "GET /api/health HTTP/9.9\r\n\r\n",
        "GET /api/health HTTP/1.1\r\nHost: tandem\r\n bad: folded\r\n\r\n",
        "GET /api/health HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /api/health HTTP/1.1\r\nna me: x\r\n\r\n",
        "GET /api/he\u{0}alth HTTP/1.1\r\n\r\n",
        "GET /api/health?\u{e9} HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
    ];
    for request in table {
        let mut tcp = RawTcp::open(&node).await;
        tcp.write(request.as_bytes()).await.unwrap();
        tcp.finish().await;
        let answer = tcp.read_to_close(9).await;
        let fine =
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 200");
        assert!(fine, "{request:?}: {answer}");
        canary.sings_after(request).await;
    }
}
