//! One batch, one transaction, and certainty about what became of it.
//!
//! READ COMMITTED; users are locked before anything else is looked at, so what
//! the following statements see is final. A statement that fails ends the
//! transaction, so none may fail for one command's sake: conflicts are `ON
//! CONFLICT`, absences are looked for. The number of round trips does not depend
//! on the number of commands.
//!
//! The answer to a COMMIT may be lost. Each transaction therefore writes its
//! number into a row of `commits` that only this store writes; whoever locks
//! that row afterwards has waited for the transaction's end and reads whether it
//! happened. `pg_xact_status` is not asked: an id that a crash kept from the log
//! is given to another transaction afterwards, and says `committed` for that.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::links::{Lease, Links};
use super::past::{Glimpse, Past};
use super::{devices, fault, records, users, writes};
use crate::model::{Clock, Epoch, UserId};
use crate::store::{Bounds, Command, Reply, StoreError, StoreResult};

/// How long a batch may take in all.
const COMMIT_WITHIN: Duration = Duration::from_millis(2_500);

/// What of that is kept for the COMMIT and its answer.
const FOR_THE_ANSWER: Duration = Duration::from_millis(1_000);

/// What of that is kept to find out, should the answer be lost.
const FOR_THE_VERDICT: Duration = Duration::from_millis(600);

/// A batch whose link died this early is tried once more on another.
const TIME_TO_RETRY: Duration = Duration::from_millis(1_500);

/// Pause between attempts to ask what became of a batch.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Everything that batches of one opened store leave to their successors.
pub struct Commits {
    /// Batches go one after the other.
    turn: Semaphore,
    past: Arc<Past>,
    mark: Mutex<Mark>,
    /// Users whom the last batch passed over: the next one waits for them.
    passed_over: Mutex<HashSet<UserId>>,
}

/// The row of `commits` that is written, and the number in it.
#[derive(Clone, Copy)]
struct Mark {
    writer: Uuid,
    batch: i64,
    /// The row is there, so locking it waits for whoever writes it.
    is_known: bool,
}

impl Mark {
    fn new() -> Self {
        Self { writer: Uuid::new_v4(), batch: 0, is_known: false }
    }
}

/// How an attempt ended without an answer from the server.
enum Trouble {
    /// Nothing of it was applied; whether the link was at fault.
    Before(StoreError, bool),
    /// COMMIT was sent.
    Unanswered,
}

impl Commits {
    pub fn new(past: Arc<Past>) -> Self {
        Self { turn: Semaphore::new(1), past, mark: Mutex::new(Mark::new()), passed_over: Mutex::default() }
    }

    /// Applies `batch`; see [`crate::store::Store::commit`].
    pub async fn commit(&self, links: &Links, batch: &[Command], bounds: &Bounds) -> StoreResult<Vec<Reply>> {
        let started = Instant::now();
        let deadline = started + COMMIT_WITHIN;
        let _turn = match timeout_at(deadline, self.turn.acquire()).await {
            Ok(Ok(turn)) => turn,
            _ => return Err(StoreError::Busy),
        };
        let mut is_first = true;
        loop {
            let lease = links.lend().await?;
            let mut replies = vec![Reply::Done; batch.len()];
            match self.attempt(lease, batch, bounds, &mut replies, deadline).await {
                Ok(()) => return Ok(replies),
                Err(Trouble::Before(_, true)) if is_first && started.elapsed() < TIME_TO_RETRY => {
                    is_first = false;
                }
                Err(Trouble::Before(error, _)) => return Err(error),
                Err(Trouble::Unanswered) => {
                    let committed = self.verdict(links, deadline).await;
                    return committed.and_then(|committed| {
                        committed.then_some(replies).ok_or(StoreError::Unavailable { unknown: false })
                    });
                }
            }
        }
    }

