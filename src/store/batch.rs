//! What a batch of writes makes of what is there: pure, and the same for every
//! database.
//!
//! A store loads the heads, entries, op ids and bases that [`Needs`] names,
//! calls [`plan`], and saves what the [`Plan`] says. Writes are decided in the
//! order given; each sees what its predecessors in the batch made. A refused
//! write takes no seq.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Bounds, SessionWrite, WriteChange, WriteRefusal, Written};
use crate::merge;
use crate::model::{Change, DeviceId, JsonText, Seq, SessionKey, Timestamp, UserId, Version};

/// A user's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last change.
    pub seq: Seq,
    /// Keys that are not deleted.
    pub live_keys: u64,
    /// Bytes of their states.
    pub live_bytes: u64,
    /// Bytes of the states of all changes that are kept, the current ones too.
    pub kept_bytes: u64,
    /// Keys that are deleted and not forgotten yet.
    pub tombstones: u64,
    /// Versions of returning keys start above it.
    pub version_floor: Version,
}

/// A key as it is.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its version.
    pub version: Version,
    /// The change that made it so.
    pub seq: Seq,
    /// Its state; nothing for a tombstone.
    pub state: Option<JsonText>,
    /// Who made it so.
    pub device: Option<DeviceId>,
    /// When it was first made.
    pub created_at: Timestamp,
    /// When it was made so.
    pub updated_at: Timestamp,
}

/// A write that was applied under an op id.
#[derive(Clone, Debug)]
pub struct AppliedOp {
    /// SHA-256 of what was asked.
    pub content_hash: [u8; 32],
    /// The version it made.
    pub version: Version,
    /// The seq it got.
    pub seq: Seq,
}

type EntryId = (UserId, SessionKey);
type OpKey = (UserId, Arc<str>);
type VersionId = (UserId, SessionKey, Version);

/// What a batch must see before it can be decided.
#[derive(Default)]
pub struct Needs {
    /// The users' heads.
    pub users: HashSet<UserId>,
    /// Their entries.
    pub entries: HashSet<EntryId>,
    /// Their op ids.
    pub op_ids: HashSet<OpKey>,
}

impl Needs {
    /// What `writes` need.
    pub fn of(writes: &[Arc<SessionWrite>]) -> Self {
        let mut needs = Self::default();
        for write in writes {
            needs.users.insert(write.user);
            needs.entries.insert((write.user, write.key.clone()));
            if let Some(op_id) = &write.op_id {
                needs.op_ids.insert((write.user, op_id.clone()));
            }
        }
        needs
    }
}

/// What was loaded.
#[derive(Default)]
pub struct Loaded {
    /// By user; a missing one does not exist.
    pub heads: HashMap<UserId, Head>,
    /// By user and key; a missing one never was.
    pub entries: HashMap<EntryId, Stored>,
    /// By user and op id.
    pub op_ids: HashMap<OpKey, AppliedOp>,
    /// States of kept earlier versions; a tombstone's is `None`.
    pub versions: HashMap<VersionId, Option<JsonText>>,
}

impl Loaded {
    /// Earlier versions that deciding `writes` will look at and that are still to be
    /// loaded: bases of merges and versions to bring back. A few too many is fine.
    /// Those that are current need no loading.
    pub fn versions_to_load(&mut self, writes: &[Arc<SessionWrite>]) -> HashSet<VersionId> {
        let mut wanted = HashSet::new();
        for write in writes {
            let merges = write.on_conflict == merge::OnConflict::Merge
                && matches!(write.change, WriteChange::State(_) | WriteChange::Delete);
            let version = match (&write.change, write.base_version) {
                (WriteChange::Restore(version), _) => *version,
                (_, Some(base)) if merges && base > Version(0) => base,
                _ => continue,
            };
            let current = self.entries.get(&(write.user, write.key.clone()));
            let id = (write.user, write.key.clone(), version);
            match current.filter(|current| current.version == version) {
                Some(current) => drop(self.versions.insert(id, current.state.clone())),
                None => drop(wanted.insert(id)),
            }
        }
        wanted
    }
}

