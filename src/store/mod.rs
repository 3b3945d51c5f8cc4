//! The truth: users, logins, devices, session entries, their changes, op ids.
//!
//! [`Store`] is one of the two seams. Everything that writes goes through
//! [`Store::commit`], a batch in one transaction; its commit alone decides an
//! ack. The rest reads. An implementation knows one SQL dialect and nothing of
//! sockets, nodes or the hub; what a batch of writes makes of what is there is
//! decided by [`batch`], which is pure and the same for all of them.

pub mod accounts;
pub mod batch;
mod command;
mod company;
pub mod copy;
mod devices;
mod epochs;
pub mod messages;
mod postgres;
pub mod replica;
mod retention;
pub(crate) mod roster;
mod schema;
pub mod seed;
mod session;
mod sqlite;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::failure::{Code, Failure};
use crate::merge;
use crate::model::{Change, Device, DeviceId, Epoch, MessageId, Secret, Seq, SessionKey, Timestamp, UserId};

pub use accounts::{
    Account, AdmitUser, Bearer, ChangePassword, EndLogins, ImportAccount, ImportedDevice, NewAccount,
    NewLogin, Revocation, RotateRefresh, Rotation, Which,
};
pub use command::{Command, Reply};
pub use devices::{
    ConnectDevice, ConnectRefusal, Connected, LeaveConnection, LeaveDevice, MoveDevice, RevokeDevice,
    StillThere, UpdateDevice,
};
pub use messages::{
    Fate, MailboxDepth, PostMessage, PostRefusal, Posted, TakeMessages, TakenMessage, WaitingMessage,
};
pub use retention::{EXTERNAL_TOKEN_LIFE_MAX, Retention};
pub use session::{
    CatchUp, Entry, HeadRead, Selection, SessionWrite, Snapshot, WriteChange, WriteRefusal, Written,
};
pub use writer::Writer;

/// Bounds that the store enforces, since only it sees all of a user's keys.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes, depth and operations of one write.
    pub merge: merge::Limits,
    /// Live keys a user.
    pub keys_per_user: u64,
    /// Bytes of live state a user.
    pub bytes_per_user: u64,
    /// Devices a user; beyond it the longest offline is dropped.
    pub devices_per_user: u32,
}

/// Where durable records live.
#[derive(Clone, Debug)]
pub enum Database {
    /// An embedded SQLite file.
    Sqlite {
        /// The file; its folder is made at start.
        path: PathBuf,
        /// `synchronous=FULL`: an acked write survives a power cut.
        full_sync: bool,
    },
    /// A PostgreSQL server that all nodes share.
    Postgres {
        /// Where and who, password included; one that [`is_postgres_url`] takes.
        url: Secret,
    },
}

/// Whether `url` is one that [`Database::Postgres`] can hold.
pub fn is_postgres_url(url: &str) -> bool {
    postgres::is_url(url)
}

/// Opens the database, makes or updates its schema and reads its epoch.
///
/// # Errors
/// When the database cannot be opened or migrated: a reason to exit.
pub async fn open(database: &Database, bounds: Bounds) -> anyhow::Result<Arc<dyn Store>> {
    match database {
        Database::Sqlite { path, full_sync } => {
            Ok(Arc::new(sqlite::SqliteStore::open(path, *full_sync, bounds).await?))
        }
        Database::Postgres { url } => Ok(Arc::new(postgres::PostgresStore::open(url, bounds).await?)),
    }
}

/// Why the store gave no answer, by what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or did not answer in time. `unknown`: the commit
    /// was sent and its answer lost, so it may have happened.
    #[error("the store is unavailable (commit unknown: {unknown})")]
    Unavailable {
        /// Whether the commit may have happened.
        unknown: bool,
    },
    /// Too much is waiting already.
    #[error("the store is busy")]
    Busy,
    /// Its disk is full.
    #[error("the store's disk is full")]
    Full,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { unknown: false } => {
                Failure::new(Code::StoreUnavailable, "The store cannot be reached; try again.")
            }
            StoreError::Unavailable { unknown: true } => Failure::new(
                Code::StoreUnavailable,
                "The store's answer was lost; the write may have happened.",
            )
            .with("unknown", true),
            StoreError::Busy => Failure::new(Code::StoreBusy, "Too many writes are waiting; try again.")
                .with("retryAfterMs", 250),
            StoreError::Full => {
                Failure::new(Code::StoreFull, "The store's disk is full; nothing was written.")
            }
        }
    }
}

/// What most calls return.
pub type StoreResult<T> = Result<T, StoreError>;

/// Where the last ask of what moved ended; the default asks from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MovedSince {
    /// What lies below was told, but for what was open then.
    pub place: Option<u64>,
    /// Transactions below it that had not ended.
    pub open: Vec<u64>,
}

impl MovedSince {
    /// Everything below `place` was told.
    pub fn at(place: u64) -> Self {
        Self { place: Some(place), open: Vec::new() }
    }
}

