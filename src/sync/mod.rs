//! The only writer of session state, and the reader of it.
//!
//! A write goes into the store's group commit and is answered after the commit.
//! What was committed reaches devices through the hub; nothing here knows a
//! socket.

pub mod cache;
pub mod restore;

use std::sync::Arc;

use crate::failure::{Code, Failure, Outcome};
use crate::merge;
use crate::model::{Change, ConnectionId, SessionKey, UserId};
use crate::store::writer::Submitted;
use crate::store::{
    Command, Entry, Reply, Selection, SessionWrite, Snapshot, Store, WriteRefusal, Writer, Written,
};
use crate::telemetry::metrics::Metrics;
use crate::wire::json;
use cache::SessionCache;
use restore::Restore;

/// Characters of an op id.
pub const OP_ID_CHARS_MAX: usize = 64;

/// See the module's comment.
pub struct SyncEngine {
    writer: Writer,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    cache: Option<SessionCache>,
}

/// A write that is in its user's lane and not answered yet.
pub struct Pending {
    write: Arc<SessionWrite>,
    submitted: Submitted,
}

impl SyncEngine {
    /// An engine on `store`, writing through `writer`; `cache` keeps big restores.
    pub fn new(
        writer: Writer,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        cache: Option<SessionCache>,
    ) -> Self {
        Self { writer, store, metrics, cache }
    }

    /// Puts a write into its user's lane. Writes of one caller are applied in
    /// the order of these calls; the answers may be awaited later. `asker`: the
    /// connection that is told the answer, and so need not hear of the change.
    ///
    /// # Errors
    /// `store_busy` when too much waits.
    pub fn submit(&self, write: SessionWrite, asker: Option<ConnectionId>) -> Outcome<Pending> {
        let write = Arc::new(write);
        let submitted = self.writer.enqueue(Command::Write(write.clone()), asker)?;
        Ok(Pending { write, submitted })
    }

    /// What became of a submitted write, after its commit.
    ///
    /// # Errors
    /// Why it was not applied; `store_unavailable` may carry `unknown: true`.
    pub async fn settle(&self, pending: Pending) -> Outcome<Written> {
        let reply = match pending.submitted.answered().await? {
            Reply::Written(outcome) => outcome,
            other => unreachable!("a write is answered by {other:?}"),
        };
        self.count(&reply);
        reply.map_err(|refusal| failure(refusal, &pending.write.key))
    }

    /// Both halves at once, for somebody who is no device.
    ///
    /// # Errors
    /// As [`SyncEngine::submit`] and [`SyncEngine::settle`].
    pub async fn write(&self, write: SessionWrite) -> Outcome<Written> {
        let pending = self.submit(write, None)?;
        self.settle(pending).await
    }

    fn count(&self, outcome: &Result<Written, WriteRefusal>) {
        let counter = match outcome {
            Ok(written) if written.change.is_none() => &self.metrics.writes_duplicate,
            Ok(written) if written.merged => &self.metrics.writes_merged,
            Ok(_) => &self.metrics.writes_applied,
            Err(WriteRefusal::Conflict { .. }) => &self.metrics.writes_conflict,
            Err(_) => &self.metrics.writes_refused,
        };
        counter.increment(1);
    }

