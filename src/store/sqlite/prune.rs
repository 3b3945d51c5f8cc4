//! Forgetting what is past its time, in small transactions between which the
//! writer gets its turn.

use sqlx::sqlite::SqlitePool;

use crate::model::Timestamp;
use crate::store::Retention;

/// Rows that one transaction deletes: a few milliseconds.
const ROWS_AT_A_GO: i64 = 500;

/// One go; how many rows it deleted. Call again while that is not 0.
pub async fn prune(writer: &SqlitePool, retention: &Retention, now: Timestamp) -> Result<u64, sqlx::Error> {
    let before = |age: std::time::Duration| now.plus_ms(-(age.as_millis() as i64)).0;
    let op_ids = sqlx::query(
        "DELETE FROM op_ids WHERE (user_id, op_id) IN (SELECT user_id, op_id FROM op_ids WHERE at < ? LIMIT ?)",
    )
    .bind(before(retention.op_ids))
    .bind(ROWS_AT_A_GO)
    .execute(writer)
    .await?;
    // The current version of a key stays: it is the base of the next merge.
    let changes = sqlx::query(
        "DELETE FROM changes WHERE id IN (
             SELECT c.id FROM changes AS c
             JOIN sessions AS s ON s.user_id = c.user_id AND s.session_key = c.session_key
             WHERE c.at < ?1 AND (c.at < ?2 OR c.version + ?3 <= s.version) AND c.version < s.version
             LIMIT ?4)",
    )
    .bind(before(retention.spared))
    .bind(before(retention.history))
    .bind(retention.versions_per_key)
    .bind(ROWS_AT_A_GO)
    .execute(writer)
    .await?;
    let ended = [
        (
            "DELETE FROM revocations WHERE id IN (SELECT id FROM revocations WHERE at < ? LIMIT ?)",
            retention.revocations,
        ),
        (
            "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE expires_at < ? LIMIT ?)",
            retention.ended_logins,
        ),
        (
            "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE revoked_at < ? LIMIT ?)",
            retention.ended_logins,
        ),
        (
            "DELETE FROM devices WHERE id IN (SELECT id FROM devices WHERE revoked_at < ? LIMIT ?)",
            retention.revoked_devices,
        ),
    ];
    let mut pruned = op_ids.rows_affected() + changes.rows_affected();
    for (statement, age) in ended {
        let deleted = sqlx::query(statement).bind(before(age)).bind(ROWS_AT_A_GO).execute(writer).await?;
        pruned += deleted.rows_affected();
    }
    Ok(pruned)
}
