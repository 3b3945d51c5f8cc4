//! A bounded set of connections to the server, each of which is either known to
//! answer or thrown away.
//!
//! sqlx's own pool asks the server at each return, waits without a bound for one
//! that does not answer, and gives no hand on its sockets. Here a link is lent
//! with a deadline; whoever has not said [`Lease::keep`] when that ends, loses
//! it. One that has rested is asked before it is lent, and the first that turns
//! out to be dead takes all others that were made before with it.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fault;
use super::past::Past;
use crate::store::{StoreError, StoreResult};

/// How long a caller waits for a link, a new connection included.
const LEND_WITHIN: Duration = Duration::from_millis(1_200);

/// How long one attempt to connect may take, TLS and password included.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_000);

/// A link that rested for so long is asked before it is lent.
const TRUSTED_FOR: Duration = Duration::from_millis(250);

/// How long that question may take.
const TEST_WITHIN: Duration = Duration::from_millis(400);

/// Pause after the first failed attempt to connect; it doubles from there.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);

/// The longest pause between attempts.
const BACKOFF_MOST: Duration = Duration::from_millis(320);

/// What each session is told as it opens. A server that
/// lost a node in the middle of a transaction lets go of its locks by itself;
/// `off` would lose acked writes, anything stronger than `on` stays.
const SESSION: &str = "
    SET statement_timeout = '2000ms';
    SET lock_timeout = '500ms';
    SET idle_in_transaction_session_timeout = '2000ms';
    SET default_transaction_isolation = 'read committed';
    SET jit = 'off';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    ";

/// See the module's comment.
pub struct Links {
    options: PgConnectOptions,
    past: Arc<Past>,
    permits: Arc<Semaphore>,
    shelf: Arc<Shelf>,
}

/// Links that nobody uses.
#[derive(Default)]
struct Shelf {
    idle: Mutex<Vec<Idle>>,
    /// Counts the times a link turned out to be dead; older links are suspect.
    generation: AtomicU64,
}

struct Idle {
    connection: PgConnection,
    generation: u64,
    since: Instant,
}

impl Links {
    /// At most `most` connections at a time; none is opened yet. Each is held
    /// against `past`.
    pub fn new(options: PgConnectOptions, most: usize, past: Arc<Past>) -> Self {
        let options = options.disable_statement_logging();
        Self { options, past, permits: Arc::new(Semaphore::new(most)), shelf: Arc::default() }
    }

    /// A link that answers.
    ///
    /// # Errors
    /// `Unavailable` when none could be had in time.
    pub async fn lend(&self) -> StoreResult<Lease> {
        let deadline = Instant::now() + LEND_WITHIN;
        let permit = match timeout_at(deadline, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(StoreError::Unavailable { unknown: false }),
            // All links are at work, which has bounds of its own.
            Err(_too_late) => return Err(StoreError::Busy),
        };
        while let Some(idle) = self.shelf.take() {
            let generation = idle.generation;
            if let Some(connection) = self.tested(idle).await {
                return Ok(self.lease(connection, generation, permit));
            }
        }
        let generation = self.shelf.generation.load(Ordering::Acquire);
        let connection = self.connect_until(deadline).await?;
        Ok(self.lease(connection, generation, permit))
    }

    async fn tested(&self, mut idle: Idle) -> Option<PgConnection> {
        if idle.since.elapsed() < TRUSTED_FOR {
            return Some(idle.connection);
        }
        if let Ok(Ok(())) = timeout(TEST_WITHIN, idle.connection.ping()).await {
            return Some(idle.connection);
        }
        self.shelf.distrust(idle.generation);
        None
    }