/// What moved since the last ask.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Users and the last change of each.
    pub heads: Vec<(UserId, Seq)>,
    /// Where the next ask goes on.
    pub next: MovedSince,
}

/// The seam to the database. Every call answers within about 3 s.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies a batch in one transaction and returns what became of each
    /// command, in order, after the commit. One refused write never fails its
    /// neighbours. A store that other nodes share may hold a user's commands
    /// back ([`Reply::Held`]); it looks at them when they come again.
    ///
    /// # Errors
    /// For the whole batch: nothing of it was applied, unless `unknown`.
    async fn commit(&self, batch: &[Command]) -> StoreResult<Vec<Reply>>;

    /// The epoch of what is stored.
    fn epoch(&self) -> Epoch;

    /// Begins a new one: what clients know of the past counts no more. Other
    /// processes see it with their next batch or ask.
    async fn new_epoch(&self) -> StoreResult<Epoch>;

    /// A user's session at one moment; `None` when there is no such user.
    async fn snapshot(&self, user: UserId, selection: &Selection) -> StoreResult<Option<Snapshot>>;

    /// How far a user's session is, and how big; `None` when there is no such user.
    async fn head(&self, user: UserId) -> StoreResult<Option<HeadRead>>;

    /// One entry, tombstones included.
    async fn entry(&self, user: UserId, key: &SessionKey) -> StoreResult<Option<Entry>>;

    /// A user's changes above `after`, about 1 MiB of them at a time.
    async fn changes_after(&self, user: UserId, after: Seq) -> StoreResult<CatchUp>;

    /// The changes above `after` that are kept, about 1 MiB of them at a time; some
    /// may be missing in between.
    async fn kept_changes(&self, user: UserId, after: Seq) -> StoreResult<Vec<Change>>;

    /// Whose session moved since the last ask. The cost follows what changed.
    async fn moved(&self, since: &MovedSince) -> StoreResult<Moved>;

    /// The kept versions of a key, newest first, tombstones included.
    async fn history(&self, user: UserId, key: &SessionKey) -> StoreResult<Vec<Change>>;

    /// The account of an e-mail address, in lower case.
    async fn account(&self, email: &str) -> StoreResult<Option<Account>>;

    /// The account of a user.
    async fn account_of(&self, user: UserId) -> StoreResult<Option<Account>>;

    /// Accounts in the order of their addresses, `limit` of those after `email`.
    async fn accounts_after(&self, email: &str, limit: u32) -> StoreResult<Vec<Account>>;

    /// Whether the user exists and the login, if one is named, is neither ended
    /// nor expired at `at`; a token without a login, or from outside, must not be
    /// older than the end of all such.
    async fn is_authorized(&self, bearer: &Bearer, at: Timestamp) -> StoreResult<bool>;

    /// What ended after a position, oldest first, and the position after it;
    /// without one, only where that is now. What comes twice does no harm.
    async fn revocations(&self, after: Option<u64>) -> StoreResult<(u64, Vec<Revocation>)>;

    /// A user's devices in the order of their making, revoked ones left out.
    async fn devices(&self, user: UserId) -> StoreResult<Vec<Device>>;

    /// Messages that wait for a device; `None` when the user has no such device.
    async fn mailbox_size(&self, user: UserId, device: DeviceId) -> StoreResult<Option<u64>>;

    /// Messages that wait for a device behind a place, in order, expired ones
    /// left out, about 256 KiB of them at a time.
    async fn mailbox(
        &self,
        user: UserId,
        device: DeviceId,
        after: u64,
        now: Timestamp,
    ) -> StoreResult<Vec<WaitingMessage>>;

    /// For which devices messages were kept after a position, and the position
    /// after them; without one, only where that is now. What comes twice does no
    /// harm.
    async fn mail_since(&self, after: Option<u64>) -> StoreResult<(u64, Vec<(UserId, DeviceId)>)>;

    /// Some of the messages that waited too long by `now`.
    async fn expired_messages(&self, now: Timestamp) -> StoreResult<Vec<(UserId, DeviceId, MessageId)>>;

    /// How much waits in all.
    async fn mailbox_depth(&self) -> StoreResult<MailboxDepth>;

    /// Answers when the store does.
    async fn ping(&self) -> StoreResult<()>;

    /// Forgets what is past its time, a little at a go, without holding writers
    /// up. Returns how many records it went through: call again until that is 0.
    async fn prune(&self, retention: &Retention, now: Timestamp) -> StoreResult<u64>;

    /// Copies everything, as it is at one moment, to a file that does not exist
    /// yet. Takes its time; writers go on meanwhile.
    ///
    /// # Errors
    /// With a sentence for the operator, also where the database has tools of its
    /// own for this.
    async fn backup(&self, file: &Path) -> anyhow::Result<()>;

    /// Closes every connection. Nothing is called after it.
    async fn close(&self);
}
