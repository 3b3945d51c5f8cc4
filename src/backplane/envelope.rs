//! What travels on a user's channel: a small header line, then the client's JSON, untouched.
//!
//! `{"v":1,"n":"<node>","k":"change","b":{...}}\n<payload bytes>`: the payload is neither parsed nor
//! encoded again on its way, so digits, duplicate keys and spacing survive. Unknown fields are
//! ignored and an unknown kind is told apart from garbage, so versions can be mixed during a
//! rolling deploy. The user is not in here: it comes from the channel's name.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::model::{ConnectionId, DeviceId, Revoked, Seq, Version};

/// Raised only when a reader of the old form could not make sense of the new one.
const VERSION: u8 = 1;
/// A longer header is no header of ours: the longest field is a session key (128 bytes), and a
/// realtime event may name 200 devices of 39 bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Larger than any frame a client may send (512 KiB by default), smaller than anything that hurts.
pub const ENVELOPE_BYTES_MAX: usize = 1024 * 1024;
/// A larger state is read from the store by whoever hosts the user instead of crossing Redis.
pub const CHANGE_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// One message between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub kind: Kind,
    /// W3C `traceparent` of the span that caused it.
    pub trace: Option<String>,
    /// The client's own JSON text, or `None` where the kind has none.
    pub payload: Option<Bytes>,
}

/// Everything one node tells the others about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A committed session change; payload: the state. Without payload and not `deleted`, the
    /// state was too large to carry and is read from the store.
    Change(Changed),
    /// Payload: the event's JSON.
    Realtime(Realtime),
    /// Payload: the message's JSON.
    Message(Message),
    MessageStatus(MessageStatus),
    /// Payload: the device's info, where it is known.
    Presence(PresenceEvent),
    /// Close a socket wherever it is.
    Kick(Kick),
    /// Is this connection still answering? The node that holds it replies with a `Pong`.
    Ping(Ping),
    Pong(Pong),
    /// Something of the user's moved in the store: ask it now instead of at the next regular ask.
    HeadsMoved(HeadsMoved),
}

