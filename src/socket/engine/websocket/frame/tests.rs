//! The decoder by a table, and beside tungstenite on random streams in random
//! pieces.

use proptest::prelude::*;

use super::*;

const MAX: usize = 1_000;

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn decoded(pieces: &[&[u8]]) -> (Vec<String>, Result<(), Violation>) {
    let (mut decoder, mut seen) = (Decoder::new(MAX), Vec::new());
    for piece in pieces {
        let fed = decoder.feed(&mut piece.to_vec(), &mut |message| {
            let goes_on = message != Message::Close;
            seen.push(format!("{message:?}"));
            goes_on
        });
        if fed.is_err() || seen.last().is_some_and(|message| message == "Close") {
            return (seen, fed);
        }
    }
    (seen, Ok(()))
}

#[test]
fn a_breach_ends_the_connection_with_its_status() {
    let unmasked = vec![0x81, 0x01, b'x'];
    let endless = |length: u64| [&[0x81, 0xff][..], &length.to_be_bytes()].concat();
    let cases: &[(&str, Vec<u8>, Violation)] = &[
        ("an unmasked frame", unmasked, Violation::Protocol),
        ("a reserved opcode", frame(0x83, b""), Violation::Protocol),
        ("a reserved control opcode", frame(0x8b, b""), Violation::Protocol),
        ("an RSV bit", frame(0xc1, b"x"), Violation::Protocol),
        ("a fragmented ping", frame(0x09, b""), Violation::Protocol),
        ("a long ping", frame(0x89, &[0; 126]), Violation::Protocol),
        ("a continuation of nothing", frame(0x80, b"x"), Violation::Protocol),
        ("a message within a message", [frame(0x01, b"x"), frame(0x81, b"y")].concat(), Violation::Protocol),
        ("2^32 bytes", endless(1 << 32), Violation::TooBig),
        ("2^63 - 1 bytes", endless((1 << 63) - 1), Violation::TooBig),
        ("a frame over the limit", frame(0x81, &[b'x'; MAX + 1]), Violation::TooBig),
        (
            "fragments over the limit",
            [frame(0x01, &[b'x'; MAX]), frame(0x80, b"y")].concat(),
            Violation::TooBig,
        ),
        ("text that is not UTF-8", frame(0x81, &[0xc3, 0x28]), Violation::NotUtf8),
        ("half a status", frame(0x88, &[3]), Violation::Protocol),
        ("a status that is never sent", frame(0x88, &1006u16.to_be_bytes()), Violation::Protocol),
    ];
    for (what, bytes, violation) in cases {
        assert_eq!(decoded(&[bytes]).1, Err(*violation), "{what}");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decoded(&single).1, Err(*violation), "{what}, byte by byte");
    }
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let bytes = [frame(0x01, "é".as_bytes().split_at(1).0), frame(0x89, b"p")].concat();
    let rest = frame(0x80, "é".as_bytes().split_at(1).1);
    assert_eq!(decoded(&[&bytes, &rest]).0, ["Ping([112])", "Text(\"é\")"]);
}

#[test]
fn nothing_is_read_after_a_close() {
    let bytes = [frame(0x88, &1000u16.to_be_bytes()), frame(0x81, b"late")].concat();
    assert_eq!(decoded(&[&bytes]), (vec!["Close".to_owned()], Ok(())));
}

#[test]
fn a_decoder_at_rest_keeps_nothing() {
    let mut decoder = Decoder::new(MAX);
    for bytes in [frame(0x81, &[b'x'; 900]), frame(0x01, b"a"), frame(0x80, b"b")] {
        for piece in bytes.chunks(7) {
            decoder.feed(&mut piece.to_vec(), &mut |_| true).unwrap();
        }
    }
    assert_eq!(decoder.partial.capacity(), 0);
    assert!(decoder.fragments.is_none());
}

/// What tungstenite makes of the same bytes: the messages before the first
/// error or close, and whether there was an error.
fn by_tungstenite(bytes: &[u8]) -> (Vec<String>, bool) {
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
    use tokio_tungstenite::tungstenite::{Error, Message as Theirs};
    struct Recorded(std::io::Cursor<Vec<u8>>);
    impl std::io::Read for Recorded {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(std::io::ErrorKind::WouldBlock.into()),
                bytes => Ok(bytes),
            }
        }
    }
    impl std::io::Write for Recorded {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let config = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
    let recorded = Recorded(std::io::Cursor::new(bytes.to_vec()));
    let mut socket = WebSocket::from_raw_socket(recorded, Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Theirs::Text(text)) => seen.push(format!("{:?}", Message::Text(&text))),
            Ok(Theirs::Binary(_)) => seen.push(format!("{:?}", Message::Binary)),
            Ok(Theirs::Ping(payload)) => seen.push(format!("{:?}", Message::Ping(&payload))),
            Ok(Theirs::Pong(_)) => seen.push(format!("{:?}", Message::Pong)),
            Ok(Theirs::Close(_)) => {
                seen.push(format!("{:?}", Message::Close));
                return (seen, false);
            }
            Ok(Theirs::Frame(_)) => unreachable!("not handed out while reading"),
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => return (seen, false),
            Err(_) => return (seen, true),
        }
    }
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        4 => Just(0x81u8), 2 => Just(0x01), 2 => Just(0x80), 1 => Just(0x00), 1 => Just(0x82), 1 => Just(0x02),
        1 => Just(0x89), 1 => Just(0x8a), 1 => Just(0x88), 1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => "\\PC{0,40}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
        1 => (0..1_100usize).prop_map(|bytes| vec![b'x'; bytes]),
        1 => Just(1000u16.to_be_bytes().to_vec()),
    ];
    // What a close frame carries is judged more strictly here than by tungstenite, which in turn looks at
    // text before all of it is there.
    (first, payload).prop_map(|(first, payload)| match first {
        0x81 => frame(first, &payload),
        _ if first & 0x0f == 8 => frame(first, &1000u16.to_be_bytes()),
        _ => frame(first, String::from_utf8_lossy(&payload).as_bytes()),
    })
}

proptest! {
    #[test]
    fn random_streams_mean_what_tungstenite_says(
        frames in proptest::collection::vec(any_frame(), 1..12),
        cut in 1..200usize,
    ) {
        let bytes = frames.concat();
        let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
        let (ours, ended) = decoded(&pieces);
        let (theirs, failed) = by_tungstenite(&bytes);
        prop_assert_eq!(&ours, &theirs);
        prop_assert_eq!(ended.is_err(), failed, "{:?}", ended);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1..50usize) {
        let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
        drop(decoded(&pieces));
    }
}
