//! Forgetting what is past its time, in small transactions between which the
//! writer gets its turn.
//!
//! Nothing scans. Changes are walked in the order of their commits, with marks
//! in `meta` for how far: as they leave the time in which every version is kept,
//! when they push out the versions before them that are too many; as they leave
//! the history, when they push out all that they superseded; and at once, to look at the users who made
//! them for too much history or too many tombstones. What a clock that ran ahead
//! dated past now is passed over; it goes with its key's next change.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};

use super::sql::{json_list, number};
use crate::model::Timestamp;
use crate::store::Retention;

/// Rows that one transaction looks at, or deletes: a few milliseconds.
const ROWS_AT_A_GO: usize = 500;

/// Bytes of states that one transaction deletes, unless a single one has more:
/// SQLite reads the pages that it frees.
const BYTES_AT_A_GO: u64 = 2 << 20;

/// One transaction each.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Op ids that nobody repeats any more.
    OpIds,
    /// Versions that newer ones push out.
    Settled,
    /// Versions past the history's age.
    Aged,
    /// Users with too much history or too many tombstones.
    Crowded,
    /// Tombstones past their age.
    OldTombstones,
    /// What is kept of logins, devices and what ended.
    Ended,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OpIds, Self::Settled, Self::Aged, Self::Crowded, Self::OldTombstones, Self::Ended];

    /// Does one go of it in a transaction; how many rows it went through. Call
    /// again, in the next one, while that is not 0.
    pub async fn transact(
        self,
        connection: &mut SqliteConnection,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let gone_through = self.run(&mut transaction, retention, now).await?;
        transaction.commit().await?;
        Ok(gone_through)
    }

    async fn run(
        self,
        connection: &mut SqliteConnection,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let go = Go { retention, now };
        match self {
            Self::OpIds => go.op_ids(connection).await,
            Self::Settled => go.settled(connection).await,
            Self::Aged => go.aged(connection).await,
            Self::Crowded => go.crowded(connection).await,
            Self::OldTombstones => go.old_tombstones(connection).await,
            Self::Ended => go.ended(connection).await,
        }
    }
}

struct Go<'a> {
    retention: &'a Retention,
    now: Timestamp,
}

/// The next changes behind a mark.
struct Window {
    after: i64,
    up_to: i64,
    rows: u64,
}

/// Rows of changes that are to go, as many as fit into one transaction.
#[derive(Default)]
struct Condemned {
    ids: Vec<i64>,
    bytes_by_user: HashMap<String, u64>,
    bytes: u64,
    /// More are to go; they come next time.
    is_cut: bool,
}

impl Condemned {
    /// Of `rows` (`id`, `user_id`, `bytes`) the first that fit, or, of one user's
    /// oldest, those that free `enough` bytes.
    fn of(rows: &[SqliteRow], enough: u64) -> Result<Self, sqlx::Error> {
        let mut condemned = Self { is_cut: rows.len() >= ROWS_AT_A_GO, ..Self::default() };
        for row in rows {
            if condemned.bytes >= BYTES_AT_A_GO.min(enough) {
                condemned.is_cut = true;
                break;
            }
            let bytes = number(row, "bytes")?;
            condemned.ids.push(row.try_get("id")?);
            *condemned.bytes_by_user.entry(row.try_get("user_id")?).or_default() += bytes;
            condemned.bytes += bytes;
        }
        Ok(condemned)
    }

    async fn delete(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.ids.is_empty() {
            return Ok(());
        }
        sqlx::query("DELETE FROM changes WHERE id IN (SELECT value FROM json_each(?))")
            .bind(json_list(&self.ids))
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "UPDATE users SET kept_bytes = max(0, users.kept_bytes - (gone.value ->> 1))
             FROM json_each(?) AS gone WHERE users.id = gone.value ->> 0",
        )
        .bind(json_list(&self.bytes_by_user))
        .execute(connection)
        .await
        .map(drop)
    }
}

