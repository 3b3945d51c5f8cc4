//! Half-open things end: silence, half a request, a socket that never says who it is.

use crate::support::{Env, Node, RawSocket, RawTcp, within_secs};

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
}

#[tokio::test]
async fn a_transport_that_never_says_who_it_is_is_closed() {
    let node = Node::start(&Env::new()).await;
    let mut socket = RawSocket::open(&node).await;
    within_secs(SECONDS, async { while socket.next_or_end_patiently().await.is_some() {} }).await;
}
