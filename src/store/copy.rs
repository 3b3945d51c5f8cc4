//! `tandem copy`: everything of an SQLite database into an empty PostgreSQL one, for those who outgrow one machine.
//!
//! Nothing else may have the source open, and no node opens the target before the copy is whole. Users come over in the
//! order of their ids, a group in one transaction, so an interrupted copy goes on behind the last of them. In the end
//! every row is read back from both sides and compared. Versions, seqs, history, logins and the epoch stay as they are:
//! clients go on where they were.

mod tables;

use std::path::Path;

use anyhow::{Context, bail, ensure};
use futures_util::{Stream, TryStreamExt};
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgArguments, PgConnection, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteConnection, SqliteLockingMode, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

use self::tables::{Kind, REMOVED_USERS, TABLES, Table};
use super::Bounds;
use super::postgres::{self, holdable};
use super::sqlite::{self, SqliteStore};
use crate::model::Secret;

/// Users that come over in one transaction.
const USERS_AT_ONCE: i64 = 50;

/// Rows and bytes of text that one statement inserts.
const ROWS_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 4 << 20;

/// Held while a copy runs, so that two do not run into one target. Any number that nothing else uses.
const ADVISORY_LOCK: i64 = 0x7461_6e64_656d_6370;

/// A value of a row, on whichever side.
enum Field {
    Uuid(Option<Uuid>),
    Text(Option<String>),
    Int(Option<i64>),
    Bytes(Option<Vec<u8>>),
    Flag(bool),
}

impl Field {
    /// From the source, as the target can hold it.
    fn of_sqlite(row: &SqliteRow, at: usize, kind: Kind) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Uuid => {
                let text: Option<&str> = row.try_get(at)?;
                Field::Uuid(text.map(Uuid::parse_str).transpose()?)
            }
            Kind::Text => {
                let text: Option<&str> = row.try_get(at)?;
                Field::Text(text.map(|text| holdable(text).into_owned()))
            }
            Kind::Int => Field::Int(row.try_get(at)?),
            Kind::Bytes => Field::Bytes(row.try_get(at)?),
            Kind::Flag => Field::Flag(row.try_get::<i64, _>(at)? != 0),
        })
    }

    fn of_postgres(row: &PgRow, at: usize, kind: Kind) -> Result<Self, sqlx::Error> {
        Ok(match kind {
            Kind::Uuid => Field::Uuid(row.try_get(at)?),
            Kind::Text => Field::Text(row.try_get(at)?),
            Kind::Int => Field::Int(row.try_get(at)?),
            Kind::Bytes => Field::Bytes(row.try_get(at)?),
            Kind::Flag => Field::Flag(row.try_get(at)?),
        })
    }

    /// Adds it to a checksum so that no two different rows look alike.
    fn digest(&self, sum: &mut Sha256) {
        let mut value = |bytes: Option<&[u8]>| match bytes {
            None => sum.update([0]),
            Some(bytes) => {
                sum.update([1]);
                sum.update(bytes.len().to_be_bytes());
                sum.update(bytes);
            }
        };
        match self {
            Field::Uuid(id) => value(id.as_ref().map(|id| id.as_bytes().as_slice())),
            Field::Text(text) => value(text.as_deref().map(str::as_bytes)),
            Field::Int(number) => value(number.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice)),
            Field::Bytes(bytes) => value(bytes.as_deref()),
            Field::Flag(flag) => value(Some(&[u8::from(*flag)])),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Field::Text(Some(text)) => text.len(),
            Field::Bytes(Some(bytes)) => bytes.len(),
            _ => 16,
        }
    }
}

/// How far a copy is, in rows.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What it does now.
    pub doing: &'static str,
    /// Rows done.
    pub done: u64,
    /// Rows in all.
    pub total: u64,
}

/// What came over.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Users.
    pub users: u64,
    /// Rows of all tables.
    pub rows: u64,
}