    /// Attempts with growing pauses, up to `deadline`. The pauses vary, so that
    /// a cluster does not come back to its server in one wave.
    async fn connect_until(&self, deadline: Instant) -> StoreResult<PgConnection> {
        let mut pause = BACKOFF_FIRST;
        loop {
            let error = match timeout_at(deadline, self.connect()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_too_late) => return Err(StoreError::Unavailable { unknown: false }),
            };
            let varied = pause.mul_f64(rand::random_range(0.5..1.5));
            if Instant::now() + varied >= deadline {
                return Err(error);
            }
            sleep(varied).await;
            pause = (pause * 2).min(BACKOFF_MOST);
        }
    }

    /// One attempt. A server that only reads is one that is down: after a
    /// failover the name may still lead to the old primary.
    async fn connect(&self) -> StoreResult<PgConnection> {
        let opening = async {
            let mut connection = self.options.connect().await?;
            let question = self.past.question();
            let text = sqlx::AssertSqlSafe(format!("{SESSION}{}", question.text));
            let answers = connection.fetch_all(sqlx::raw_sql(text)).await?;
            let answer = answers.last().ok_or(sqlx::Error::RowNotFound)?;
            let read_only: bool = answer.try_get("read_only")?;
            if !read_only && !self.past.goes_on(&question, answer)? {
                self.past.settle(&mut connection).await?;
            }
            Ok((connection, read_only))
        };
        match timeout(CONNECT_WITHIN, opening).await {
            Ok(Ok((connection, false))) => Ok(connection),
            Ok(Ok((_, true))) | Err(_) => Err(StoreError::Unavailable { unknown: false }),
            Ok(Err(error)) => Err(fault(&error)),
        }
    }

    fn lease(&self, connection: PgConnection, generation: u64, permit: OwnedSemaphorePermit) -> Lease {
        Lease { connection: Some(connection), generation, shelf: self.shelf.clone(), _permit: permit }
    }

    /// Gives up every link there is; those that are lent do not come back.
    pub fn forget(&self) {
        self.shelf.distrust(self.shelf.generation.load(Ordering::Acquire));
    }

    /// Closes the idle links with a goodbye and lends no more.
    pub async fn close(&self) {
        self.permits.close();
        while let Some(idle) = self.shelf.take() {
            // A server that does not take the goodbye notices by itself.
            drop(timeout(TEST_WITHIN, idle.connection.close()).await);
        }
    }
}

impl Shelf {
    /// The link that was used last: the others may rest until they are tested.
    fn take(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, connection: PgConnection, generation: u64) {
        if generation == self.generation.load(Ordering::Acquire) {
            let idle = Idle { connection, generation, since: Instant::now() };
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
    }

    /// A link of `generation` is dead: so may be all that are as old.
    fn distrust(&self, generation: u64) {
        let next = generation + 1;
        let first =
            self.generation.compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            tracing::debug!("a database connection is dead; the others are given up with it");
            let given_up = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
            drop(given_up);
        }
    }
}

/// A link that is lent. It comes back with [`Lease::keep`] only.
pub struct Lease {
    connection: Option<PgConnection>,
    generation: u64,
    shelf: Arc<Shelf>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Runs one piece of work up to `deadline` and gives the link back if it is
    /// still good.
    ///
    /// # Errors
    /// What the failure means to the caller.
    pub async fn finish<T>(
        mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> StoreResult<T> {
        match timeout_at(deadline, work(&mut self)).await {
            Ok(Ok(answer)) => {
                self.keep();
                Ok(answer)
            }
            Ok(Err(error)) => {
                let meaning = fault(&error);
                self.settle(&error);
                Err(meaning)
            }
            Err(_too_late) => {
                self.lose();
                Err(StoreError::Unavailable { unknown: false })
            }
        }
    }

    /// The link is good and between transactions: others may use it.
    pub fn keep(mut self) {
        if let Some(connection) = self.connection.take() {
            self.shelf.put(connection, self.generation);
        }
    }

    /// The link is dead, or did not answer in time.
    pub fn lose(mut self) {
        self.connection = None;
        self.shelf.distrust(self.generation);
    }

    /// Lets go of a link on which a statement failed; returns whether the link
    /// was at fault. A refused statement says nothing about the other links.
    pub fn settle(self, error: &sqlx::Error) -> bool {
        let is_refused = matches!(error, sqlx::Error::Database(refusal)
            if !refusal.code().is_some_and(|code| code.starts_with("57P") || code == "25006"));
        if !is_refused {
            self.lose();
        }
        !is_refused
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only the consuming methods take it")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only the consuming methods take it")
    }
}
