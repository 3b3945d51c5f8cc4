//! The store for clusters on many machines: a PostgreSQL that all nodes share.
//!
//! Every call answers within 3 s, whatever the server or the way to it does:
//! waiting for a connection, connecting, working and, for a commit, finding out
//! what became of it all have their share of that. Reads and writes have
//! connections of their own, so neither can take the other's.

mod commit;
mod devices;
mod external;
mod links;
mod logins;
mod messages;
mod past;
mod prune;
mod read;
mod records;
mod sql;
mod users;
mod writes;

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::time::{Instant, sleep, timeout_at};

use self::commit::Commits;
use self::links::Links;
use self::past::{Glimpse, Past};
pub use self::sql::holdable;
use super::{
    Account, Bearer, Bounds, CatchUp, Command, Entry, HeadRead, MailboxDepth, Moved, MovedSince, Reply,
    Retention, Revocation, Selection, Snapshot, Store, StoreError, StoreResult, WaitingMessage, schema,
};
use crate::model::{Change, Device, DeviceId, Epoch, MessageId, Secret, Seq, SessionKey, Timestamp, UserId};

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| schema::lenient(sqlx::migrate!("migrations/postgres")));

/// How long a call that reads or prunes may take in all.
const READ_WITHIN: Duration = Duration::from_millis(2_600);

/// How long opening waits for a server that is starting or restarting.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Pause between attempts to open.
const OPEN_PAUSE: Duration = Duration::from_millis(250);

/// Connections that only read; one more commits and one prunes.
const READERS: usize = 8;

/// Statements that a connection keeps prepared; there are about 40.
const STATEMENTS: usize = 128;

/// The oldest server that is known to do: 13 is the oldest in repair.
const SERVER_OLDEST: i32 = 130_000;

/// See the module's comment.
pub struct PostgresStore {
    writer: Links,
    readers: Links,
    pruner: Links,
    commits: Commits,
    past: Arc<Past>,
    bounds: Bounds,
}

impl PostgresStore {
    /// Connects to the database at `url` and migrates it.
    ///
    /// # Errors
    /// When the URL is wrong, the server cannot be reached, is too old or not
    /// UTF-8, or the schema is too new for this program.
    pub async fn open(url: &Secret, bounds: Bounds) -> anyhow::Result<Self> {
        let options = options(url)?;
        let (mut connection, past) = prepare(&options).await?;
        anyhow::ensure!(
            copy_under_way(&mut connection).await?.is_none(),
            "a copy into this database is not finished: run tandem copy again, to its end"
        );
        connection.close().await?;
        let past = Arc::new(past);
        Ok(Self {
            writer: Links::new(options.clone(), 1, past.clone()),
            readers: Links::new(options.clone(), READERS, past.clone()),
            pruner: Links::new(options, 1, past.clone()),
            commits: Commits::new(past.clone()),
            past,
            bounds,
        })
    }

    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> StoreResult<T> {
        let deadline = Instant::now() + READ_WITHIN;
        self.readers.lend().await?.finish(deadline, work).await
    }
}

/// Whether `url` names a database as [`PostgresStore::open`] wants it.
pub fn is_url(url: &str) -> bool {
    (url.starts_with("postgres://") || url.starts_with("postgresql://"))
        && PgConnectOptions::from_str(url).is_ok()
}

fn options(url: &Secret) -> anyhow::Result<PgConnectOptions> {
    // The parser's own error may repeat the URL, password and all.
    let options = PgConnectOptions::from_str(url.expose())
        .map_err(|_| anyhow::anyhow!("DATABASE_URL is no PostgreSQL URL"))?;
    Ok(options.application_name("tandem").statement_cache_capacity(STATEMENTS).disable_statement_logging())
}

/// A connection to the database at `url`, migrated, for a copy into it.
///
/// # Errors
/// As [`PostgresStore::open`].
pub async fn open_for_copy(url: &Secret) -> anyhow::Result<PgConnection> {
    let (mut connection, _) = prepare(&options(url)?).await?;
    schema::must_know_all(schema::newest(&MIGRATIONS), &schema_of(&mut connection).await?)?;
    Ok(connection)
}