/// A new row of the changes table.
pub type ChangeRow = Arc<Change>;
/// A new row of the op ids' table, with the time of its coming.
pub type OpIdRow = (OpKey, SessionKey, AppliedOp, Timestamp);

/// What to save, and what to answer.
#[derive(Default)]
pub struct Plan {
    /// The touched entries as they are after the batch.
    pub entries: HashMap<EntryId, Stored>,
    /// Every change in order.
    pub changes: Vec<ChangeRow>,
    /// The touched heads as they are after the batch.
    pub heads: HashMap<UserId, Head>,
    /// New op ids.
    pub op_ids: Vec<OpIdRow>,
    /// One for each write, in order.
    pub outcomes: Vec<Result<Written, WriteRefusal>>,
}

/// Decides `writes` in order on what was loaded.
pub fn plan(mut loaded: Loaded, writes: &[Arc<SessionWrite>], bounds: &Bounds) -> Plan {
    let mut plan = Plan::default();
    for write in writes {
        let outcome = decide(&mut loaded, &mut plan, write, bounds);
        plan.outcomes.push(outcome);
    }
    plan
}

fn decide(
    loaded: &mut Loaded,
    plan: &mut Plan,
    write: &Arc<SessionWrite>,
    bounds: &Bounds,
) -> Result<Written, WriteRefusal> {
    let head = *loaded.heads.get(&write.user).ok_or(WriteRefusal::UnknownUser)?;
    let op = write.op_id.as_ref().map(|op_id| ((write.user, op_id.clone()), content_hash(write)));
    if let Some((id, content_hash)) = &op
        && let Some(applied) = loaded.op_ids.get(id)
    {
        return repeated(applied, content_hash);
    }

    let entry_id = (write.user, write.key.clone());
    let resolved = resolve(loaded, loaded.entries.get(&entry_id), write, bounds)?;
    let previous = loaded.entries.get(&entry_id);
    let head = counted(head, previous, resolved.state.as_deref(), bounds)?;
    let version = previous.map_or(head.version_floor, |previous| previous.version);
    let version = Version(version.0 + 1);
    let change = Arc::new(Change {
        user: write.user,
        seq: head.seq,
        key: write.key.clone(),
        version,
        state: resolved.state,
        device: write.device,
        at: write.at,
    });

    let stored = Stored {
        version,
        seq: change.seq,
        state: change.state.clone(),
        device: write.device,
        created_at: previous.map_or(write.at, |previous| previous.created_at),
        updated_at: write.at,
    };
    loaded.heads.insert(write.user, head);
    loaded.entries.insert(entry_id.clone(), stored.clone());
    loaded.versions.insert((write.user, write.key.clone(), version), change.state.clone());
    if let Some((id, content_hash)) = op {
        let applied = AppliedOp { content_hash, version, seq: change.seq };
        loaded.op_ids.insert(id.clone(), applied.clone());
        plan.op_ids.push((id, write.key.clone(), applied, write.at));
    }
    plan.heads.insert(write.user, head);
    plan.entries.insert(entry_id, stored);
    plan.changes.push(change.clone());
    Ok(Written {
        version,
        seq: change.seq,
        merged: resolved.merged,
        differs: resolved.differs,
        change: Some(change),
    })
}

/// The answer to a write whose op id was applied before.
fn repeated(applied: &AppliedOp, content_hash: &[u8; 32]) -> Result<Written, WriteRefusal> {
    if applied.content_hash != *content_hash {
        return Err(WriteRefusal::OpIdReused);
    }
    Ok(Written { change: None, version: applied.version, seq: applied.seq, merged: false, differs: false })
}

struct Resolved {
    state: Option<JsonText>,
    merged: bool,
    differs: bool,
}

