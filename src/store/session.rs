//! What the store is told, and tells, of a user's session: writes and what became
//! of them, snapshots, what a hub missed.

use std::sync::Arc;

use crate::merge;
use crate::model::{Change, DeviceId, Epoch, JsonText, Seq, SessionKey, Timestamp, UserId, Version};

/// A change as a device or REST asks for it.
#[derive(Clone, Debug)]
pub struct SessionWrite {
    /// Whose session.
    pub user: UserId,
    /// Which device; nothing for REST.
    pub device: Option<DeviceId>,
    /// Which key.
    pub key: SessionKey,
    /// What to do.
    pub change: WriteChange,
    /// The version it was made on.
    pub base_version: Option<Version>,
    /// What to do when the key has moved on.
    pub on_conflict: merge::OnConflict,
    /// A name under which it is applied once.
    pub op_id: Option<Arc<str>>,
    /// When, by this node's clock; for people, not for order.
    pub at: Timestamp,
}

/// What a write does; each text is one valid JSON value.
#[derive(Clone, Debug)]
pub enum WriteChange {
    /// Replaces the state.
    State(JsonText),
    /// An RFC 7396 merge patch.
    Patch(JsonText),
    /// A list of operations on JSON pointers.
    Ops(JsonText),
    /// Deletes the key.
    Delete,
    /// Brings back the state of a kept version.
    Restore(Version),
}

impl WriteChange {
    /// The text that came with it.
    pub fn text(&self) -> Option<&str> {
        match self {
            WriteChange::State(text) | WriteChange::Patch(text) | WriteChange::Ops(text) => Some(text),
            WriteChange::Delete | WriteChange::Restore(_) => None,
        }
    }
}

/// A write that was applied, now or, for a duplicate, earlier.
#[derive(Clone, Debug)]
pub struct Written {
    /// The change as committed; nothing for a duplicate.
    pub change: Option<Arc<Change>>,
    /// The key's version since then.
    pub version: Version,
    /// The change's place in the user's order.
    pub seq: Seq,
    /// It was combined with versions its sender had not seen.
    pub merged: bool,
    /// The result is not what was sent: tell the sender.
    pub differs: bool,
}

/// Why a write was not applied. It took no seq and harmed no neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    /// The key has moved on.
    Conflict {
        /// Its version now.
        version: Version,
        /// Its state now; nothing when it does not exist.
        state: Option<JsonText>,
        /// Who made that version.
        device: Option<DeviceId>,
    },
    /// The merge rules refuse it.
    Refused(merge::Refusal),
    /// The user has too many keys or bytes; the name of the limit.
    Quota(&'static str),
    /// The op id was used for other content.
    OpIdReused,
    /// There is no such key to delete, or no such version to bring back.
    UnknownKey,
    /// There is no such user any more.
    UnknownUser,
}

/// What of a user's session to read.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these keys; all without.
    pub keys: Option<Vec<SessionKey>>,
    /// Only what changed after this, if the store can still tell.
    pub since: Option<(Epoch, Seq)>,
}

/// One key's current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: SessionKey,
    /// Its version.
    pub version: Version,
    /// The change that made it so.
    pub seq: Seq,
    /// Its state; nothing for a tombstone.
    pub state: Option<JsonText>,
    /// Who made it so.
    pub device: Option<DeviceId>,
    /// When it was made so.
    pub updated_at: Timestamp,
}

/// A user's session at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's epoch.
    pub epoch: Epoch,
    /// The user's last change; everything up to it is in `entries`.
    pub seq: Seq,
    /// The entries hold only what changed since the position asked from.
    pub delta: bool,
    /// Ordered by seq. Tombstones only in a delta.
    pub entries: Vec<Entry>,
}

/// What a hub missed.
#[derive(Clone, Debug, Default)]
pub struct CatchUp {
    /// In seq order, all above the position asked from.
    pub changes: Vec<Change>,
    /// Everything up to here is either in `changes` or superseded.
    pub up_to: Seq,
    /// There is more above `up_to`.
    pub more: bool,
    /// Something was deleted above the position and is forgotten, or the position
    /// is yet to come, as one of a past that was put back: whoever stands there
    /// must start anew. Then there are no changes.
    pub forgotten: bool,
}

/// How far a user's session is, and how big.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRead {
    /// The last change.
    pub seq: Seq,
    /// Bytes of live state.
    pub live_bytes: u64,
}
