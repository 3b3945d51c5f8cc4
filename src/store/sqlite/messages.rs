//! Device messages that wait: kept in order, taken once, gone when delivered.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::sql::{json_list, number, time, uuid};
use crate::model::{DeviceId, MessageId, Timestamp, UserId};
use crate::store::messages::{
    Fate, MESSAGES_BYTES_MAX, MESSAGES_MAX, MailboxDepth, PostMessage, PostRefusal, Posted, READ_BYTES_MAX,
    TakeMessages, TakenMessage, WaitingMessage,
};

/// Expired messages that are looked for at a go, and devices with new mail.
const ROWS_AT_A_GO: i64 = 500;

/// Keeps a message; see [`PostMessage`].
pub async fn post(
    connection: &mut SqliteConnection,
    post: &PostMessage,
) -> Result<Result<Posted, PostRefusal>, sqlx::Error> {
    if !is_own(connection, post.user, post.target).await? {
        return Ok(Err(PostRefusal::UnknownDevice));
    }
    let waiting = waiting_body(connection, post).await?;
    if let Some(hash) = &post.content_hash {
        match claim(connection, post, hash).await? {
            Claim::Taken(fate) => {
                let fate = if waiting.is_some() { Fate::Waits } else { fate };
                return Ok(Ok(Posted { ahead: 0, duplicate: Some(fate) }));
            }
            Claim::Reused => return Ok(Err(PostRefusal::IdReused)),
            // Another one of this id waits, and its claim is forgotten or never was.
            Claim::New if waiting.as_deref().is_some_and(|body| *body != *post.json) => {
                return Ok(Err(PostRefusal::IdReused));
            }
            Claim::New if waiting.is_some() => {
                return Ok(Ok(Posted { ahead: 0, duplicate: Some(Fate::Waits) }));
            }
            Claim::New => {}
        }
    }
    let row = sqlx::query(
        "SELECT count(*) AS messages, coalesce(sum(bytes), 0) AS bytes FROM messages WHERE device_id = ?",
    )
    .bind(post.target.to_string())
    .fetch_one(&mut *connection)
    .await?;
    let (ahead, bytes) = (number(&row, "messages")?, number(&row, "bytes")?);
    let full = if ahead >= MESSAGES_MAX {
        Some("messages")
    } else if bytes + post.json.len() as u64 > MESSAGES_BYTES_MAX {
        Some("bytes")
    } else {
        None
    };
    if let Some(limit) = full {
        return Ok(Err(PostRefusal::Full(limit)));
    }
    if let Some(hash) = &post.content_hash {
        take_id(connection, post, hash).await?;
    }
    // A copy under the same id is there already when its sender did not hear that it was kept.
    sqlx::query(
        "INSERT INTO messages (user_id, device_id, message_id, source_device_id, body, bytes, sent_at, expires_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device_id, message_id) DO NOTHING",
    )
    .bind(post.user.to_string())
    .bind(post.target.to_string())
    .bind(post.id.as_str())
    .bind(post.source.to_string())
    .bind(&*post.json)
    .bind(post.json.len() as i64)
    .bind(post.sent_at.0)
    .bind(post.expires_at.0)
    .execute(connection)
    .await?;
    Ok(Ok(Posted { ahead, duplicate: None }))
}

enum Claim {
    New,
    /// Taken for this device; what became of it if it waits no longer.
    Taken(Fate),
    Reused,
}

/// Whether the sender's own id was taken before.
async fn claim(
    connection: &mut SqliteConnection,
    post: &PostMessage,
    hash: &[u8; 32],
) -> Result<Claim, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT device_id, content_hash, expired FROM message_ids WHERE user_id = ? AND message_id = ?",
    )
    .bind(post.user.to_string())
    .bind(post.id.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let mut claim = Claim::New;
    for row in &rows {
        let kept: &[u8] = row.try_get("content_hash")?;
        if kept != hash {
            return Ok(Claim::Reused);
        }
        if uuid(row, "device_id")? == post.target.0 {
            let expired: bool = row.try_get("expired")?;
            claim = Claim::Taken(if expired { Fate::Expired } else { Fate::Delivered });
        }
    }
    Ok(claim)
}

