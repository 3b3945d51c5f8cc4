//! Engine.IO 4 and Socket.IO 5 packets in a WebSocket message, default namespace only.

/// What one text message from a server says.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Engine.IO `0{...}`: the transport is open.
    Open,
    /// Engine.IO `2`: answer with `3` or be closed.
    Ping,
    /// Engine.IO `1`, or Socket.IO `41`: the server ends it.
    Ended,
    /// Socket.IO `40{...}`: the namespace is joined.
    Connected,
    /// Socket.IO `44{...}`: refused for good; the body is JSON with `message`.
    Refused(&'a [u8]),
    /// Socket.IO `42["name", ...]`; `body` is the whole array.
    Event { name: &'a [u8], body: &'a [u8] },
    /// Socket.IO `43<id>[...]`; `body` is the whole array.
    Ack { id: u64, body: &'a [u8] },
    /// Nothing that a load needs.
    Other,
}

/// Reads one text message.
pub fn parse(message: &[u8]) -> Packet<'_> {
    match message {
        [b'0', ..] => Packet::Open,
        [b'1', ..] | [b'4', b'1', ..] => Packet::Ended,
        [b'2', ..] => Packet::Ping,
        [b'4', b'0', ..] => Packet::Connected,
        [b'4', b'4', body @ ..] => Packet::Refused(body),
        [b'4', b'2', rest @ ..] => {
            let body = &rest[digits(rest)..];
            match event_name(body) {
                Some(name) => Packet::Event { name, body },
                None => Packet::Other,
            }
        }
        [b'4', b'3', rest @ ..] => {
            let (id, body) = rest.split_at(digits(rest));
            match std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) {
                Some(id) => Packet::Ack { id, body },
                None => Packet::Other,
            }
        }
        _ => Packet::Other,
    }
}

/// Whether an ack says that the server did what was asked. Servers write it compact; a space is allowed for.
pub fn ack_is_ok(body: &[u8]) -> bool {
    let head = &body[..body.len().min(256)];
    memchr::memmem::find(head, b"\"ok\":true").is_some()
        || memchr::memmem::find(head, b"\"ok\": true").is_some()
}

/// The value of `"code"` in an error's JSON, for counting refusals by kind.
pub fn error_code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    ["\"code\":\"", "\"message\":\""]
        .iter()
        .find_map(|field| text.split_once(field))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or_else(|| "unnamed error".to_owned(), |(code, _)| code.to_owned())
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// The bytes between the first two quotes: event names have no escapes.
fn event_name(body: &[u8]) -> Option<&[u8]> {
    let name = body.strip_prefix(b"[\"")?;
    memchr::memchr(b'"', name).map(|end| &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        let table: [(&[u8], Packet<'_>); 11] = [
            (br#"0{"sid":"x"}"#, Packet::Open),
            (b"1", Packet::Ended),
            (b"2", Packet::Ping),
            (br#"40{"sid":"x"}"#, Packet::Connected),
            (b"41", Packet::Ended),
            (br#"42["a",1]"#, Packet::Event { name: b"a", body: br#"["a",1]"# }),
            (br#"4217["a"]"#, Packet::Event { name: b"a", body: br#"["a"]"# }),
            (br#"4390[{"ok":true}]"#, Packet::Ack { id: 90, body: br#"[{"ok":true}]"# }),
            (br#"44{"message":"unauthorized"}"#, Packet::Refused(br#"{"message":"unauthorized"}"#)),
            (b"42[1]", Packet::Other),
            (b"", Packet::Other),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn acks_and_errors_are_read() {
        assert!(ack_is_ok(br#"[{"ok":true,"seq":4}]"#));
        assert!(!ack_is_ok(br#"[{"ok":false,"error":{"code":"rate_limited"}}]"#));
        assert_eq!(error_code(br#"{"ok":false,"error":{"code":"rate_limited"}}"#), "rate_limited");
        assert_eq!(error_code(br#"{"message":"unauthorized"}"#), "unauthorized");
        assert_eq!(error_code(b"[]"), "unnamed error");
    }
}
