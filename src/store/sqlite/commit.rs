//! One batch, one transaction: load what it touches, decide, save, commit.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Either, Row};

use super::marker::Mark;
use super::sql::{Insert, Script, insert_all, json_list, seq, session_id, state, time, uuid, version};
use super::{devices, external, fault, logins, messages, sql};
use crate::model::{SessionKey, UserId, Version};
use crate::store::batch::{self, AppliedOp, ChangeRow, Head, Loaded, Needs, OpIdRow, Plan, Stored};
use crate::store::{Bounds, Command, Reply, SessionWrite, StoreError, StoreResult};

/// Applies `batch`; see [`crate::store::Store::commit`]. Also where the database
/// is then. After an error the connection is to be closed: it may be inside the
/// transaction still.
///
/// Writes of sessions are decided together; records one by one before them. Where
/// all are writes, the transaction begins with the script that loads and ends with
/// the one that saves.
pub async fn commit(
    connection: &mut SqliteConnection,
    batch: &[Command],
    bounds: &Bounds,
) -> StoreResult<(Vec<Reply>, Mark)> {
    let mut script = Script::default();
    script.push("BEGIN IMMEDIATE");
    let mut replies = Vec::with_capacity(batch.len());
    let (mut writes, mut places) = (Vec::new(), Vec::new());
    for command in batch {
        if let Command::Write(write) = command {
            writes.push(write.clone());
            places.push(replies.len());
            replies.push(Reply::Done);
            continue;
        }
        std::mem::take(&mut script).finish(connection).await.map_err(fault)?;
        replies.push(record(connection, command, bounds).await.map_err(fault)?);
    }
    if !writes.is_empty() {
        let loaded = load(connection, std::mem::take(&mut script), &writes).await.map_err(fault)?;
        let plan = batch::plan(loaded, &writes, bounds);
        save(connection, &plan, &mut script).await.map_err(fault)?;
        for (place, outcome) in places.into_iter().zip(plan.outcomes) {
            replies[place] = Reply::Written(outcome);
        }
    }
    Ok((replies, end(connection, script).await?))
}

/// Runs what is left, and commits.
async fn end(connection: &mut SqliteConnection, mut script: Script) -> StoreResult<Mark> {
    script.push(sql::MARK).push("COMMIT");
    let statements = script.statements();
    let mut steps = script.run(connection);
    let (mut done, mut mark) = (0, None);
    loop {
        match steps.try_next().await {
            Ok(Some(Either::Left(_))) => done += 1,
            Ok(Some(Either::Right(row))) => mark = sql::mark_of(&row).ok(),
            Ok(None) => break,
            Err(error) => {
                let is_commit = done + 1 == statements;
                return Err(match fault(error) {
                    StoreError::Full => StoreError::Full,
                    _ => StoreError::Unavailable { unknown: is_commit },
                });
            }
        }
    }
    // The connection's thread may have come to an end anywhere.
    mark.filter(|_| done == statements).ok_or(StoreError::Unavailable { unknown: true })
}

async fn record(
    connection: &mut SqliteConnection,
    command: &Command,
    bounds: &Bounds,
) -> Result<Reply, sqlx::Error> {
    Ok(match command {
        Command::Write(_) => unreachable!("writes are decided together"),
        Command::CreateAccount(account) => {
            Reply::AccountCreated(logins::create_account(connection, account).await?)
        }
        Command::ImportAccount(import) => {
            Reply::AccountCreated(devices::import_account(connection, import).await?)
        }
        Command::AdmitUser(admit) => external::admit(connection, admit).await.map(|()| Reply::Done)?,
        Command::OpenLogin(login) => logins::open(connection, login).await.map(|()| Reply::Done)?,
        Command::RotateRefresh(rotate) => Reply::Rotated(logins::rotate(connection, rotate).await?),
        Command::EndLogins(end) => {
            Reply::Revoked(Some(logins::end(connection, end.user, end.which, end.at).await?))
        }
        Command::ChangePassword(change) => Reply::Revoked(logins::change_password(connection, change).await?),
        Command::RemoveUser { user, at } => {
            Reply::Revoked(logins::remove_user(connection, *user, *at).await?)
        }
        Command::ConnectDevice(connect) => {
            Reply::Connected(devices::connect(connection, connect, bounds.devices_per_user).await?)
        }
        Command::LeaveDevice(leave) => devices::leave(connection, leave).await.map(|()| Reply::Done)?,
        Command::LeaveConnection(left) => {
            devices::leave_connection(connection, left).await.map(|()| Reply::Done)?
        }
        Command::MoveDevice(moved) => devices::move_to(connection, moved).await.map(|()| Reply::Done)?,
        Command::UpdateDevice(update) => Reply::Updated(devices::update(connection, update).await?),
        Command::RevokeDevice(revoke) => Reply::Revoked(devices::revoke(connection, revoke).await?),
        Command::PostMessage(post) => Reply::Posted(messages::post(connection, post).await?),
        Command::TakeMessages(take) => Reply::Taken(messages::take(connection, take).await?),
        Command::Beat { boot, node, at } => {
            devices::beat(connection, *boot, node, *at).await.map(|()| Reply::Done)?
        }
    })
}

