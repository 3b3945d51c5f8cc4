//! Which past the database has, and how a node notices that it went back.
//!
//! A standby that takes over and a copy that is put back give numbers out again
//! that clients know with other content, under the address that nodes know. The
//! way there is a new connection, so each new connection is held against what
//! this process has seen: the cluster, its timeline and the oids, which stand
//! beside the epoch in `meta`; how far the log was flushed, which no crash takes
//! back; and the last batch that was committed here. Where one does not fit, a
//! new epoch begins, once for all nodes: beside it stands the one it follows.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use crate::model::Epoch;
use crate::store::epochs::{Epochs, Seen};

/// The cluster and its timeline. The control data tell the old timeline until the
/// first checkpoint after a promotion, the log's file names the present one.
const CLUSTER: &str = "CASE WHEN pg_is_in_recovery() THEN '' ELSE concat(
    (SELECT system_identifier FROM pg_control_system()), '.',
    ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int) END";

/// How far the log is on disk. What was written and not flushed may be gone after
/// a crash without anybody having seen it.
const POSITION: &str =
    "CASE WHEN pg_is_in_recovery() THEN NULL ELSE (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint END";

/// See the module's comment.
pub struct Past {
    cluster: &'static str,
    glimpse: String,
    position: &'static str,
    epochs: Epochs,
    reached: Mutex<Reached>,
}

/// How far this process has seen the present epoch.
#[derive(Clone, Copy, Default)]
struct Reached {
    position: Option<i64>,
    /// A row of `commits`, and the last batch that was committed in it.
    batch: Option<(Uuid, i64)>,
}

/// What a new connection is asked, and what was seen before it was.
pub struct Question {
    pub text: String,
    epoch: Epoch,
    reached: Reached,
}

/// What a statement tells of the past beside its own subject.
pub struct Glimpse {
    pub epoch: Epoch,
    position: Option<i64>,
}

/// What a new connection tells of the past.
struct Sight {
    epoch: Option<Epoch>,
    /// The epoch in whose place this one came.
    follows: Option<Epoch>,
    /// What stands beside the epoch, and what should.
    kept: Option<String>,
    past: String,
    position: Option<i64>,
    /// Nothing where the row was pruned.
    batch: Option<i64>,
}

impl Past {
    /// The past of a migrated database, which gets an epoch if it has none, or not
    /// one of its own.
    pub async fn open(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        // Where the role may not look at one of them, the others must do.
        let cluster = or_else(connection, CLUSTER, "''").await?;
        let position = or_else(connection, POSITION, "NULL::bigint").await?;
        let kept: Option<String> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'epoch'")
            .fetch_optional(&mut *connection)
            .await?;
        let past = Self {
            cluster,
            glimpse: format!(
                "(SELECT value FROM meta WHERE name = 'epoch') AS epoch, {position} AS position"
            ),
            position,
            epochs: Epochs::new(kept.map_or_else(fresh, |kept| Epoch(kept.into()))),
            reached: Mutex::default(),
        };
        past.settle(connection).await?;
        Ok(past)
    }

    /// The epoch as last seen.
    pub fn epoch(&self) -> Epoch {
        self.epochs.present()
    }

    /// What is to be asked of a new connection, for [`Past::goes_on`].
    pub fn question(&self) -> Question {
        // In this order: what is known of an epoch may not be taken for another's.
        let (reached, epoch) = (*self.lock(), self.epochs.present());
        let writer = reached.batch.map_or_else(Uuid::nil, |(writer, _)| writer);
        let (cluster, position) = (self.cluster, self.position);
        let text = format!(
            "SELECT current_setting('transaction_read_only') = 'on' AS read_only,
                 (SELECT value FROM meta WHERE name = 'epoch') AS epoch,
                 (SELECT value FROM meta WHERE name = 'epoch.follows') AS follows,
                 (SELECT value FROM meta WHERE name = 'past') AS kept,
                 concat({cluster}, '.', (SELECT oid FROM pg_database WHERE datname = current_database()), '.',
                     'users'::regclass::oid) AS past,
                 {position} AS position,
                 (SELECT batch FROM commits WHERE writer = '{writer}') AS batch"
        );
        Question { text, epoch, reached }
    }

