//! Device messages that wait: kept in order, taken once, gone when delivered.
//! Their users are locked, so what is seen of a mailbox is final.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::sql::{FROM_POSITION, OLDEST_OPEN, number, time, user};
use crate::model::{DeviceId, MessageId, Timestamp, UserId};
use crate::store::messages::{
    Fate, MESSAGES_BYTES_MAX, MESSAGES_MAX, MailboxDepth, PostMessage, PostRefusal, Posted, READ_BYTES_MAX,
    TakeMessages, TakenMessage, WaitingMessage,
};

/// Expired messages that are looked for at a go.
const ROWS_AT_A_GO: i64 = 500;

/// Keeps a message; see [`PostMessage`].
pub async fn post(
    connection: &mut PgConnection,
    post: &PostMessage,
) -> Result<Result<Posted, PostRefusal>, sqlx::Error> {
    let seen = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM devices WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL) AS is_own,
             (SELECT body = $5 FROM messages WHERE device_id = $1 AND message_id = $3) AS waits_the_same,
             EXISTS (SELECT 1 FROM message_ids WHERE user_id = $2 AND message_id = $3 AND content_hash <> $4)
                 AS is_other,
             (SELECT expired FROM message_ids WHERE user_id = $2 AND message_id = $3 AND device_id = $1)
                 AS has_expired,
             (SELECT count(*) FROM messages WHERE device_id = $1) AS ahead,
             (SELECT coalesce(sum(bytes), 0)::bigint FROM messages WHERE device_id = $1) AS bytes",
    )
    .bind(post.target.0)
    .bind(post.user.0)
    .bind(post.id.as_str())
    .bind(post.content_hash.as_ref().map(|hash| &hash[..]))
    .bind(&*post.json)
    .fetch_one(&mut *connection)
    .await?;
    if !seen.try_get::<bool, _>("is_own")? {
        return Ok(Err(PostRefusal::UnknownDevice));
    }
    if post.content_hash.is_some() {
        // One of this id may wait whose claim is forgotten or never was.
        let waits_the_same: Option<bool> = seen.try_get("waits_the_same")?;
        let has_expired: Option<bool> = seen.try_get("has_expired")?;
        if seen.try_get("is_other")? || waits_the_same == Some(false) {
            return Ok(Err(PostRefusal::IdReused));
        }
        let fate = match (waits_the_same, has_expired) {
            (Some(_), _) => Some(Fate::Waits),
            (None, Some(true)) => Some(Fate::Expired),
            (None, Some(false)) => Some(Fate::Delivered),
            (None, None) => None,
        };
        if fate.is_some() {
            return Ok(Ok(Posted { ahead: 0, duplicate: fate }));
        }
    }
    let (ahead, bytes) = (number(&seen, "ahead")?, number(&seen, "bytes")?);
    if ahead >= MESSAGES_MAX {
        return Ok(Err(PostRefusal::Full("messages")));
    }
    if bytes + post.json.len() as u64 > MESSAGES_BYTES_MAX {
        return Ok(Err(PostRefusal::Full("bytes")));
    }
    insert(connection, post).await?;
    Ok(Ok(Posted { ahead, duplicate: None }))
}

/// A copy under the same id is there already when its sender did not hear that
/// it was kept.
async fn insert(connection: &mut PgConnection, post: &PostMessage) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH claimed AS (
             INSERT INTO message_ids (user_id, message_id, device_id, content_hash, at)
             SELECT $1, $3, $2, $9, $10 WHERE $9::bytea IS NOT NULL
         )
         INSERT INTO messages (user_id, device_id, message_id, source_device_id, body, bytes, sent_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (device_id, message_id) DO NOTHING",
    )
    .bind(post.user.0)
    .bind(post.target.0)
    .bind(post.id.as_str())
    .bind(post.source.0)
    .bind(&*post.json)
    .bind(post.json.len() as i64)
    .bind(post.sent_at.0)
    .bind(post.expires_at.0)
    .bind(post.content_hash.as_ref().map(|hash| &hash[..]))
    .bind(post.at.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Takes messages away; which of them were there.
pub async fn take(
    connection: &mut PgConnection,
    take: &TakeMessages,
) -> Result<Vec<TakenMessage>, sqlx::Error> {
    let ids: Vec<&str> = take.ids.iter().map(MessageId::as_str).collect();
    let rows = sqlx::query(
        "WITH told AS (
             UPDATE message_ids SET expired = true
             WHERE $4 AND user_id = $2 AND device_id = $1 AND message_id = ANY($3)
         )
         DELETE FROM messages WHERE device_id = $1 AND user_id = $2 AND message_id = ANY($3)
         RETURNING message_id, source_device_id",
    )
    .bind(take.device.0)
    .bind(take.user.0)
    .bind(ids)
    .bind(take.expired)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(TakenMessage { id: message_id(row)?, source: DeviceId(row.try_get("source_device_id")?) })
        })
        .collect()
}