/// Copies the SQLite database at `from` into the PostgreSQL database at `to`, or goes on with it.
///
/// # Errors
/// With a sentence for the operator: something else has the source open, the target holds other records or is being
/// copied into, a side fails, or what arrived is not what was sent.
pub async fn copy(
    from: &Path,
    to: &Secret,
    bounds: Bounds,
    mut progress: impl FnMut(Progress),
) -> anyhow::Result<Copied> {
    let mut source = Source::open(from, bounds).await?;
    let mut target = Target::open(to, &source.epoch).await?;
    let total = source.rows().await?;
    let mut done = target.rows().await?;
    loop {
        progress(Progress { doing: "copying", done, total });
        let users = source.users_after(target.last_user().await?).await?;
        if users.is_empty() {
            break;
        }
        done += target.take(&mut source, &users).await?;
    }
    target.take_removed_users(&mut source).await?;
    let mut done = 0;
    for table in TABLES {
        progress(Progress { doing: "verifying", done, total });
        let (ours, theirs) = (source.checksum(table).await?, target.checksum(table).await?);
        ensure!(
            ours == theirs,
            "{}: {} rows here and {} there, or rows that differ; the source has changed since an earlier attempt, or \
             somebody writes to the target. Empty the target and begin again.",
            table.name,
            ours.rows,
            theirs.rows
        );
        done += ours.rows;
    }
    progress(Progress { doing: "verifying", done, total });
    let users = target.finish(&source.epoch).await?;
    Ok(Copied { users, rows: done })
}

/// Rows of a table and a sum over them that does not depend on their order.
#[derive(Default, PartialEq, Eq)]
struct Checksum {
    rows: u64,
    sum: u128,
}

impl Checksum {
    fn add(&mut self, fields: &[Field]) {
        let mut digest = Sha256::new();
        fields.iter().for_each(|field| field.digest(&mut digest));
        let digest: [u8; 32] = digest.finalize().into();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = digest;
        self.rows += 1;
        self.sum =
            self.sum.wrapping_add(u128::from_be_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]));
    }
}

/// The SQLite side, which nobody else may have open.
struct Source {
    connection: SqliteConnection,
    epoch: String,
}

impl Source {
    async fn open(path: &Path, bounds: Bounds) -> anyhow::Result<Self> {
        ensure!(path.exists(), "there is no database at {}", path.display());
        let options = sqlite::file(path).locking_mode(SqliteLockingMode::Exclusive);
        let held = "something has the source open: stop its nodes and Litestream first";
        // Before anything is changed: whether it is free.
        let mut probe =
            SqliteConnection::connect_with(&options).await.context("the source cannot be opened")?;
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut probe).await.context(held)?;
        sqlx::query("ROLLBACK").execute(&mut probe).await?;
        probe.close().await?;
        // As a node would: brings its schema up to date, and finds out whether its past is the one that clients know.
        let store = SqliteStore::open(path, true, bounds).await.context("the source cannot be opened")?;
        super::Store::close(&store).await;
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection).await.context(held)?;
        sqlite::must_know_all(&mut connection).await.context("the source cannot be copied")?;
        let epoch = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'epoch'")
            .fetch_one(&mut connection)
            .await?;
        Ok(Self { connection, epoch })
    }

    async fn rows(&mut self) -> anyhow::Result<u64> {
        let counted: i64 = sqlx::query_scalar(tables::count()).fetch_one(&mut self.connection).await?;
        Ok(counted.cast_unsigned())
    }

    async fn users_after(&mut self, after: Option<Uuid>) -> anyhow::Result<Vec<String>> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        Ok(sqlx::query_scalar("SELECT id FROM users WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(USERS_AT_ONCE)
            .fetch_all(&mut self.connection)
            .await?)
    }

    async fn checksum(&mut self, table: &Table) -> anyhow::Result<Checksum> {
        let mut rows = sqlx::query(table.select("")).fetch(&mut self.connection);
        let mut checksum = Checksum::default();
        while let Some(row) = rows.try_next().await? {
            checksum.add(&fields_of_sqlite(&row, table)?);
        }
        Ok(checksum)
    }
}

