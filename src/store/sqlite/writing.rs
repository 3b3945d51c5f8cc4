//! The one connection of this process that writes, and whose turn it is to use it.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::turn::{Turn, Turns};

/// How long it may take to open the connection anew.
const OPEN_WAIT: Duration = Duration::from_secs(2);

/// See the module's comment.
pub struct Writer {
    /// While nobody writes. No pool: that asks a connection for a sign of life each
    /// time it comes back.
    connection: Mutex<Option<SqliteConnection>>,
    options: SqliteConnectOptions,
    /// Batches and pruning, one transaction at a time, in the order of their coming.
    permits: Semaphore,
    turns: Turns,
}

impl Writer {
    /// Opens the connection to the database at `path`.
    ///
    /// # Errors
    /// When it does not open, or no file can be made beside it.
    pub async fn open(path: &Path, options: SqliteConnectOptions) -> anyhow::Result<Self> {
        let connection = SqliteConnection::connect_with(&options).await?;
        let turns = Turns::of(path).context("cannot write beside the database")?;
        Ok(Self { connection: Mutex::new(Some(connection)), options, permits: Semaphore::new(1), turns })
    }

    /// Waits for one's turn, in this process and among those on this file, and opens
    /// the connection anew where the last transaction failed. What is written in it is
    /// not to be dropped midway: the next one might then wait for the rollback.
    ///
    /// # Errors
    /// When the connection does not open in time, and after [`Writer::close`].
    pub async fn begin(&self) -> Result<Writing<'_>, sqlx::Error> {
        let permit = self.permits.acquire().await.map_err(|_| failed(io::ErrorKind::NotConnected))?;
        let turn = self.turns.take().await;
        let kept = self.connection().take();
        let connection = match kept {
            Some(connection) => connection,
            None => tokio::time::timeout(OPEN_WAIT, SqliteConnection::connect_with(&self.options))
                .await
                .unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut)))?,
        };
        Ok(Writing { connection, writer: self, _turn: turn, _permit: permit })
    }

    /// Closes the connection once nobody uses it; from then on nobody writes.
    pub async fn close(&self) {
        // Without the turn: a process that hangs in its own must not hold up this one's end.
        let permit = self.permits.acquire().await;
        self.permits.close();
        let connection = self.connection().take();
        if let Some(connection) = connection {
            close(connection).await;
        }
        drop(permit);
    }

    fn connection(&self) -> MutexGuard<'_, Option<SqliteConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by whoever writes.
pub struct Writing<'a> {
    /// What to write with.
    pub connection: SqliteConnection,
    writer: &'a Writer,
    /// Before the permit: one caller at a time asks for it.
    _turn: Option<Turn>,
    _permit: SemaphorePermit<'a>,
}

impl Writing<'_> {
    /// Keeps the connection for the next one, or closes it where its transaction
    /// failed: SQLite rolls some failures back by itself, that of a full disk among
    /// them, and sqlx, which does not know, would find itself inside a transaction
    /// for ever.
    pub async fn end<T, E>(self, result: &Result<T, E>) {
        if result.is_ok() {
            *self.writer.connection() = Some(self.connection);
        } else {
            close(self.connection).await;
        }
    }
}

async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the writing connection did not close well");
    }
}

fn failed(kind: io::ErrorKind) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(kind, "the connection that writes"))
}
