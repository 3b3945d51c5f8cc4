//! Engine.IO handshakes and polling payloads that are wrong: refused or cut, and the next client is served.

use crate::support::{Canary, Env, Node, Polling, RawSocket, RawTcp, Rest};

#[tokio::test]
async fn a_wrong_handshake_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let paths = [
        "/socket.io/",
        "/socket.io/?EIO=4",
        "/socket.io/?transport=polling",
        "/socket.io/?EIO=2&transport=polling",
        "/socket.io/?EIO=5&transport=polling",
        "/socket.io/?EIO=abc&transport=polling",
        "/socket.io/?EIO=4&transport=carrier-pigeon",
        "/socket.io/?EIO=4&transport=polling&sid=nobody",
        "/socket.io/?EIO=4&transport=polling&sid=../../etc/passwd",
        "/socket.io/?EIO=4&transport=websocket",
    ];
    for path in paths {
        let reply = node.rest().get(path).await;
        assert!((400..500).contains(&reply.status), "{path}: {} {}", reply.status, reply.text);
        canary.sings_after(path).await;
    }
    for (method, path) in [
        (reqwest::Method::POST, "/socket.io/?EIO=4&transport=polling"),
        (reqwest::Method::PUT, "/socket.io/?EIO=4&transport=polling"),
        (reqwest::Method::DELETE, "/socket.io/?EIO=4&transport=polling"),
    ] {
        let reply = Rest::send(node.rest().request(method.clone(), path).body("40")).await;
        assert!((400..500).contains(&reply.status), "{method} {path}: {}", reply.status);
        canary.sings_after(&format!("{method} {path}")).await;
    }
}

/// As the Node.js server says it; clients that look at `code` compare numbers.
#[tokio::test]
async fn a_refusal_of_the_polling_path_has_a_number_for_its_code() {
    let node = Node::start(&Env::new()).await;
    for (query, code) in [
        ("EIO=4&transport=carrier-pigeon", 0),
        ("EIO=4&transport=polling&sid=nobody", 1),
        ("EIO=3&transport=polling", 5),
    ] {
        let reply = node.rest().get(&format!("/socket.io/?{query}")).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text);
        assert_eq!(reply.body["code"], code, "{query}: {}", reply.text);
        assert!(reply.body["message"].is_string(), "{query}: {}", reply.text);
    }
}

