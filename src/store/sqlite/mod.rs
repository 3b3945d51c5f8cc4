//! The embedded store: one SQLite file in WAL mode.
//!
//! One writing connection a process, every writing transaction `BEGIN
//! IMMEDIATE`, `synchronous=FULL` (in WAL mode NORMAL loses acked commits in a
//! power cut). Several processes of one host may share the file. Readers have
//! connections of their own and never wait for the writer.

mod commit;
mod devices;
mod logins;
mod prune;
mod read;
mod sql;
mod turn;

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection, Row};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Account, Bearer, Bounds, CatchUp, Command, Entry, HeadRead, Moved, MovedSince, Reply, Retention,
    Revocation, Selection, Snapshot, Store, StoreError, StoreResult,
};
use crate::model::{Change, Device, Epoch, Seq, SessionKey, Timestamp, UserId};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

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
    writer: SqlitePool,
    readers: SqlitePool,
    turns: turn::Turns,
    /// Batches and pruning, one transaction at a time, in the order of their coming.
    writing: Semaphore,
    epoch: Epoch,
    bounds: Bounds,
}

impl SqliteStore {
    /// Opens or makes the file at `path`, and its folder, and migrates it.
    ///
    /// # Errors
    /// When the file cannot be opened, is newer than this program or is damaged.
    pub async fn open(path: &Path, full_sync: bool, bounds: Bounds) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let synchronous = if full_sync { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(LOCK_WAIT)
            .foreign_keys(true)
            .statement_cache_capacity(256)
            .pragma("wal_autocheckpoint", WAL_PAGES_BEFORE_CHECKPOINT)
            .pragma("journal_size_limit", "33554432");
        let epoch = prepare(path, &options).await?;
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(POOL_WAIT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        Ok(Self {
            writer: pool(1).connect_with(options.clone()).await?,
            readers: pool(READERS).connect_lazy_with(options.pragma("query_only", "ON")),
            turns: turn::Turns::of(path).context("cannot write beside the database")?,
            writing: Semaphore::new(1),
            epoch,
            bounds,
        })
    }
}

/// Held by whoever writes.
struct Writing<'a> {
    _turn: Option<turn::Turn>,
    _permit: SemaphorePermit<'a>,
}

impl SqliteStore {
    async fn writing(&self) -> Writing<'_> {
        let permit = self.writing.acquire().await.expect("it is never closed");
        Writing { _turn: self.turns.take().await, _permit: permit }
    }

    async fn prune_step(
        &self,
        step: prune::Step,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let gone_through = step.run(&mut transaction, retention, now).await?;
        transaction.commit().await?;
        Ok(gone_through)
    }
}

/// Migrates the database and reads or makes its epoch. Processes that start
/// together on one file do so one after the other.
async fn prepare(path: &Path, options: &SqliteConnectOptions) -> anyhow::Result<Epoch> {
    let lock_path = path.with_extension("lock");
    let lock = std::fs::File::create(&lock_path)
        .with_context(|| format!("cannot write beside the database: {}", lock_path.display()))?;
    tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;

    let mut connection = SqliteConnection::connect_with(options)
        .await
        .with_context(|| format!("cannot open the database {}", path.display()))?;
    MIGRATIONS.run_direct(None, &mut connection, false).await.context("cannot migrate the database")?;
    sqlx::query("INSERT INTO meta (name, value) VALUES ('epoch', ?) ON CONFLICT (name) DO NOTHING")
        .bind(uuid::Uuid::new_v4().to_string())
        .execute(&mut connection)
        .await?;
    let epoch: String =
        sqlx::query("SELECT value FROM meta WHERE name = 'epoch'").fetch_one(&mut connection).await?.get(0);
    connection.close().await?;
    Ok(Epoch(epoch.into()))
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
        let _writing = self.writing().await;
        commit::commit(&self.writer, batch, &self.bounds).await
    }

    fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> StoreResult<Option<Snapshot>> {
        read::snapshot(&self.readers, &self.epoch, user, selection).await.map_err(fault)
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

    async fn moved(&self, since: &MovedSince) -> StoreResult<Moved> {
        read::moved(&self.readers, since).await.map_err(fault)
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

    async fn ping(&self) -> StoreResult<()> {
        sqlx::query("SELECT 1 FROM meta LIMIT 1").execute(&self.readers).await.map(drop).map_err(fault)
    }

    async fn prune(&self, retention: &Retention, now: Timestamp) -> StoreResult<u64> {
        let mut gone_through = 0;
        for step in prune::Step::ALL {
            let _writing = self.writing().await;
            gone_through += self.prune_step(step, retention, now).await.map_err(fault)?;
        }
        Ok(gone_through)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