/// Loads what `writes` need, after what `script` does.
async fn load(
    connection: &mut SqliteConnection,
    mut script: Script,
    writes: &[Arc<SessionWrite>],
) -> Result<Loaded, sqlx::Error> {
    let needs = Needs::of(writes);
    let before = script.statements();
    script.push(HEADS).bind(json_list(&needs.users));
    let ids = needs.entries.iter().map(|(user, key)| session_id(*user, key));
    script.push(ENTRIES).bind(json_list(ids));
    if !needs.op_ids.is_empty() {
        let pairs = needs.op_ids.iter().map(|(user, op_id)| (user.to_string(), op_id.to_string()));
        script.push(KNOWN_OP_IDS).bind(json_list(pairs));
    }
    let mut loaded = Loaded::default();
    let mut found = script.run(connection);
    let mut done = 0;
    while let Some(step) = found.try_next().await? {
        match step {
            Either::Left(_) => done += 1,
            Either::Right(row) if done == before => load_head(&row, &mut loaded)?,
            Either::Right(row) if done == before + 1 => load_entry(&row, &mut loaded)?,
            Either::Right(row) => load_op_id(&row, &mut loaded)?,
        }
    }
    drop(found);
    for (user, key, wanted) in loaded.versions_to_load(writes) {
        load_version(connection, user, key, wanted, &mut loaded).await?;
    }
    Ok(loaded)
}

const HEADS: &str = "SELECT id, seq, live_keys, live_bytes, kept_bytes, tombstones, version_floor FROM users
     WHERE id IN (SELECT value FROM json_each(?))";

fn load_head(row: &SqliteRow, loaded: &mut Loaded) -> Result<(), sqlx::Error> {
    let head = Head {
        seq: seq(row, "seq")?,
        live_keys: sql::number(row, "live_keys")?,
        live_bytes: sql::number(row, "live_bytes")?,
        kept_bytes: sql::number(row, "kept_bytes")?,
        tombstones: sql::number(row, "tombstones")?,
        version_floor: version(row, "version_floor")?,
    };
    loaded.heads.insert(UserId(uuid(row, "id")?), head);
    Ok(())
}

const ENTRIES: &str =
    "SELECT user_id, session_key, version, seq, data, device_id, created_at, updated_at FROM sessions
     WHERE id IN (SELECT value FROM json_each(?))";

fn load_entry(row: &SqliteRow, loaded: &mut Loaded) -> Result<(), sqlx::Error> {
    let stored = Stored {
        version: version(row, "version")?,
        seq: seq(row, "seq")?,
        state: state(row, "data")?,
        device: sql::device(row, "device_id")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    };
    loaded.entries.insert((UserId(uuid(row, "user_id")?), sql::key(row, "session_key")?), stored);
    Ok(())
}

const KNOWN_OP_IDS: &str =
    "SELECT o.user_id, o.op_id, o.content_hash, o.version, o.seq FROM json_each(?) AS wanted
     JOIN op_ids AS o ON o.user_id = wanted.value ->> 0 AND o.op_id = wanted.value ->> 1";

fn load_op_id(row: &SqliteRow, loaded: &mut Loaded) -> Result<(), sqlx::Error> {
    let hash: &[u8] = row.try_get("content_hash")?;
    let applied = AppliedOp {
        content_hash: hash.try_into().unwrap_or_default(),
        version: version(row, "version")?,
        seq: seq(row, "seq")?,
    };
    let op_id: &str = row.try_get("op_id")?;
    loaded.op_ids.insert((UserId(uuid(row, "user_id")?), op_id.into()), applied);
    Ok(())
}

