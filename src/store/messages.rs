//! What the store is told, and tells, of device messages that wait.

use crate::model::{DeviceId, JsonText, MessageId, Timestamp, UserId};

/// Messages that may wait for one device.
pub const MESSAGES_MAX: u64 = 1_000;

/// Bytes of them.
pub const MESSAGES_BYTES_MAX: u64 = 4 << 20;

/// Bytes of messages that are read at a go, unless a single one has more.
pub const READ_BYTES_MAX: u64 = 256 * 1024;

/// Keeps a message for a device.
#[derive(Clone, Debug)]
pub struct PostMessage {
    /// Whose device.
    pub user: UserId,
    /// For which.
    pub target: DeviceId,
    /// The device that sent it.
    pub source: DeviceId,
    /// Its id.
    pub id: MessageId,
    /// What was sent: one valid JSON value.
    pub json: JsonText,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// Until when it waits.
    pub expires_at: Timestamp,
    /// The id is the sender's own, and is taken once: what makes two messages
    /// under one id the same.
    pub content_hash: Option<[u8; 32]>,
    /// When, by this node's clock.
    pub at: Timestamp,
}

/// A message that is kept, now or, for a duplicate, that was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Messages for the same device that were there already.
    pub ahead: u64,
    /// It was taken before; what has become of it.
    pub duplicate: Option<Fate>,
}

/// What has become of a message that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The device has it.
    Delivered,
    /// It is kept for the device.
    Waits,
    /// It waited for too long.
    Expired,
}

/// Why a message is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostRefusal {
    /// The user has no such device.
    UnknownDevice,
    /// Too much waits for it: the name of the limit.
    Full(&'static str),
    /// The id was used for another message.
    IdReused,
}

/// Messages that wait no longer: they were delivered, or expired.
#[derive(Clone, Debug)]
pub struct TakeMessages {
    /// Whose.
    pub user: UserId,
    /// Of which device.
    pub device: DeviceId,
    /// Which; those that are not there are passed over.
    pub ids: Vec<MessageId>,
    /// They go undelivered.
    pub expired: bool,
}

/// A message that was taken away, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenMessage {
    /// Its id.
    pub id: MessageId,
    /// Its sender.
    pub source: DeviceId,
}

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingMessage {
    /// Its place: those of one device are in this order.
    pub place: u64,
    /// Its id.
    pub id: MessageId,
    /// The device that sent it.
    pub source: DeviceId,
    /// What was sent.
    pub json: JsonText,
    /// When.
    pub sent_at: Timestamp,
}

/// How much waits in all, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailboxDepth {
    /// Messages.
    pub messages: u64,
    /// When the oldest was sent.
    pub oldest: Option<Timestamp>,
}
