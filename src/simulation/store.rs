//! The store of the simulation: one truth in memory, and each node's way to it.
//!
//! Devices are decided by the same pure code as in PostgreSQL (`store::roster`); a write replaces the
//! state of its key. Calls take their time, fail, and lose their answer as the weather says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::fate::{Lane, lane_of};
use super::weather::{Defect, Host, Weather};
use crate::model::{
    Change, ConnectionId, Description, Device, DeviceId, Epoch, MessageId, Revoked, Seq, SessionKey,
    Timestamp, UserId, Version,
};
use crate::store::roster::{self, Roster};
use crate::store::{
    Account, Bearer, CatchUp, Command, Entry, HeadRead, LeaveDevice, MailboxDepth, Moved, MovedSince, Reply,
    Retention, Revocation, Selection, SessionWrite, Snapshot, StillThere, Store, StoreError, StoreResult,
    WaitingMessage, Written,
};

/// What is stored.
pub struct Database {
    weather: Arc<Weather>,
    data: Mutex<Data>,
}

#[derive(Default)]
struct Data {
    users: BTreeMap<UserId, User>,
    /// Every change's user and seq, in the order of the commits.
    moved: Vec<(UserId, Seq)>,
    notes: Vec<Revocation>,
    roster: Roster,
}

#[derive(Default)]
struct User {
    log: Vec<Arc<Change>>,
    entries: BTreeMap<SessionKey, Entry>,
}

impl User {
    fn head(&self) -> Seq {
        Seq(self.log.len() as u64)
    }

    fn write(&mut self, write: &SessionWrite) -> Written {
        let before = self.entries.get(&write.key);
        let version = Version(before.map_or(0, |entry| entry.version.0) + 1);
        let state: Option<Arc<str>> = write.change.text().map(Into::into);
        let (seq, at) = (self.head().next(), write.at);
        let (user, device, key) = (write.user, write.device, write.key.clone());
        let entry = Entry { key: key.clone(), version, seq, state: state.clone(), device, updated_at: at };
        self.entries.insert(key.clone(), entry);
        let change = Arc::new(Change { user, seq, key, version, state, device, at });
        self.log.push(change.clone());
        Written { change: Some(change), version, seq, merged: false, differs: false }
    }
}

impl Database {
    /// An empty one, but for the users and their devices.
    pub fn new(weather: Arc<Weather>, devices: &[(UserId, DeviceId)]) -> Self {
        let mut data = Data::default();
        for (user, device) in devices {
            data.users.entry(*user).or_default();
            data.roster.devices.insert(*device, offline(*user));
        }
        Self { weather, data: Mutex::new(data) }
    }

    /// A user's changes above a seq, in order.
    pub fn changes_above(&self, user: UserId, seq: Seq) -> Vec<Arc<Change>> {
        self.data().users[&user].log.iter().skip(seq.0 as usize).cloned().collect()
    }