async fn load_version(
    connection: &mut SqliteConnection,
    user: UserId,
    key: SessionKey,
    wanted: Version,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let row = sqlx::query("SELECT data FROM changes WHERE user_id = ? AND session_key = ? AND version = ?")
        .bind(user.to_string())
        .bind(key.as_str())
        .bind(wanted.0.cast_signed())
        .fetch_optional(connection)
        .await?;
    if let Some(row) = row {
        loaded.versions.insert((user, key, wanted), state(&row, "data")?);
    }
    Ok(())
}

/// Saves `plan`, with what it adds to `script`.
async fn save(
    connection: &mut SqliteConnection,
    plan: &Plan,
    script: &mut Script,
) -> Result<(), sqlx::Error> {
    let entries: Vec<_> = plan.entries.iter().collect();
    if goes_in_one_piece(plan) {
        script.insert(&SESSIONS, &entries, bind_entry);
        script.insert(&CHANGES, &plan.changes, bind_change);
        script.insert(&OP_IDS, &plan.op_ids, bind_op_id);
    } else {
        insert_all(connection, &SESSIONS, &entries, bind_entry).await?;
        insert_all(connection, &CHANGES, &plan.changes, bind_change).await?;
        insert_all(connection, &OP_IDS, &plan.op_ids, bind_op_id).await?;
    }
    if !plan.heads.is_empty() {
        let heads = plan.heads.iter().map(|(user, head)| {
            let counts = (head.live_keys, head.live_bytes, head.kept_bytes, head.tombstones);
            (user.to_string(), head.seq.0, counts.0, counts.1, counts.2, counts.3)
        });
        script.push(UPDATE_HEADS).bind(json_list(heads));
    }
    Ok(())
}

/// Rows of each table that may share one script.
const ROWS_IN_ONE_PIECE: usize = 16;

/// Whether one script saves all of `plan`. Each text is prepared once and kept, so
/// only those are used of which there are few: every write changes a key of its
/// own, and either all have an op id or none.
fn goes_in_one_piece(plan: &Plan) -> bool {
    let changes = plan.changes.len();
    changes <= ROWS_IN_ONE_PIECE
        && plan.entries.len() == changes
        && (plan.op_ids.is_empty() || plan.op_ids.len() == changes)
}

const SESSIONS: Insert = Insert {
    head: "INSERT INTO sessions
     (id, user_id, session_key, device_id, data, version, seq, created_at, updated_at) VALUES",
    row: "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
    tail: " ON CONFLICT (id) DO UPDATE SET device_id = excluded.device_id, data = excluded.data,
      version = excluded.version, seq = excluded.seq, updated_at = excluded.updated_at",
};

fn bind_entry(script: &mut Script, ((user, key), stored): &(&(UserId, SessionKey), &Stored)) {
    script
        .bind(session_id(*user, key))
        .bind(user.to_string())
        .bind(key.as_str())
        .bind(stored.device.map(|device| device.to_string()))
        .bind(stored.state.as_deref())
        .bind(stored.version.0.cast_signed())
        .bind(stored.seq.0.cast_signed())
        .bind(stored.created_at.0)
        .bind(stored.updated_at.0);
}

const CHANGES: Insert = Insert {
    head: "INSERT INTO changes (user_id, seq, session_key, version, device_id, at, data) VALUES",
    row: "(?, ?, ?, ?, ?, ?, ?)",
    tail: "",
};

fn bind_change(script: &mut Script, change: &ChangeRow) {
    script
        .bind(change.user.to_string())
        .bind(change.seq.0.cast_signed())
        .bind(change.key.as_str())
        .bind(change.version.0.cast_signed())
        .bind(change.device.map(|device| device.to_string()))
        .bind(change.at.0)
        .bind(change.state.as_deref());
}

const UPDATE_HEADS: &str =
    "UPDATE users SET seq = head.value ->> 1, live_keys = head.value ->> 2, live_bytes = head.value ->> 3,
         kept_bytes = head.value ->> 4, tombstones = head.value ->> 5
     FROM json_each(?) AS head WHERE users.id = head.value ->> 0";

const OP_IDS: Insert = Insert {
    head: "INSERT INTO op_ids (user_id, op_id, content_hash, session_key, version, seq, at) VALUES",
    row: "(?, ?, ?, ?, ?, ?, ?)",
    tail: "",
};

fn bind_op_id(script: &mut Script, ((user, op_id), key, applied, at): &OpIdRow) {
    script
        .bind(user.to_string())
        .bind(&**op_id)
        .bind(&applied.content_hash[..])
        .bind(key.as_str())
        .bind(applied.version.0.cast_signed())
        .bind(applied.seq.0.cast_signed())
        .bind(at.0);
}
