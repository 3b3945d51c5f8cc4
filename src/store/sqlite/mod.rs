//! The embedded store: one SQLite file in WAL mode.
//!
//! One writing connection a process, every writing transaction `BEGIN
//! IMMEDIATE`, `synchronous=FULL` (in WAL mode NORMAL loses acked commits in a
//! power cut). Several processes of one host may share the file. Readers have
//! connections of their own and never wait for the writer.

mod backup;
mod commit;
mod devices;
mod external;
mod logins;
mod marker;
mod messages;
mod prune;
mod read;
mod sql;
mod turn;
mod writing;

use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

use super::{
    Account, Bearer, Bounds, CatchUp, Command, Entry, HeadRead, Moved, MovedSince, Reply, Retention,
    Revocation, Selection, Snapshot, Store, StoreError, StoreResult, schema,
};
use crate::model::{Change, Device, DeviceId, Epoch, MessageId, Seq, SessionKey, Timestamp, UserId};
use crate::store::epochs::Epochs;
use crate::store::{MailboxDepth, WaitingMessage};

use marker::{Mark, Marker, Other};

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| schema::lenient(sqlx::migrate!("migrations/sqlite")));

/// How long a transaction waits for another process to finish its own.
const LOCK_WAIT: Duration = Duration::from_millis(1_500);

/// How long a call waits for a connection of the pool.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// Connections that only read.
const READERS: u32 = 4;

/// Pages of WAL after which SQLite copies them into the database file: 16 MiB,
/// so that the WAL stays well below 64 MiB under load.
const WAL_PAGES_BEFORE_CHECKPOINT: &str = "4096";

/// See the module's comment.
pub struct SqliteStore {
    writer: writing::Writer,
    readers: SqlitePool,
    options: SqliteConnectOptions,
    /// As last seen: another process on this file may begin a new one.
    epochs: Epochs,
    marker: Marker,
    bounds: Bounds,
}

impl SqliteStore {
    /// Opens or makes the file at `path`, and its folder, and migrates it.
    ///
    /// # Errors
    /// When the file cannot be opened, is too new for this program or is damaged.
    pub async fn open(path: &Path, full_sync: bool, bounds: Bounds) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let synchronous = if full_sync { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
        let options = file(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(LOCK_WAIT)
            .foreign_keys(true)
            .statement_cache_capacity(256)
            .pragma("wal_autocheckpoint", WAL_PAGES_BEFORE_CHECKPOINT)
            .pragma("journal_size_limit", "33554432");
        let marker = Marker::of(path).context("cannot write beside the database")?;
        let epoch = prepare(path, &options, &marker).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(POOL_WAIT)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None);
        Ok(Self {
            writer: writing::Writer::open(path, options.clone()).await?,
            readers: readers.connect_lazy_with(options.clone().pragma("query_only", "ON")),
            options,
            epochs: Epochs::new(epoch),
            marker,
            bounds,
        })
    }
}

/// The database at `path`, for every connection that this program opens. What SQLite needs for the time of a statement
/// only, such as the pages that a big one would take back if it failed, stays in memory: a container with a read-only
/// root has no folder for such files, and the statement would fail. A plain VACUUM, which copies the whole database
/// there, is therefore not for this program; `VACUUM INTO` writes to its target.
pub(super) fn file(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).pragma("temp_store", "MEMORY")
}

impl SqliteStore {
    async fn prune_step(
        &self,
        step: prune::Step,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let mut writing = self.writer.begin().await?;
        let gone_through = step.transact(&mut writing.connection, retention, now).await;
        writing.end(&gone_through).await;
        gone_through
    }
}