impl Go<'_> {
    fn before(&self, age: Duration) -> i64 {
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        self.now.0.saturating_sub(age_ms)
    }

    async fn op_ids(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let deleted = sqlx::query(
            "DELETE FROM op_ids WHERE (user_id, op_id) IN
                 (SELECT user_id, op_id FROM op_ids WHERE at < ? ORDER BY at LIMIT ?)",
        )
        .bind(self.before(self.retention.op_ids))
        .bind(rows_at_a_go())
        .execute(connection)
        .await?;
        Ok(deleted.rows_affected())
    }

    /// Changes that have left the time in which every version is kept push out
    /// those of their key that are too many.
    async fn settled(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        const MARK: &str = "prune.settled";
        let spared = self.before(self.retention.spared);
        let Some(window) = self.window(connection, MARK, Some(spared)).await? else { return Ok(0) };
        let rows = sqlx::query(
            "SELECT old.id, old.user_id, octet_length(old.data) AS bytes
             FROM (SELECT user_id, session_key, max(version) AS version FROM changes
                   WHERE id > ?1 AND id <= ?2 GROUP BY user_id, session_key) AS new
             CROSS JOIN sessions AS s ON s.id = new.user_id || ':' || new.session_key
             CROSS JOIN changes AS old ON old.user_id = new.user_id AND old.session_key = new.session_key
                 AND old.version < new.version
             WHERE old.at <= ?3 AND old.version + ?4 <= s.version LIMIT ?5",
        )
        .bind(window.after)
        .bind(window.up_to)
        .bind(spared)
        .bind(i64::from(self.retention.versions_per_key))
        .bind(rows_at_a_go())
        .fetch_all(&mut *connection)
        .await?;
        self.condemn(connection, MARK, &window, &rows).await
    }

    /// Changes that have been there for as long as history is kept push out what
    /// they superseded, whose time has run since then. Themselves they stay for as
    /// long as they are current, and as long again.
    async fn aged(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        const MARK: &str = "prune.aged";
        let limit = self.before(self.retention.history);
        let Some(window) = self.window(connection, MARK, Some(limit)).await? else { return Ok(0) };
        let rows = sqlx::query(
            "SELECT old.id, old.user_id, octet_length(old.data) AS bytes
             FROM (SELECT user_id, session_key, max(version) AS version FROM changes
                   WHERE id > ? AND id <= ? AND at <= ? GROUP BY user_id, session_key) AS new
             CROSS JOIN changes AS old ON old.user_id = new.user_id AND old.session_key = new.session_key
                 AND old.version < new.version
             LIMIT ?",
        )
        .bind(window.after)
        .bind(window.up_to)
        .bind(limit)
        .bind(rows_at_a_go())
        .fetch_all(&mut *connection)
        .await?;
        self.condemn(connection, MARK, &window, &rows).await
    }

    async fn condemn(
        &self,
        connection: &mut SqliteConnection,
        mark: &str,
        window: &Window,
        rows: &[SqliteRow],
    ) -> Result<u64, sqlx::Error> {
        let condemned = Condemned::of(rows, u64::MAX)?;
        condemned.delete(connection).await?;
        if !condemned.is_cut {
            move_mark(connection, mark, window.up_to).await?;
        }
        Ok(window.rows + condemned.ids.len() as u64)
    }

    /// The changes behind `mark`, at most until one is younger than `limit`.
    async fn window(
        &self,
        connection: &mut SqliteConnection,
        mark: &str,
        limit: Option<i64>,
    ) -> Result<Option<Window>, sqlx::Error> {
        let after: Option<i64> = sqlx::query_scalar("SELECT CAST(value AS INTEGER) FROM meta WHERE name = ?")
            .bind(mark)
            .fetch_optional(&mut *connection)
            .await?;
        let after = after.unwrap_or(0);
        let next: Vec<(i64, i64)> =
            sqlx::query_as("SELECT id, at FROM changes WHERE id > ? ORDER BY id LIMIT ?")
                .bind(after)
                .bind(rows_at_a_go())
                .fetch_all(connection)
                .await?;
        let has_left = |at: i64| limit.is_none_or(|limit| at <= limit) || at > self.now.0;
        let left: Vec<_> = next.into_iter().take_while(|(_, at)| has_left(*at)).collect();
        Ok(left.last().map(|(up_to, _)| Window { after, up_to: *up_to, rows: left.len() as u64 }))
    }

    /// Users who have written lately are looked at. One who has too much is
    /// looked at again in the next go, until that is no longer so.
    async fn crowded(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        const MARK: &str = "prune.crowded";
        let Some(window) = self.window(connection, MARK, None).await? else { return Ok(0) };
        let crowded = sqlx::query(
            "SELECT u.id, u.kept_bytes - u.live_bytes - ?3 AS bytes, u.tombstones - ?4 AS tombstones
             FROM (SELECT DISTINCT user_id FROM changes WHERE id > ?1 AND id <= ?2) AS lately
             CROSS JOIN users AS u ON u.id = lately.user_id
             WHERE u.kept_bytes - u.live_bytes > ?3 OR u.tombstones > ?4 LIMIT 1",
        )
        .bind(window.after)
        .bind(window.up_to)
        .bind(i64::try_from(self.retention.history_bytes_per_user).unwrap_or(i64::MAX))
        .bind(i64::from(self.retention.tombstones_per_user))
        .fetch_optional(&mut *connection)
        .await?;
        let Some(crowded) = crowded else {
            move_mark(connection, MARK, window.up_to).await?;
            return Ok(window.rows);
        };
        let user: &str = crowded.try_get("id")?;
        let (bytes, tombstones) = (number(&crowded, "bytes")?, number(&crowded, "tombstones")?);
        let mut gone = 0;
        if bytes > 0 {
            gone += free_history(connection, user, bytes).await?;
        }
        if tombstones > 0 {
            gone += free_tombstones(connection, user, tombstones).await?;
        }
        Ok(gone)
    }

    async fn old_tombstones(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM sessions WHERE data IS NULL AND updated_at < ? ORDER BY updated_at LIMIT ?",
        )
        .bind(self.before(self.retention.tombstones))
        .bind(rows_at_a_go())
        .fetch_all(&mut *connection)
        .await?;
        forget_tombstones(connection, ids).await
    }

    async fn ended(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let ended = [
            (
                "DELETE FROM message_ids WHERE (user_id, message_id, device_id) IN
                     (SELECT user_id, message_id, device_id FROM message_ids WHERE at < ? ORDER BY at LIMIT ?)",
                self.retention.op_ids,
            ),
            (
                "DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE at < ? LIMIT ?)",
                self.retention.revocations,
            ),
            (
                "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE expires_at < ? LIMIT ?)",
                self.retention.ended_logins,
            ),
            (
                "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE revoked_at < ? LIMIT ?)",
                self.retention.ended_logins,
            ),
            (
                "DELETE FROM ended_tokens WHERE login_id IN
                     (SELECT login_id FROM ended_tokens WHERE at < ? LIMIT ?)",
                self.retention.ended_tokens,
            ),
            (
                "DELETE FROM removed_users WHERE id IN (SELECT id FROM removed_users WHERE at < ? LIMIT ?)",
                self.retention.ended_tokens,
            ),
            (
                "DELETE FROM devices WHERE id IN (SELECT id FROM devices WHERE revoked_at < ? LIMIT ?)",
                self.retention.revoked_devices,
            ),
        ];
        let mut pruned = 0;
        for (statement, age) in ended {
            let deleted = sqlx::query(statement)
                .bind(self.before(age))
                .bind(rows_at_a_go())
                .execute(&mut *connection)
                .await?;
            pruned += deleted.rows_affected();
        }
        Ok(pruned)
    }
}