    async fn attempt(
        &self,
        mut lease: Lease,
        batch: &[Command],
        bounds: &Bounds,
        replies: &mut [Reply],
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let work = self.apply(&mut lease, batch, bounds, replies);
        let epoch = match timeout_at(deadline - FOR_THE_ANSWER, work).await {
            Ok(Ok(epoch)) => epoch,
            Ok(Err(error)) => {
                self.rename();
                let is_lost = lease.settle(&error);
                return Err(Trouble::Before(fault(&error), is_lost));
            }
            Err(_too_late) => {
                self.rename();
                lease.lose();
                return Err(Trouble::Before(StoreError::Unavailable { unknown: false }, false));
            }
        };
        let commit = sqlx::raw_sql("COMMIT").execute(&mut *lease);
        match timeout_at(deadline - FOR_THE_VERDICT, commit).await {
            Ok(Ok(_)) => {
                lease.keep();
                let mark = *self.mark.lock().unwrap_or_else(PoisonError::into_inner);
                self.past.committed(&epoch, mark.writer, mark.batch);
                Ok(())
            }
            // A server that is told to stop may say so although it has committed.
            Ok(Err(sqlx::Error::Database(refusal)))
                if !refusal.code().is_some_and(|code| code.starts_with("57P")) =>
            {
                self.rename();
                Err(Trouble::Before(fault(&sqlx::Error::Database(refusal)), false))
            }
            Ok(Err(_)) | Err(_) => {
                lease.lose();
                Err(Trouble::Unanswered)
            }
        }
    }

    /// Whether the batch whose COMMIT was not answered happened.
    async fn verdict(&self, links: &Links, deadline: Instant) -> StoreResult<bool> {
        let mark = *self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // Should the transaction hang on in the server, the next ones go past it.
        self.rename();
        let asking = async {
            let mut lease = loop {
                match links.lend().await {
                    Ok(lease) => break lease,
                    Err(_) => sleep(ASK_AGAIN).await,
                }
            };
            let row = sqlx::query("SELECT batch FROM commits WHERE writer = $1 FOR UPDATE")
                .bind(mark.writer)
                .fetch_one(&mut *lease)
                .await
                .ok()?;
            lease.keep();
            row.try_get::<i64, _>("batch").ok()
        };
        match timeout_at(deadline, asking).await {
            Ok(Some(batch)) => {
                let committed = batch == mark.batch;
                tracing::warn!(committed, "the answer to a COMMIT was lost; the database knew");
                Ok(committed)
            }
            Ok(None) | Err(_) => Err(StoreError::Unavailable { unknown: true }),
        }
    }

    /// The next batch writes another row: a transaction that lost its client may
    /// hold this one until the server notices.
    fn rename(&self) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = Mark::new();
    }

    /// Everything from BEGIN to just before COMMIT; the epoch that this is in.
    async fn apply(
        &self,
        connection: &mut PgConnection,
        batch: &[Command],
        bounds: &Bounds,
        replies: &mut [Reply],
    ) -> Result<Epoch, sqlx::Error> {
        let epoch = self.begin(connection).await?;
        let passed_over = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let locked = users::lock(connection, batch, &passed_over).await?;
        for (reply, command) in replies.iter_mut().zip(batch) {
            *reply = if users::of(command).is_some_and(|user| locked.skipped.contains(&user)) {
                Reply::Held
            } else {
                Reply::Done
            };
        }
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&locked.passed_over);
        records::apply(connection, batch, replies).await?;
        // Devices before what is said of them: who connects in this batch may be renamed in it.
        devices::apply(connection, batch, bounds.devices_per_user, &locked, replies).await?;
        let mut removed = HashSet::new();
        records::apply_singly(connection, batch, &mut removed, replies).await?;
        let mut heads = locked.heads;
        heads.retain(|user, _| !removed.contains(user));
        // Who came in with this batch could not be locked before, and nobody else sees them yet.
        heads.extend(users::imported(batch, replies));
        writes::apply(connection, batch, heads, bounds, replies).await?;
        Ok(epoch)
    }

    /// Opens the transaction, marks it and reads the epoch in one round trip.
    async fn begin(&self, connection: &mut PgConnection) -> Result<Epoch, sqlx::Error> {
        let mark = {
            let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
            mark.batch += 1;
            *mark
        };
        let row = format!("('{}', {}, {})", mark.writer, mark.batch, Clock::now().0);
        let upsert = format!(
            "INSERT INTO commits (writer, batch, at) VALUES {row}
             ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, at = excluded.at"
        );
        if !mark.is_known {
            let first = format!(
                "INSERT INTO commits (writer, batch, at) VALUES ('{}', 0, 0)
                 ON CONFLICT (writer) DO NOTHING",
                mark.writer
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(first)).execute(&mut *connection).await?;
            let mut kept = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
            kept.is_known |= kept.writer == mark.writer;
        }
        // Ids and numbers of our own only.
        let glimpse = self.past.glimpse();
        let text = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {upsert} RETURNING {glimpse}");
        let told = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_all(connection).await?;
        let glimpse = Glimpse::of(told.last().ok_or(sqlx::Error::RowNotFound)?)?;
        self.past.saw(&glimpse);
        Ok(glimpse.epoch)
    }
}