    /// Whether the answer goes on from what was seen; else the connection is to be
    /// [settled](Past::settle) before it is used.
    pub fn goes_on(&self, question: &Question, answer: &PgRow) -> Result<bool, sqlx::Error> {
        let sight = Sight::of(answer)?;
        match sight.epoch.clone().filter(|epoch| *epoch == question.epoch && !self.differs(question, &sight))
        {
            Some(epoch) => {
                self.saw(&Glimpse { epoch, position: sight.position });
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Finds out which epoch a connection is in, and begins one where its past is
    /// not what was seen.
    pub async fn settle(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        // Nodes do so one after the other, and look again when it is their turn.
        sqlx::query("LOCK TABLE meta IN SHARE ROW EXCLUSIVE MODE").execute(&mut *transaction).await?;
        let question = self.question();
        let asking = sqlx::raw_sql(sqlx::AssertSqlSafe(question.text.clone()));
        let sight = Sight::of(&asking.fetch_one(&mut *transaction).await?)?;
        let epoch = match sight.epoch.clone().filter(|_| !self.differs(&question, &sight)) {
            Some(epoch) => epoch,
            None => begin(&mut transaction, &question, &sight).await?,
        };
        transaction.commit().await?;
        self.saw(&Glimpse { epoch, position: sight.position });
        Ok(())
    }

    /// Whether `sight` does not go on from what was seen, and nobody has begun a
    /// new epoch for that yet.
    fn differs(&self, before: &Question, sight: &Sight) -> bool {
        if sight.kept.as_ref() != Some(&sight.past) {
            return true;
        }
        let Reached { position, batch } = before.reached;
        let is_shorter = position.zip(sight.position).is_some_and(|(seen, now)| now < seen);
        let lacks_batch = batch.zip(sight.batch).is_some_and(|((_, seen), kept)| kept < seen);
        let is_left = sight.epoch.as_ref().is_some_and(|epoch| self.epochs.is_left(epoch));
        (is_shorter || lacks_batch || is_left) && sight.follows.as_ref() != Some(&before.epoch)
    }

    /// The columns that [`Glimpse::of`] reads, for a statement that says something
    /// else, too.
    pub fn glimpse(&self) -> &str {
        &self.glimpse
    }

    /// Takes what a statement told.
    pub fn saw(&self, glimpse: &Glimpse) {
        let mut reached = self.lock();
        match self.epochs.saw(&glimpse.epoch) {
            Seen::Present => reached.position = reached.position.max(glimpse.position),
            Seen::New => *reached = Reached { position: glimpse.position, batch: None },
            // From before, or from a server that is none any more.
            Seen::Left => {}
        }
    }

    /// A batch of `epoch` was committed, with this number in this row of `commits`.
    pub fn committed(&self, epoch: &Epoch, writer: Uuid, batch: i64) {
        let mut reached = self.lock();
        if self.epochs.present() == *epoch {
            reached.batch = Some((writer, batch));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh() -> Epoch {
    Epoch(Uuid::new_v4().to_string().into())
}

async fn begin(
    connection: &mut PgConnection,
    question: &Question,
    sight: &Sight,
) -> Result<Epoch, sqlx::Error> {
    if sight.kept.is_some() {
        tracing::warn!("the database's past is not what was seen of it: clients will reload in full");
    }
    let epoch = fresh();
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('past', $1), ('epoch', $2), ('epoch.follows', $3)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(&sight.past)
    .bind(&*epoch.0)
    .bind(&*question.epoch.0)
    .execute(connection)
    .await?;
    Ok(epoch)
}

/// `expression`, or `other` where the role may not evaluate it.
async fn or_else(
    connection: &mut PgConnection,
    expression: &'static str,
    other: &'static str,
) -> Result<&'static str, sqlx::Error> {
    let text = sqlx::AssertSqlSafe(format!("SELECT {expression}"));
    match sqlx::raw_sql(text).fetch_one(connection).await {
        Ok(_) => Ok(expression),
        Err(sqlx::Error::Database(_)) => Ok(other),
        Err(error) => Err(error),
    }
}

impl Glimpse {
    /// What stands in the columns of [`Past::glimpse`].
    pub fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            epoch: epoch(row, "epoch")?.ok_or(sqlx::Error::RowNotFound)?,
            position: row.try_get("position")?,
        })
    }
}

impl Sight {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            epoch: epoch(row, "epoch")?,
            follows: epoch(row, "follows")?,
            kept: row.try_get("kept")?,
            past: row.try_get("past")?,
            position: row.try_get("position")?,
            batch: row.try_get("batch")?,
        })
    }
}

fn epoch(row: &PgRow, column: &str) -> Result<Option<Epoch>, sqlx::Error> {
    let epoch: Option<&str> = row.try_get(column)?;
    Ok(epoch.map(|epoch| Epoch(epoch.into())))
}
