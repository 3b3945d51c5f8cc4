//! Small pieces that SQLite's statements share: ids as text, lists as one JSON
//! parameter, many rows in few statements, and several statements in one piece.

use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteQueryResult, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Either, Encode, Executor, Row, Type};

use super::marker::Mark;
use crate::model::{ConnectionId, DeviceId, Epoch, JsonText, Seq, SessionKey, Timestamp, UserId, Version};

/// Rows that one statement of [`insert_all`] inserts, biggest first: rows are cut into
/// these, so that only few statement texts exist and each stays prepared.
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

/// How rows are inserted.
pub struct Insert {
    /// What comes before the first row's values.
    pub head: &'static str,
    /// One row's `(?, ?)`.
    pub row: &'static str,
    /// What follows the last row's.
    pub tail: &'static str,
}

/// Statements, and their values in order, that go to the connection's thread in
/// one piece. The way there and back costs two changes of thread, which is more
/// than a small statement does.
#[derive(Default)]
pub struct Script {
    /// Put together from constants only.
    text: String,
    statements: usize,
    values: SqliteArguments,
}

impl Script {
    /// Adds a statement; its values follow, as many as it has nameless `?`. A number
    /// would count from the script's first value, and one value too few would be null.
    pub fn push(&mut self, statement: &'static str) -> &mut Self {
        self.text.push_str(statement);
        self.text.push_str(";\n");
        self.statements += 1;
        self
    }

    /// Adds one statement that inserts `rows`, if there are any; `bind` adds one
    /// row's values.
    pub fn insert<T>(&mut self, insert: &Insert, rows: &[T], bind: impl Fn(&mut Self, &T)) {
        if rows.is_empty() {
            return;
        }
        let rest = format!(", {}", insert.row).repeat(rows.len() - 1);
        self.text.extend([insert.head, " ", insert.row, &rest, insert.tail, ";\n"]);
        self.statements += 1;
        rows.iter().for_each(|row| bind(self, row));
    }

    /// Adds a value.
    pub fn bind<'t>(&mut self, value: impl Encode<'t, Sqlite> + Type<Sqlite>) -> &mut Self {
        self.values.add(value).expect("texts, numbers and blobs can always be encoded");
        self
    }

    /// How many it has.
    pub fn statements(&self) -> usize {
        self.statements
    }

    /// Runs it: the rows of all statements, and a summary after the last of each.
    pub fn run(
        self,
        connection: &mut SqliteConnection,
    ) -> BoxStream<'_, Result<Either<SqliteQueryResult, SqliteRow>, sqlx::Error>> {
        connection.fetch_many(sqlx::query_with(AssertSqlSafe(self.text), self.values))
    }

    /// Runs it; the rows of all statements.
    pub async fn fetch_all(self, connection: &mut SqliteConnection) -> Result<Vec<SqliteRow>, sqlx::Error> {
        self.run(connection).try_filter_map(|item| std::future::ready(Ok(item.right()))).try_collect().await
    }

    /// Runs what gives no rows, if there is anything to run.
    pub async fn finish(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.statements > 0 {
            self.run(connection).try_for_each(|_| std::future::ready(Ok(()))).await?;
        }
        Ok(())
    }
}

/// Inserts `rows` with as few statements as their number allows, one after the other.
pub async fn insert_all<T>(
    connection: &mut SqliteConnection,
    insert: &Insert,
    rows: &[T],
    bind: impl Fn(&mut Script, &T),
) -> Result<(), sqlx::Error> {
    let mut left = rows;
    while !left.is_empty() {
        let size = CHUNKS.iter().copied().find(|size| *size <= left.len()).unwrap_or(1);
        let (now, later) = left.split_at(size);
        let mut script = Script::default();
        script.insert(insert, now, &bind);
        script.finish(connection).await?;
        left = later;
    }
    Ok(())
}

/// The epoch and how far the database is.
pub const MARK: &str =
    "SELECT value AS epoch, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS commits
     FROM meta WHERE name = 'epoch'";

/// Reads [`MARK`].
pub async fn mark(connection: &mut SqliteConnection) -> Result<Mark, sqlx::Error> {
    mark_of(&sqlx::query(MARK).fetch_one(connection).await?)
}

/// A row of [`MARK`].
pub fn mark_of(row: &SqliteRow) -> Result<Mark, sqlx::Error> {
    Ok(Mark { epoch: epoch(row, "epoch")?, commits: number(row, "commits")? })
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

/// A connection id that may be null.
pub fn connection(row: &SqliteRow, column: &str) -> Result<Option<ConnectionId>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| parse_uuid(column, text).map(ConnectionId)).transpose()
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
