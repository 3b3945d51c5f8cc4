//! Forgetting what is past its time, in small transactions that no writer waits
//! for: changes and op ids are only ever inserted by writers, and a tombstone is
//! forgotten only while its user is free.
//!
//! Nothing scans. Changes are walked along their age twice, with a mark in
//! `meta` for how far: once as they leave the time in which every version is
//! kept, when they push out the versions that are too many, and once as they
//! leave the history, when they push out all that they superseded. What a clock
//! that ran late put behind a mark goes with its key's next change.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::model::Timestamp;
use crate::store::Retention;

/// Rows that one transaction looks at: a few milliseconds.
const ROWS_AT_A_GO: i64 = 500;

/// A node that has not asked what moved for so long is told everything.
const MOVES_KEPT: Duration = Duration::from_secs(600);

/// Rows of moves that go at once; they are small, and there is one a write.
const MOVES_AT_A_GO: i64 = 5_000;

/// A store that has not committed for so long is closed.
const COMMITS_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// One go; how many rows it went through. Call again while that is not 0. Where
/// another node prunes, this one need not.
pub async fn prune(
    connection: &mut PgConnection,
    retention: &Retention,
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    let before = |age: Duration| now.plus_ms(-(age.as_millis() as i64)).0;
    let limits = Limits {
        spared: before(retention.spared),
        history: before(retention.history),
        op_ids: before(retention.op_ids),
        tombstones: before(retention.tombstones),
        moves: before(MOVES_KEPT),
        commits: before(COMMITS_KEPT),
        versions: i64::from(retention.versions_per_key),
        tombstones_per_user: i64::from(retention.tombstones_per_user),
        now: now.0,
        history_bytes: i64::try_from(retention.history_bytes_per_user).unwrap_or(i64::MAX),
        revocations: before(retention.revocations),
        ended_logins: before(retention.ended_logins),
        ended_tokens: before(retention.ended_tokens),
        revoked_devices: before(retention.revoked_devices),
    };
    let mut gone_through = 0;
    for step in [
        Step::OpIds,
        Step::Moves,
        Step::Settled,
        Step::Aged,
        Step::CrowdedHistory,
        Step::OldTombstones,
        Step::CrowdedTombstones,
        Step::Ended,
    ] {
        sqlx::raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED").execute(&mut *connection).await?;
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtext('tandem.prune'))")
            .fetch_one(&mut *connection)
            .await?;
        if alone {
            gone_through += match step {
                Step::OpIds => op_ids(connection, &limits).await?,
                Step::Moves => moves(connection, &limits).await?,
                Step::Settled => settled(connection, &limits).await?,
                Step::Aged => aged(connection, &limits).await?,
                Step::OldTombstones => old_tombstones(connection, &limits).await?,
                Step::CrowdedTombstones => crowded_tombstones(connection, &limits).await?,
                Step::CrowdedHistory => crowded_history(connection, &limits).await?,
                Step::Ended => ended(connection, &limits).await?,
            };
        }
        sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    }
    Ok(gone_through)
}

/// One transaction each.
enum Step {
    OpIds,
    Moves,
    Settled,
    Aged,
    CrowdedHistory,
    OldTombstones,
    CrowdedTombstones,
    Ended,
}

/// The retention as moments: what is older goes.
struct Limits {
    spared: i64,
    history: i64,
    op_ids: i64,
    tombstones: i64,
    moves: i64,
    commits: i64,
    versions: i64,
    tombstones_per_user: i64,
    now: i64,
    history_bytes: i64,
    revocations: i64,
    ended_logins: i64,
    ended_tokens: i64,
    revoked_devices: i64,
}

async fn op_ids(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "DELETE FROM op_ids WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM op_ids WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))",
    )
    .bind(limits.op_ids)
    .bind(ROWS_AT_A_GO)
    .execute(&mut *connection)
    .await?;
    let closed = sqlx::query(
        "DELETE FROM commits WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM commits WHERE at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
    )
    .bind(limits.commits)
    .bind(ROWS_AT_A_GO)
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() + closed.rows_affected())
}

/// The oldest transactions' moves, up to the first that is too young. The mark
/// is the highest that went.
async fn moves(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let row = sqlx::query(
        "WITH gone AS (
             DELETE FROM moves WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM (SELECT ctid, at FROM moves ORDER BY xid LIMIT $2) AS oldest WHERE at < $1))
             RETURNING xid
         )
         SELECT count(*), max(xid) FROM gone",
    )
    .bind(limits.moves)
    .bind(MOVES_AT_A_GO)
    .fetch_one(&mut *connection)
    .await?;
    if let Some(highest) = row.try_get::<Option<i64>, _>(1)? {
        move_mark(connection, "prune.moves", highest).await?;
    }
    Ok(row.get::<i64, _>(0).unsigned_abs())
}

/// The next rows behind a mark.
struct Window {
    after: i64,
    up_to: i64,
    rows: u64,
}

