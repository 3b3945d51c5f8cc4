//! Small pieces that PostgreSQL's statements share: columns as the domain's
//! words, and text that the server can hold.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::model::{DeviceId, JsonText, Seq, SessionKey, Timestamp, UserId, Version};

/// The oldest transaction that may still write: an ask that reads now goes on from it.
pub const OLDEST_OPEN: &str = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// From where an ask of position `$1` reads: one that is yet to come is of a past that was put away, and reads all.
pub const FROM_POSITION: &str =
    "CASE WHEN $1 > pg_snapshot_xmin(pg_current_snapshot())::text::bigint THEN 0 ELSE $1 END";

/// The primary key of a session entry.
pub fn session_id(user: UserId, key: &SessionKey) -> String {
    format!("{user}:{key}")
}

/// `text` as PostgreSQL can hold it: it has no U+0000. States never need this,
/// since JSON writes that character as an escape; names and e-mails do.
pub fn holdable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// A user.
pub fn user(row: &PgRow, column: &str) -> Result<UserId, sqlx::Error> {
    row.try_get(column).map(UserId)
}

/// A device id that may be null.
pub fn device(row: &PgRow, column: &str) -> Result<Option<DeviceId>, sqlx::Error> {
    let id: Option<Uuid> = row.try_get(column)?;
    Ok(id.map(DeviceId))
}

/// A column that holds a seq.
pub fn seq(row: &PgRow, column: &str) -> Result<Seq, sqlx::Error> {
    number(row, column).map(Seq)
}

/// A column that holds a version.
pub fn version(row: &PgRow, column: &str) -> Result<Version, sqlx::Error> {
    number(row, column).map(Version)
}

/// A column that counts.
pub fn number(row: &PgRow, column: &str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// A column that holds a time.
pub fn time(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get(column).map(Timestamp)
}

/// A state that may be null.
pub fn state(row: &PgRow, column: &str) -> Result<Option<JsonText>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.map(Arc::from))
}

/// A session key.
pub fn key(row: &PgRow, column: &str) -> Result<SessionKey, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    SessionKey::parse(text).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: "not a session key".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::holdable;

    #[test]
    fn only_the_one_character_that_the_server_cannot_hold_is_replaced() {
        assert_eq!(holdable("a\\u0000b"), "a\\u0000b");
        assert_eq!(holdable("a\0b"), "a\u{fffd}b");
    }
}