/// A change without its user, who is the channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub seq: Seq,
    pub key: String,
    pub version: Version,
    /// Who made it; nothing for changes over REST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Commit time, Unix milliseconds.
    pub at_ms: i64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Realtime {
    pub source: DeviceId,
    /// Only these devices; `None` means every other device of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<DeviceId>>,
    /// Of events with one key only the newest needs to wait for a slow receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub id: String,
    pub source: DeviceId,
    pub target: DeviceId,
    /// Unix milliseconds.
    pub sent_at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageStatus {
    pub id: String,
    /// The device that the message was for.
    pub device: DeviceId,
    /// The device that sent it and is told.
    pub sender: DeviceId,
    pub status: Delivery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// To the node that waits: the device has what was sent to it directly.
    Confirmed,
    /// To the node that waits: something is kept for the device, so this is to be, too.
    Behind,
    /// A kept message has reached its device.
    Delivered,
    /// A kept message has waited too long.
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceEvent {
    pub event: PresenceChange,
    pub device: DeviceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionId>,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Why a device went, for example `node_lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresenceChange {
    Connected,
    Disconnected,
    Updated,
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kick {
    /// Without a device: all of the user's sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Only this connection of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionId>,
    /// Only the sockets of what was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// When that was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// A code of docs/PROTOCOL.md.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Pairs the answer with the question.
    pub id: Uuid,
    pub device: DeviceId,
    pub connection: ConnectionId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    pub id: Uuid,
    pub answered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadsMoved {
    pub what: Head,
    /// Only this device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    Session,
    Mailbox,
    Revocation,
    Fence,
}

/// Why bytes from a channel gave no envelope.
#[derive(Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Sent by this node: its devices were served already.
    Own,
    /// From a newer node; ignored, and no defect.
    Unknown,
    /// Not one of ours at all.
    Garbage,
}

impl Envelope {
    pub fn new(kind: Kind, payload: Option<Bytes>) -> Self {
        Self { kind, trace: None, payload }
    }

    /// Bytes it holds, for queues that are bounded in bytes.
    pub fn size_bytes(&self) -> usize {
        // The header is small and bounded; 256 is what a change with its key takes.
        256 + self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// The state of a change is left out past `CHANGE_PAYLOAD_BYTES_MAX`. `None`: larger than any
    /// envelope may be.
    pub(crate) fn encode(&self, codec: &Codec) -> Option<Bytes> {
        let payload = match (&self.kind, &self.payload) {
            (Kind::Change(_), Some(state)) if state.len() > CHANGE_PAYLOAD_BYTES_MAX => &[][..],
            (_, payload) => payload.as_deref().unwrap_or_default(),
        };
        let mut out = Vec::with_capacity(codec.own.len() + 256 + payload.len());
        out.extend_from_slice(&codec.own);
        if let Some(trace) = &self.trace {
            out.extend_from_slice(b",\"t\":");
            write_json(&mut out, trace);
        }
        out.extend_from_slice(b",\"k\":\"");
        out.extend_from_slice(self.kind.name().as_bytes());
        out.extend_from_slice(b"\",\"b\":");
        self.kind.write_body(&mut out);
        out.extend_from_slice(b"}\n");
        out.extend_from_slice(payload);
        (out.len() <= ENVELOPE_BYTES_MAX).then(|| out.into())
    }
}

/// Encodes and decodes for one node, whose own envelopes it knows by their first bytes.
#[derive(Debug)]
pub(crate) struct Codec {
    /// The header up to and including this process's name.
    own: Vec<u8>,
}

#[derive(Deserialize)]
struct Header<'a> {
    v: u8,
    #[serde(borrow)]
    k: Cow<'a, str>,
    #[serde(borrow, default)]
    t: Option<Cow<'a, str>>,
    #[serde(borrow)]
    b: &'a RawValue,
}

impl Codec {
    /// `process` names this life of this node; a restarted node must not ignore its predecessor.
    pub(crate) fn new(process: &str) -> Self {
        let mut own = format!("{{\"v\":{VERSION},\"n\":").into_bytes();
        write_json(&mut own, process);
        Self { own }
    }

    /// Never fails louder than `Unreadable`: whatever is on a channel, the node goes on.
    pub(crate) fn decode(&self, bytes: &Bytes) -> Result<Envelope, Unreadable> {
        if bytes.starts_with(&self.own) {
            return Err(Unreadable::Own);
        }
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(Unreadable::Garbage);
        }
        let head = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
        let end = head.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Garbage)?;
        let header: Header<'_> = serde_json::from_slice(&head[..end]).map_err(|_| Unreadable::Garbage)?;
        if header.v != VERSION {
            return Err(Unreadable::Unknown);
        }
        let payload = bytes.slice(end + 1..);
        Ok(Envelope {
            kind: Kind::read(&header.k, header.b)?,
            trace: header.t.map(Cow::into_owned),
            payload: (!payload.is_empty()).then_some(payload),
        })
    }
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Change(_) => "change",
            Kind::Realtime(_) => "realtime",
            Kind::Message(_) => "message",
            Kind::MessageStatus(_) => "message-status",
            Kind::Presence(_) => "presence",
            Kind::Kick(_) => "kick",
            Kind::Ping(_) => "ping",
            Kind::Pong(_) => "pong",
            Kind::HeadsMoved(_) => "heads-moved",
        }
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            Kind::Change(body) => write_json(out, body),
            Kind::Realtime(body) => write_json(out, body),
            Kind::Message(body) => write_json(out, body),
            Kind::MessageStatus(body) => write_json(out, body),
            Kind::Presence(body) => write_json(out, body),
            Kind::Kick(body) => write_json(out, body),
            Kind::Ping(body) => write_json(out, body),
            Kind::Pong(body) => write_json(out, body),
            Kind::HeadsMoved(body) => write_json(out, body),
        }
    }

    fn read(name: &str, body: &RawValue) -> Result<Kind, Unreadable> {
        Ok(match name {
            "change" => Kind::Change(read_json(body)?),
            "realtime" => Kind::Realtime(read_json(body)?),
            "message" => Kind::Message(read_json(body)?),
            "message-status" => Kind::MessageStatus(read_json(body)?),
            "presence" => Kind::Presence(read_json(body)?),
            "kick" => Kind::Kick(read_json(body)?),
            "ping" => Kind::Ping(read_json(body)?),
            "pong" => Kind::Pong(read_json(body)?),
            "heads-moved" => Kind::HeadsMoved(read_json(body)?),
            _ => return Err(Unreadable::Unknown),
        })
    }
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("plain structs of strings and numbers, written to memory");
}

fn read_json<T: DeserializeOwned>(body: &RawValue) -> Result<T, Unreadable> {
    serde_json::from_str(body.get()).map_err(|_| Unreadable::Garbage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(payload: &[u8]) -> Envelope {
        let change = Changed {
            seq: Seq(7),
            key: "a\n\"é".into(),
            version: Version(3),
            device: Some(DeviceId(Uuid::from_u128(1))),
            at_ms: 1,
            deleted: false,
        };
        Envelope::new(Kind::Change(change), Some(Bytes::copy_from_slice(payload)))
    }

    #[test]
    fn client_json_crosses_untouched_and_a_node_ignores_its_own() {
        let (ours, theirs) = (Codec::new("a"), Codec::new("b"));
        let json = b"{ \"n\": 12345678901234567890.10, \"n\":\"\\u0000\"}";
        let mut sent = change(json);
        sent.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());

        let bytes = sent.encode(&ours).unwrap();

        assert_eq!(theirs.decode(&bytes), Ok(sent));
        assert_eq!(ours.decode(&bytes), Err(Unreadable::Own));
        assert!(Codec::new("ab").decode(&bytes).is_ok(), "a longer name is another node");
    }

    #[test]
    fn a_large_state_is_left_to_the_store() {
        let (ours, theirs) = (Codec::new("a"), Codec::new("b"));

        let bytes = change(&vec![b'1'; CHANGE_PAYLOAD_BYTES_MAX + 1]).encode(&ours).unwrap();

        assert_eq!(theirs.decode(&bytes).unwrap().payload, None);
    }

    #[test]
    fn garbage_the_future_and_unknown_fields_are_told_apart() {
        let codec = Codec::new("a");
        let cases: &[(&[u8], Result<Kind, Unreadable>)] = &[
            (b"", Err(Unreadable::Garbage)),
            (b"\n", Err(Unreadable::Garbage)),
            (b"{}\n", Err(Unreadable::Garbage)),
            (b"\xff\xfe\n{}", Err(Unreadable::Garbage)),
            (br#"{"v":1,"n":"b","k":"change","b":{}}"#, Err(Unreadable::Garbage)),
            (b"{\"v\":1,\"n\":\"b\",\"k\":\"change\",\"b\":{\"seq\":\"x\"}}\n", Err(Unreadable::Garbage)),
            (b"{\"v\":1,\"n\":\"b\",\"k\":\"teleport\",\"b\":{}}\n", Err(Unreadable::Unknown)),
            (b"{\"v\":2,\"n\":\"b\",\"k\":\"change\",\"b\":{}}\n", Err(Unreadable::Unknown)),
            (
                b"{\"v\":1,\"n\":\"b\",\"user\":\"else\",\"k\":\"heads-moved\",\"b\":{\"what\":\"session\",\"new\":1}}\n",
                Ok(Kind::HeadsMoved(HeadsMoved { what: Head::Session, device: None })),
            ),
        ];
        for (bytes, expected) in cases {
            let got = codec.decode(&Bytes::copy_from_slice(bytes)).map(|envelope| envelope.kind);
            assert_eq!(&got, expected, "{}", String::from_utf8_lossy(bytes));
        }
        let poison = Bytes::from(vec![b'{'; 10 << 20]);
        assert_eq!(codec.decode(&poison), Err(Unreadable::Garbage));
    }
}