fn fields_of_sqlite(row: &SqliteRow, table: &Table) -> anyhow::Result<Vec<Field>> {
    let fields = table.columns.iter().enumerate();
    fields
        .map(|(at, (name, kind))| {
            Field::of_sqlite(row, at, *kind).with_context(|| format!("{}.{name} cannot be read", table.name))
        })
        .collect()
}

/// The PostgreSQL side, which no node opens while `meta` says that a copy is under way.
struct Target {
    connection: PgConnection,
}

impl Target {
    async fn open(url: &Secret, epoch: &str) -> anyhow::Result<Self> {
        let mut connection = postgres::open_for_copy(url).await?;
        let is_alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(ADVISORY_LOCK)
            .fetch_one(&mut connection)
            .await?;
        ensure!(is_alone, "another copy into the target is under way");
        let begun = postgres::copy_under_way(&mut connection).await?;
        match begun.as_deref() {
            Some(begun) if begun == epoch => {}
            Some(_) => bail!("the target holds a part of another database: empty it and begin again"),
            None => {
                let holds_some: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users)")
                    .fetch_one(&mut connection)
                    .await?;
                ensure!(!holds_some, "the target holds users already; a copy goes into an empty database");
                sqlx::query("INSERT INTO meta (name, value) VALUES ('copying', $1)")
                    .bind(epoch)
                    .execute(&mut connection)
                    .await?;
            }
        }
        Ok(Self { connection })
    }

    async fn last_user(&mut self) -> anyhow::Result<Option<Uuid>> {
        let last = sqlx::query_scalar("SELECT id FROM users ORDER BY id DESC LIMIT 1");
        Ok(last.fetch_optional(&mut self.connection).await?)
    }

    async fn rows(&mut self) -> anyhow::Result<u64> {
        let counted: i64 = sqlx::query_scalar(tables::count()).fetch_one(&mut self.connection).await?;
        Ok(counted.cast_unsigned())
    }

    /// All of these users' rows, in one transaction. Returns how many.
    async fn take(&mut self, source: &mut Source, users: &[String]) -> anyhow::Result<u64> {
        let users = serde_json::to_string(users)?;
        let mut transaction = self.connection.begin().await?;
        let mut taken = 0;
        for table in TABLES.iter().filter(|table| !table.user.is_empty()) {
            let of_users =
                format!("WHERE {} IN (SELECT value FROM json_each(?)) ORDER BY {}", table.user, table.order);
            let rows = sqlx::query(table.select(&of_users)).bind(&users).fetch(&mut source.connection);
            taken += pass_on(rows, &mut transaction, table).await?;
        }
        transaction.commit().await?;
        Ok(taken)
    }

    /// Also when an earlier attempt had got that far.
    async fn take_removed_users(&mut self, source: &mut Source) -> anyhow::Result<()> {
        let mut transaction = self.connection.begin().await?;
        sqlx::query("DELETE FROM removed_users").execute(&mut *transaction).await?;
        let rows = sqlx::query(REMOVED_USERS.select("")).fetch(&mut source.connection);
        pass_on(rows, &mut transaction, &REMOVED_USERS).await?;
        Ok(transaction.commit().await?)
    }

    async fn checksum(&mut self, table: &Table) -> anyhow::Result<Checksum> {
        let mut rows = sqlx::query(table.select("")).fetch(&mut self.connection);
        let mut checksum = Checksum::default();
        while let Some(row) = rows.try_next().await? {
            let fields = table.columns.iter().enumerate();
            let fields: Result<Vec<_>, _> =
                fields.map(|(at, (_, kind))| Field::of_postgres(&row, at, *kind)).collect();
            checksum.add(&fields?);
        }
        Ok(checksum)
    }

    /// From here on nodes may open it, and clients find the epoch that they know. Returns the users.
    async fn finish(mut self, epoch: &str) -> anyhow::Result<u64> {
        let mut transaction = self.connection.begin().await?;
        sqlx::query("UPDATE meta SET value = $1 WHERE name = 'epoch'")
            .bind(epoch)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM meta WHERE name = 'copying'").execute(&mut *transaction).await?;
        let users: i64 =
            sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        // Plans made for empty tables would be bad ones.
        sqlx::query("ANALYZE").execute(&mut self.connection).await?;
        self.connection.close().await?;
        Ok(users.cast_unsigned())
    }
}

