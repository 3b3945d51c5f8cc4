//! Server-to-client events as text, encoded once and shared by all that get
//! them.
//!
//! A [`Frame`] is a Socket.IO packet of the default namespace without the
//! Engine.IO type before it: `2["session-updated",{...}]`. Clients' own JSON is
//! copied in verbatim, never parsed.

use std::fmt::Write;

use bytes::Bytes;
use serde::Serialize;

use crate::failure::Failure;
use crate::model::{Change, ConnectionId, DeviceId, Timestamp};

/// An encoded packet. Clones share one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// A packet from its text.
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("frames are made from text only")
    }

    /// Its bytes, always UTF-8.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Bytes it takes on the wire, without framing.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a packet has a type at least.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An event with a body that is JSON already.
pub fn event(name: &str, body: &str) -> Frame {
    let mut text = String::with_capacity(name.len() + body.len() + 6);
    // Writing to a String cannot fail; event names are plain words.
    for part in ["2[\"", name, "\",", body, "]"] {
        text.push_str(part);
    }
    Frame::new(text)
}

/// An event with a body that is encoded now.
pub fn event_of(name: &str, body: &impl Serialize) -> Frame {
    event(name, &json(body))
}

/// The answer to an event that asked for one.
pub fn ack(id: u64, body: &str) -> Frame {
    Frame::new(format!("3{id}[{body}]"))
}

/// The answer that refuses.
pub fn refusal(id: u64, failure: &Failure) -> Frame {
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
    Frame::new(format!("0{{\"sid\":\"{connection}\"}}"))
}

/// CONNECT, refused for good: stock clients do not try again.
pub fn connect_refused(failure: &Failure) -> Frame {
    Frame::new(format!("4{{\"message\":\"{}\",\"data\":{}}}", failure.code.as_str(), json(failure)))
}

/// CONNECT to a namespace that does not exist.
pub fn unknown_namespace(namespace: &str) -> Frame {
    Frame::new(format!("4{namespace},{{\"message\":\"Invalid namespace\"}}"))
}

/// DISCONNECT: stock clients stay away.
pub fn disconnect() -> Frame {
    Frame::new("1".to_owned())
}

/// An answer that nobody waits for; clients drop it. It makes a polling client
/// come back and gives a WebSocket ping a frame to go in front of.
pub fn nudge() -> Frame {
    Frame::new("3999999999[]".to_owned())
}

/// `session-updated`.
pub fn session_updated(change: &Change) -> Frame {
    let state = change.state.as_deref().unwrap_or("null");
    let mut text = String::with_capacity(state.len() + change.key.as_str().len() + 256);
    text.push_str("2[\"session-updated\",{\"sessionKey\":");
    text.push_str(&json(&change.key));
    text.push_str(",\"state\":");
    text.push_str(state);
    text.push_str(",\"deviceId\":");
    push_device(&mut text, change.device);
    write!(
        text,
        ",\"version\":{},\"seq\":{},\"updatedAt\":\"{}\",\"deleted\":{}}}]",
        change.version,
        change.seq,
        change.at,
        change.state.is_none()
    )
    .expect("a String takes everything");
    Frame::new(text)
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
