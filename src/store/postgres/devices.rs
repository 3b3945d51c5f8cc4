//! Devices: a batch of connects and leaves in a constant number of statements.

use std::collections::HashMap;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::sql::{self, holdable, time};
use super::users::Locked;
use super::{external, logins};
use crate::model::{
    BootId, ConnectionId, Description, Device, DeviceId, LoginId, Revoked, Timestamp, UserId,
};
use crate::store::roster::{Needs, Roster, Row};
use crate::store::{
    Command, ConnectDevice, ConnectRefusal, LeaveConnection, MoveDevice, Reply, UpdateDevice,
};

/// The last moment a device is known to have been connected: for a row that a
/// dead node left open, that node's last beat.
const LAST_SEEN: &str = "greatest(d.last_seen,
    CASE WHEN d.disconnected_at IS NULL THEN coalesce(n.last_beat, 0) ELSE 0 END)";

/// Decides and saves the device commands of `batch` and puts what became of them
/// into `replies`, one for each command. Their users are locked, except those
/// whose replies are held, which are left alone, and those who do not exist.
pub async fn apply(
    connection: &mut PgConnection,
    batch: &[Command],
    devices_max: u32,
    locked: &Locked,
    replies: &mut [Reply],
) -> Result<(), sqlx::Error> {
    let mine: Vec<_> =
        batch.iter().zip(&*replies).filter(|(_, reply)| !matches!(reply, Reply::Held)).collect();
    let mine: Vec<Command> =
        mine.into_iter().map(|(command, _)| command).filter(of_device).cloned().collect();
    if mine.is_empty() {
        return Ok(());
    }
    let mut roster = load(connection, &Needs::of(&mine)).await?;
    roster.tokens_since.clone_from(&locked.tokens_since);
    let mut newcomers = Vec::new();
    for (place, command) in batch.iter().enumerate() {
        match command {
            _ if matches!(replies[place], Reply::Held) => {}
            Command::LeaveDevice(leave) => roster.leave(leave),
            Command::ConnectDevice(connect) if locked.heads.contains_key(&connect.user) => {
                let outcome = roster.connect(connect, DeviceId::fresh());
                if outcome.as_ref().is_ok_and(|connected| connected.fresh) {
                    newcomers.push((place, connect));
                }
                replies[place] = Reply::Connected(outcome);
            }
            Command::ConnectDevice(_) => {
                replies[place] = Reply::Connected(Err(ConnectRefusal::Unauthorized));
            }
            _ => {}
        }
    }
    let descriptions = save(connection, &roster).await?;
    for reply in replies.iter_mut() {
        if let Reply::Connected(Ok(connected)) = reply
            && let Some(description) = descriptions.get(&connected.device)
        {
            connected.description = description.clone();
        }
    }
    let notes = roster.left_open.iter();
    let notes: Vec<_> = notes.map(|(user, older, at)| (*user, Revoked::Connection(*older), *at)).collect();
    logins::note_all(connection, &notes).await?;
    let mut dropped = make_room(connection, &roster, &newcomers, devices_max).await?;
    for (place, connect) in newcomers.into_iter().rev() {
        if let Reply::Connected(Ok(connected)) = &mut replies[place]
            && let Some(gone) = dropped.remove(&connect.user)
        {
            connected.dropped = gone;
        }
    }
    Ok(())
}

fn of_device(command: &&Command) -> bool {
    matches!(command, Command::ConnectDevice(_) | Command::LeaveDevice(_))
}

