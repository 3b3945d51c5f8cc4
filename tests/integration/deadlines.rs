//! Half-open things end: silence, half a request, a socket that never says who it is.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{Canary, Env, Node, RawSocket, RawTcp, client_frame, within_secs};

/// The deadline is 10 s; some more for a busy machine.
const SECONDS: u64 = 15;

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    tcp.read_to_close(SECONDS).await;
    node.register("canary").await;
}

#[tokio::test]
async fn half_a_request_head_is_closed() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    tcp.write(b"GET /api/health HTTP/1.1\r\nHost: tan").await.unwrap();
    let answer = tcp.read_to_close(SECONDS).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn half_a_body_is_answered_with_a_timeout() {
    let node = Node::start(&Env::new()).await;
    let mut tcp = RawTcp::open(&node).await;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: tandem\r\n\
        Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"email\":";
    tcp.write(head.as_bytes()).await.unwrap();
    let answer = tcp.read_to_close(30).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    Canary::on(&node).await.sings_after("half a body").await;
}

#[tokio::test]
async fn what_drips_in_gets_no_more_time_than_what_does_not_come() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let post = "POST /api/auth/login HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\n";
    // The beginning, what follows byte by byte, how long at most, and the answer, if any.
    let table = [
        ("a request line", String::new(), "G", SECONDS, ""),
        ("a head", "GET /api/health HTTP/1.1\r\nX: ".to_owned(), "x", SECONDS, ""),
        ("a body", format!("{post}Content-Length: 1000\r\n\r\n"), " ", 30, "HTTP/1.1 408"),
        ("chunks", format!("{post}Transfer-Encoding: chunked\r\n\r\n"), "1\r\n \r\n", 30, "HTTP/1.1 408"),
    ];
    let drips = table.into_iter().map(async |(what, beginning, drop, seconds, answer)| {
        let mut tcp = RawTcp::open(&node).await;
        tcp.write(beginning.as_bytes()).await.unwrap();
        let said = tcp.drip(drop.as_bytes(), Duration::from_millis(500), seconds).await;
        let said = said.unwrap_or_else(|| panic!("{what} may drip on after {seconds} s"));
        assert!(said.starts_with(answer), "{what}: {said}");
        canary.sings_after(what).await;
    });
    join_all(drips).await;
}

#[tokio::test]
async fn half_a_frame_ends_a_socket_that_has_not_said_who_it_is() {
    let node = Node::start(&Env::new()).await;
    let canary = Canary::on(&node).await;
    let frame = client_frame(0x81, format!("40{}", "x".repeat(1_000)).as_bytes());
    let halves = [("half a header", &frame[..1]), ("a header", &frame[..8]), ("half a frame", &frame[..500])];
    let ends = halves.into_iter().map(async |(what, half)| {
        let mut silent = RawTcp::upgraded(&node).await;
        silent.write(half).await.unwrap();
        silent.read_to_close(SECONDS).await;
        let mut dripping = RawTcp::upgraded(&node).await;
        dripping.write(half).await.unwrap();
        let said = dripping.drip(b"x", Duration::from_millis(500), SECONDS).await;
        assert!(said.is_some(), "{what} may drip on");
        canary.sings_after(what).await;
    });
    join_all(ends).await;
}

#[tokio::test]
async fn a_device_that_falls_silent_is_cut_whatever_it_left_unfinished() {
    let env = Env::new().set("PING_INTERVAL_SECONDS", 1).set("PING_TIMEOUT_SECONDS", 1);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let frame = client_frame(0x81, format!("42[\"x\",\"{}\"]", "x".repeat(1_000)).as_bytes());
    let begun = client_frame(0x01, b"42[");
    let table: [(&str, &[u8]); 5] = [
        ("nothing", b""),
        ("half a header", &frame[..1]),
        ("a header", &frame[..8]),
        ("half a frame", &frame[..500]),
        ("one fragment", &begun),
    ];
    let ends = table.into_iter().map(async |(what, left)| {
        let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
        tcp.write(left).await.unwrap();
        tcp.read_to_close(SECONDS).await;
        canary.sings_after(what).await;
    });
    join_all(ends).await;
}

#[tokio::test]
async fn a_device_that_answers_is_pinged_at_every_interval() {
    // Whoever answers at once does not wait for the time that there was to answer in.
    let env = Env::new().set("PING_INTERVAL_SECONDS", 1).set("PING_TIMEOUT_SECONDS", 60);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
    let mut first = None;
    for _ in 0..3 {
        assert!(tcp.read_until("\u{1}2").await.contains("\u{1}2"), "the server has closed");
        first.get_or_insert_with(Instant::now);
        tcp.write(&client_frame(0x81, b"3")).await.unwrap();
    }
    assert!(first.unwrap().elapsed() > Duration::from_secs(1), "an answer brings no ping");
    Canary::on(&node).await.sings_after("pings").await;
}

#[tokio::test]
async fn a_transport_that_never_says_who_it_is_is_closed() {
    let node = Node::start(&Env::new()).await;
    let mut socket = RawSocket::open(&node).await;
    within_secs(SECONDS, async { while socket.next_or_end_patiently().await.is_some() {} }).await;
}
