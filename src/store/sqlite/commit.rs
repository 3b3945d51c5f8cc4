//! One batch, one transaction: load what it touches, decide, save, commit.

use std::sync::Arc;

use sqlx::sqlite::{Sqlite, SqliteConnection, SqlitePool};
use sqlx::{Connection, Row, Transaction};

use super::marker::Mark;
use super::sql::{insert_all, json_list, seq, session_id, state, time, uuid, version};
use super::{devices, external, fault, logins, messages, sql};
use crate::model::{SessionKey, UserId, Version};
use crate::store::batch::{self, AppliedOp, Head, Loaded, Needs, Plan, Stored};
use crate::store::{Bounds, Command, Reply, SessionWrite, StoreError, StoreResult};

/// Applies `batch`; see [`crate::store::Store::commit`]. Also where the database
/// is then.
pub async fn commit(
    writer: &SqlitePool,
    batch: &[Command],
    bounds: &Bounds,
) -> StoreResult<(Vec<Reply>, Mark)> {
    let mut connection = writer.acquire().await.map_err(fault)?;
    let transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(fault)?;
    let committed = in_transaction(transaction, batch, bounds).await;
    if committed.is_err() {
        super::give_up(connection).await;
    }
    committed
}

async fn in_transaction(
    mut transaction: Transaction<'_, Sqlite>,
    batch: &[Command],
    bounds: &Bounds,
) -> StoreResult<(Vec<Reply>, Mark)> {
    let replies = apply(&mut transaction, batch, bounds).await.map_err(fault)?;
    let mark = sql::mark(&mut transaction).await.map_err(fault)?;
    transaction.commit().await.map_err(|error| match fault(error) {
        StoreError::Full => StoreError::Full,
        _ => StoreError::Unavailable { unknown: true },
    })?;
    Ok((replies, mark))
}

/// Writes of sessions are decided together; records one by one before them.
async fn apply(
    connection: &mut SqliteConnection,
    batch: &[Command],
    bounds: &Bounds,
) -> Result<Vec<Reply>, sqlx::Error> {
    let mut replies = Vec::with_capacity(batch.len());
    let mut writes = Vec::new();
    let mut write_places = Vec::new();
    for command in batch {
        let reply = match command {
            Command::Write(write) => {
                writes.push(write.clone());
                write_places.push(replies.len());
                Reply::Done
            }
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
            Command::ChangePassword(change) => {
                Reply::Revoked(logins::change_password(connection, change).await?)
            }
            Command::RemoveUser { user, at } => {
                Reply::Revoked(logins::remove_user(connection, *user, *at).await?)
            }
            Command::ConnectDevice(connect) => {
                Reply::Connected(devices::connect(connection, connect, bounds.devices_per_user).await?)
            }
            Command::LeaveDevice(leave) => devices::leave(connection, leave).await.map(|()| Reply::Done)?,
            Command::MoveDevice(moved) => devices::move_to(connection, moved).await.map(|()| Reply::Done)?,
            Command::UpdateDevice(update) => Reply::Updated(devices::update(connection, update).await?),
            Command::RevokeDevice(revoke) => Reply::Revoked(devices::revoke(connection, revoke).await?),
            Command::PostMessage(post) => Reply::Posted(messages::post(connection, post).await?),
            Command::TakeMessages(take) => Reply::Taken(messages::take(connection, take).await?),
            Command::Beat { boot, node, at } => {
                devices::beat(connection, *boot, node, *at).await.map(|()| Reply::Done)?
            }
        };
        replies.push(reply);
    }
    if !writes.is_empty() {
        let outcomes = write_all(connection, &writes, bounds).await?;
        for (place, outcome) in write_places.into_iter().zip(outcomes) {
            replies[place] = Reply::Written(outcome);
        }
    }
    Ok(replies)
}

async fn write_all(
    connection: &mut SqliteConnection,
    writes: &[Arc<SessionWrite>],
    bounds: &Bounds,
) -> Result<Vec<Result<crate::store::Written, crate::store::WriteRefusal>>, sqlx::Error> {
    let loaded = load(connection, writes).await?;
    let plan = batch::plan(loaded, writes, bounds);
    save(connection, &plan).await?;
    Ok(plan.outcomes)
}

async fn load(
    connection: &mut SqliteConnection,
    writes: &[Arc<SessionWrite>],
) -> Result<Loaded, sqlx::Error> {
    let needs = Needs::of(writes);
    let mut loaded = Loaded::default();
    load_heads(connection, &needs, &mut loaded).await?;
    load_entries(connection, &needs, &mut loaded).await?;
    if !needs.op_ids.is_empty() {
        load_op_ids(connection, &needs, &mut loaded).await?;
    }
    let versions = loaded.versions_needed(writes);
    for (user, key, wanted) in versions {
        load_version(connection, user, key, wanted, &mut loaded).await?;
    }
    Ok(loaded)
}

async fn load_heads(
    connection: &mut SqliteConnection,
    needs: &Needs,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, seq, live_keys, live_bytes, kept_bytes, tombstones, version_floor FROM users
         WHERE id IN (SELECT value FROM json_each(?))",
    )
    .bind(json_list(&needs.users))
    .fetch_all(connection)
    .await?;
    for row in rows {
        let head = Head {
            seq: seq(&row, "seq")?,
            live_keys: sql::number(&row, "live_keys")?,
            live_bytes: sql::number(&row, "live_bytes")?,
            kept_bytes: sql::number(&row, "kept_bytes")?,
            tombstones: sql::number(&row, "tombstones")?,
            version_floor: version(&row, "version_floor")?,
        };
        loaded.heads.insert(UserId(uuid(&row, "id")?), head);
    }
    Ok(())
}