fn rows_at_a_go() -> i64 {
    ROWS_AT_A_GO as i64
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

/// Deletes the oldest of a user's superseded versions, `excess` bytes or as many
/// as fit.
async fn free_history(
    connection: &mut SqliteConnection,
    user: &str,
    excess: u64,
) -> Result<u64, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, user_id, octet_length(data) AS bytes FROM changes
         WHERE user_id = ? AND version <
             (SELECT s.version FROM sessions AS s WHERE s.id = changes.user_id || ':' || changes.session_key)
         ORDER BY seq LIMIT ?",
    )
    .bind(user)
    .bind(rows_at_a_go())
    .fetch_all(&mut *connection)
    .await?;
    let condemned = Condemned::of(&rows, excess)?;
    condemned.delete(connection).await?;
    if condemned.ids.is_empty() {
        // Counted wrongly, by a program that did not count yet.
        sqlx::query("UPDATE users SET kept_bytes = live_bytes WHERE id = ?")
            .bind(user)
            .execute(connection)
            .await?;
        return Ok(1);
    }
    Ok(condemned.ids.len() as u64)
}

/// Forgets the oldest of a user's tombstones, `excess` or as many as fit.
async fn free_tombstones(
    connection: &mut SqliteConnection,
    user: &str,
    excess: u64,
) -> Result<u64, sqlx::Error> {
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id FROM sessions WHERE user_id = ? AND data IS NULL ORDER BY seq LIMIT ?")
            .bind(user)
            .bind(rows_at_a_go().min(excess.cast_signed()))
            .fetch_all(&mut *connection)
            .await?;
    if ids.is_empty() {
        sqlx::query("UPDATE users SET tombstones = 0 WHERE id = ?").bind(user).execute(connection).await?;
        return Ok(1);
    }
    forget_tombstones(connection, ids).await
}

/// Forgets the tombstones `ids`, their history first and, when that is gone,
/// they themselves; and notes on their users what a later catch-up and a
/// returning key must know.
async fn forget_tombstones(connection: &mut SqliteConnection, ids: Vec<String>) -> Result<u64, sqlx::Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let ids = json_list(ids);
    let history = sqlx::query(
        "SELECT c.id, c.user_id, octet_length(c.data) AS bytes FROM json_each(?) AS gone
         CROSS JOIN sessions AS s ON s.id = gone.value
         CROSS JOIN changes AS c ON c.user_id = s.user_id AND c.session_key = s.session_key LIMIT ?",
    )
    .bind(&ids)
    .bind(rows_at_a_go())
    .fetch_all(&mut *connection)
    .await?;
    let condemned = Condemned::of(&history, u64::MAX)?;
    condemned.delete(connection).await?;
    if condemned.is_cut {
        return Ok(condemned.ids.len() as u64);
    }
    sqlx::query(
        "UPDATE users SET version_floor = max(users.version_floor, gone.version),
             pruned_seq = max(users.pruned_seq, gone.seq), tombstones = max(0, users.tombstones - gone.count)
         FROM (SELECT user_id, max(version) AS version, max(seq) AS seq, count(*) AS count FROM sessions
               WHERE id IN (SELECT value FROM json_each(?)) GROUP BY user_id) AS gone
         WHERE users.id = gone.user_id",
    )
    .bind(&ids)
    .execute(&mut *connection)
    .await?;
    let deleted = sqlx::query("DELETE FROM sessions WHERE id IN (SELECT value FROM json_each(?))")
        .bind(&ids)
        .execute(connection)
        .await?;
    Ok(condemned.ids.len() as u64 + deleted.rows_affected())
}