/// Inserts rows of the source as they come, many at once. Returns how many.
async fn pass_on(
    mut rows: impl Stream<Item = Result<SqliteRow, sqlx::Error>> + Unpin,
    target: &mut PgConnection,
    table: &Table,
) -> anyhow::Result<u64> {
    let mut passed = 0;
    let mut waiting = Rows::of(table);
    while let Some(row) = rows.try_next().await? {
        waiting.push(fields_of_sqlite(&row, table)?);
        passed += 1;
        if waiting.count >= ROWS_AT_ONCE || waiting.bytes >= BYTES_AT_ONCE {
            std::mem::replace(&mut waiting, Rows::of(table)).insert(target, table).await?;
        }
    }
    waiting.insert(target, table).await?;
    Ok(passed)
}

/// Rows that wait to be inserted by one statement, column by column.
struct Rows {
    columns: Vec<Column>,
    count: usize,
    bytes: usize,
}

enum Column {
    Uuid(Vec<Option<Uuid>>),
    Text(Vec<Option<String>>),
    Int(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Flag(Vec<bool>),
}

impl Rows {
    fn of(table: &Table) -> Self {
        let column = |kind: Kind| match kind {
            Kind::Uuid => Column::Uuid(Vec::new()),
            Kind::Text => Column::Text(Vec::new()),
            Kind::Int => Column::Int(Vec::new()),
            Kind::Bytes => Column::Bytes(Vec::new()),
            Kind::Flag => Column::Flag(Vec::new()),
        };
        Self { columns: table.columns.iter().map(|(_, kind)| column(*kind)).collect(), count: 0, bytes: 0 }
    }

    fn push(&mut self, fields: Vec<Field>) {
        self.count += 1;
        for (column, field) in self.columns.iter_mut().zip(fields) {
            self.bytes += field.bytes();
            match (column, field) {
                (Column::Uuid(column), Field::Uuid(field)) => column.push(field),
                (Column::Text(column), Field::Text(field)) => column.push(field),
                (Column::Int(column), Field::Int(field)) => column.push(field),
                (Column::Bytes(column), Field::Bytes(field)) => column.push(field),
                (Column::Flag(column), Field::Flag(field)) => column.push(field),
                _ => unreachable!("both were made of the table's kinds"),
            }
        }
    }

    async fn insert(self, connection: &mut PgConnection, table: &Table) -> Result<(), sqlx::Error> {
        if self.count == 0 {
            return Ok(());
        }
        let names = table.column_names();
        let arrays = table.columns.iter().enumerate();
        let arrays: Vec<_> = arrays.map(|(at, (_, kind))| format!("${}::{}", at + 1, kind.array())).collect();
        let text = format!(
            "INSERT INTO {} ({names}) SELECT {names} FROM unnest({}) WITH ORDINALITY AS r ({names}, place) ORDER BY place",
            table.name,
            arrays.join(", ")
        );
        let insert = sqlx::query(AssertSqlSafe(text));
        self.columns.into_iter().fold(insert, bind).execute(connection).await.map(drop)
    }
}

fn bind(insert: Query<'_, Postgres, PgArguments>, column: Column) -> Query<'_, Postgres, PgArguments> {
    match column {
        Column::Uuid(column) => insert.bind(column),
        Column::Text(column) => insert.bind(column),
        Column::Int(column) => insert.bind(column),
        Column::Bytes(column) => insert.bind(column),
        Column::Flag(column) => insert.bind(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_tells_apart_what_only_looks_alike() {
        let sum = |fields: &[Field]| {
            let mut checksum = Checksum::default();
            checksum.add(fields);
            checksum.sum
        };
        let text = |text: &str| Field::Text(Some(text.to_owned()));
        assert_ne!(sum(&[text("a"), text("bc")]), sum(&[text("ab"), text("c")]));
        assert_ne!(sum(&[Field::Text(None)]), sum(&[text("")]));
        assert_ne!(sum(&[Field::Int(Some(1))]), sum(&[Field::Int(Some(2))]));
    }
}