/// Migrates the database and reads or makes its epoch. Processes that start
/// together on one file do so one after the other.
async fn prepare(path: &Path, options: &SqliteConnectOptions, marker: &Marker) -> anyhow::Result<Epoch> {
    let lock_path = path.with_extension("lock");
    let lock = std::fs::File::create(&lock_path)
        .with_context(|| format!("cannot write beside the database: {}", lock_path.display()))?;
    tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;

    let mut connection = SqliteConnection::connect_with(options)
        .await
        .with_context(|| format!("cannot open the database {}", path.display()))?;
    MIGRATIONS.run_direct(None, &mut connection, false).await.context("cannot migrate the database")?;
    schema::check(schema::newest(&MIGRATIONS), &schema_of(&mut connection).await?)?;
    let made =
        sqlx::query("INSERT INTO meta (name, value) VALUES ('epoch', ?) ON CONFLICT (name) DO NOTHING")
            .bind(uuid::Uuid::new_v4().to_string())
            .execute(&mut connection)
            .await?;
    // In this order: other processes may be committing, and raise it only afterwards.
    let seen = marker.read().context("cannot read the marker beside the database")?;
    let mut mark = sql::mark(&mut connection).await?;
    let fits = match &seen {
        // Even an empty one may have been put back; only one that is made now has no past.
        None => made.rows_affected() == 1,
        Some(seen) => seen.epoch == mark.epoch && seen.commits <= mark.commits,
    };
    if !fits {
        mark = begin_epoch(&mut connection).await?;
        tracing::warn!(
            epoch = &*mark.epoch.0,
            "the database's past is not what clients saw: a new epoch begins, and they load everything anew"
        );
    }
    marker.raise(&mark, Other::Replace).await.context("cannot write the marker beside the database")?;
    connection.close().await?;
    Ok(mark.epoch)
}

async fn schema_of(connection: &mut SqliteConnection) -> Result<schema::Found, sqlx::Error> {
    let newest =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *connection).await?;
    let needed = sqlx::query_scalar("SELECT value FROM meta WHERE name = ?").bind(schema::NEEDED);
    Ok(schema::Found { newest, needed: needed.fetch_optional(connection).await? })
}

/// For who copies the database of `connection`: it has no table that this program does not know.
///
/// # Errors
/// When it may have one.
pub(super) async fn must_know_all(connection: &mut SqliteConnection) -> anyhow::Result<()> {
    schema::must_know_all(schema::newest(&MIGRATIONS), &schema_of(connection).await?)
}

/// Puts a new epoch in the place of the present one.
async fn begin_epoch(connection: &mut SqliteConnection) -> Result<Mark, sqlx::Error> {
    sqlx::query("UPDATE meta SET value = ? WHERE name = 'epoch'")
        .bind(uuid::Uuid::new_v4().to_string())
        .execute(&mut *connection)
        .await?;
    sql::mark(connection).await
}

