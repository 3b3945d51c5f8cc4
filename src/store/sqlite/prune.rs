//! Forgetting what is past its time, in small transactions between which the
//! writer gets its turn.
//!
//! Nothing scans. Changes are walked along their age twice, with a mark in
//! `meta` for how far: once as they leave the time in which every version is
//! kept, when they push out the versions that they leave behind, and once as
//! they leave the history, when they go unless they are current. What a clock
//! that ran late put behind a mark goes with its key's next change.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::sql::json_list;
use crate::model::Timestamp;
use crate::store::Retention;

/// Rows that one transaction looks at: a few milliseconds.
const ROWS_AT_A_GO: i64 = 500;

/// One go; how many rows it went through. Call again while that is not 0.
pub async fn prune(writer: &SqlitePool, retention: &Retention, now: Timestamp) -> Result<u64, sqlx::Error> {
    let before = |age: std::time::Duration| now.plus_ms(-(age.as_millis() as i64)).0;
    let limits = Limits {
        spared: before(retention.spared),
        history: before(retention.history),
        op_ids: before(retention.op_ids),
        tombstones: before(retention.tombstones),
        versions: i64::from(retention.versions_per_key),
        tombstones_per_user: i64::from(retention.tombstones_per_user),
    };
    // The one writing connection goes back between steps: batches come first.
    let mut gone_through = op_ids(&mut *writer.acquire().await?, &limits).await?;
    gone_through += settled(&mut *writer.acquire().await?, &limits).await?;
    gone_through += aged(&mut *writer.acquire().await?, &limits).await?;
    gone_through += old_tombstones(&mut *writer.acquire().await?, &limits).await?;
    gone_through += crowded_tombstones(&mut *writer.acquire().await?, &limits).await?;
    Ok(gone_through)
}

/// The retention as moments: what is older goes.
struct Limits {
    spared: i64,
    history: i64,
    op_ids: i64,
    tombstones: i64,
    versions: i64,
    tombstones_per_user: i64,
}

async fn op_ids(connection: &mut SqliteConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "DELETE FROM op_ids WHERE (user_id, op_id) IN
             (SELECT user_id, op_id FROM op_ids WHERE at < ? ORDER BY at LIMIT ?)",
    )
    .bind(limits.op_ids)
    .bind(ROWS_AT_A_GO)
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected())
}

/// The next rows behind a mark.
struct Window {
    after: i64,
    up_to: i64,
    rows: u64,
}

/// `ages` selects ages above `?1`, up to `?2`, in their order.
async fn window(
    connection: &mut SqliteConnection,
    mark: &str,
    ages: &str,
    until: i64,
) -> Result<Option<Window>, sqlx::Error> {
    let after: Option<i64> = sqlx::query_scalar("SELECT CAST(value AS INTEGER) FROM meta WHERE name = ?")
        .bind(mark)
        .fetch_optional(&mut *connection)
        .await?;
    let after = after.unwrap_or(i64::MIN);
    let text = format!("SELECT count(*), max(age) FROM ({ages} LIMIT {ROWS_AT_A_GO})");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(after).bind(until).fetch_one(connection).await?;
    let up_to: Option<i64> = row.try_get(1)?;
    Ok(up_to.map(|up_to| Window { after, up_to, rows: row.get::<i64, _>(0).unsigned_abs() }))
}

async fn move_mark(connection: &mut SqliteConnection, mark: &str, to: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(mark)
    .bind(to.to_string())
    .execute(connection)
    .await
    .map(drop)
}

const CHANGES_BY_AGE: &str = "SELECT at AS age FROM changes WHERE at > ?1 AND at <= ?2 ORDER BY at";

async fn settled(connection: &mut SqliteConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.settled";
    let Some(window) = window(connection, MARK, CHANGES_BY_AGE, limits.spared).await? else { return Ok(0) };
    let mut transaction = begin(connection).await?;
    let deleted = sqlx::query(
        "DELETE FROM changes WHERE rowid IN (
             SELECT old.rowid
             FROM (SELECT user_id, session_key, max(version) AS version FROM changes
                   WHERE at > ?1 AND at <= ?2 GROUP BY user_id, session_key) AS new
             CROSS JOIN changes AS old ON old.user_id = new.user_id AND old.session_key = new.session_key
                 AND old.version < new.version
             WHERE old.at <= ?3 AND (old.version + ?4 <= new.version OR old.at < ?5))",
    )
    .bind(window.after)
    .bind(window.up_to)
    .bind(limits.spared)
    .bind(limits.versions)
    .bind(limits.history)
    .execute(&mut *transaction)
    .await?;
    move_mark(&mut transaction, MARK, window.up_to).await?;
    transaction.commit().await?;
    Ok(window.rows + deleted.rows_affected())
}

