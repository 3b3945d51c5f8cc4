//! Everything that only reads: snapshots, catch-ups, history, accounts.

use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Connection, Row};

use super::marker::Mark;
use super::sql::{self, device, json_list, key, seq, state, time, uuid, version};
use crate::model::{Change, Epoch, Seq, SessionKey, UserId};
use crate::store::{CatchUp, Entry, HeadRead, Moved, MovedSince, Selection, Snapshot};

/// Bytes of state after which a catch-up ends and says that there is more.
const CATCH_UP_BYTES: usize = 1 << 20;

/// Changes of one catch-up.
const CATCH_UP_CHANGES: i64 = 1_000;

/// One moment of a user's session. One statement sees one moment, and costs one way to the connection's thread
/// where a transaction around two took four.
pub async fn snapshot(
    readers: &SqlitePool,
    user: UserId,
    selection: &Selection,
) -> Result<Option<Snapshot>, sqlx::Error> {
    let (epoch, since) = selection.since.as_ref().map(|(epoch, since)| (&*epoch.0, *since)).unzip();
    let keys = selection.keys.as_ref().map(json_list);
    // The user's row comes even without an entry; `since` is null when the store can no longer tell what changed
    // since then.
    let rows = sqlx::query(
        "SELECT head.seq AS head, head.epoch, head.since,
             s.session_key, s.version, s.seq, s.data, s.device_id, s.updated_at
         FROM (SELECT u.id, u.seq, m.value AS epoch,
                   CASE WHEN m.value = ?2 AND ?3 BETWEEN u.pruned_seq AND u.seq THEN ?3 END AS since
               FROM users AS u JOIN meta AS m ON m.name = 'epoch' WHERE u.id = ?1) AS head
         LEFT JOIN sessions AS s ON s.user_id = ?1 AND s.seq > coalesce(head.since, 0)
             AND (head.since IS NOT NULL OR s.data IS NOT NULL)
             AND (?4 IS NULL OR s.session_key IN (SELECT value FROM json_each(?4)))
         ORDER BY s.seq",
    )
    .bind(user.to_string())
    .bind(epoch)
    .bind(since.map(|since| since.0.cast_signed()))
    .bind(keys)
    .fetch_all(readers)
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let since: Option<i64> = first.try_get("since")?;
    let (epoch, head) = (sql::epoch(first, "epoch")?, seq(first, "head")?);
    // One row without an entry: there is none.
    let has_entries = first.try_get::<Option<i64>, _>("seq")?.is_some();
    let entries = rows.iter().filter(|_| has_entries).map(entry_of).collect::<Result<_, _>>()?;
    Ok(Some(Snapshot { epoch, seq: head, delta: since.is_some(), entries }))
}

fn entry_of(row: &SqliteRow) -> Result<Entry, sqlx::Error> {
    Ok(Entry {
        key: key(row, "session_key")?,
        version: version(row, "version")?,
        seq: seq(row, "seq")?,
        state: state(row, "data")?,
        device: device(row, "device_id")?,
        updated_at: time(row, "updated_at")?,
    })
}

/// How far a user's session is, and how big.
pub async fn head(readers: &SqlitePool, user: UserId) -> Result<Option<HeadRead>, sqlx::Error> {
    let row = sqlx::query("SELECT seq, live_bytes FROM users WHERE id = ?")
        .bind(user.to_string())
        .fetch_optional(readers)
        .await?;
    row.map(|row| Ok(HeadRead { seq: seq(&row, "seq")?, live_bytes: sql::number(&row, "live_bytes")? }))
        .transpose()
}

/// One entry, tombstones included.
pub async fn entry(
    readers: &SqlitePool,
    user: UserId,
    key: &SessionKey,
) -> Result<Option<Entry>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT session_key, version, seq, data, device_id, updated_at FROM sessions WHERE id = ?",
    )
    .bind(sql::session_id(user, key))
    .fetch_optional(readers)
    .await?;
    row.as_ref().map(entry_of).transpose()
}