async fn schema_of(connection: &mut PgConnection) -> Result<schema::Found, sqlx::Error> {
    let newest =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *connection).await?;
    let needed = sqlx::query_scalar("SELECT value FROM meta WHERE name = $1").bind(schema::NEEDED);
    Ok(schema::Found { newest, needed: needed.fetch_optional(connection).await? })
}

/// The epoch of the database that is being copied into this one, if one is.
pub async fn copy_under_way(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM meta WHERE name = 'copying'").fetch_optional(connection).await
}

/// Migrates the database and reads or makes its epoch. Nodes that start together
/// do so one after the other (the migrator holds an advisory lock).
async fn prepare(options: &PgConnectOptions) -> anyhow::Result<(PgConnection, Past)> {
    let mut connection = first_connection(options).await?;
    let about = sqlx::query(
        "SELECT current_setting('server_version_num')::int AS version,
             current_setting('server_encoding') AS encoding",
    )
    .fetch_one(&mut connection)
    .await?;
    anyhow::ensure!(
        about.try_get::<i32, _>("version")? >= SERVER_OLDEST,
        "the PostgreSQL server is older than version 13"
    );
    anyhow::ensure!(about.try_get::<&str, _>("encoding")? == "UTF8", "the database's encoding is not UTF8");
    MIGRATIONS.run_direct(None, &mut connection, false).await.context("cannot migrate the database")?;
    schema::check(schema::newest(&MIGRATIONS), &schema_of(&mut connection).await?)?;
    let past = Past::open(&mut connection).await.context("cannot read the database's epoch")?;
    Ok((connection, past))
}

async fn first_connection(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let deadline = Instant::now() + OPEN_WITHIN;
    let mut is_first = true;
    loop {
        let error = match timeout_at(deadline, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if !may_pass(&error) || Instant::now() + OPEN_PAUSE >= deadline => {
                return Err(error).context("cannot connect to PostgreSQL");
            }
            Ok(Err(error)) => error,
            Err(_too_late) => anyhow::bail!("cannot connect to PostgreSQL: it does not answer"),
        };
        if std::mem::take(&mut is_first) {
            tracing::warn!(%error, "PostgreSQL cannot be reached; trying for {OPEN_WITHIN:?}");
        }
        sleep(OPEN_PAUSE).await;
    }
}

/// Whether a failure to connect may be one of a server that is just starting; a
/// wrong password or certificate does not mend itself.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(io) => io.kind() != std::io::ErrorKind::InvalidData,
        // Operator intervention (it starts or stops), too many connections.
        sqlx::Error::Database(refusal) => {
            refusal.code().is_some_and(|code| code.starts_with("57P") || code == "53300")
        }
        _ => false,
    }
}