/// See [`crate::store::Store::mailbox_size`].
pub async fn size(
    connection: &mut PgConnection,
    user: UserId,
    device: DeviceId,
) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM messages WHERE device_id = d.id) AS messages
         FROM devices AS d WHERE d.id = $1 AND d.user_id = $2 AND d.revoked_at IS NULL",
    )
    .bind(device.0)
    .bind(user.0)
    .fetch_optional(connection)
    .await?;
    row.map(|row| number(&row, "messages")).transpose()
}

/// See [`crate::store::Store::mailbox`].
pub async fn after(
    connection: &mut PgConnection,
    user: UserId,
    device: DeviceId,
    after: u64,
    now: Timestamp,
) -> Result<Vec<WaitingMessage>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, message_id, source_device_id, body, sent_at FROM (
             SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before FROM (
                 SELECT * FROM messages
                 WHERE device_id = $1 AND user_id = $2 AND id > $3 AND expires_at > $4 ORDER BY id LIMIT 64
             ) AS next) AS counted
         WHERE bytes_before < $5 ORDER BY id",
    )
    .bind(device.0)
    .bind(user.0)
    .bind(after.cast_signed())
    .bind(now.0)
    .bind(READ_BYTES_MAX.cast_signed())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let body: &str = row.try_get("body")?;
            Ok(WaitingMessage {
                place: number(row, "id")?,
                id: message_id(row)?,
                source: DeviceId(row.try_get("source_device_id")?),
                json: body.into(),
                sent_at: time(row, "sent_at")?,
            })
        })
        .collect()
}

/// See [`crate::store::Store::mail_since`]; the position is that of the oldest
/// transaction which may still write.
pub async fn since(
    connection: &mut PgConnection,
    after: Option<u64>,
) -> Result<(u64, Vec<(UserId, DeviceId)>), sqlx::Error> {
    let text = format!(
        "SELECT {OLDEST_OPEN} AS next, new.user_id, new.device_id
         FROM (SELECT 1) AS one LEFT JOIN (
             SELECT DISTINCT user_id, device_id FROM messages WHERE xid >= {FROM_POSITION}
         ) AS new ON true"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(after.map(u64::cast_signed))
        .fetch_all(connection)
        .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let next = number(first, "next")?;
    let mut kept = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(device) = row.try_get::<Option<Uuid>, _>("device_id")? {
            kept.push((user(row, "user_id")?, DeviceId(device)));
        }
    }
    Ok((next, kept))
}

/// See [`crate::store::Store::expired_messages`].
pub async fn expired(
    connection: &mut PgConnection,
    now: Timestamp,
) -> Result<Vec<(UserId, DeviceId, MessageId)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT user_id, device_id, message_id FROM messages WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2",
    )
    .bind(now.0)
    .bind(ROWS_AT_A_GO)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((user(row, "user_id")?, DeviceId(row.try_get("device_id")?), message_id(row)?)))
        .collect()
}

/// See [`crate::store::Store::mailbox_depth`].
pub async fn depth(connection: &mut PgConnection) -> Result<MailboxDepth, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM messages) AS messages,
                (SELECT sent_at FROM messages ORDER BY id LIMIT 1) AS oldest",
    )
    .fetch_one(connection)
    .await?;
    let oldest: Option<i64> = row.try_get("oldest")?;
    Ok(MailboxDepth { messages: number(&row, "messages")?, oldest: oldest.map(Timestamp) })
}

fn message_id(row: &PgRow) -> Result<MessageId, sqlx::Error> {
    let text: &str = row.try_get("message_id")?;
    MessageId::parse(text).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "message_id".to_owned(),
        source: "not a message id".into(),
    })
}