#[tokio::test]
async fn a_wrong_websocket_upgrade_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let tables = [
        ("without a key", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", ""),
        ("of version 8", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n", key),
        ("without Upgrade", "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n", key),
        ("without Connection", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", key),
        ("to h2c", "Connection: Upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Version: 13\r\n", key),
    ];
    for (what, headers, key) in tables {
        let mut tcp = RawTcp::open(&node).await;
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: tandem\r\n{headers}{key}\r\n"
        );
        tcp.write(request.as_bytes()).await.unwrap();
        let answer = tcp.read_until("\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        canary.sings_after(what).await;
    }
}

/// The status of a WebSocket upgrade that a page of `origin` asks for at `host`.
async fn upgraded(node: &Node, host: &str, origin: &str) -> String {
    let mut tcp = RawTcp::open(node).await;
    let upgrade = format!(
        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    tcp.write(upgrade.as_bytes()).await.unwrap();
    tcp.read_until("\r\n").await.split(' ').nth(1).unwrap().to_owned()
}

/// The status of a GET that a page of `origin` sends to `host`.
async fn asked(node: &Node, path: &str, host: &str, origin: &str) -> u16 {
    let request = node.rest().request(reqwest::Method::GET, path);
    Rest::send(request.header("host", host).header("origin", origin)).await.status
}

#[tokio::test]
async fn a_foreign_origin_is_refused_where_origins_are_listed() {
    let env = Env::new().set("ALLOWED_ORIGINS", "https://app.example");
    let node = Node::start(&env).await;
    let canary = Canary::on(&node).await;
    for (origin, status) in [
        ("https://evil.example", "403"),
        ("https://app.example.evil.example", "403"),
        ("http://app.example", "403"),
        ("null", "403"),
        ("https://app.example", "101"),
    ] {
        assert_eq!(upgraded(&node, "tandem", origin).await, status, "{origin}");
        let polling = asked(&node, "/socket.io/?EIO=4&transport=polling", "tandem", origin).await;
        assert_eq!(polling == 200, status == "101", "{origin}: {polling}");
        canary.sings_after(origin).await;
    }
}

/// A star would not cover Authorization (Fetch standard, "CORS-preflight fetch").
#[tokio::test]
async fn a_page_may_send_the_headers_that_its_preflight_asks_for() {
    for origins in ["", "https://app.example"] {
        let node = Node::start(&Env::new().set("ALLOWED_ORIGINS", origins)).await;
        for path in ["/api/session/k", "/socket.io/?EIO=4&transport=polling"] {
            let preflight = node.rest().request(reqwest::Method::OPTIONS, path);
            let preflight = preflight.header("origin", "https://app.example");
            let preflight = preflight.header("access-control-request-method", "PUT");
            let asked = "authorization,content-type,if-match";
            let reply = Rest::send(preflight.header("access-control-request-headers", asked)).await;
            assert_eq!(reply.status, 200, "{path}");
            assert_eq!(reply.header("access-control-allow-headers"), Some(asked), "{path}");
        }
    }
}

#[tokio::test]
async fn the_servers_own_origin_is_welcome_whatever_is_listed() {
    let node = Node::start(&Env::new().set("ALLOWED_ORIGINS", "https://app.example")).await;
    for (host, origin, is_welcome) in [
        ("localhost:3001", "http://localhost:3001", true),
        // A proxy that ends TLS leaves the name and the port.
        ("tandem.example", "https://tandem.example", true),
        ("Tandem.example", "https://tandem.example", true),
        ("tandem.example:443", "https://tandem.example", true),
        ("[::1]:3001", "http://[::1]:3001", true),
        ("localhost:3001", "http://localhost:3002", false),
        ("localhost:3001", "http://localhost", false),
        ("tandem.example:443", "http://tandem.example", false),
        ("tandem.example", "https://evil.example", false),
        ("tandem.example", "https://tandem.example.evil.example", false),
        ("tandem.example", "https://evil.example@tandem.example", false),
        ("tandem.example", "tandem.example", false),
        ("null", "null", false),
    ] {
        let about = format!("{origin} at {host}");
        let rest = asked(&node, "/api/health", host, origin).await;
        assert_eq!(rest, if is_welcome { 200 } else { 403 }, "{about} over REST");
        let polling = asked(&node, "/socket.io/?EIO=4&transport=polling", host, origin).await;
        assert_eq!(polling, if is_welcome { 200 } else { 403 }, "{about} by polling");
        let upgrade = upgraded(&node, host, origin).await;
        assert_eq!(upgrade, if is_welcome { "101" } else { "403" }, "{about} by WebSocket");
    }
}

#[tokio::test]
async fn odd_polling_payloads_are_refused_and_harm_nobody() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let payloads =
        ["b!!!".to_owned(), String::new(), "\u{1e}".repeat(1_000), "x".repeat(100), "4".to_owned()];
    for payload in payloads {
        let polling = Polling::open(&node).await;
        let reply = polling.post(payload.clone()).await;
        let start = &payload[..payload.len().min(20)];
        assert!(reply.status < 500, "{start:?}: {}", reply.status);
        canary.sings_after(start).await;
    }
}

#[tokio::test]
async fn a_polling_payload_past_the_limit_is_refused() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let polling = Polling::open(&node).await;
    let reply = polling.post(format!("42[\"x\",\"{}\"]", "x".repeat(600 * 1_024))).await;
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    canary.sings_after("600 KiB").await;
}

#[tokio::test]
async fn the_engine_io_session_id_is_no_public_name() {
    let node = Node::start(&Env::new().set("LOG", "debug")).await;
    let ann = node.register("ann").await;
    let (socket, restored) = RawSocket::connect(&node, &ann).await;
    let sid = socket.opened["sid"].as_str().unwrap();
    assert!(!restored.contains(sid), "{restored}");
    let devices = node.rest_of(&ann).get("/api/devices").await;
    assert!(!devices.text.contains(sid));
    assert!(!node.log().contains(sid), "a bearer secret while polling is on");
}
