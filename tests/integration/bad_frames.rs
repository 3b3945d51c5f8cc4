//! WebSocket frames that break the protocol or a limit: they end their connection only.

use crate::support::{Canary, Env, Node, RawTcp, client_frame};

/// A little more than `LIMIT_FRAME_BYTES` in so many pieces.
fn fragments(count: usize) -> Vec<u8> {
    let piece = "x".repeat(550 * 1_024 / count);
    let first = client_frame(0x01, format!("42[\"{piece}").as_bytes());
    let middle = client_frame(0x00, piece.as_bytes());
    let last = client_frame(0x80, b"\"]");
    [first, middle.repeat(count - 1), last].concat()
}

#[tokio::test]
async fn frames_that_break_the_websocket_protocol_end_their_connection_only() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let length = |bytes: u64| [&[0x81, 0xff], bytes.to_be_bytes().as_slice(), &[0; 4]].concat();
    let table: [(&str, Vec<u8>); 14] = [
        ("unmasked", [&[0x81, 2], b"40".as_slice()].concat()),
        ("a reserved opcode", client_frame(0x83, b"x")),
        ("a reserved control opcode", client_frame(0x8b, b"x")),
        ("an RSV bit", client_frame(0xc1, b"x")),
        ("a fragmented ping", client_frame(0x09, b"x")),
        ("a ping of 126 bytes", client_frame(0x89, &[b'x'; 126])),
        ("a continuation of nothing", client_frame(0x80, b"x")),
        ("a message inside another", [client_frame(0x01, b"4"), client_frame(0x81, b"4")].concat()),
        ("a close with half a status", client_frame(0x88, b"\x03")),
        ("2^32 bytes", length(1 << 32)),
        ("2^63-1 bytes", length(u64::MAX >> 1)),
        ("2^64-1 bytes", length(u64::MAX)),
        ("invalid UTF-8", client_frame(0x81, b"4\xff\xfe")),
        ("a character cut by the frame's end", client_frame(0x81, b"42[\"\xc3")),
    ];
    for (what, frame) in table {
        let mut stranger = RawTcp::upgraded(&node).await;
        stranger.write(&frame).await.unwrap();
        stranger.read_to_close(9).await;
        let (mut device, _) = RawTcp::joined(&node, &ann.token).await;
        device.write(&frame).await.unwrap();
        device.read_to_close(9).await;
        canary.sings_after(what).await;
    }
}

#[tokio::test]
async fn a_message_past_the_limit_ends_its_connection_in_however_many_frames_it_comes() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let whole =
        format!("421[\"session-update\",{{\"sessionKey\":\"k\",\"state\":\"{}\"}}]", "x".repeat(550 * 1_024));
    let table = [
        ("one frame", client_frame(0x81, whole.as_bytes())),
        ("a binary frame", client_frame(0x82, whole.as_bytes())),
        ("two fragments", fragments(2)),
        ("1,000 fragments", fragments(1_000)),
    ];
    for (what, frames) in table {
        let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
        // The server may close before it has read all of it.
        drop(tcp.write(&frames).await);
        let said = tcp.read_to_close(9).await;
        assert!(!said.contains("\"ok\":true"), "{what}: {said}");
        canary.sings_after(what).await;
    }
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], 0, "nothing of it was taken");
}

#[tokio::test]
async fn a_message_below_the_limit_is_taken_in_1000_fragments_and_with_pings_between_them() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (mut tcp, _) = RawTcp::joined(&node, &ann.token).await;
    let text =
        format!("421[\"session-update\",{{\"sessionKey\":\"k\",\"state\":\"{}\"}}]", "x".repeat(9_000));
    let mut frames = client_frame(0x01, b"");
    for piece in text.as_bytes().chunks(9) {
        frames.extend(client_frame(0x00, piece));
        frames.extend(client_frame(0x89, b""));
    }
    frames.extend(client_frame(0x80, b""));
    tcp.write(&frames).await.unwrap();

    let answer = tcp.read_until("431[").await;

    assert!(answer.contains("431["), "{answer}");
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"]["k"].as_str().map(str::len), Some(9_000));
}
