//! Everything that only reads. What must be of one moment is one statement,
//! which in PostgreSQL sees one snapshot, and costs one round trip.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::past::Glimpse;
use super::sql::{self, device, key, seq, session_id, state, time, version};
use crate::model::{Change, Epoch, Seq, SessionKey, UserId};
use crate::store::{CatchUp, Entry, HeadRead, Moved, MovedSince, Selection, Snapshot};

/// Bytes of state after which a catch-up ends and says that there is more.
const CATCH_UP_BYTES: i64 = 1 << 20;

/// Changes of one catch-up.
const CATCH_UP_CHANGES: i64 = 1_000;

/// How far a user's session is, and how big.
pub async fn head(connection: &mut PgConnection, user: UserId) -> Result<Option<HeadRead>, sqlx::Error> {
    let row = sqlx::query("SELECT seq, live_bytes FROM users WHERE id = $1")
        .bind(user.0)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok(HeadRead { seq: seq(&row, "seq")?, live_bytes: sql::number(&row, "live_bytes")? }))
        .transpose()
}

/// The changes above `after` that are kept, about 1 MiB of them.
pub async fn kept_changes(
    connection: &mut PgConnection,
    user: UserId,
    after: Seq,
) -> Result<Vec<Change>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT seq, session_key, version, data, device_id, at FROM (
             SELECT *, sum(coalesce(octet_length(data), 0)) OVER (ORDER BY seq) - coalesce(octet_length(data), 0)
                 AS bytes_before
             FROM (SELECT * FROM changes WHERE user_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) AS next
         ) AS counted WHERE bytes_before <= $4 ORDER BY seq",
    )
    .bind(user.0)
    .bind(after.0.cast_signed())
    .bind(CATCH_UP_CHANGES)
    .bind(CATCH_UP_BYTES)
    .fetch_all(connection)
    .await?;
    rows.iter().filter_map(|row| change_of(row, user, "at").transpose()).collect()
}

/// One moment of a user's session.
pub async fn snapshot(
    connection: &mut PgConnection,
    user: UserId,
    selection: &Selection,
) -> Result<Option<Snapshot>, sqlx::Error> {
    let (epoch, since) = selection.since.as_ref().map(|(epoch, since)| (&*epoch.0, *since)).unzip();
    let keys: Option<Vec<&str>> =
        selection.keys.as_ref().map(|keys| keys.iter().map(SessionKey::as_str).collect());
    // The user's row comes even without an entry; `since` is null when the
    // store can no longer tell what changed since then.
    let rows = sqlx::query(
        "SELECT head.seq AS head, head.epoch, head.since,
             s.session_key, s.version, s.seq, s.data, s.device_id, s.updated_at
         FROM (SELECT u.id, u.seq, m.value AS epoch,
                   CASE WHEN m.value = $4 AND $2::bigint BETWEEN u.pruned_seq AND u.seq THEN $2::bigint END AS since
               FROM users AS u JOIN meta AS m ON m.name = 'epoch' WHERE u.id = $1) AS head
         LEFT JOIN sessions AS s ON s.user_id = head.id AND s.seq > coalesce(head.since, 0)
             AND (head.since IS NOT NULL OR s.data IS NOT NULL)
             AND ($3::text[] IS NULL OR s.session_key = ANY($3))
         ORDER BY s.seq",
    )
    .bind(user.0)
    .bind(since.map(|since| since.0.cast_signed()))
    .bind(keys)
    .bind(epoch)
    .fetch_all(connection)
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let since: Option<i64> = first.try_get("since")?;
    let entries = rows.iter().filter_map(|row| entry_of(row).transpose()).collect::<Result<_, _>>()?;
    let epoch = Epoch(first.try_get::<&str, _>("epoch")?.into());
    Ok(Some(Snapshot { epoch, seq: seq(first, "head")?, delta: since.is_some(), entries }))
}

/// Nothing where the outer join found no entry.
fn entry_of(row: &PgRow) -> Result<Option<Entry>, sqlx::Error> {
    if row.try_get::<Option<i64>, _>("seq")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Entry {
        key: key(row, "session_key")?,
        version: version(row, "version")?,
        seq: seq(row, "seq")?,
        state: state(row, "data")?,
        device: device(row, "device_id")?,
        updated_at: time(row, "updated_at")?,
    }))
}

/// One entry, tombstones included.
pub async fn entry(
    connection: &mut PgConnection,
    user: UserId,
    key: &SessionKey,
) -> Result<Option<Entry>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT session_key, version, seq, data, device_id, updated_at FROM sessions WHERE id = $1",
    )
    .bind(session_id(user, key))
    .fetch_optional(connection)
    .await?;
    row.as_ref().map_or(Ok(None), entry_of)
}