async fn load(connection: &mut PgConnection, needs: &Needs) -> Result<Roster, sqlx::Error> {
    let mut roster = Roster::default();
    if !needs.logins.is_empty() {
        let logins: Vec<Uuid> = needs.logins.iter().map(|login| login.0).collect();
        let rows = sqlx::query(
            "SELECT id, user_id, expires_at FROM logins WHERE id = ANY($1) AND revoked_at IS NULL",
        )
        .bind(logins)
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            let ends = (sql::user(&row, "user_id")?, time(&row, "expires_at")?);
            roster.logins.insert(LoginId(row.try_get("id")?), ends);
        }
    }
    let external = needs.logins.iter().filter(|login| login.is_external());
    let external: Vec<Uuid> = external.map(|login| login.0).collect();
    if !external.is_empty() {
        roster.ended_tokens = external::ended(&mut *connection, &external).await?;
    }
    let named: Vec<Uuid> = needs.devices.iter().map(|device| device.0).collect();
    let (users, fingerprints): (Vec<Uuid>, Vec<i64>) =
        needs.lookalikes.iter().map(|(user, fingerprint)| (user.0, fingerprint.cast_signed())).unzip();
    let text = format!(
        "SELECT d.id, d.user_id, d.fingerprint, d.connection_id, d.fence, d.boot_id, d.login_id, d.connected_at,
             d.disconnected_at, d.revoked_at, coalesce(n.last_beat, 0) AS last_beat, {LAST_SEEN} AS last_seen
         FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
         WHERE d.id = ANY($1) OR (d.user_id = ANY($2) AND d.fingerprint = ANY($3))"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(named)
        .bind(users)
        .bind(fingerprints)
        .fetch_all(connection)
        .await?;
    for row in rows {
        roster.devices.insert(DeviceId(row.try_get("id")?), kept(&row)?);
    }
    Ok(roster)
}

fn kept(row: &PgRow) -> Result<Row, sqlx::Error> {
    let fingerprint: i64 = row.try_get("fingerprint")?;
    let revoked_at: Option<i64> = row.try_get("revoked_at")?;
    let moment = |column: &str| row.try_get(column).map(|at: Option<i64>| at.map(Timestamp));
    Ok(Row {
        user: sql::user(row, "user_id")?,
        fingerprint: fingerprint.cast_unsigned(),
        info: None,
        connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(ConnectionId),
        fence: sql::number(row, "fence")?,
        boot: row.try_get::<Option<Uuid>, _>("boot_id")?.map(BootId),
        login: row.try_get::<Option<Uuid>, _>("login_id")?.map(LoginId),
        connected_at: moment("connected_at")?,
        disconnected_at: moment("disconnected_at")?,
        last_seen: time(row, "last_seen")?,
        last_beat: time(row, "last_beat")?,
        is_revoked: revoked_at.is_some(),
        is_fresh: false,
    })
}

/// One statement for known and new devices alike: what a known one has not said
/// anew is null here and stays as it is. What is kept of those that are connected.
async fn save(
    connection: &mut PgConnection,
    roster: &Roster,
) -> Result<HashMap<DeviceId, Description>, sqlx::Error> {
    let mut rows = Vec::new();
    let (fresh, known): (Vec<_>, Vec<_>) = roster.changed().into_iter().partition(|(_, row)| row.is_fresh);
    if !known.is_empty() {
        let statement = sqlx::query(
            "WITH saved AS (UPDATE devices AS d SET
                 connection_id = new.connection_id, boot_id = new.boot_id, login_id = new.login_id,
                 connected_at = new.connected_at, disconnected_at = new.disconnected_at,
                 last_seen = new.last_seen, fingerprint = new.fingerprint, fence = new.fence,
                 name = coalesce(new.name, d.name), type = coalesce(new.type, d.type),
                 metadata = coalesce(new.metadata, d.metadata)
             FROM UNNEST($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::uuid[], $6::uuid[],
                     $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                     $13::bigint[])
                 AS new (id, user_id, fingerprint, connection_id, boot_id, login_id,
                     connected_at, disconnected_at, last_seen, name, type, metadata, fence)
             WHERE d.id = new.id
             RETURNING d.id, d.name, d.type, d.metadata, d.disconnected_at)
             SELECT id, name, type, metadata FROM saved WHERE disconnected_at IS NULL",
        );
        rows.extend(columns(statement, &known).fetch_all(&mut *connection).await?);
    }
    if !fresh.is_empty() {
        let statement = sqlx::query(
            "WITH saved AS (INSERT INTO devices (id, user_id, fingerprint, connection_id, boot_id, login_id,
                 connected_at, disconnected_at, last_seen, name, type, metadata, fence, created_at)
             SELECT id, user_id, fingerprint, connection_id, boot_id, login_id,
                 connected_at, disconnected_at, last_seen, name, type, metadata, fence, connected_at
             FROM UNNEST($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::uuid[], $6::uuid[],
                     $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                     $13::bigint[])
                 AS new (id, user_id, fingerprint, connection_id, boot_id, login_id,
                     connected_at, disconnected_at, last_seen, name, type, metadata, fence)
             RETURNING id, name, type, metadata, disconnected_at)
             SELECT id, name, type, metadata FROM saved WHERE disconnected_at IS NULL",
        );
        rows.extend(columns(statement, &fresh).fetch_all(connection).await?);
    }
    rows.iter().map(|row| Ok((DeviceId(row.try_get("id")?), description(row)?))).collect()
}

