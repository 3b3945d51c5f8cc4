//! What the store forgets, and when.

use std::time::Duration;

/// What the store keeps, and how long.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Versions of a key.
    pub versions_per_key: u32,
    /// Time since a version was superseded.
    pub history: Duration,
    /// Age under which a version is kept whatever its number.
    pub spared: Duration,
    /// Bytes of a user's superseded versions; the oldest go first, whatever their
    /// age.
    pub history_bytes_per_user: u64,
    /// Age of a tombstone.
    pub tombstones: Duration,
    /// Tombstones a user.
    pub tombstones_per_user: u32,
    /// Age of an op id.
    pub op_ids: Duration,
    /// Age of a note that something was ended: longer than any node is away
    /// from its store without restarting its sockets.
    pub revocations: Duration,
    /// Time since a login ended, in which its tokens are still told apart.
    pub ended_logins: Duration,
    /// Time since a token from outside was ended, or its user removed: none
    /// counts for longer.
    pub ended_tokens: Duration,
    /// Time since a device was revoked, in which it is told so.
    pub revoked_devices: Duration,
}

/// How long after its making a token from outside counts at most, so that the
/// store need not remember for ever which were ended.
pub const EXTERNAL_TOKEN_LIFE_MAX: Duration = Duration::from_secs(400 * 86_400);

impl Default for Retention {
    fn default() -> Self {
        Self {
            versions_per_key: 20,
            history: Duration::from_secs(7 * 86_400),
            spared: Duration::from_secs(600),
            history_bytes_per_user: 64 << 20,
            tombstones: Duration::from_secs(7 * 86_400),
            tombstones_per_user: 1_000,
            op_ids: Duration::from_secs(86_400),
            revocations: Duration::from_secs(86_400),
            ended_logins: Duration::from_secs(7 * 86_400),
            ended_tokens: EXTERNAL_TOKEN_LIFE_MAX,
            revoked_devices: Duration::from_secs(90 * 86_400),
        }
    }
}