    /// A user's keys as they are.
    pub fn entries(&self, user: UserId) -> Vec<Entry> {
        self.data().users[&user].entries.values().cloned().collect()
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn offline(user: UserId) -> roster::Row {
    roster::Row {
        user,
        fingerprint: 0,
        info: None,
        connection: None,
        fence: 0,
        boot: None,
        login: None,
        connected_at: None,
        disconnected_at: Some(Timestamp(0)),
        last_seen: Timestamp(0),
        last_beat: Timestamp(0),
        is_revoked: false,
        is_fresh: false,
    }
}

impl Data {
    fn apply(&mut self, command: &Command, defect: Defect) -> Reply {
        match command {
            Command::Write(write) => {
                let written = self.users.get_mut(&write.user).expect("writers are known").write(write);
                self.moved.push((write.user, written.seq));
                Reply::Written(Ok(written))
            }
            Command::ConnectDevice(connect) => {
                let mut connect = connect.clone();
                if defect == Defect::LateClaims {
                    connect.still_there = StillThere::when(|| true);
                }
                let outcome = self.roster.connect(&connect, DeviceId::fresh());
                let left_open = std::mem::take(&mut self.roster.left_open);
                if defect != Defect::NoFencing {
                    self.notes.extend(left_open.into_iter().map(|(user, older, _)| {
                        let revoked = Revoked::Connection(older);
                        Revocation { user, revoked, at: connect.at }
                    }));
                }
                Reply::Connected(outcome)
            }
            Command::LeaveDevice(leave) => {
                self.roster.leave(leave);
                Reply::Done
            }
            Command::LeaveConnection(left) => {
                let (user, connection, at) = (left.user, left.connection, left.at);
                let mut rows = self.roster.devices.iter();
                let held = rows.find(|(_, row)| row.user == user && row.connection == Some(connection));
                if let Some(device) = held.map(|(device, _)| *device) {
                    self.roster.leave(&LeaveDevice { user, device, connection, at });
                }
                Reply::Done
            }
            other => unreachable!("the simulation does not write {other:?}"),
        }
    }
}

/// One node's way to the database.
pub struct SimulatedStore {
    pub host: Arc<Host>,
    pub database: Arc<Database>,
}

impl SimulatedStore {
    async fn read<T>(&self, lane: Lane, read: impl FnOnce(&Data) -> T) -> StoreResult<T> {
        let weather = &self.database.weather;
        self.host.running().await;
        tokio::time::sleep(weather.store_trip(lane)).await;
        if weather.strikes(lane, weather.kinds.store_fails) {
            return Err(StoreError::Unavailable { unknown: false });
        }
        let answer = read(&self.database.data());
        tokio::time::sleep(weather.store_trip(lane)).await;
        self.host.running().await;
        Ok(answer)
    }
}

#[async_trait]
impl Store for SimulatedStore {
    async fn commit(&self, batch: &[Command]) -> StoreResult<Vec<Reply>> {
        let weather = &self.database.weather;
        let lane = self.host.lane;
        self.host.running().await;
        tokio::time::sleep(weather.store_trip(lane)).await;
        if weather.strikes(lane, weather.kinds.store_fails) {
            return Err(StoreError::Unavailable { unknown: false });
        }
        let replies: Vec<_> = {
            let mut data = self.database.data();
            batch.iter().map(|command| data.apply(command, weather.defect)).collect()
        };
        for reply in &replies {
            if let Reply::Written(Ok(Written { change: Some(change), .. })) = reply {
                let line = format_args!("{} committed seq {}", self.host.name, change.seq);
                weather.fate.note(lane_of(change.user), line);
            }
        }
        tokio::time::sleep(weather.store_trip(lane)).await;
        self.host.running().await;
        // The answer is lost: the hub never hears of what was committed.
        if weather.strikes(lane, weather.kinds.store_fails) {
            return Err(StoreError::Unavailable { unknown: true });
        }
        Ok(replies)
    }

    fn epoch(&self) -> Epoch {
        Epoch("simulated".into())
    }

    async fn snapshot(&self, user: UserId, selection: &Selection) -> StoreResult<Option<Snapshot>> {
        let since = selection.since.as_ref().map(|(_, seq)| *seq);
        self.read(lane_of(user), |data| {
            let user = data.users.get(&user)?;
            let mut entries: Vec<_> = user.entries.values().cloned().collect();
            entries.retain(|entry| since.is_none_or(|since| entry.seq > since));
            let epoch = Epoch("simulated".into());
            Some(Snapshot { epoch, seq: user.head(), delta: since.is_some(), entries })
        })
        .await
    }

    async fn changes_after(&self, user: UserId, after: Seq) -> StoreResult<CatchUp> {
        let weather = &self.database.weather;
        // What is more than 1 MiB comes in pieces.
        let few = weather.strikes(lane_of(user), 30);
        self.read(lane_of(user), |data| {
            if weather.defect == Defect::NoRepair {
                return CatchUp { up_to: after, ..CatchUp::default() };
            }
            let log = &data.users[&user].log;
            let mut changes: Vec<_> = log.iter().skip(after.0 as usize).map(|c| Change::clone(c)).collect();
            let more = few && changes.len() > 1;
            if more {
                changes.truncate(1);
            }
            let up_to = changes.last().map_or(after, |change| change.seq);
            CatchUp { changes, up_to, more, forgotten: false }
        })
        .await
    }

    async fn moved(&self, since: &MovedSince) -> StoreResult<Moved> {
        self.read(self.host.lane, |data| {
            let from = since.place.map_or(data.moved.len(), |since| since as usize);
            let heads: BTreeMap<_, _> = data.moved[from..].iter().copied().collect();
            Moved { heads: heads.into_iter().collect(), next: MovedSince::at(data.moved.len() as u64) }
        })
        .await
    }

    async fn revocations(&self, after: Option<u64>) -> StoreResult<(u64, Vec<Revocation>)> {
        self.read(self.host.lane, |data| {
            let from = after.map_or(data.notes.len(), |after| after as usize);
            (data.notes.len() as u64, data.notes[from..].to_vec())
        })
        .await
    }

    async fn devices(&self, user: UserId) -> StoreResult<Vec<Device>> {
        self.read(lane_of(user), |data| {
            let rows = data.roster.devices.iter().filter(|(_, row)| row.user == user);
            let mut ids: Vec<_> = rows.map(|(id, _)| *id).collect();
            ids.sort();
            ids.into_iter().map(|id| device(id, data.roster.devices[&id].connection)).collect()
        })
        .await
    }

    async fn mail_since(&self, after: Option<u64>) -> StoreResult<(u64, Vec<(UserId, DeviceId)>)> {
        Ok((after.unwrap_or_default(), Vec::new()))
    }

    async fn ping(&self) -> StoreResult<()> {
        Ok(())
    }

    async fn close(&self) {}

    // What follows belongs to parts of the server that take no part in the simulation.

    async fn new_epoch(&self) -> StoreResult<Epoch> {
        unreachable!("nobody begins an epoch")
    }

    async fn head(&self, _user: UserId) -> StoreResult<Option<HeadRead>> {
        unreachable!("nobody reads heads")
    }

    async fn entry(&self, _user: UserId, _key: &SessionKey) -> StoreResult<Option<Entry>> {
        unreachable!("nobody reads one entry")
    }

    async fn kept_changes(&self, _user: UserId, _after: Seq) -> StoreResult<Vec<Change>> {
        unreachable!("nobody exports")
    }

    async fn history(&self, _user: UserId, _key: &SessionKey) -> StoreResult<Vec<Change>> {
        unreachable!("nobody reads histories")
    }

    async fn account(&self, _email: &str) -> StoreResult<Option<Account>> {
        unreachable!("nobody logs in")
    }

    async fn account_of(&self, _user: UserId) -> StoreResult<Option<Account>> {
        unreachable!("nobody reads accounts")
    }

    async fn accounts_after(&self, _email: &str, _limit: u32) -> StoreResult<Vec<Account>> {
        unreachable!("nobody lists accounts")
    }

    async fn is_authorized(&self, _bearer: &Bearer, _at: Timestamp) -> StoreResult<bool> {
        unreachable!("nobody shows a token")
    }

    async fn mailbox_size(&self, _user: UserId, _device: DeviceId) -> StoreResult<Option<u64>> {
        unreachable!("nobody sends messages")
    }

    async fn mailbox(
        &self,
        _user: UserId,
        _device: DeviceId,
        _after: u64,
        _now: Timestamp,
    ) -> StoreResult<Vec<WaitingMessage>> {
        unreachable!("nobody sends messages")
    }

    async fn expired_messages(&self, _now: Timestamp) -> StoreResult<Vec<(UserId, DeviceId, MessageId)>> {
        unreachable!("nobody sends messages")
    }

    async fn mailbox_depth(&self) -> StoreResult<MailboxDepth> {
        unreachable!("nobody sends messages")
    }

    async fn prune(&self, _retention: &Retention, _now: Timestamp) -> StoreResult<u64> {
        unreachable!("nobody prunes")
    }

    async fn backup(&self, _file: &Path) -> anyhow::Result<()> {
        unreachable!("nobody backs up")
    }
}

fn device(id: DeviceId, connection: Option<ConnectionId>) -> Device {
    Device {
        id,
        description: Description { name: String::new(), kind: "unknown".to_owned(), metadata: "{}".into() },
        fingerprint: 0,
        created_at: Timestamp(0),
        connection,
        connected_at: None,
        last_seen: Timestamp(0),
    }
}