/// What follows `after`: every change where all are kept, else the present
/// entries above it, which make up for those that are not, unless a deletion is
/// among those.
pub async fn changes_after(readers: &SqlitePool, user: UserId, after: Seq) -> Result<CatchUp, sqlx::Error> {
    let mut connection = readers.acquire().await?;
    let mut moment = connection.begin().await?;
    let head = sqlx::query("SELECT seq, pruned_seq FROM users WHERE id = ?")
        .bind(user.to_string())
        .fetch_optional(&mut *moment)
        .await?;
    let Some(head) = head else {
        return Ok(CatchUp { up_to: after, ..CatchUp::default() });
    };
    let (head, pruned) = (seq(&head, "seq")?, seq(&head, "pruned_seq")?);
    let kept = kept_changes(&mut moment, user, after).await?;
    let unbroken = kept.iter().zip(after.0 + 1..).all(|(change, expected)| change.seq.0 == expected);
    let catch_up = match kept.last() {
        Some(last) if unbroken => {
            CatchUp { up_to: last.seq, more: last.seq < head, changes: kept, forgotten: false }
        }
        None if head == after => CatchUp { up_to: after, ..CatchUp::default() },
        // A place that is yet to come is one of another past.
        _ if after < pruned || after > head => CatchUp { up_to: head, forgotten: true, ..CatchUp::default() },
        _ => CatchUp {
            changes: present_entries(&mut moment, user, after).await?,
            up_to: head,
            ..CatchUp::default()
        },
    };
    moment.rollback().await?;
    Ok(catch_up)
}

/// The changes above `after` that are kept, about 1 MiB of them.
pub async fn kept_changes(
    moment: &mut SqliteConnection,
    user: UserId,
    after: Seq,
) -> Result<Vec<Change>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT seq, session_key, version, data, device_id, at FROM changes
         WHERE user_id = ? AND seq > ? ORDER BY seq LIMIT ?",
    )
    .bind(user.to_string())
    .bind(after.0.cast_signed())
    .bind(CATCH_UP_CHANGES)
    .fetch_all(moment)
    .await?;
    let mut changes = Vec::with_capacity(rows.len());
    let mut bytes = 0;
    for row in &rows {
        let change = change_of(row, user, "at")?;
        bytes += change.state.as_deref().map_or(0, str::len);
        changes.push(change);
        if bytes > CATCH_UP_BYTES {
            break;
        }
    }
    Ok(changes)
}

async fn present_entries(
    moment: &mut SqliteConnection,
    user: UserId,
    after: Seq,
) -> Result<Vec<Change>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT seq, session_key, version, data, device_id, updated_at FROM sessions
         WHERE user_id = ? AND seq > ? ORDER BY seq",
    )
    .bind(user.to_string())
    .bind(after.0.cast_signed())
    .fetch_all(moment)
    .await?;
    rows.iter().map(|row| change_of(row, user, "updated_at")).collect()
}

fn change_of(row: &SqliteRow, user: UserId, at: &str) -> Result<Change, sqlx::Error> {
    Ok(Change {
        user,
        seq: seq(row, "seq")?,
        key: key(row, "session_key")?,
        version: version(row, "version")?,
        state: state(row, "data")?,
        device: device(row, "device_id")?,
        at: time(row, at)?,
    })
}

/// Whose session moved since the last ask: the changes since then, by user. The
/// table's row numbers only grow, so they tell what is new.
/// Also the epoch.
pub async fn moved(readers: &SqlitePool, since: &MovedSince) -> Result<(Moved, Epoch), sqlx::Error> {
    let Mark { epoch, commits: last } = sql::mark(&mut *readers.acquire().await?).await?;
    let next = MovedSince::at(last);
    let Some(since) = since.place.filter(|since| *since < last) else {
        return Ok((Moved { heads: Vec::new(), next }, epoch));
    };
    let rows =
        sqlx::query("SELECT user_id, max(seq) AS seq FROM changes WHERE id > ? AND id <= ? GROUP BY user_id")
            .bind(since.cast_signed())
            .bind(last.cast_signed())
            .fetch_all(readers)
            .await?;
    let heads = rows.iter().map(|row| Ok((UserId(uuid(row, "user_id")?), seq(row, "seq")?)));
    Ok((Moved { heads: heads.collect::<Result<_, sqlx::Error>>()?, next }, epoch))
}

/// The kept versions of a key, newest first.
pub async fn history(
    readers: &SqlitePool,
    user: UserId,
    key: &SessionKey,
) -> Result<Vec<Change>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT seq, session_key, version, data, device_id, at FROM changes
         WHERE user_id = ? AND session_key = ? ORDER BY version DESC LIMIT 200",
    )
    .bind(user.to_string())
    .bind(key.as_str())
    .fetch_all(readers)
    .await?;
    rows.iter().map(|row| change_of(row, user, "at")).collect()
}
