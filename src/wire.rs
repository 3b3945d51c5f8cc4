//! Server-to-client events as text, encoded once and shared by all that get
//! them.
//!
//! A [`Frame`] is a Socket.IO packet of the default namespace:
//! `2["session-updated",{...}]`. It stands in one buffer behind the Engine.IO type
//! and the header of the WebSocket frame that carries it, since what a server
//! sends is unmasked and so the same bytes for every receiver. Clients' own JSON
//! is copied in verbatim, never parsed.

use std::fmt::Write;

use bytes::Bytes;
use serde::Serialize;

use crate::failure::Failure;
use crate::model::{Change, ConnectionId, DeviceId, Timestamp};

/// The number by which a client knows an answer. Clients count from 0; what else
/// they choose comes back digit for digit.
pub type AckId = u128;

/// The longest header of an unmasked WebSocket frame (RFC 6455, 5.2), and the
/// Engine.IO type `4` (message) behind it.
const HEAD_BYTES_MAX: usize = 11;

/// An encoded packet. Clones share one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A whole WebSocket frame.
    websocket: Bytes,
    /// Where the packet begins.
    packet_at: usize,
}

/// A frame that is being written: text with room for its head.
struct Draft(String);

impl Draft {
    fn with_capacity(bytes: usize) -> Self {
        let mut text = String::with_capacity(HEAD_BYTES_MAX + bytes);
        text.push_str("\0\0\0\0\0\0\0\0\0\0\0");
        Self(text)
    }

    fn of(parts: &[&str]) -> Frame {
        let mut draft = Self::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| draft.0.push_str(part));
        draft.finish()
    }

    /// Writes the head, right before the text.
    fn finish(self) -> Frame {
        let mut bytes = self.0.into_bytes();
        let payload_bytes = bytes.len() - HEAD_BYTES_MAX + 1;
        let length: ([u8; 9], usize) = match payload_bytes {
            0..=125 => ([payload_bytes as u8, 0, 0, 0, 0, 0, 0, 0, 0], 1),
            126..=0xffff => {
                let [high, low] = (payload_bytes as u16).to_be_bytes();
                ([126, high, low, 0, 0, 0, 0, 0, 0], 3)
            }
            _ => {
                let [a, b, c, d, e, f, g, h] = (payload_bytes as u64).to_be_bytes();
                ([127, a, b, c, d, e, f, g, h], 9)
            }
        };
        let start = HEAD_BYTES_MAX - 2 - length.1;
        bytes[start] = 0x81; // FIN, text
        bytes[start + 1..start + 1 + length.1].copy_from_slice(&length.0[..length.1]);
        bytes[HEAD_BYTES_MAX - 1] = b'4';
        Frame { websocket: Bytes::from(bytes).slice(start..), packet_at: HEAD_BYTES_MAX - start }
    }
}

impl Frame {
    /// A packet from its text.
    pub fn new(text: &str) -> Self {
        Draft::of(&[text])
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.websocket[self.packet_at..]).expect("frames are made from text only")
    }

    /// Its text as shared bytes, always UTF-8.
    pub fn bytes(&self) -> Bytes {
        self.websocket.slice(self.packet_at..)
    }

    /// The whole WebSocket frame that carries it as an Engine.IO message.
    pub fn websocket(&self) -> &Bytes {
        &self.websocket
    }

    /// Bytes of the packet, without framing.
    pub fn len(&self) -> usize {
        self.websocket.len() - self.packet_at
    }

    /// Never: a packet has a type at least.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// An event with a body that is JSON already.
pub fn event(name: &str, body: &str) -> Frame {
    Draft::of(&["2[\"", name, "\",", body, "]"])
}

/// An event with a body that is encoded now.
pub fn event_of(name: &str, body: &impl Serialize) -> Frame {
    event(name, &json(body))
}

/// The answer to an event that asked for one.
pub fn ack(id: AckId, body: &str) -> Frame {
    Draft::of(&["3", &id.to_string(), "[", body, "]"])
}

/// The answer that refuses.
pub fn refusal(id: AckId, failure: &Failure) -> Frame {
    ack(id, &format!("{{\"ok\":false,\"error\":{}}}", json(failure)))
}

/// The `error` event for a refused event that asked for no answer.
pub fn error_event(failure: &Failure, event_name: Option<&str>) -> Frame {
    let mut body = json(failure);
    if let Some(name) = event_name {
        // A failure is an object with fields, so one more can follow.
        body.truncate(body.len() - 1);
        body.push_str(",\"event\":");
        body.push_str(&json(&name));
        body.push('}');
    }
    event("error", &body)
}

/// CONNECT, accepted. The connection id is the public name of this socket.
pub fn connected(connection: ConnectionId) -> Frame {
    Frame::new(&format!("0{{\"sid\":\"{connection}\"}}"))
}

/// CONNECT, refused for good: stock clients do not try again.
pub fn connect_refused(failure: &Failure) -> Frame {
    Frame::new(&format!("4{{\"message\":\"{}\",\"data\":{}}}", failure.code.as_str(), json(failure)))
}

