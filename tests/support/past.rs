//! Lets time pass for what a database holds: its records become older, and the node forgets what is past its time.

use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// Eight days, in milliseconds: longer than history and tombstones are kept.
const EIGHT_DAYS_MS: i64 = 8 * 86_400_000;

/// Makes everything that happened up to `seq`, of all users, eight days older; the node's database is in `folder`.
pub async fn age(folder: &Path, seq: u64) {
    let options = SqliteConnectOptions::new().filename(folder.join("tandem.db"));
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
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
