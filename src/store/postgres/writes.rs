//! The session writes of a batch: what they touch is loaded in at most three
//! statements and saved in at most two.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::sql::{self, holdable, seq, session_id, state, time, version};
use crate::model::{Clock, DeviceId, UserId};
use crate::store::batch::{self, AppliedOp, Head, Loaded, Needs, Plan, Stored};
use crate::store::{Bounds, Command, Reply, SessionWrite};

/// Decides and saves the writes of `batch`, whose users' heads are locked, and
/// answers them in `replies`; those that are held are left alone.
pub async fn apply(
    connection: &mut PgConnection,
    batch: &[Command],
    heads: HashMap<UserId, Head>,
    bounds: &Bounds,
    replies: &mut [Reply],
) -> Result<(), sqlx::Error> {
    let mut writes = Vec::new();
    let mut places = Vec::new();
    for (place, command) in batch.iter().enumerate() {
        if let Command::Write(write) = command
            && !matches!(replies[place], Reply::Held)
        {
            writes.push(write.clone());
            places.push(place);
        }
    }
    if writes.is_empty() {
        return Ok(());
    }
    let loaded = load(connection, &writes, heads).await?;
    let plan = batch::plan(loaded, &writes, bounds);
    if !plan.changes.is_empty() {
        save(connection, &plan).await?;
    }
    if !plan.op_ids.is_empty() {
        save_op_ids(connection, &plan).await?;
    }
    for (place, outcome) in places.into_iter().zip(plan.outcomes) {
        replies[place] = Reply::Written(outcome);
    }
    Ok(())
}

async fn load(
    connection: &mut PgConnection,
    writes: &[Arc<SessionWrite>],
    heads: HashMap<UserId, Head>,
) -> Result<Loaded, sqlx::Error> {
    let needs = Needs::of(writes);
    let mut loaded = Loaded { heads, ..Loaded::default() };
    load_entries(connection, &needs, &mut loaded).await?;
    if !needs.op_ids.is_empty() {
        load_op_ids(connection, &needs, &mut loaded).await?;
    }
    load_versions(connection, writes, &mut loaded).await?;
    Ok(loaded)
}

async fn load_entries(
    connection: &mut PgConnection,
    needs: &Needs,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let ids: Vec<String> = needs.entries.iter().map(|(user, key)| session_id(*user, key)).collect();
    let rows = sqlx::query(
        "SELECT user_id, session_key, version, seq, data, device_id, created_at, updated_at
         FROM sessions WHERE id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let stored = Stored {
            version: version(row, "version")?,
            seq: seq(row, "seq")?,
            state: state(row, "data")?,
            device: sql::device(row, "device_id")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        };
        loaded.entries.insert((sql::user(row, "user_id")?, sql::key(row, "session_key")?), stored);
    }
    Ok(())
}

async fn load_op_ids(
    connection: &mut PgConnection,
    needs: &Needs,
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    // Rows come back by their place here, so that an id keeps the name its
    // client gave it, whatever the server can hold of it.
    let wanted: Vec<_> = needs.op_ids.iter().collect();
    let users: Vec<Uuid> = wanted.iter().map(|(user, _)| user.0).collect();
    let op_ids: Vec<_> = wanted.iter().map(|(_, op_id)| holdable(op_id)).collect();
    let rows = sqlx::query(
        "SELECT wanted.place, o.content_hash, o.version, o.seq
         FROM UNNEST($1::uuid[], $2::text[]) WITH ORDINALITY AS wanted (user_id, op_id, place)
         JOIN op_ids AS o ON o.user_id = wanted.user_id AND o.op_id = wanted.op_id",
    )
    .bind(users)
    .bind(op_ids)
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let place = usize::try_from(sql::number(row, "place")?).unwrap_or_default();
        let Some(id) = place.checked_sub(1).and_then(|place| wanted.get(place)) else { continue };
        let hash: &[u8] = row.try_get("content_hash")?;
        let applied = AppliedOp {
            content_hash: hash.try_into().unwrap_or_default(),
            version: version(row, "version")?,
            seq: seq(row, "seq")?,
        };
        loaded.op_ids.insert((*id).clone(), applied);
    }
    Ok(())
}