async fn aged(connection: &mut SqliteConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.aged";
    let Some(window) = window(connection, MARK, CHANGES_BY_AGE, limits.history).await? else { return Ok(0) };
    let mut transaction = begin(connection).await?;
    // The current version of a key stays: it is the base of the next merge.
    let deleted = sqlx::query(
        "DELETE FROM changes WHERE at > ?1 AND at <= ?2 AND version <
             (SELECT s.version FROM sessions AS s WHERE s.id = changes.user_id || ':' || changes.session_key)",
    )
    .bind(window.after)
    .bind(window.up_to)
    .execute(&mut *transaction)
    .await?;
    move_mark(&mut transaction, MARK, window.up_to).await?;
    transaction.commit().await?;
    Ok(window.rows + deleted.rows_affected())
}

async fn old_tombstones(connection: &mut SqliteConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM sessions WHERE data IS NULL AND updated_at < ? ORDER BY updated_at LIMIT ?",
    )
    .bind(limits.tombstones)
    .bind(ROWS_AT_A_GO)
    .fetch_all(&mut *connection)
    .await?;
    forget_tombstones(connection, ids).await
}

/// Users who have made tombstones lately are counted. One with too many is
/// counted again in the next go, until it has not.
async fn crowded_tombstones(connection: &mut SqliteConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.crowded";
    let ages = "SELECT updated_at AS age FROM sessions
         WHERE data IS NULL AND updated_at > ?1 AND updated_at <= ?2 ORDER BY updated_at";
    let Some(window) = window(connection, MARK, ages, limits.spared).await? else { return Ok(0) };
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM (
             SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY seq DESC) AS place FROM sessions
             WHERE data IS NULL AND user_id IN (
                 SELECT user_id FROM sessions WHERE data IS NULL AND updated_at > ?1 AND updated_at <= ?2))
         WHERE place > ?3 LIMIT ?4",
    )
    .bind(window.after)
    .bind(window.up_to)
    .bind(limits.tombstones_per_user)
    .bind(ROWS_AT_A_GO)
    .fetch_all(&mut *connection)
    .await?;
    if ids.is_empty() {
        move_mark(connection, MARK, window.up_to).await?;
        return Ok(window.rows);
    }
    forget_tombstones(connection, ids).await
}

/// Forgets what is still a tombstone of `ids`, with its history, and notes on
/// its user what a later catch-up and a returning key must know.
async fn forget_tombstones(connection: &mut SqliteConnection, ids: Vec<String>) -> Result<u64, sqlx::Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let ids = json_list(ids);
    let mut transaction = begin(connection).await?;
    sqlx::query(
        "UPDATE users SET version_floor = max(users.version_floor, gone.version),
             pruned_seq = max(users.pruned_seq, gone.seq)
         FROM (SELECT user_id, max(version) AS version, max(seq) AS seq FROM sessions
               WHERE data IS NULL AND id IN (SELECT value FROM json_each(?)) GROUP BY user_id) AS gone
         WHERE users.id = gone.user_id",
    )
    .bind(&ids)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "DELETE FROM changes WHERE (user_id, session_key) IN (
             SELECT user_id, session_key FROM sessions
             WHERE data IS NULL AND id IN (SELECT value FROM json_each(?)))",
    )
    .bind(&ids)
    .execute(&mut *transaction)
    .await?;
    let deleted =
        sqlx::query("DELETE FROM sessions WHERE data IS NULL AND id IN (SELECT value FROM json_each(?))")
            .bind(&ids)
            .execute(&mut *transaction)
            .await?;
    transaction.commit().await?;
    Ok(deleted.rows_affected())
}

async fn begin(
    connection: &mut SqliteConnection,
) -> Result<sqlx::Transaction<'_, sqlx::Sqlite>, sqlx::Error> {
    sqlx::Connection::begin_with(connection, "BEGIN IMMEDIATE").await
}