/// What a failed statement means to the caller. Nothing of its transaction was
/// committed.
fn fault(error: sqlx::Error) -> StoreError {
    /// Primary result code of a database that is out of space.
    const SQLITE_FULL: u32 = 13;
    let primary_code = match &error {
        sqlx::Error::Database(database) => database.code().and_then(|code| u32::from_str(&code).ok()),
        _ => None,
    };
    tracing::debug!(%error, "a statement failed");
    match primary_code.map(|code| code & 0xff) {
        Some(SQLITE_FULL) => StoreError::Full,
        _ => StoreError::Unavailable { unknown: false },
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, batch: &[Command]) -> StoreResult<Vec<Reply>> {
        let mut writing = self.writer.begin().await.map_err(fault)?;
        let committed = commit::commit(&mut writing.connection, batch, &self.bounds).await;
        if let Ok((_, mark)) = &committed {
            if let Err(error) = self.marker.raise(mark, Other::Keep).await {
                tracing::warn!(%error, "the marker beside the database could not be raised");
            }
            self.epochs.saw(&mark.epoch);
        }
        writing.end(&committed).await;
        committed.map(|(replies, _)| replies)
    }

    fn epoch(&self) -> Epoch {
        self.epochs.present()
    }

    async fn new_epoch(&self) -> StoreResult<Epoch> {
        let mut writing = self.writer.begin().await.map_err(fault)?;
        let begun = begin_epoch(&mut writing.connection).await;
        if let Ok(mark) = &begun {
            if let Err(error) = self.marker.raise(mark, Other::Replace).await {
                // Then the next start begins one more, which does no harm.
                tracing::warn!(%error, "the marker beside the database could not be replaced");
            }
            self.epochs.saw(&mark.epoch);
        }
        writing.end(&begun).await;
        begun.map(|mark| mark.epoch).map_err(fault)
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> StoreResult<Option<Snapshot>> {
        read::snapshot(&self.readers, user, selection).await.map_err(fault)
    }

    async fn head(&self, user: UserId) -> StoreResult<Option<HeadRead>> {
        read::head(&self.readers, user).await.map_err(fault)
    }

    async fn entry(&self, user: UserId, key: &SessionKey) -> StoreResult<Option<Entry>> {
        read::entry(&self.readers, user, key).await.map_err(fault)
    }

    async fn changes_after(&self, user: UserId, after: Seq) -> StoreResult<CatchUp> {
        read::changes_after(&self.readers, user, after).await.map_err(fault)
    }

    async fn kept_changes(&self, user: UserId, after: Seq) -> StoreResult<Vec<Change>> {
        let mut connection = self.readers.acquire().await.map_err(fault)?;
        read::kept_changes(&mut connection, user, after).await.map_err(fault)
    }

    async fn moved(&self, since: &MovedSince) -> StoreResult<Moved> {
        let (moved, epoch) = read::moved(&self.readers, since).await.map_err(fault)?;
        self.epochs.saw(&epoch);
        Ok(moved)
    }

    async fn history(&self, user: UserId, key: &SessionKey) -> StoreResult<Vec<Change>> {
        read::history(&self.readers, user, key).await.map_err(fault)
    }

    async fn account(&self, email: &str) -> StoreResult<Option<Account>> {
        logins::account(&self.readers, email).await.map_err(fault)
    }

    async fn account_of(&self, user: UserId) -> StoreResult<Option<Account>> {
        logins::account_of(&self.readers, user).await.map_err(fault)
    }

    async fn accounts_after(&self, email: &str, limit: u32) -> StoreResult<Vec<Account>> {
        logins::accounts_after(&self.readers, email, limit).await.map_err(fault)
    }

    async fn is_authorized(&self, bearer: &Bearer, at: Timestamp) -> StoreResult<bool> {
        logins::is_authorized(&self.readers, bearer, at).await.map_err(fault)
    }

    async fn revocations(&self, after: Option<u64>) -> StoreResult<(u64, Vec<Revocation>)> {
        logins::revocations(&self.readers, after).await.map_err(fault)
    }

    async fn devices(&self, user: UserId) -> StoreResult<Vec<Device>> {
        devices::list(&self.readers, user).await.map_err(fault)
    }

    async fn mailbox_size(&self, user: UserId, device: DeviceId) -> StoreResult<Option<u64>> {
        messages::size(&self.readers, user, device).await.map_err(fault)
    }

    async fn mailbox(
        &self,
        user: UserId,
        device: DeviceId,
        after: u64,
        now: Timestamp,
    ) -> StoreResult<Vec<WaitingMessage>> {
        messages::after(&self.readers, user, device, after, now).await.map_err(fault)
    }

    async fn mail_since(&self, after: Option<u64>) -> StoreResult<(u64, Vec<(UserId, DeviceId)>)> {
        messages::since(&self.readers, after).await.map_err(fault)
    }

    async fn expired_messages(&self, now: Timestamp) -> StoreResult<Vec<(UserId, DeviceId, MessageId)>> {
        messages::expired(&self.readers, now).await.map_err(fault)
    }

    async fn mailbox_depth(&self) -> StoreResult<MailboxDepth> {
        messages::depth(&self.readers).await.map_err(fault)
    }

    async fn ping(&self) -> StoreResult<()> {
        sqlx::query("SELECT 1 FROM meta LIMIT 1").execute(&self.readers).await.map(drop).map_err(fault)
    }

    async fn prune(&self, retention: &Retention, now: Timestamp) -> StoreResult<u64> {
        let mut gone_through = 0;
        for step in prune::Step::ALL {
            gone_through += self.prune_step(step, retention, now).await.map_err(fault)?;
        }
        Ok(gone_through)
    }

    async fn backup(&self, file: &Path) -> anyhow::Result<()> {
        backup::backup(&self.options, file).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