async fn load_entries(
    connection: &mut SqliteConnection,
    needs: &Needs,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let ids = needs.entries.iter().map(|(user, key)| session_id(*user, key));
    let rows = sqlx::query(
        "SELECT user_id, session_key, version, seq, data, device_id, created_at, updated_at FROM sessions
         WHERE id IN (SELECT value FROM json_each(?))",
    )
    .bind(json_list(ids))
    .fetch_all(connection)
    .await?;
    for row in rows {
        let stored = Stored {
            version: version(&row, "version")?,
            seq: seq(&row, "seq")?,
            state: state(&row, "data")?,
            device: sql::device(&row, "device_id")?,
            created_at: time(&row, "created_at")?,
            updated_at: time(&row, "updated_at")?,
        };
        loaded.entries.insert((UserId(uuid(&row, "user_id")?), sql::key(&row, "session_key")?), stored);
    }
    Ok(())
}

async fn load_op_ids(
    connection: &mut SqliteConnection,
    needs: &Needs,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let pairs = needs.op_ids.iter().map(|(user, op_id)| (user.to_string(), op_id.to_string()));
    let rows = sqlx::query(
        "SELECT o.user_id, o.op_id, o.content_hash, o.version, o.seq FROM json_each(?) AS wanted
         JOIN op_ids AS o ON o.user_id = wanted.value ->> 0 AND o.op_id = wanted.value ->> 1",
    )
    .bind(json_list(pairs))
    .fetch_all(connection)
    .await?;
    for row in rows {
        let hash: &[u8] = row.try_get("content_hash")?;
        let applied = AppliedOp {
            content_hash: hash.try_into().unwrap_or_default(),
            version: version(&row, "version")?,
            seq: seq(&row, "seq")?,
        };
        let op_id: &str = row.try_get("op_id")?;
        loaded.op_ids.insert((UserId(uuid(&row, "user_id")?), op_id.into()), applied);
    }
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

async fn save(connection: &mut SqliteConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let entries: Vec<_> = plan.entries.iter().collect();
    insert_all(
        connection,
        (
            "INSERT INTO sessions
             (id, user_id, session_key, device_id, data, version, seq, created_at, updated_at) VALUES",
            "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            " ON CONFLICT (id) DO UPDATE SET device_id = excluded.device_id, data = excluded.data,
              version = excluded.version, seq = excluded.seq, updated_at = excluded.updated_at",
        ),
        &entries,
        |statement, ((user, key), stored)| {
            statement
                .bind(session_id(*user, key))
                .bind(user.to_string())
                .bind(key.as_str())
                .bind(stored.device.map(|device| device.to_string()))
                .bind(stored.state.as_deref())
                .bind(stored.version.0.cast_signed())
                .bind(stored.seq.0.cast_signed())
                .bind(stored.created_at.0)
                .bind(stored.updated_at.0)
        },
    )
    .await?;
    insert_all(
        connection,
        (
            "INSERT INTO changes (user_id, seq, session_key, version, device_id, at, data) VALUES",
            "(?, ?, ?, ?, ?, ?, ?)",
            "",
        ),
        &plan.changes,
        |statement, change| {
            statement
                .bind(change.user.to_string())
                .bind(change.seq.0.cast_signed())
                .bind(change.key.as_str())
                .bind(change.version.0.cast_signed())
                .bind(change.device.map(|device| device.to_string()))
                .bind(change.at.0)
                .bind(change.state.as_deref())
        },
    )
    .await?;
    save_heads(connection, plan).await?;
    save_op_ids(connection, plan).await
}

async fn save_heads(connection: &mut SqliteConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    if plan.heads.is_empty() {
        return Ok(());
    }
    let heads = plan.heads.iter().map(|(user, head)| {
        let counts = (head.live_keys, head.live_bytes, head.kept_bytes, head.tombstones);
        (user.to_string(), head.seq.0, counts.0, counts.1, counts.2, counts.3)
    });
    sqlx::query(
        "UPDATE users SET seq = head.value ->> 1, live_keys = head.value ->> 2, live_bytes = head.value ->> 3,
             kept_bytes = head.value ->> 4, tombstones = head.value ->> 5
         FROM json_each(?) AS head WHERE users.id = head.value ->> 0",
    )
    .bind(json_list(heads))
    .execute(connection)
    .await
    .map(drop)
}

async fn save_op_ids(connection: &mut SqliteConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    insert_all(
        connection,
        (
            "INSERT INTO op_ids (user_id, op_id, content_hash, session_key, version, seq, at) VALUES",
            "(?, ?, ?, ?, ?, ?, ?)",
            "",
        ),
        &plan.op_ids,
        |statement, ((user, op_id), key, applied, at)| {
            statement
                .bind(user.to_string())
                .bind(&**op_id)
                .bind(&applied.content_hash[..])
                .bind(key.as_str())
                .bind(applied.version.0.cast_signed())
                .bind(applied.seq.0.cast_signed())
                .bind(at.0)
        },
    )
    .await
}