    /// A user's session at one moment, as text.
    ///
    /// # Errors
    /// `unauthorized` when the user is gone; the store's failures.
    pub async fn restore(&self, user: UserId, selection: &Selection) -> Outcome<Restore> {
        let whole = selection.keys.is_none() && selection.since.is_none();
        let Some(cache) = self.cache.as_ref().filter(|_| whole) else {
            return Ok(Restore::of(&self.snapshot(user, selection).await?));
        };
        let head = self.store.head(user).await?.ok_or_else(user_is_gone)?;
        // Only now: reading the head may have told of a new epoch.
        let epoch = self.store.epoch();
        let worth_it = cache.is_for(&head);
        if worth_it && let Some(kept) = cache.get(user, &epoch, &head).await {
            return Ok(kept);
        }
        let restore = Restore::of(&self.snapshot(user, selection).await?);
        if worth_it {
            cache.put(user, &epoch, &restore);
        }
        Ok(restore)
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> Outcome<Snapshot> {
        self.store.snapshot(user, selection).await?.ok_or_else(user_is_gone)
    }

    /// One key as it is.
    ///
    /// # Errors
    /// `unknown_key` when it does not exist; the store's failures.
    pub async fn entry(&self, user: UserId, key: &SessionKey) -> Outcome<Entry> {
        let entry = self.store.entry(user, key).await?;
        entry.filter(|entry| entry.state.is_some()).ok_or_else(unknown_key)
    }

    /// The kept versions of a key, newest first.
    ///
    /// # Errors
    /// `unknown_key` when it never was; the store's failures.
    pub async fn history(&self, user: UserId, key: &SessionKey) -> Outcome<Vec<Change>> {
        let versions = self.store.history(user, key).await?;
        if versions.is_empty() { Err(unknown_key()) } else { Ok(versions) }
    }
}

fn user_is_gone() -> Failure {
    Failure::new(Code::Unauthorized, "There is no such user any more.")
}

fn unknown_key() -> Failure {
    Failure::new(Code::UnknownKey, "There is no such key.")
}

/// A refused write as a client sees it.
fn failure(refusal: WriteRefusal, key: &SessionKey) -> Failure {
    match refusal {
        WriteRefusal::Conflict { version, state, device } => {
            let failure = Failure::new(Code::Conflict, "The key has moved on from that version.")
                .with("sessionKey", key.as_str())
                .with("version", version.0)
                .with("deviceId", device.map(|device| device.to_string()));
            match state.and_then(|state| serde_json::value::RawValue::from_string((*state).into()).ok()) {
                Some(state) => failure.with_state(state),
                None => failure.with("deleted", true),
            }
        }
        WriteRefusal::Refused(refusal) => refused(&refusal),
        WriteRefusal::Quota(limit) => {
            Failure::new(Code::QuotaExceeded, "The user's share is used up.").with("limit", limit)
        }
        WriteRefusal::OpIdReused => {
            Failure::new(Code::OpIdReused, "This opId was used for another write.").with("field", "opId")
        }
        WriteRefusal::UnknownKey => unknown_key(),
        WriteRefusal::UnknownUser => user_is_gone(),
    }
}

fn refused(refusal: &merge::Refusal) -> Failure {
    match refusal {
        merge::Refusal::TooLarge { limit } => {
            Failure::new(Code::TooLarge, "It is, or would become, too large.").with("limit", *limit)
        }
        merge::Refusal::TooDeep => {
            Failure::new(Code::TooDeep, "It is, or would become, nested too deep.").with("limit", "depth")
        }
        merge::Refusal::InvalidOperation { index, field, .. } => {
            Failure::new(Code::InvalidOperation, refusal.to_string())
                .with("field", format!("ops/{index}/{field}"))
                .with("index", *index)
        }
        merge::Refusal::InvalidField { field } => Failure::field(field, "It is not what it must be."),
        merge::Refusal::StoredStateBroken => {
            tracing::error!("a stored state is not JSON");
            Failure::internal()
        }
    }
}

/// The body of a write's ack.
pub fn ack_body(key: &SessionKey, written: &Written) -> String {
    let mut body = format!(
        "{{\"ok\":true,\"sessionKey\":{},\"version\":{},\"seq\":{}",
        json(key),
        written.version,
        written.seq
    );
    if written.change.is_none() {
        body.push_str(",\"duplicate\":true");
    }
    if written.merged {
        body.push_str(",\"merged\":true");
    }
    if let Some(change) = written.change.as_ref().filter(|_| written.differs) {
        match &change.state {
            Some(state) => {
                body.push_str(",\"state\":");
                body.push_str(state);
            }
            None => body.push_str(",\"deleted\":true"),
        }
    }
    body.push('}');
    body
}