fn description(row: &PgRow) -> Result<Description, sqlx::Error> {
    let metadata: &str = row.try_get("metadata")?;
    Ok(Description { name: row.try_get("name")?, kind: row.try_get("type")?, metadata: metadata.into() })
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn columns<'q>(statement: Statement<'q>, rows: &[(DeviceId, &Row)]) -> Statement<'q> {
    fn column<T>(rows: &[(DeviceId, &Row)], value: impl Fn(&Row) -> T) -> Vec<T> {
        rows.iter().map(|(_, row)| value(row)).collect()
    }
    let word = |pick: fn(&crate::model::DeviceInfo) -> &str| {
        column(rows, |row| row.info.as_ref().map(|info| holdable(pick(info)).into_owned()))
    };
    statement
        .bind(rows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        .bind(column(rows, |row| row.user.0))
        .bind(column(rows, |row| row.fingerprint.cast_signed()))
        .bind(column(rows, |row| row.connection.map(|id| id.0)))
        .bind(column(rows, |row| row.boot.map(|id| id.0)))
        .bind(column(rows, |row| row.login.map(|id| id.0)))
        .bind(column(rows, |row| row.connected_at.map(|at| at.0)))
        .bind(column(rows, |row| row.disconnected_at.map(|at| at.0)))
        .bind(column(rows, |row| row.last_seen.0))
        .bind(word(|info| &info.name))
        .bind(word(|info| &info.kind))
        .bind(word(|info| &info.metadata))
        .bind(column(rows, |row| row.fence.cast_signed()))
}

