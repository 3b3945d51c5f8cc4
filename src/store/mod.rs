//! The truth: users, logins, devices, session entries, their changes, op ids.
//!
//! [`Store`] is one of the two seams. Everything that writes goes through
//! [`Store::commit`], a batch in one transaction; its commit alone decides an
//! ack. The rest reads. An implementation knows one SQL dialect and nothing of
//! sockets, nodes or the hub; what a batch of writes makes of what is there is
//! decided by [`batch`], which is pure and the same for all of them.

pub mod accounts;
pub mod batch;
mod company;
pub mod copy;
pub mod messages;
mod postgres;
pub mod replica;
pub(crate) mod roster;
pub mod seed;
mod sqlite;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::failure::{Code, Failure};
use crate::merge;
use crate::model::{
    BootId, Change, ConnectionId, Device, DeviceId, DeviceInfo, Epoch, JsonText, LoginId, MessageId, Revoked,
    Secret, Seq, SessionKey, Timestamp, UserId, Version,
};

pub use accounts::{
    Account, AdmitUser, Bearer, ChangePassword, EndLogins, ImportAccount, ImportedDevice, MoveDevice,
    NewAccount, NewLogin, Revocation, RevokeDevice, RotateRefresh, Rotation, UpdateDevice, Which,
};
pub use messages::{
    Fate, MailboxDepth, PostMessage, PostRefusal, Posted, TakeMessages, TakenMessage, WaitingMessage,
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

/// One thing to write; a batch of them is one transaction.
#[derive(Clone, Debug)]
pub enum Command {
    /// A change of one session key.
    Write(Arc<SessionWrite>),
    /// A new account with its first login.
    CreateAccount(NewAccount),
    /// An account of the replaced server, with its devices.
    ImportAccount(ImportAccount),
    /// A user whose account somebody else keeps; nothing happens when they are
    /// there, or were removed after their token was made.
    AdmitUser(AdmitUser),
    /// A login of an account that exists.
    OpenLogin(NewLogin),
    /// A refresh token makes way for its successor.
    RotateRefresh(RotateRefresh),
    /// Logins end.
    EndLogins(EndLogins),
    /// A password is replaced and logins end.
    ChangePassword(ChangePassword),
    /// An account goes, and everything of its user's.
    RemoveUser {
        /// Whose.
        user: UserId,
        /// When.
        at: Timestamp,
    },
    /// A device that connects: known by id, resumed by its info, or new.
    ConnectDevice(ConnectDevice),
    /// A device whose connection ended.
    LeaveDevice(LeaveDevice),
    /// A device's connection goes on under another login.
    MoveDevice(MoveDevice),
    /// A device gets another name or metadata.
    UpdateDevice(UpdateDevice),
    /// A device may not come back.
    RevokeDevice(RevokeDevice),
    /// A message waits for a device.
    PostMessage(Arc<PostMessage>),
    /// Messages wait no longer.
    TakeMessages(TakeMessages),
    /// This run of this node is alive.
    Beat {
        /// The run.
        boot: BootId,
        /// The node's name.
        node: String,
        /// When.
        at: Timestamp,
    },
}

impl Command {
    /// Whose turn in the queue it takes: users are served in turn.
    pub fn queue(&self) -> UserId {
        match self {
            Command::Write(write) => write.user,
            Command::CreateAccount(new) => new.account.user,
            Command::ImportAccount(new) => new.account.user,
            Command::AdmitUser(admit) => admit.user,
            Command::OpenLogin(login) => login.user,
            Command::ConnectDevice(connect) => connect.user,
            Command::LeaveDevice(leave) => leave.user,
            // Whose it is, only the store knows; one login's are in order.
            Command::RotateRefresh(rotate) => UserId(rotate.login.0),
            Command::EndLogins(end) => end.user,
            Command::ChangePassword(change) => change.user,
            Command::RemoveUser { user, .. } => *user,
            Command::MoveDevice(moved) => moved.user,
            Command::UpdateDevice(update) => update.user,
            Command::RevokeDevice(revoke) => revoke.user,
            Command::PostMessage(post) => post.user,
            Command::TakeMessages(take) => take.user,
            Command::Beat { boot, .. } => UserId(boot.0),
        }
    }

    /// Whether its ack says that something is durable. The others are of
    /// connections, which nobody misses after a loss of the machine, and of
    /// messages that were delivered, which would only come twice.
    pub fn is_kept(&self) -> bool {
        !matches!(
            self,
            Command::ConnectDevice(_)
                | Command::LeaveDevice(_)
                | Command::MoveDevice(_)
                | Command::TakeMessages(_)
                | Command::Beat { .. }
        )
    }

    /// Bytes it brings along, for the bound on a batch.
    pub fn bytes(&self) -> usize {
        match self {
            Command::Write(write) => write.key.as_str().len() + write.change.text().map_or(0, str::len),
            Command::ConnectDevice(connect) => connect.info.json.len(),
            Command::PostMessage(post) => post.json.len(),
            _ => 0,
        }
    }
}

/// What became of a command, in the same order as the batch.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Of [`Command::Write`].
    Written(Result<Written, WriteRefusal>),
    /// Of [`Command::CreateAccount`] and [`Command::ImportAccount`]: false when
    /// the e-mail is taken.
    AccountCreated(bool),
    /// Of [`Command::ConnectDevice`].
    Connected(Result<Connected, ConnectRefusal>),
    /// Of [`Command::RotateRefresh`].
    Rotated(Rotation),
    /// Of [`Command::UpdateDevice`]: false when there is no such device.
    Updated(bool),
    /// Of [`Command::PostMessage`].
    Posted(Result<Posted, PostRefusal>),
    /// Of [`Command::TakeMessages`]: those that were there.
    Taken(Vec<TakenMessage>),
    /// What ended, of the commands that end something; nothing when there is no
    /// such user, password or device.
    Revoked(Option<Vec<Revoked>>),
    /// Of everything else.
    Done,
    /// Not looked at: another node is at work on this user. Of any command; it
    /// belongs at the front of its lane again, with the others of its user.
    Held,
}

