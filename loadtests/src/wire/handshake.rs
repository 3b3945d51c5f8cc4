//! The HTTP half of a WebSocket (RFC 6455, section 4) and of a REST answer: finding the end of a head, its
//! status and its fields.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};

/// The generator's fixed `Sec-WebSocket-Key` (the RFC's own sample): nothing between here and loopback caches.
pub const CLIENT_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a correct server answers to [`CLIENT_KEY`].
pub const CLIENT_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that belongs to a `Sec-WebSocket-Key`.
pub fn accept_for(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    BASE64.encode(digest)
}

/// Where the body starts, once the head in `buf` is whole.
pub fn head_end(buf: &[u8]) -> Option<usize> {
    memchr::memmem::find(buf, b"\r\n\r\n").map(|at| at + 4)
}

/// The status of a response head.
pub fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// The value of the first field with this name, whatever its case.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_key_of_the_rfc_has_the_sample_answer() {
        assert_eq!(accept_for(CLIENT_KEY), CLIENT_ACCEPT);
    }

    #[test]
    fn a_head_is_taken_apart() {
        let text = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\ncontent-length:0\r\n\r\nrest";
        assert_eq!(head_end(text.as_bytes()), Some(text.len() - 4));
        assert_eq!(status(text), Some(429));
        assert_eq!(field(text, "retry-after"), Some("3"));
        assert_eq!(field(text, "Content-Length"), Some("0"));
        assert_eq!(field(text, "upgrade"), None);
        assert_eq!(head_end(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(status("garbage"), None);
    }
}
