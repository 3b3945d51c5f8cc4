//! The copy that Litestream keeps of the SQLite file, through its control socket.
//!
//! With `DURABILITY=replicated` the writer asks for a synchronous copy after
//! each commit and acks only then, so that losing the whole machine loses no
//! acked write. While Litestream does not answer, what needs a copy is refused
//! before it is committed. Its age is asked for regularly, whatever the setting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::drain::Tasks;
use crate::model::{Clock, Timestamp};
use crate::telemetry::metrics::Metrics;

/// A copy that takes longer is not waited for: callers are answered within 3 s.
const SYNC_WITHIN: Duration = Duration::from_secs(2);

/// While Litestream is away, how long the writer waits to see whether it is back.
const PROBE_WITHIN: Duration = Duration::from_millis(500);

/// How often it looks.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// How often the copy's age is asked for.
const AGE_EVERY: Duration = Duration::from_secs(2);

/// Answers in a row that have to be missing before somebody is told, once an outage: at its own start Litestream needs
/// a moment to listen and to copy.
const FAILURES_BEFORE_WARNING: u32 = 3;

/// Bytes of an answer: it lists databases.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Where Litestream listens, and what of its answers counts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its control socket.
    pub socket: PathBuf,
    /// Whether acks wait for the copy.
    pub acks_wait: bool,
}

/// See the module's comment.
pub struct Replica {
    settings: Settings,
    /// As Litestream's configuration names it.
    database: String,
    /// When it last failed, unless it has worked since; before its first answer
    /// it counts as failed.
    failed_at: Mutex<Option<Failed>>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy)]
struct Failed {
    looked_at: Option<Instant>,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The socket does not answer.
    #[error("Litestream cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It answered that it could not.
    #[error("Litestream could not copy: {0}")]
    Refused(String),
    /// It took too long.
    #[error("Litestream did not answer in time")]
    TooSlow,
}

#[derive(Deserialize)]
struct Listed {
    databases: Vec<ListedDatabase>,
}

#[derive(Deserialize)]
struct ListedDatabase {
    path: String,
    last_sync_at: Option<String>,
}

impl Replica {
    /// The copy of the database at `path`.
    ///
    /// # Errors
    /// When the path cannot be made absolute.
    pub fn new(settings: Settings, path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let database = std::path::absolute(path)?.to_string_lossy().into_owned();
        let failed_at = Mutex::new(Some(Failed { looked_at: None }));
        Ok(Self { settings, database, failed_at, metrics })
    }

    /// Whether acks wait for the copy.
    pub fn acks_wait(&self) -> bool {
        self.settings.acks_wait
    }

    /// Whether a copy can be expected after the next commit. Where it could not
    /// be had lately, tries again now and then.
    pub async fn is_up(&self) -> bool {
        let failed = *self.lock();
        match failed {
            None => true,
            Some(Failed { looked_at: Some(at) }) if at.elapsed() < PROBE_EVERY => false,
            Some(_) => self.copied_within(PROBE_WITHIN).await.is_ok(),
        }
    }

    /// Copies what is committed; returns when the copy holds it.
    ///
    /// # Errors
    /// When that cannot be said.
    pub async fn copied(&self) -> Result<(), ReplicaError> {
        self.copied_within(SYNC_WITHIN).await
    }

    async fn copied_within(&self, limit: Duration) -> Result<(), ReplicaError> {
        let started = Instant::now();
        let body = serde_json::json!({"path": self.database, "wait": true}).to_string();
        let copied = self.call("POST", "/sync", body, limit).await.map(drop);
        let mut failed = self.lock();
        match &copied {
            Ok(()) => {
                self.metrics.replica_sync_seconds.record(started.elapsed());
                if failed.take().is_some() {
                    tracing::info!("Litestream copies what is committed");
                }
            }
            Err(error) => {
                self.metrics.replica_sync_failures.increment(1);
                if failed.is_none_or(|failed| failed.looked_at.is_none()) {
                    tracing::warn!(%error, "there is no copy of the last commits: writes are refused until there is");
                }
                *failed = Some(Failed { looked_at: Some(Instant::now()) });
            }
        }
        copied
    }

    /// Shows the copy's age until the process ends.
    pub async fn watch(self: Arc<Self>, tasks: Tasks) {
        // A copy that was never seen grows old, too: it must not pass for a fresh one.
        let mut last = Clock::now();
        let mut failures = 0_u32;
        loop {
            match self.last_copy().await {
                Ok(at) => {
                    if failures >= FAILURES_BEFORE_WARNING {
                        tracing::info!("Litestream tells the copy's age again");
                    }
                    (last, failures) = (at, 0);
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == FAILURES_BEFORE_WARNING {
                        tracing::warn!(%error, "Litestream tells of no copy: what is committed may be on this disk only");
                    }
                }
            }
            let age_ms = Clock::now().0.saturating_sub(last.0).max(0);
            self.metrics.replica_age.set(age_ms as f64 / 1_000.0);
            tokio::select! {
                () = tokio::time::sleep(AGE_EVERY) => {}
                () = tasks.ending() => return,
            }
        }
    }

    /// When Litestream last saw that the copy holds everything.
    async fn last_copy(&self) -> Result<Timestamp, ReplicaError> {
        let answer = self.call("GET", "/list", String::new(), PROBE_WITHIN).await?;
        last_sync(&answer, &self.database)
            .ok_or_else(|| ReplicaError::Refused(format!("{} is not among its databases", self.database)))
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: String,
        limit: Duration,
    ) -> Result<Bytes, ReplicaError> {
        let exchange = async {
            let stream = UnixStream::connect(&self.settings.socket).await?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "litestream")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))
                .map_err(io::Error::other)?;
            let answer = async move {
                let response = sender.send_request(request).await.map_err(io::Error::other)?;
                let is_good = response.status().is_success();
                let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
                Ok::<_, io::Error>((is_good, body.map_err(io::Error::other)?.to_bytes()))
            };
            // The connection moves while the answer is waited for; how it ends does not matter.
            let (answer, _) = futures_util::future::join(answer, connection).await;
            answer
        };
        let answered = tokio::time::timeout(limit, exchange).await.map_err(|_| ReplicaError::TooSlow)?;
        match answered.map_err(ReplicaError::Unreachable)? {
            (true, body) => Ok(body),
            (false, body) => Err(ReplicaError::Refused(String::from_utf8_lossy(&body).into_owned())),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Failed>> {
        self.failed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn last_sync(answer: &[u8], database: &str) -> Option<Timestamp> {
    let listed: Listed = serde_json::from_slice(answer).ok()?;
    let listed = listed.databases.into_iter().find(|listed| listed.path == database)?;
    let at = chrono::DateTime::parse_from_rfc3339(&listed.last_sync_at?).ok()?;
    Some(Timestamp(at.timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_copy_is_told_by_the_databases_path() {
        let answer = br#"{"databases":[{"path":"/a.db","status":"replicating"},
            {"path":"/b.db","status":"replicating","last_sync_at":"2026-01-02T03:04:05.678901234Z"}]}"#;
        assert_eq!(last_sync(answer, "/b.db"), Some(Timestamp(1_767_323_045_678)));
        assert_eq!(last_sync(answer, "/a.db"), None, "not yet");
        assert_eq!(last_sync(answer, "/c.db"), None);
        assert_eq!(last_sync(b"no", "/b.db"), None);
    }
}