/// A change as a device or REST asks for it.
#[derive(Clone, Debug)]
pub struct SessionWrite {
    /// Whose session.
    pub user: UserId,
    /// Which device; nothing for REST.
    pub device: Option<DeviceId>,
    /// Which key.
    pub key: SessionKey,
    /// What to do.
    pub change: WriteChange,
    /// The version it was made on.
    pub base_version: Option<Version>,
    /// What to do when the key has moved on.
    pub on_conflict: merge::OnConflict,
    /// A name under which it is applied once.
    pub op_id: Option<Arc<str>>,
    /// When, by this node's clock; for people, not for order.
    pub at: Timestamp,
}

/// What a write does; each text is one valid JSON value.
#[derive(Clone, Debug)]
pub enum WriteChange {
    /// Replaces the state.
    State(JsonText),
    /// An RFC 7396 merge patch.
    Patch(JsonText),
    /// A list of operations on JSON pointers.
    Ops(JsonText),
    /// Deletes the key.
    Delete,
    /// Brings back the state of a kept version.
    Restore(Version),
}

impl WriteChange {
    /// The text that came with it.
    pub fn text(&self) -> Option<&str> {
        match self {
            WriteChange::State(text) | WriteChange::Patch(text) | WriteChange::Ops(text) => Some(text),
            WriteChange::Delete | WriteChange::Restore(_) => None,
        }
    }
}

/// A write that was applied, now or, for a duplicate, earlier.
#[derive(Clone, Debug)]
pub struct Written {
    /// The change as committed; nothing for a duplicate.
    pub change: Option<Arc<Change>>,
    /// The key's version since then.
    pub version: Version,
    /// The change's place in the user's order.
    pub seq: Seq,
    /// It was combined with versions its sender had not seen.
    pub merged: bool,
    /// The result is not what was sent: tell the sender.
    pub differs: bool,
}

/// Why a write was not applied. It took no seq and harmed no neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    /// The key has moved on.
    Conflict {
        /// Its version now.
        version: Version,
        /// Its state now; nothing when it does not exist.
        state: Option<JsonText>,
        /// Who made that version.
        device: Option<DeviceId>,
    },
    /// The merge rules refuse it.
    Refused(merge::Refusal),
    /// The user has too many keys or bytes; the name of the limit.
    Quota(&'static str),
    /// The op id was used for other content.
    OpIdReused,
    /// There is no such key to delete, or no such version to bring back.
    UnknownKey,
    /// There is no such user any more.
    UnknownUser,
}

/// A device that connects.
#[derive(Clone, Debug)]
pub struct ConnectDevice {
    /// Whose.
    pub user: UserId,
    /// The login of its token; nothing for tokens of the replaced server.
    pub login: Option<LoginId>,
    /// When its token was made.
    pub issued_at: Timestamp,
    /// The device it says it is.
    pub claimed: Option<DeviceId>,
    /// What it says of itself.
    pub info: DeviceInfo,
    /// Devices that are connected somewhere: they are not up for resumption.
    pub online: Vec<DeviceId>,
    /// Runs of nodes that are alive: what their rows call connected, is.
    pub live_boots: Vec<BootId>,
    /// A row that another run left open belongs to a node that died, if that run
    /// has said nothing since then.
    pub dead_before: Timestamp,
    /// Connections whose rows are open but which proved to be dead. Not devices:
    /// somebody else may have come back as one of them since it was asked.
    pub let_go: Vec<ConnectionId>,
    /// Devices gone before this are not up for resumption either.
    pub resumable_since: Timestamp,
    /// The connection that will hold it.
    pub connection: ConnectionId,
    /// This run of this node.
    pub boot: BootId,
    /// When.
    pub at: Timestamp,
}