fn resolve(
    loaded: &Loaded,
    current: Option<&Stored>,
    write: &SessionWrite,
    bounds: &Bounds,
) -> Result<Resolved, WriteRefusal> {
    let state = current.and_then(|current| current.state.clone());
    let version = |version: Version| loaded.versions.get(&(write.user, write.key.clone(), version));
    let brought_back = match &write.change {
        WriteChange::Restore(wanted) => {
            Some(version(*wanted).cloned().flatten().ok_or(WriteRefusal::UnknownKey)?)
        }
        _ => None,
    };
    let change = match &write.change {
        WriteChange::State(text) => merge::Change::State(text),
        WriteChange::Patch(text) => merge::Change::Patch(text),
        WriteChange::Ops(text) => merge::Change::Ops(text),
        WriteChange::Restore(_) => merge::Change::State(brought_back.as_deref().unwrap_or("null")),
        WriteChange::Delete if state.is_none() => return Err(WriteRefusal::UnknownKey),
        WriteChange::Delete => merge::Change::Delete,
    };
    let seen =
        merge::Current { version: current.map_or(0, |current| current.version.0), state: state.as_deref() };
    let asked = merge::Write {
        change,
        base_version: write.base_version.map(|version| version.0),
        on_conflict: write.on_conflict,
    };
    let base = write.base_version.and_then(version).cloned().flatten();
    match merge::resolve(seen, base.as_deref(), &asked, &bounds.merge).map_err(WriteRefusal::Refused)? {
        merge::Outcome::Conflict => Err(WriteRefusal::Conflict {
            version: current.map_or(Version(0), |current| current.version),
            device: current.and_then(|current| current.device),
            state,
        }),
        merge::Outcome::Applied { state: result, merged, differs } => Ok(Resolved {
            state: result.map(|text| shared(text, write, brought_back.as_ref())),
            merged,
            differs: differs || brought_back.is_some(),
        }),
    }
}

/// The result's text, without a copy where it is what was sent.
fn shared(
    text: std::borrow::Cow<'_, str>,
    write: &SessionWrite,
    brought_back: Option<&JsonText>,
) -> JsonText {
    match &write.change {
        WriteChange::State(sent)
            if std::ptr::eq(sent.as_ptr(), text.as_ptr()) && sent.len() == text.len() =>
        {
            sent.clone()
        }
        _ => match brought_back {
            Some(kept) if **kept == *text => kept.clone(),
            _ => text.into(),
        },
    }
}

/// The head after this change, or the quota it would break. What shrinks or
/// stays equal is never refused.
fn counted(
    head: Head,
    previous: Option<&Stored>,
    state: Option<&str>,
    bounds: &Bounds,
) -> Result<Head, WriteRefusal> {
    let bytes_before = previous.and_then(|previous| previous.state.as_deref()).map(str::len);
    let bytes_after = state.map(str::len);
    let keys = head.live_keys + u64::from(bytes_after.is_some()) - u64::from(bytes_before.is_some());
    let bytes = head.live_bytes + bytes_after.unwrap_or(0) as u64 - bytes_before.unwrap_or(0) as u64;
    if keys > head.live_keys && keys > bounds.keys_per_user {
        return Err(WriteRefusal::Quota("LIMIT_KEYS_PER_USER"));
    }
    if bytes > head.live_bytes && bytes > bounds.bytes_per_user {
        return Err(WriteRefusal::Quota("LIMIT_USER_BYTES"));
    }
    let was_tombstone = previous.is_some_and(|previous| previous.state.is_none());
    Ok(Head {
        seq: head.seq.next(),
        live_keys: keys,
        live_bytes: bytes,
        kept_bytes: head.kept_bytes + bytes_after.unwrap_or(0) as u64,
        tombstones: (head.tombstones + u64::from(state.is_none())).saturating_sub(u64::from(was_tombstone)),
        version_floor: head.version_floor,
    })
}

/// What makes two writes under one op id the same write.
fn content_hash(write: &SessionWrite) -> [u8; 32] {
    let mut hash = Sha256::new();
    let kind: u8 = match &write.change {
        WriteChange::State(_) => 0,
        WriteChange::Patch(_) => 1,
        WriteChange::Ops(_) => 2,
        WriteChange::Delete => 3,
        WriteChange::Restore(version) => {
            hash.update(version.0.to_be_bytes());
            4
        }
    };
    hash.update([kind, write.on_conflict as u8]);
    hash.update(write.base_version.map_or(u64::MAX, |version| version.0).to_be_bytes());
    hash.update((write.key.as_str().len() as u64).to_be_bytes());
    hash.update(write.key.as_str());
    hash.update(write.change.text().unwrap_or(""));
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