/// `ages` selects ages above `$1`, up to `$2`, in their order.
async fn window(
    connection: &mut PgConnection,
    mark: &str,
    ages: &str,
    until: i64,
) -> Result<Option<Window>, sqlx::Error> {
    let after: Option<i64> = sqlx::query_scalar("SELECT value::bigint FROM meta WHERE name = $1")
        .bind(mark)
        .fetch_optional(&mut *connection)
        .await?;
    let after = after.unwrap_or(i64::MIN);
    let text =
        format!("SELECT count(*) AS rows, max(age) AS up_to FROM ({ages} LIMIT {ROWS_AT_A_GO}) AS next");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(after).bind(until).fetch_one(connection).await?;
    let up_to: Option<i64> = row.try_get("up_to")?;
    Ok(up_to.map(|up_to| Window { after, up_to, rows: row.get::<i64, _>("rows").unsigned_abs() }))
}

async fn move_mark(connection: &mut PgConnection, mark: &str, to: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(mark)
    .bind(to.to_string())
    .execute(connection)
    .await
    .map(drop)
}

const CHANGES_BY_AGE: &str = "SELECT at AS age FROM changes WHERE at > $1 AND at <= $2 ORDER BY at";

async fn settled(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.settled";
    let Some(window) = window(connection, MARK, CHANGES_BY_AGE, limits.spared).await? else { return Ok(0) };
    let deleted = sqlx::query(
        "WITH gone AS (
             DELETE FROM changes AS old
             USING (SELECT user_id, session_key, max(version) AS version FROM changes
                    WHERE at > $1 AND at <= $2 GROUP BY user_id, session_key) AS new
             JOIN sessions AS s ON s.id = new.user_id::text || ':' || new.session_key
             WHERE old.user_id = new.user_id AND old.session_key = new.session_key AND old.version < new.version
                 AND old.at <= $3 AND old.version + $4 <= s.version
             RETURNING old.user_id, coalesce(octet_length(old.data), 0) AS bytes
         ), counted AS (
             UPDATE users SET kept_bytes = greatest(0, kept_bytes - freed.bytes)
             FROM (SELECT user_id, sum(bytes)::bigint AS bytes FROM gone GROUP BY user_id) AS freed
             WHERE users.id = freed.user_id
         )
         SELECT count(*) FROM gone",
    )
    .bind(window.after)
    .bind(window.up_to)
    .bind(limits.spared)
    .bind(limits.versions)
    .fetch_one(&mut *connection)
    .await?;
    move_mark(connection, MARK, window.up_to).await?;
    Ok(window.rows + deleted.get::<i64, _>(0).unsigned_abs())
}

async fn aged(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.aged";
    let Some(window) = window(connection, MARK, CHANGES_BY_AGE, limits.history).await? else { return Ok(0) };
    // What these superseded has been history since they came. Themselves they stay for as long as they are
    // current, and as long again.
    let deleted = sqlx::query(
        "WITH gone AS (
             DELETE FROM changes AS old
             USING (SELECT user_id, session_key, max(version) AS version FROM changes
                    WHERE at > $1 AND at <= $2 GROUP BY user_id, session_key) AS new
             WHERE old.user_id = new.user_id AND old.session_key = new.session_key AND old.version < new.version
             RETURNING old.user_id, coalesce(octet_length(old.data), 0) AS bytes
         ), counted AS (
             UPDATE users SET kept_bytes = greatest(0, kept_bytes - freed.bytes)
             FROM (SELECT user_id, sum(bytes)::bigint AS bytes FROM gone GROUP BY user_id) AS freed
             WHERE users.id = freed.user_id
         )
         SELECT count(*) FROM gone",
    )
    .bind(window.after)
    .bind(window.up_to)
    .fetch_one(&mut *connection)
    .await?;
    move_mark(connection, MARK, window.up_to).await?;
    Ok(window.rows + deleted.get::<i64, _>(0).unsigned_abs())
}

/// Users who have written lately are looked at for too much history. One who has
/// is looked at again in the next go, until that is no longer so.
async fn crowded_history(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.history";
    let Some(window) = window(connection, MARK, CHANGES_BY_AGE, limits.now).await? else { return Ok(0) };
    let crowded = sqlx::query(
        "SELECT u.id, u.kept_bytes - u.live_bytes - $3 AS bytes
         FROM (SELECT DISTINCT user_id FROM changes WHERE at > $1 AND at <= $2) AS lately
         JOIN users AS u ON u.id = lately.user_id
         WHERE u.kept_bytes - u.live_bytes > $3 LIMIT 1",
    )
    .bind(window.after)
    .bind(window.up_to)
    .bind(limits.history_bytes)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(crowded) = crowded else {
        move_mark(connection, MARK, window.up_to).await?;
        return Ok(window.rows);
    };
    let user: Uuid = crowded.try_get("id")?;
    let deleted = sqlx::query(
        "WITH oldest AS (
             SELECT c.ctid AS place, coalesce(octet_length(c.data), 0) AS bytes, c.seq FROM changes AS c
             JOIN sessions AS s ON s.id = c.user_id::text || ':' || c.session_key AND c.version < s.version
             WHERE c.user_id = $1 ORDER BY c.seq LIMIT $3
         ), gone AS (
             DELETE FROM changes WHERE ctid IN (
                 SELECT place FROM (SELECT place, sum(bytes) OVER (ORDER BY seq) - bytes AS freed FROM oldest) AS o
                 WHERE freed < $2)
             RETURNING coalesce(octet_length(data), 0) AS bytes
         ), freed AS (
             SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone
         ), counted AS (
             -- Without a row to free it was counted wrongly, by a program that did not count yet.
             UPDATE users SET kept_bytes = CASE WHEN freed.rows = 0 THEN live_bytes
                 ELSE greatest(0, kept_bytes - freed.bytes) END
             FROM freed WHERE users.id = $1
         )
         SELECT rows FROM freed",
    )
    .bind(user)
    .bind(crowded.try_get::<i64, _>("bytes")?)
    .bind(ROWS_AT_A_GO)
    .fetch_one(connection)
    .await?;
    Ok(deleted.get::<i64, _>(0).unsigned_abs().max(1))
}