/// What a connecting device got.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Its identity.
    pub device: DeviceId,
    /// Counts the device's connections: of two the higher one stands.
    pub fence: u64,
    /// It is new to the store.
    pub fresh: bool,
    /// Devices dropped to make room for it.
    pub dropped: Vec<DeviceId>,
}

/// Why a device may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectRefusal {
    /// The user or the login is gone.
    Unauthorized,
    /// The user revoked this device.
    DeviceRevoked,
}

/// A device whose connection ended.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct LeaveDevice {
    pub user: UserId,
    pub device: DeviceId,
    /// Only if the row still names this connection.
    pub connection: ConnectionId,
    pub at: Timestamp,
}

/// What of a user's session to read.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these keys; all without.
    pub keys: Option<Vec<SessionKey>>,
    /// Only what changed after this, if the store can still tell.
    pub since: Option<(Epoch, Seq)>,
}

/// One key's current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: SessionKey,
    /// Its version.
    pub version: Version,
    /// The change that made it so.
    pub seq: Seq,
    /// Its state; nothing for a tombstone.
    pub state: Option<JsonText>,
    /// Who made it so.
    pub device: Option<DeviceId>,
    /// When it was made so.
    pub updated_at: Timestamp,
}

/// A user's session at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's epoch.
    pub epoch: Epoch,
    /// The user's last change; everything up to it is in `entries`.
    pub seq: Seq,
    /// The entries hold only what changed since the position asked from.
    pub delta: bool,
    /// Ordered by seq. Tombstones only in a delta.
    pub entries: Vec<Entry>,
}

/// What a hub missed.
#[derive(Clone, Debug, Default)]
pub struct CatchUp {
    /// In seq order, all above the position asked from.
    pub changes: Vec<Change>,
    /// Everything up to here is either in `changes` or superseded.
    pub up_to: Seq,
    /// There is more above `up_to`.
    pub more: bool,
    /// Something was deleted above the position and is forgotten: whoever stands
    /// there must start anew. Then there are no changes.
    pub forgotten: bool,
}

/// How far a user's session is, and how big.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRead {
    /// The last change.
    pub seq: Seq,
    /// Bytes of live state.
    pub live_bytes: u64,
}

/// Where the last ask of what moved ended; the default asks from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MovedSince(pub Option<u64>);

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

/// What the store keeps, and how long.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Versions of a key.
    pub versions_per_key: u32,
    /// Age of a superseded version.
    pub history: Duration,
    /// Age under which a version is kept whatever its number.
    pub spared: Duration,
    /// Bytes of a user's superseded versions; the oldest go first, whatever their
    /// age.
    pub history_bytes_per_user: u64,
    /// Age of a tombstone.
    pub tombstones: Duration,
    /// Tombstones a user.
    pub tombstones_per_user: u32,
    /// Age of an op id.
    pub op_ids: Duration,
    /// Age of a note that something was ended: longer than any node is away
    /// from its store without restarting its sockets.
    pub revocations: Duration,
    /// Time since a login ended, in which its tokens are still told apart.
    pub ended_logins: Duration,
    /// Time since a token from outside was ended, or its user removed: none
    /// counts for longer.
    pub ended_tokens: Duration,
    /// Time since a device was revoked, in which it is told so.
    pub revoked_devices: Duration,
}

/// How long after its making a token from outside counts at most, so that the
/// store need not remember for ever which were ended.
pub const EXTERNAL_TOKEN_LIFE_MAX: Duration = Duration::from_secs(400 * 86_400);

impl Default for Retention {
    fn default() -> Self {
        Self {
            versions_per_key: 20,
            history: Duration::from_secs(7 * 86_400),
            spared: Duration::from_secs(600),
            history_bytes_per_user: 64 << 20,
            tombstones: Duration::from_secs(7 * 86_400),
            tombstones_per_user: 1_000,
            op_ids: Duration::from_secs(86_400),
            revocations: Duration::from_secs(86_400),
            ended_logins: Duration::from_secs(7 * 86_400),
            ended_tokens: EXTERNAL_TOKEN_LIFE_MAX,
            revoked_devices: Duration::from_secs(90 * 86_400),
        }
    }
}
