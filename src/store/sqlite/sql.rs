//! Small pieces that SQLite's statements share: ids as text, lists as one JSON
//! parameter, and many rows in few statements.

use std::sync::Arc;

use sqlx::Row;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};

use super::marker::Mark;
use crate::model::{DeviceId, Epoch, JsonText, Seq, SessionKey, Timestamp, UserId, Version};

/// A statement before it runs.
pub type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Rows that one statement inserts, biggest first: a batch is cut into these,
/// so that only few statement texts exist and each stays prepared.
const CHUNKS: &[usize] = &[64, 16, 4, 1];

/// A list as one parameter for `json_each`.
pub fn json_list<T: serde::Serialize>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<T> = items.into_iter().collect();
    serde_json::to_string(&items).expect("ids and strings are always JSON")
}

/// The primary key of a session entry.
pub fn session_id(user: UserId, key: &SessionKey) -> String {
    format!("{user}:{key}")
}

/// Inserts `rows` with as few statements as their number allows.
///
/// `head` ends before the first row, `row` is one row's `(?, ?)`, `tail` follows
/// the last; `bind` adds one row's values in order.
pub async fn insert_all<'q, T>(
    connection: &mut SqliteConnection,
    (head, row, tail): (&str, &str, &str),
    rows: &'q [T],
    bind: impl Fn(Statement<'q>, &'q T) -> Statement<'q>,
) -> Result<(), sqlx::Error> {
    let mut left = rows;
    while !left.is_empty() {
        let size = CHUNKS.iter().copied().find(|size| *size <= left.len()).unwrap_or(1);
        let (now, later) = left.split_at(size);
        let text = format!("{head} {}{}{tail}", row, format!(", {row}").repeat(size - 1));
        // The text is put together from constants only.
        let statement = sqlx::query(sqlx::AssertSqlSafe(text));
        now.iter().fold(statement, &bind).execute(&mut *connection).await?;
        left = later;
    }
    Ok(())
}

/// The epoch and how far the database is.
pub async fn mark(connection: &mut SqliteConnection) -> Result<Mark, sqlx::Error> {
    let row = sqlx::query(
        "SELECT value AS epoch, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS commits
         FROM meta WHERE name = 'epoch'",
    )
    .fetch_one(connection)
    .await?;
    Ok(Mark { epoch: epoch(&row, "epoch")?, commits: number(&row, "commits")? })
}

/// A column that holds the epoch.
pub fn epoch(row: &SqliteRow, column: &str) -> Result<Epoch, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    Ok(Epoch(text.into()))
}

/// A column that holds a UUID.
pub fn uuid(row: &SqliteRow, column: &str) -> Result<uuid::Uuid, sqlx::Error> {
    parse_uuid(column, row.try_get(column)?)
}

/// A device id that may be null.
pub fn device(row: &SqliteRow, column: &str) -> Result<Option<DeviceId>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| parse_uuid(column, text).map(DeviceId)).transpose()
}

fn parse_uuid(column: &str, text: &str) -> Result<uuid::Uuid, sqlx::Error> {
    uuid::Uuid::try_parse(text)
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

/// A column that holds a seq.
pub fn seq(row: &SqliteRow, column: &str) -> Result<Seq, sqlx::Error> {
    number(row, column).map(Seq)
}

/// A column that holds a version.
pub fn version(row: &SqliteRow, column: &str) -> Result<Version, sqlx::Error> {
    number(row, column).map(Version)
}

/// A column that counts.
pub fn number(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// A column that holds a time.
pub fn time(row: &SqliteRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get(column).map(Timestamp)
}

/// A state that may be null.
pub fn state(row: &SqliteRow, column: &str) -> Result<Option<JsonText>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.map(Arc::from))
}

/// A session key.
pub fn key(row: &SqliteRow, column: &str) -> Result<SessionKey, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    SessionKey::parse(text).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: "not a session key".into(),
    })
}