/// CONNECT to a namespace that does not exist.
pub fn unknown_namespace(namespace: &str) -> Frame {
    Frame::new(&format!("4{namespace},{{\"message\":\"Invalid namespace\"}}"))
}

/// DISCONNECT: stock clients stay away.
pub fn disconnect() -> Frame {
    Frame::new("1")
}

/// An answer that nobody waits for; clients drop it. It makes a polling client
/// come back and gives a WebSocket ping a frame to go in front of.
pub fn nudge() -> Frame {
    Frame::new("3999999999[]")
}

/// `session-updated`.
pub fn session_updated(change: &Change) -> Frame {
    let state = change.state.as_deref().unwrap_or("null");
    let mut draft = Draft::with_capacity(state.len() + change.key.as_str().len() + 256);
    let text = &mut draft.0;
    text.push_str("2[\"session-updated\",{\"sessionKey\":");
    text.push_str(&json(&change.key));
    text.push_str(",\"state\":");
    text.push_str(state);
    text.push_str(",\"deviceId\":");
    push_device(text, change.device);
    write!(
        text,
        ",\"version\":{},\"seq\":{},\"updatedAt\":\"{}\",\"deleted\":{}}}]",
        change.version,
        change.seq,
        change.at,
        change.state.is_none()
    )
    .expect("a String takes everything");
    draft.finish()
}

fn push_device(text: &mut String, device: Option<DeviceId>) {
    match device {
        Some(device) => {
            write!(text, "\"{device}\"").expect("a String takes everything");
        }
        None => text.push_str("null"),
    }
}

/// The body of `realtime-event`: type and payload as they came.
pub fn realtime_body(kind: &str, payload: &str, source: DeviceId) -> String {
    format!("{{\"type\":{kind},\"payload\":{payload},\"sourceDeviceId\":\"{source}\"}}")
}

/// The body of `device-connected`.
pub fn device_connected_body(device: DeviceId, info_json: &str, at: Timestamp) -> String {
    format!("{{\"deviceId\":\"{device}\",\"deviceInfo\":{info_json},\"connectedAt\":\"{at}\"}}")
}

/// The body of `device-disconnected`.
pub fn device_disconnected_body(device: DeviceId, reason: &str, last_seen: Timestamp) -> String {
    format!("{{\"deviceId\":\"{device}\",\"reason\":\"{reason}\",\"lastSeen\":\"{last_seen}\"}}")
}

/// `device-updated`; `info` is its deviceInfo as JSON.
pub fn device_updated(device: DeviceId, info: &str) -> Frame {
    event("device-updated", &format!("{{\"deviceId\":\"{device}\",\"deviceInfo\":{info}}}"))
}

/// `device-removed`.
pub fn device_removed(device: DeviceId) -> Frame {
    event("device-removed", &format!("{{\"deviceId\":\"{device}\"}}"))
}

/// `value` as JSON.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own types always encode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;
    use crate::model::{Seq, SessionKey, UserId, Version};

    #[test]
    fn a_frame_stands_behind_its_websocket_header() {
        for (bytes, header) in [
            (1usize, vec![0x81, 2]),
            (124, vec![0x81, 125]),
            (125, vec![0x81, 126, 0, 126]),
            (65_534, vec![0x81, 126, 0xff, 0xff]),
            (65_535, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let text = "x".repeat(bytes);
            let frame = Frame::new(&text);
            assert_eq!(frame.websocket()[..], [&header[..], b"4", text.as_bytes()].concat(), "{bytes}");
            assert_eq!((frame.as_str(), &frame.bytes()[..]), (text.as_str(), text.as_bytes()));
        }
    }

    #[test]
    fn a_state_goes_out_as_it_came_in() {
        let change = Change {
            user: UserId::fresh(),
            seq: Seq(7),
            key: SessionKey::parse("a\"b").unwrap(),
            version: Version(2),
            state: Some("{ \"n\": 12345678901234567890, \"n\":1 }".into()),
            device: None,
            at: Timestamp(0),
        };
        assert_eq!(
            session_updated(&change).as_str(),
            "2[\"session-updated\",{\"sessionKey\":\"a\\\"b\",\"state\":{ \"n\": 12345678901234567890, \"n\":1 },\
             \"deviceId\":null,\"version\":2,\"seq\":7,\"updatedAt\":\"1970-01-01T00:00:00.000Z\",\"deleted\":false}]"
        );
    }

    #[test]
    fn the_error_event_names_the_event_that_failed() {
        let frame = error_event(&Failure::field("type", "It must be a string."), Some("realtime-event"));
        assert_eq!(
            frame.as_str(),
            "2[\"error\",{\"code\":\"invalid_field\",\"message\":\"It must be a string.\",\"retryable\":false,\
             \"field\":\"type\",\"event\":\"realtime-event\"}]"
        );
    }

    #[test]
    fn a_refused_connect_carries_the_code_as_its_message() {
        let frame = connect_refused(&Failure::new(Code::Unauthorized, "No."));
        assert!(
            frame.as_str().starts_with("4{\"message\":\"unauthorized\",\"data\":{\"code\":\"unauthorized\"")
        );
    }
}