/// What follows `after`: every change where all are kept, else the present
/// entries above it, which make up for those that are not.
pub async fn changes_after(
    connection: &mut PgConnection,
    user: UserId,
    after: Seq,
) -> Result<CatchUp, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT u.seq AS head, u.pruned_seq, c.seq, c.session_key, c.version, c.data, c.device_id, c.at
         FROM users AS u LEFT JOIN LATERAL (
             SELECT *, sum(coalesce(octet_length(data), 0)) OVER (ORDER BY seq) - coalesce(octet_length(data), 0)
                 AS bytes_before
             FROM (SELECT * FROM changes WHERE user_id = u.id AND seq > $2 ORDER BY seq LIMIT $3) AS next
         ) AS c ON c.bytes_before <= $4
         WHERE u.id = $1 ORDER BY c.seq",
    )
    .bind(user.0)
    .bind(after.0.cast_signed())
    .bind(CATCH_UP_CHANGES)
    .bind(CATCH_UP_BYTES)
    .fetch_all(&mut *connection)
    .await?;
    let kept = rows.iter().filter_map(|row| change_of(row, user, "at").transpose());
    let kept = kept.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = rows.first() else {
        return Ok(CatchUp { up_to: after, ..CatchUp::default() });
    };
    let (head, pruned) = (seq(first, "head")?, seq(first, "pruned_seq")?);
    let unbroken = kept.iter().zip(after.0 + 1..).all(|(change, expected)| change.seq.0 == expected);
    match kept.last() {
        Some(last) if unbroken => {
            Ok(CatchUp { up_to: last.seq, more: last.seq < head, changes: kept, forgotten: false })
        }
        None if head == after => Ok(CatchUp { up_to: after, ..CatchUp::default() }),
        // A place that is yet to come is one of another past.
        _ if after < pruned || after > head => {
            Ok(CatchUp { up_to: head, forgotten: true, ..CatchUp::default() })
        }
        _ => present_entries(connection, user, after).await,
    }
}

async fn present_entries(
    connection: &mut PgConnection,
    user: UserId,
    after: Seq,
) -> Result<CatchUp, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT u.seq AS head, s.seq, s.session_key, s.version, s.data, s.device_id, s.updated_at
         FROM users AS u LEFT JOIN sessions AS s ON s.user_id = u.id AND s.seq > $2
         WHERE u.id = $1 ORDER BY s.seq",
    )
    .bind(user.0)
    .bind(after.0.cast_signed())
    .fetch_all(connection)
    .await?;
    let up_to = rows.first().map_or(Ok(after), |row| seq(row, "head"))?;
    let changes = rows.iter().filter_map(|row| change_of(row, user, "updated_at").transpose());
    Ok(CatchUp { changes: changes.collect::<Result<_, _>>()?, up_to, ..CatchUp::default() })
}

/// Nothing where an outer join found no row.
fn change_of(row: &PgRow, user: UserId, at: &str) -> Result<Option<Change>, sqlx::Error> {
    if row.try_get::<Option<i64>, _>("seq")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Change {
        user,
        seq: seq(row, "seq")?,
        key: key(row, "session_key")?,
        version: version(row, "version")?,
        state: state(row, "data")?,
        device: device(row, "device_id")?,
        at: time(row, at)?,
    }))
}

/// Whose session moved in transactions that the last ask could not see: those that
/// began later, and those that had not ended. One that stays open for long, in
/// whatever database of the server, makes nothing come twice. Whoever asks from
/// before what is kept of `moves`, or from a place that is yet to come (the
/// database's past went back), is told everybody's head. `glimpse` names columns of
/// the past's.
pub async fn moved(
    connection: &mut PgConnection,
    since: &MovedSince,
    glimpse: &str,
) -> Result<(Moved, Glimpse), sqlx::Error> {
    let text = format!(
        "SELECT {glimpse}, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
             ARRAY(SELECT open::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS open) AS open,
             coalesce((SELECT value::bigint FROM meta WHERE name = 'prune.moves'), 0) AS pruned,
             head.user_id, head.seq
         FROM (SELECT 1) AS one LEFT JOIN (
             SELECT user_id, max(seq) AS seq FROM moves WHERE xid >= $1 OR xid = ANY($2) GROUP BY user_id
         ) AS head ON true"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(since.place.map_or(i64::MAX, u64::cast_signed))
        .bind(since.open.iter().map(|xid| xid.cast_signed()).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let glimpse = Glimpse::of(first)?;
    let (place, pruned) = (sql::number(first, "next")?, sql::number(first, "pruned")?);
    let open: Vec<i64> = first.try_get("open")?;
    let open = open.into_iter().map(i64::cast_unsigned).collect();
    let rows = match since.place {
        Some(since) if since <= pruned || since > place => {
            sqlx::query("SELECT id AS user_id, seq FROM users WHERE seq > 0").fetch_all(connection).await?
        }
        _ => rows,
    };
    let mut heads = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get::<Option<Uuid>, _>("user_id")? {
            heads.push((UserId(id), seq(&row, "seq")?));
        }
    }
    Ok((Moved { heads, next: MovedSince { place: Some(place), open } }, glimpse))
}

/// The kept versions of a key, newest first.
pub async fn history(
    connection: &mut PgConnection,
    user: UserId,
    key: &SessionKey,
) -> Result<Vec<Change>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT seq, session_key, version, data, device_id, at FROM changes
         WHERE user_id = $1 AND session_key = $2 ORDER BY version DESC LIMIT 200",
    )
    .bind(user.0)
    .bind(key.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().filter_map(|row| change_of(row, user, "at").transpose()).collect()
}