/// What a failed statement means to the caller. Nothing of its transaction was
/// committed.
fn fault(error: &sqlx::Error) -> StoreError {
    tracing::debug!(%error, "a statement failed");
    let code = match error {
        sqlx::Error::Database(refusal) => refusal.code(),
        _ => None,
    };
    match code.as_deref() {
        // disk_full
        Some("53100") => StoreError::Full,
        // lock_not_available, deadlock_detected, serialization_failure
        Some("55P03" | "40P01" | "40001") => StoreError::Busy,
        _ => StoreError::Unavailable { unknown: false },
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, batch: &[Command]) -> StoreResult<Vec<Reply>> {
        self.commits.commit(&self.writer, batch, &self.bounds).await
    }

    fn epoch(&self) -> Epoch {
        self.past.epoch()
    }

    async fn new_epoch(&self) -> StoreResult<Epoch> {
        let glimpse = self
            .read(async |link| {
                let begin = format!(
                    "UPDATE meta SET value = '{}' WHERE name = 'epoch'; SELECT {}",
                    uuid::Uuid::new_v4(),
                    self.past.glimpse()
                );
                let told = sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).fetch_all(link).await?;
                Glimpse::of(told.last().ok_or(sqlx::Error::RowNotFound)?)
            })
            .await?;
        self.past.saw(&glimpse);
        Ok(glimpse.epoch)
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> StoreResult<Option<Snapshot>> {
        self.read(async |link| read::snapshot(link, user, selection).await).await
    }

    async fn head(&self, user: UserId) -> StoreResult<Option<HeadRead>> {
        self.read(async |link| read::head(link, user).await).await
    }

    async fn kept_changes(&self, user: UserId, after: Seq) -> StoreResult<Vec<Change>> {
        self.read(async |link| read::kept_changes(link, user, after).await).await
    }

    async fn entry(&self, user: UserId, key: &SessionKey) -> StoreResult<Option<Entry>> {
        self.read(async |link| read::entry(link, user, key).await).await
    }

    async fn changes_after(&self, user: UserId, after: Seq) -> StoreResult<CatchUp> {
        self.read(async |link| read::changes_after(link, user, after).await).await
    }

    async fn moved(&self, since: &MovedSince) -> StoreResult<Moved> {
        let (moved, glimpse) =
            self.read(async |link| read::moved(link, since, self.past.glimpse()).await).await?;
        self.past.saw(&glimpse);
        Ok(moved)
    }

    async fn history(&self, user: UserId, key: &SessionKey) -> StoreResult<Vec<Change>> {
        self.read(async |link| read::history(link, user, key).await).await
    }

    async fn account(&self, email: &str) -> StoreResult<Option<Account>> {
        self.read(async |link| logins::account(link, email).await).await
    }

    async fn account_of(&self, user: UserId) -> StoreResult<Option<Account>> {
        self.read(async |link| logins::account_of(link, user).await).await
    }

    async fn accounts_after(&self, email: &str, limit: u32) -> StoreResult<Vec<Account>> {
        self.read(async |link| logins::accounts_after(link, email, limit).await).await
    }

    async fn is_authorized(&self, bearer: &Bearer, at: Timestamp) -> StoreResult<bool> {
        self.read(async |link| logins::is_authorized(link, bearer, at).await).await
    }

    async fn revocations(&self, after: Option<u64>) -> StoreResult<(u64, Vec<Revocation>)> {
        self.read(async |link| logins::revocations(link, after).await).await
    }

    async fn devices(&self, user: UserId) -> StoreResult<Vec<Device>> {
        self.read(async |link| devices::list(link, user).await).await
    }

    async fn mailbox_size(&self, user: UserId, device: DeviceId) -> StoreResult<Option<u64>> {
        self.read(async |link| messages::size(link, user, device).await).await
    }

    async fn mailbox(
        &self,
        user: UserId,
        device: DeviceId,
        after: u64,
        now: Timestamp,
    ) -> StoreResult<Vec<WaitingMessage>> {
        self.read(async |link| messages::after(link, user, device, after, now).await).await
    }

    async fn mail_since(&self, after: Option<u64>) -> StoreResult<(u64, Vec<(UserId, DeviceId)>)> {
        self.read(async |link| messages::since(link, after).await).await
    }

    async fn expired_messages(&self, now: Timestamp) -> StoreResult<Vec<(UserId, DeviceId, MessageId)>> {
        self.read(async |link| messages::expired(link, now).await).await
    }

    async fn mailbox_depth(&self) -> StoreResult<MailboxDepth> {
        self.read(async |link| messages::depth(link).await).await
    }

    /// Also learns a new epoch, should another node have made one.
    async fn ping(&self) -> StoreResult<()> {
        let (glimpse, is_read_only) = self
            .read(async |link| {
                let text = format!(
                    "SELECT current_setting('transaction_read_only') = 'on' AS read_only, {}",
                    self.past.glimpse()
                );
                let row = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_one(link).await?;
                Ok((Glimpse::of(&row)?, row.try_get("read_only")?))
            })
            .await?;
        if is_read_only {
            // The server was demoted under its connections: look for another.
            self.writer.forget();
            self.readers.forget();
            return Err(StoreError::Unavailable { unknown: false });
        }
        self.past.saw(&glimpse);
        Ok(())
    }

    async fn prune(&self, retention: &Retention, now: Timestamp) -> StoreResult<u64> {
        let lease = self.pruner.lend().await?;
        lease
            .finish(Instant::now() + READ_WITHIN, async |link| prune::prune(link, retention, now).await)
            .await
    }

    async fn backup(&self, _file: &Path) -> anyhow::Result<()> {
        anyhow::bail!("a PostgreSQL database is backed up with its own tools, such as pg_dump")
    }

    async fn close(&self) {
        self.readers.close().await;
        self.pruner.close().await;
        self.writer.close().await;
    }
}
