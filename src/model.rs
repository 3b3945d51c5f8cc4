//! The words of the domain, alike in wire, code, tables and metrics.
//!
//! Ids, versions and sequence numbers are newtypes, so that one cannot be
//! passed where another is meant. Nothing here does I/O except [`Clock`], the
//! one place that reads the wall clock.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by time of making (UUID version 7, RFC 9562).
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id in `text`, or nothing when it is not a UUID.
            pub fn parse(text: &str) -> Option<Self> {
                Uuid::try_parse(text).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}

ids! {
    /// One account.
    UserId,
    /// One of a user's devices; it outlives its connections.
    DeviceId,
    /// One connection of a device; the fence that keeps a late goodbye of an
    /// older connection from touching a newer one.
    ConnectionId,
    /// One login: the family of an access token and its refresh tokens.
    LoginId,
    /// One run of one node: a new one at every start.
    BootId,
}

impl UserId {
    /// Whether somebody else keeps this user's account: only then is the id made
    /// of names (UUID version 5, RFC 9562).
    pub fn is_external(self) -> bool {
        self.0.get_version_num() == 5
    }
}

impl LoginId {
    /// The login that one token of an external user is; `token` tells it from the
    /// user's others.
    pub fn of_external(user: UserId, token: &str) -> Self {
        Self(Uuid::new_v5(&user.0, token.as_bytes()))
    }

    /// Whether it is a token that somebody else signed.
    pub fn is_external(self) -> bool {
        self.0.get_version_num() == 5
    }
}

/// A device message: ours, a UUID, or the one that its sender chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// Characters that it has at most.
    pub const CHARS_MAX: usize = 64;

    /// A new id, ordered by time of making.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// An id of 1 to 64 characters, none of them a control character.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.chars().count() <= Self::CHARS_MAX;
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Position of a change in the total order of one user's changes, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The one that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many changes one key has seen, deletions included; 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one past of the store. It changes when the store's past is no longer
/// what clients saw, after a restored backup for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub Arc<str>);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of one entry of a user's session: 1 to 128 bytes of UTF-8 without
/// control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SessionKey(Arc<str>);

impl SessionKey {
    /// Bytes of UTF-8 a key may have at most.
    pub const BYTES_MAX: usize = 128;

    /// The key, or nothing when `text` breaks the rule above.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::BYTES_MAX).contains(&text.len());
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// The key as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment plus `ms` milliseconds.
    pub fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Whole seconds since 1970, rounded down, as JWT claims count them.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = chrono::DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The wall clock, for stamps that people read. Order and deadlines never
/// depend on it: seq orders, `Instant` measures.
pub struct Clock;

impl Clock {
    /// Now.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now() -> Timestamp {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A value that must not show in any log or error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the code that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A JSON text exactly as its author wrote it, shared without copying.
pub type JsonText = Arc<str>;

/// One committed change of one session key, as the store numbered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose session it is.
    pub user: UserId,
    /// Its place in the user's order.
    pub seq: Seq,
    /// What changed.
    pub key: SessionKey,
    /// The key's version since this change.
    pub version: Version,
    /// The new state, or nothing when the key was deleted.
    pub state: Option<JsonText>,
    /// Who made it; nothing for changes over REST.
    pub device: Option<DeviceId>,
    /// When it was committed, by the clock of the committing node.
    pub at: Timestamp,
}

/// What a device says of itself when it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For people; may be empty.
    pub name: String,
    /// `desktop`, `mobile`, `tablet`, ... or `unknown`.
    pub kind: String,
    /// The whole object as the device sent it; `{}` when it sent none.
    pub json: JsonText,
    /// What it holds beside name and type, a JSON object.
    pub metadata: JsonText,
    /// Equal for equal objects, whatever the order of their fields.
    pub fingerprint: u64,
}

/// What is kept of a device: what it said of itself, or its user has said of it
/// since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// For people; may be empty.
    pub name: String,
    /// `desktop`, `mobile`, `tablet`, ... or `unknown`.
    pub kind: String,
    /// What else there is, a JSON object.
    pub metadata: JsonText,
}

impl DeviceInfo {
    /// What is kept of it.
    pub fn description(&self) -> Description {
        Description { name: self.name.clone(), kind: self.kind.clone(), metadata: self.metadata.clone() }
    }
}

/// Something of a user's that was ended before its time and does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Revoked {
    /// The whole account.
    User,
    /// One device.
    Device(DeviceId),
    /// One login; without an id, all tokens of the replaced server, or from
    /// outside, until now.
    Login(Option<LoginId>),
    /// One connection, whose device has another by now.
    Connection(ConnectionId),
}

/// A device as the store keeps it.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// What it is.
    pub description: Description,
    /// Of what it last said of itself.
    pub fingerprint: u64,
    /// When it was first seen.
    pub created_at: Timestamp,
    /// Its latest connection, which may have ended.
    pub connection: Option<ConnectionId>,
    /// Start of it.
    pub connected_at: Option<Timestamp>,
    /// The last moment it is known to have been connected.
    pub last_seen: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_1_to_128_bytes_without_control_characters() {
        for good in ["a", "editor-state", "__proto__", "*", "ключ", &"k".repeat(128)] {
            assert!(SessionKey::parse(good).is_some(), "{good:?}");
        }
        for bad in ["", &"k".repeat(129), "a\nb", "a\rb", "a\0b", "\u{7f}", "\u{85}"] {
            assert!(SessionKey::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339_in_utc_with_milliseconds() {
        assert_eq!(Timestamp(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