/// What is kept of logins, devices, what ended and message ids.
async fn ended(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let ended = [
        ("message_ids", "at", limits.op_ids),
        ("revocations", "at", limits.revocations),
        ("logins", "expires_at", limits.ended_logins),
        ("logins", "revoked_at", limits.ended_logins),
        ("ended_tokens", "at", limits.ended_tokens),
        ("removed_users", "at", limits.ended_tokens),
        ("devices", "revoked_at", limits.revoked_devices),
    ];
    let mut pruned = 0;
    for (table, column, before) in ended {
        let text = format!(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM {table} WHERE {column} < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
        );
        // The text is put together from constants only.
        let deleted = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(before)
            .bind(ROWS_AT_A_GO)
            .execute(&mut *connection)
            .await?;
        pruned += deleted.rows_affected();
    }
    Ok(pruned)
}

async fn old_tombstones(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM sessions WHERE data IS NULL AND updated_at < $1 ORDER BY updated_at LIMIT $2",
    )
    .bind(limits.tombstones)
    .bind(ROWS_AT_A_GO)
    .fetch_all(&mut *connection)
    .await?;
    forget_tombstones(connection, &ids).await
}

/// Users who have made tombstones lately are counted. One with too many is
/// counted again in the next go, until it has not.
async fn crowded_tombstones(connection: &mut PgConnection, limits: &Limits) -> Result<u64, sqlx::Error> {
    const MARK: &str = "prune.crowded";
    let ages = "SELECT updated_at AS age FROM sessions
         WHERE data IS NULL AND updated_at > $1 AND updated_at <= $2 ORDER BY updated_at";
    let Some(window) = window(connection, MARK, ages, limits.spared).await? else { return Ok(0) };
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM (
             SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY seq DESC) AS place FROM sessions
             WHERE data IS NULL AND user_id IN (
                 SELECT user_id FROM sessions WHERE data IS NULL AND updated_at > $1 AND updated_at <= $2)
         ) AS placed WHERE place > $3 LIMIT $4",
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
    forget_tombstones(connection, &ids).await
}

/// Forgets what is still a tombstone of `ids`, with its history, and notes on
/// its user what a later catch-up and a returning key must know. Users whom a
/// writer holds have their turn later.
async fn forget_tombstones(connection: &mut PgConnection, ids: &[String]) -> Result<u64, sqlx::Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let free: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM users WHERE id IN (SELECT user_id FROM sessions WHERE id = ANY($1))
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
    )
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    // Locked: what the next statement sees of these users is final.
    let deleted = sqlx::query(
        "WITH gone AS (
             DELETE FROM sessions WHERE id = ANY($1) AND user_id = ANY($2) AND data IS NULL
             RETURNING user_id, session_key, version, seq
         ), history AS (
             DELETE FROM changes AS c USING gone
             WHERE c.user_id = gone.user_id AND c.session_key = gone.session_key
             RETURNING c.user_id, coalesce(octet_length(c.data), 0) AS bytes
         ), floors AS (
             UPDATE users SET version_floor = greatest(version_floor, top.version),
                 pruned_seq = greatest(pruned_seq, top.seq),
                 tombstones = greatest(0, tombstones - top.gone),
                 kept_bytes = greatest(0, kept_bytes - coalesce(freed.bytes, 0))
             FROM (SELECT user_id, max(version) AS version, max(seq) AS seq, count(*) AS gone
                   FROM gone GROUP BY user_id) AS top
             LEFT JOIN (SELECT user_id, sum(bytes)::bigint AS bytes FROM history GROUP BY user_id) AS freed
                 ON freed.user_id = top.user_id
             WHERE users.id = top.user_id
         )
         SELECT count(*) FROM gone",
    )
    .bind(ids)
    .bind(free)
    .fetch_one(connection)
    .await?;
    Ok(deleted.get::<i64, _>(0).unsigned_abs())
}