async fn load_versions(
    connection: &mut PgConnection,
    writes: &[Arc<SessionWrite>],
    loaded: &mut Loaded,
) -> Result<(), sqlx::Error> {
    let wanted = loaded.versions_to_load(writes);
    if wanted.is_empty() {
        return Ok(());
    }
    let rows = sqlx::query(
        "SELECT c.user_id, c.session_key, c.version, c.data
         FROM UNNEST($1::uuid[], $2::text[], $3::bigint[]) AS wanted (user_id, session_key, version)
         JOIN changes AS c ON c.user_id = wanted.user_id AND c.session_key = wanted.session_key
             AND c.version = wanted.version",
    )
    .bind(wanted.iter().map(|(user, ..)| user.0).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, key, _)| key.as_str()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(.., version)| version.0.cast_signed()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let id = (sql::user(row, "user_id")?, sql::key(row, "session_key")?, version(row, "version")?);
        loaded.versions.insert(id, state(row, "data")?);
    }
    Ok(())
}

/// Entries, changes, heads, and whose moved, in one statement.
async fn save(connection: &mut PgConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let entries: Vec<_> = plan.entries.iter().collect();
    let heads: Vec<_> = plan.heads.iter().collect();
    let id_of = |device: Option<DeviceId>| device.map(|device| device.0);
    sqlx::query(
        "WITH saved_entries AS (
             INSERT INTO sessions
                 (id, user_id, session_key, device_id, data, version, seq, created_at, updated_at)
             SELECT * FROM UNNEST($1::text[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::bigint[],
                 $7::bigint[], $8::bigint[], $9::bigint[])
             ON CONFLICT (id) DO UPDATE SET device_id = excluded.device_id, data = excluded.data,
                 version = excluded.version, seq = excluded.seq, updated_at = excluded.updated_at
         ), saved_changes AS (
             INSERT INTO changes (user_id, seq, session_key, version, device_id, at, data)
             SELECT * FROM UNNEST($10::uuid[], $11::bigint[], $12::text[], $13::bigint[], $14::uuid[],
                 $15::bigint[], $16::text[])
         ), moved AS (
             INSERT INTO moves (xid, user_id, seq, at)
             SELECT pg_current_xact_id()::text::bigint, id, seq, $21
             FROM UNNEST($17::uuid[], $18::bigint[]) AS head (id, seq)
         )
         UPDATE users SET seq = head.seq, live_keys = head.live_keys, live_bytes = head.live_bytes,
             kept_bytes = head.kept_bytes, tombstones = head.tombstones
         FROM UNNEST($17::uuid[], $18::bigint[], $19::bigint[], $20::bigint[], $22::bigint[], $23::bigint[])
             AS head (id, seq, live_keys, live_bytes, kept_bytes, tombstones)
         WHERE users.id = head.id",
    )
    .bind(entries.iter().map(|((user, key), _)| session_id(*user, key)).collect::<Vec<_>>())
    .bind(entries.iter().map(|((user, _), _)| user.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|((_, key), _)| key.as_str()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| id_of(stored.device)).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| stored.state.as_deref()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| stored.version.0.cast_signed()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| stored.seq.0.cast_signed()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| stored.created_at.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, stored)| stored.updated_at.0).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.user.0).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.seq.0.cast_signed()).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.version.0.cast_signed()).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| id_of(change.device)).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.at.0).collect::<Vec<_>>())
    .bind(plan.changes.iter().map(|change| change.state.as_deref()).collect::<Vec<_>>())
    .bind(heads.iter().map(|(user, _)| user.0).collect::<Vec<_>>())
    .bind(heads.iter().map(|(_, head)| head.seq.0.cast_signed()).collect::<Vec<_>>())
    .bind(heads.iter().map(|(_, head)| head.live_keys.cast_signed()).collect::<Vec<_>>())
    .bind(heads.iter().map(|(_, head)| head.live_bytes.cast_signed()).collect::<Vec<_>>())
    .bind(Clock::now().0)
    .bind(heads.iter().map(|(_, head)| head.kept_bytes.cast_signed()).collect::<Vec<_>>())
    .bind(heads.iter().map(|(_, head)| head.tombstones.cast_signed()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}

async fn save_op_ids(connection: &mut PgConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let rows = &plan.op_ids;
    sqlx::query(
        "INSERT INTO op_ids (user_id, op_id, content_hash, session_key, version, seq, at)
         SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[],
             $7::bigint[])
         ON CONFLICT (user_id, op_id) DO NOTHING",
    )
    .bind(rows.iter().map(|((user, _), ..)| user.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|((_, op_id), ..)| holdable(op_id)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, applied, _)| &applied.content_hash[..]).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, key, ..)| key.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, applied, _)| applied.version.0.cast_signed()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, applied, _)| applied.seq.0.cast_signed()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(.., at)| at.0).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}