/// Takes the sender's own id for this message and device.
async fn take_id(
    connection: &mut SqliteConnection,
    post: &PostMessage,
    hash: &[u8; 32],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO message_ids (user_id, message_id, device_id, content_hash, at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(post.user.to_string())
    .bind(post.id.as_str())
    .bind(post.target.to_string())
    .bind(&hash[..])
    .bind(post.at.0)
    .execute(connection)
    .await
    .map(drop)
}

async fn is_own(
    connection: &mut SqliteConnection,
    user: UserId,
    device: DeviceId,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT 1 FROM devices WHERE id = ? AND user_id = ? AND revoked_at IS NULL")
        .bind(device.to_string())
        .bind(user.to_string())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

/// What waits for the device under this id.
async fn waiting_body(
    connection: &mut SqliteConnection,
    post: &PostMessage,
) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::query("SELECT body FROM messages WHERE device_id = ? AND message_id = ?")
        .bind(post.target.to_string())
        .bind(post.id.as_str())
        .fetch_optional(connection)
        .await?;
    row.map(|row| row.try_get("body")).transpose()
}

/// Takes messages away; which of them were there.
pub async fn take(
    connection: &mut SqliteConnection,
    take: &TakeMessages,
) -> Result<Vec<TakenMessage>, sqlx::Error> {
    let rows = sqlx::query(
        "DELETE FROM messages WHERE device_id = ? AND user_id = ?
           AND message_id IN (SELECT value FROM json_each(?))
         RETURNING message_id, source_device_id",
    )
    .bind(take.device.to_string())
    .bind(take.user.to_string())
    .bind(json_list(take.ids.iter().map(MessageId::as_str)))
    .fetch_all(&mut *connection)
    .await?;
    if take.expired {
        sqlx::query(
            "UPDATE message_ids SET expired = 1 WHERE user_id = ? AND device_id = ?
               AND message_id IN (SELECT value FROM json_each(?))",
        )
        .bind(take.user.to_string())
        .bind(take.device.to_string())
        .bind(json_list(take.ids.iter().map(MessageId::as_str)))
        .execute(connection)
        .await?;
    }
    rows.iter()
        .map(|row| {
            let source = DeviceId(uuid(row, "source_device_id")?);
            Ok(TakenMessage { id: message_id(row)?, source })
        })
        .collect()
}

/// See [`crate::store::Store::mailbox_size`].
pub async fn size(readers: &SqlitePool, user: UserId, device: DeviceId) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM messages WHERE device_id = d.id) AS messages
         FROM devices AS d WHERE d.id = ? AND d.user_id = ? AND d.revoked_at IS NULL",
    )
    .bind(device.to_string())
    .bind(user.to_string())
    .fetch_optional(readers)
    .await?;
    row.map(|row| number(&row, "messages")).transpose()
}

/// See [`crate::store::Store::mailbox`].
pub async fn after(
    readers: &SqlitePool,
    user: UserId,
    device: DeviceId,
    after: u64,
    now: Timestamp,
) -> Result<Vec<WaitingMessage>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, message_id, source_device_id, body, sent_at FROM (
             SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM messages
             WHERE device_id = ? AND user_id = ? AND id > ? AND expires_at > ? ORDER BY id LIMIT 64)
         WHERE before < ?",
    )
    .bind(device.to_string())
    .bind(user.to_string())
    .bind(after.cast_signed())
    .bind(now.0)
    .bind(READ_BYTES_MAX.cast_signed())
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let body: &str = row.try_get("body")?;
            Ok(WaitingMessage {
                place: number(row, "id")?,
                id: message_id(row)?,
                source: DeviceId(uuid(row, "source_device_id")?),
                json: body.into(),
                sent_at: time(row, "sent_at")?,
            })
        })
        .collect()
}

/// See [`crate::store::Store::mail_since`].
pub async fn since(
    readers: &SqlitePool,
    after: Option<u64>,
) -> Result<(u64, Vec<(UserId, DeviceId)>), sqlx::Error> {
    let row =
        sqlx::query("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0) AS last")
            .fetch_one(readers)
            .await?;
    let last = number(&row, "last")?;
    let Some(after) = after.filter(|after| *after < last) else { return Ok((last, Vec::new())) };
    let rows = sqlx::query("SELECT DISTINCT user_id, device_id FROM messages WHERE id > ? AND id <= ?")
        .bind(after.cast_signed())
        .bind(last.cast_signed())
        .fetch_all(readers)
        .await?;
    let moved = rows.iter().map(|row| Ok((UserId(uuid(row, "user_id")?), DeviceId(uuid(row, "device_id")?))));
    Ok((last, moved.collect::<Result<_, sqlx::Error>>()?))
}

/// See [`crate::store::Store::expired_messages`].
pub async fn expired(
    readers: &SqlitePool,
    now: Timestamp,
) -> Result<Vec<(UserId, DeviceId, MessageId)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT user_id, device_id, message_id FROM messages WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
    )
    .bind(now.0)
    .bind(ROWS_AT_A_GO)
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| Ok((UserId(uuid(row, "user_id")?), DeviceId(uuid(row, "device_id")?), message_id(row)?)))
        .collect()
}

/// See [`crate::store::Store::mailbox_depth`].
pub async fn depth(readers: &SqlitePool) -> Result<MailboxDepth, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM messages) AS messages,
                (SELECT sent_at FROM messages ORDER BY id LIMIT 1) AS oldest",
    )
    .fetch_one(readers)
    .await?;
    let oldest: Option<i64> = row.try_get("oldest")?;
    Ok(MailboxDepth { messages: number(&row, "messages")?, oldest: oldest.map(Timestamp) })
}

fn message_id(row: &SqliteRow) -> Result<MessageId, sqlx::Error> {
    let text: &str = row.try_get("message_id")?;
    MessageId::parse(text).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "message_id".to_owned(),
        source: "not a message id".into(),
    })
}