/// Drops the longest offline devices beyond each user's share.
async fn make_room(
    connection: &mut PgConnection,
    roster: &Roster,
    newcomers: &[(usize, &ConnectDevice)],
    devices_max: u32,
) -> Result<HashMap<UserId, Vec<DeviceId>>, sqlx::Error> {
    let mut dropped: HashMap<_, Vec<_>> = HashMap::new();
    if newcomers.is_empty() {
        return Ok(dropped);
    }
    let text = format!(
        "WITH crowds AS (
             SELECT user_id, count(*) - $1 AS surplus FROM devices
             WHERE user_id = ANY($2) AND revoked_at IS NULL
             GROUP BY user_id HAVING count(*) > $1
         ), candidates AS (
             SELECT d.id, c.surplus,
                 row_number() OVER (PARTITION BY d.user_id ORDER BY {LAST_SEEN}, d.id) AS place
             FROM devices AS d JOIN crowds AS c ON c.user_id = d.user_id
                 LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
             WHERE d.revoked_at IS NULL AND d.id <> ALL($3)
                 AND (d.disconnected_at IS NOT NULL
                      OR (d.boot_id <> ALL($4) AND coalesce(n.last_beat, 0) < $5))
         )
         DELETE FROM devices WHERE id IN (SELECT id FROM candidates WHERE place <= surplus)
         RETURNING id, user_id"
    );
    let users: Vec<Uuid> = newcomers.iter().map(|(_, connect)| connect.user.0).collect();
    let online = newcomers.iter().flat_map(|(_, connect)| &connect.online).copied();
    let changed = roster.changed().into_iter();
    let connected = changed.filter(|(_, row)| row.disconnected_at.is_none()).map(|(id, _)| id);
    let spared: Vec<Uuid> = online.chain(connected).map(|id| id.0).collect();
    let live_boots: Vec<Uuid> =
        newcomers.iter().flat_map(|(_, connect)| &connect.live_boots).map(|boot| boot.0).collect();
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(i64::from(devices_max))
        .bind(users)
        .bind(spared)
        .bind(live_boots)
        .bind(newcomers.iter().map(|(_, connect)| connect.dead_before.0).min())
        .fetch_all(connection)
        .await?;
    for row in rows {
        dropped.entry(sql::user(&row, "user_id")?).or_default().push(DeviceId(row.try_get("id")?));
    }
    Ok(dropped)
}

/// The device that the connection holds, if it holds one, is offline.
pub async fn leave_connection(
    connection: &mut PgConnection,
    left: &LeaveConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE devices SET disconnected_at = $1, last_seen = $1
         WHERE user_id = $2 AND connection_id = $3 AND disconnected_at IS NULL",
    )
    .bind(left.at.0)
    .bind(left.user.0)
    .bind(left.connection.0)
    .execute(connection)
    .await
    .map(drop)
}

/// The connection goes on under another login.
pub async fn move_to(connection: &mut PgConnection, moved: &MoveDevice) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE devices SET login_id = $1 WHERE id = $2 AND user_id = $3 AND connection_id = $4")
        .bind(moved.login.map(|login| login.0))
        .bind(moved.device.0)
        .bind(moved.user.0)
        .bind(moved.connection.0)
        .execute(connection)
        .await
        .map(drop)
}

/// Another name, other metadata; false when the user has no such device.
pub async fn update(connection: &mut PgConnection, update: &UpdateDevice) -> Result<bool, sqlx::Error> {
    let updated = sqlx::query(
        "UPDATE devices SET name = coalesce($1, name), metadata = coalesce($2, metadata)
         WHERE id = $3 AND user_id = $4 AND revoked_at IS NULL",
    )
    .bind(update.name.as_deref().map(holdable))
    .bind(update.metadata.as_deref().map(holdable))
    .bind(update.device.0)
    .bind(update.user.0)
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() > 0)
}

/// A user's devices, oldest first.
pub async fn list(connection: &mut PgConnection, user: UserId) -> Result<Vec<Device>, sqlx::Error> {
    let text = format!(
        "SELECT d.id, d.name, d.type, d.metadata, d.fingerprint, d.created_at, d.connection_id, d.connected_at,
             {LAST_SEEN} AS last_seen
         FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
         WHERE d.user_id = $1 AND d.revoked_at IS NULL ORDER BY d.created_at, d.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(user.0).fetch_all(connection).await?;
    rows.iter().map(device).collect()
}

fn device(row: &PgRow) -> Result<Device, sqlx::Error> {
    let connected_at: Option<i64> = row.try_get("connected_at")?;
    Ok(Device {
        id: DeviceId(row.try_get("id")?),
        description: description(row)?,
        fingerprint: row.try_get::<i64, _>("fingerprint")?.cast_unsigned(),
        created_at: time(row, "created_at")?,
        connection: row.try_get::<Option<Uuid>, _>("connection_id")?.map(ConnectionId),
        connected_at: connected_at.map(Timestamp),
        last_seen: time(row, "last_seen")?,
    })
}
