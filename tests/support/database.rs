//! Looks into a node's database from outside, and lets time pass for what it holds: its records become older, and the
//! node forgets what is past its time.

use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// Eight days, in milliseconds: longer than history and tombstones are kept.
const EIGHT_DAYS_MS: i64 = 8 * 86_400_000;

/// A connection of the test's own to the database in `folder`.
pub async fn connection(folder: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.join("tandem.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// What SQLite says of the soundness of the database in `folder`: `ok`.
pub async fn integrity(folder: &Path) -> String {
    let mut database = connection(folder).await;
    sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap()
}

/// Makes everything that happened up to `seq`, of all users, eight days older; the node's database is in `folder`.
pub async fn age(folder: &Path, seq: u64) {
    let mut database = connection(folder).await;
    for statement in [
        "UPDATE changes SET at = at - ? WHERE seq <= ?",
        "UPDATE sessions SET updated_at = updated_at - ? WHERE seq <= ?",
    ] {
        sqlx::query(statement)
            .bind(EIGHT_DAYS_MS)
            .bind(seq.cast_signed())
            .execute(&mut database)
            .await
            .unwrap();
    }
    database.close().await.unwrap();
}
