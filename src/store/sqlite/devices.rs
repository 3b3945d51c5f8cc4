//! Devices: who connects as which, and who is gone.

use std::sync::LazyLock;

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::logins;
use super::sql::{Script, connection as connection_of, json_list, number, time, uuid};
use crate::model::{
    BootId, ConnectionId, Description, Device, DeviceId, LoginId, Revoked, Timestamp, UserId,
};
use crate::store::{
    Bearer, ConnectDevice, ConnectRefusal, Connected, ImportAccount, LeaveConnection, LeaveDevice,
    MoveDevice, RevokeDevice, UpdateDevice, Which,
};

/// The last moment a device is known to have been connected: for a row that a
/// dead node left open, that node's last beat.
const LAST_SEEN: &str =
    "max(d.last_seen, CASE WHEN d.disconnected_at IS NULL THEN coalesce(n.last_beat, 0) ELSE 0 END)";

/// Drops a user's longest offline devices beyond their number. Values: user, a device that stays, devices that are
/// online, runs that are alive, since when another's silence is its death, user, how many may be.
static DROP_BEYOND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "DELETE FROM devices WHERE id IN (
             SELECT d.id FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
             WHERE d.user_id = ? AND d.revoked_at IS NULL AND d.id <> ?
               AND d.id NOT IN (SELECT value FROM json_each(?))
               AND (d.disconnected_at IS NOT NULL
                    OR (d.boot_id NOT IN (SELECT value FROM json_each(?)) AND coalesce(n.last_beat, 0) < ?))
             ORDER BY {LAST_SEEN} ASC
             LIMIT max(0, (SELECT count(*) FROM devices WHERE user_id = ? AND revoked_at IS NULL) - ?))
         RETURNING id"
    )
});

/// Gives a connecting device its identity; see [`ConnectDevice`].
pub async fn connect(
    connection: &mut SqliteConnection,
    connect: &ConnectDevice,
    devices_max: u32,
) -> Result<Result<Connected, ConnectRefusal>, sqlx::Error> {
    if !connect.still_there.holds() {
        return Ok(Err(ConnectRefusal::Gone));
    }
    let bearer = Bearer { user: connect.user, login: connect.login, issued_at: connect.issued_at };
    if !logins::authorized(&mut *connection, &bearer, connect.at).await? {
        return Ok(Err(ConnectRefusal::Unauthorized));
    }
    let known = match connect.claimed {
        Some(claimed) => match claim(connection, connect.user, claimed).await? {
            Claim::Own { left_open } => {
                if let Some(older) = left_open {
                    // Two live sockets of one device may be on nodes that do not hear each other.
                    logins::note(connection, connect.user, &[Revoked::Connection(older)], connect.at).await?;
                }
                Some(claimed)
            }
            Claim::Revoked => return Ok(Err(ConnectRefusal::DeviceRevoked)),
            Claim::Unknown => None,
        },
        None => resumable(connection, connect).await?,
    };
    let connected = match known {
        Some(device) => take(connection, device, connect).await?,
        None => {
            let device = DeviceId::fresh();
            let dropped = insert(connection, device, connect, devices_max).await?;
            let description = connect.info.description();
            Connected { device, fence: 0, fresh: true, description, described_anew: false, dropped }
        }
    };
    Ok(Ok(connected))
}

enum Claim {
    /// `left_open`: a connection of it that has not said goodbye.
    Own {
        left_open: Option<ConnectionId>,
    },
    Revoked,
    Unknown,
}

/// A foreign device answers exactly like one that does not exist.
async fn claim(
    connection: &mut SqliteConnection,
    user: UserId,
    device: DeviceId,
) -> Result<Claim, sqlx::Error> {
    let row = sqlx::query(
        "SELECT revoked_at, CASE WHEN disconnected_at IS NULL THEN connection_id END AS left_open
         FROM devices WHERE id = ? AND user_id = ?",
    )
    .bind(device.to_string())
    .bind(user.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(Claim::Unknown) };
    let revoked_at: Option<i64> = row.try_get(0)?;
    let left_open: Option<&str> = row.try_get("left_open")?;
    let left_open = left_open.and_then(ConnectionId::parse);
    Ok(if revoked_at.is_some() { Claim::Revoked } else { Claim::Own { left_open } })
}

/// The device with the same info that went offline most recently.
async fn resumable(
    connection: &mut SqliteConnection,
    connect: &ConnectDevice,
) -> Result<Option<DeviceId>, sqlx::Error> {
    let text = format!(
        "SELECT d.id FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
         WHERE d.user_id = ? AND d.fingerprint = ? AND d.revoked_at IS NULL
           AND d.id NOT IN (SELECT value FROM json_each(?))
           AND (d.disconnected_at IS NOT NULL OR d.connection_id IN (SELECT value FROM json_each(?))
                OR (d.boot_id NOT IN (SELECT value FROM json_each(?)) AND coalesce(n.last_beat, 0) < ?))
           AND {LAST_SEEN} >= ?
         ORDER BY {LAST_SEEN} DESC LIMIT 1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(connect.user.to_string())
        .bind(connect.info.fingerprint.cast_signed())
        .bind(json_list(&connect.online))
        .bind(json_list(&connect.let_go))
        .bind(json_list(&connect.live_boots))
        .bind(connect.dead_before.0)
        .bind(connect.resumable_since.0)
        .fetch_optional(connection)
        .await?;
    row.map(|row| uuid(&row, "id").map(DeviceId)).transpose()
}

/// A known device connects. Its name and metadata change only when it says
/// something new of itself, so that a name given over REST lasts.
async fn take(
    connection: &mut SqliteConnection,
    device: DeviceId,
    connect: &ConnectDevice,
) -> Result<Connected, sqlx::Error> {
    let mut script = Script::default();
    if connect.info.json.as_ref() != "{}" {
        script
            .push(
                "UPDATE devices SET name = ?, type = ?, metadata = ?, fingerprint = ?
                 WHERE id = ? AND fingerprint <> ? RETURNING NULL",
            )
            .bind(&connect.info.name)
            .bind(&connect.info.kind)
            .bind(&*connect.info.metadata)
            .bind(connect.info.fingerprint.cast_signed())
            .bind(device.to_string())
            .bind(connect.info.fingerprint.cast_signed());
    }
    script
        .push(
            "UPDATE devices SET connection_id = ?, boot_id = ?, login_id = ?, connected_at = ?, last_seen = ?,
                 disconnected_at = NULL, fence = fence + 1
             WHERE id = ? RETURNING fence, name, type, metadata",
        )
        .bind(connect.connection.to_string())
        .bind(connect.boot.to_string())
        .bind(connect.login.map(|login| login.to_string()))
        .bind(connect.at.0)
        .bind(connect.at.0)
        .bind(device.to_string());
    let rows = script.fetch_all(connection).await?;
    let (taken, described) = rows.split_last().ok_or(sqlx::Error::RowNotFound)?;
    Ok(Connected {
        device,
        fence: number(taken, "fence")?,
        fresh: false,
        description: description(taken)?,
        described_anew: !described.is_empty(),
        dropped: Vec::new(),
    })
}

fn description(row: &SqliteRow) -> Result<Description, sqlx::Error> {
    let metadata: &str = row.try_get("metadata")?;
    Ok(Description { name: row.try_get("name")?, kind: row.try_get("type")?, metadata: metadata.into() })
}

/// A new device; drops the longest offline ones beyond the user's share.
async fn insert(
    connection: &mut SqliteConnection,
    device: DeviceId,
    connect: &ConnectDevice,
    devices_max: u32,
) -> Result<Vec<DeviceId>, sqlx::Error> {
    let mut script = Script::default();
    script
        .push(
            "INSERT INTO devices (id, user_id, name, type, last_seen, metadata, created_at, fingerprint,
                 connection_id, boot_id, login_id, connected_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(device.to_string())
        .bind(connect.user.to_string())
        .bind(&connect.info.name)
        .bind(&connect.info.kind)
        .bind(connect.at.0)
        .bind(&*connect.info.metadata)
        .bind(connect.at.0)
        .bind(connect.info.fingerprint.cast_signed())
        .bind(connect.connection.to_string())
        .bind(connect.boot.to_string())
        .bind(connect.login.map(|login| login.to_string()))
        .bind(connect.at.0)
        .push(&DROP_BEYOND)
        .bind(connect.user.to_string())
        .bind(device.to_string())
        .bind(json_list(&connect.online))
        .bind(json_list(&connect.live_boots))
        .bind(connect.dead_before.0)
        .bind(connect.user.to_string())
        .bind(devices_max);
    let dropped = script.fetch_all(connection).await?;
    dropped.iter().map(|row| uuid(row, "id").map(DeviceId)).collect()
}

/// Fenced: a late goodbye of an older connection changes nothing.
pub async fn leave(connection: &mut SqliteConnection, leave: &LeaveDevice) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE devices SET disconnected_at = ?, last_seen = ?
         WHERE id = ? AND user_id = ? AND connection_id = ? AND disconnected_at IS NULL",
    )
    .bind(leave.at.0)
    .bind(leave.at.0)
    .bind(leave.device.to_string())
    .bind(leave.user.to_string())
    .bind(leave.connection.to_string())
    .execute(connection)
    .await
    .map(drop)
}

/// The device that the connection holds, if it holds one, is offline.
pub async fn leave_connection(
    connection: &mut SqliteConnection,
    left: &LeaveConnection,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE devices SET disconnected_at = ?1, last_seen = ?1
         WHERE user_id = ?2 AND connection_id = ?3 AND disconnected_at IS NULL",
    )
    .bind(left.at.0)
    .bind(left.user.to_string())
    .bind(left.connection.to_string())
    .execute(connection)
    .await
    .map(drop)
}

/// The connection goes on under another login.
pub async fn move_to(connection: &mut SqliteConnection, moved: &MoveDevice) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE devices SET login_id = ? WHERE id = ? AND user_id = ? AND connection_id = ?")
        .bind(moved.login.map(|login| login.to_string()))
        .bind(moved.device.to_string())
        .bind(moved.user.to_string())
        .bind(moved.connection.to_string())
        .execute(connection)
        .await
        .map(drop)
}

/// Another name, other metadata; false when the user has no such device.
pub async fn update(connection: &mut SqliteConnection, update: &UpdateDevice) -> Result<bool, sqlx::Error> {
    let updated = sqlx::query(
        "UPDATE devices SET name = coalesce(?, name), metadata = coalesce(?, metadata)
         WHERE id = ? AND user_id = ? AND revoked_at IS NULL",
    )
    .bind(update.name.as_deref())
    .bind(update.metadata.as_deref())
    .bind(update.device.to_string())
    .bind(update.user.to_string())
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() > 0)
}

/// The device may not come back; see [`RevokeDevice`].
pub async fn revoke(
    connection: &mut SqliteConnection,
    revoke: &RevokeDevice,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let row = sqlx::query(
        "UPDATE devices SET revoked_at = ?1, disconnected_at = coalesce(disconnected_at, ?1)
         WHERE id = ?2 AND user_id = ?3 AND revoked_at IS NULL RETURNING login_id",
    )
    .bind(revoke.at.0)
    .bind(revoke.device.to_string())
    .bind(revoke.user.to_string())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let login: Option<&str> = row.try_get("login_id")?;
    let login = login.and_then(LoginId::parse);
    sqlx::query("DELETE FROM messages WHERE device_id = ?")
        .bind(revoke.device.to_string())
        .execute(&mut *connection)
        .await?;
    let device = Revoked::Device(revoke.device);
    logins::note(connection, revoke.user, &[device], revoke.at).await?;
    let mut revoked = vec![device];
    if !is_used_by_another(connection, revoke, login).await? {
        revoked.extend(logins::end(connection, revoke.user, Which::Only(login), revoke.at).await?);
    }
    Ok(Some(revoked))
}

/// Whether another of the user's devices is online with this login.
async fn is_used_by_another(
    connection: &mut SqliteConnection,
    revoke: &RevokeDevice,
    login: Option<LoginId>,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query(
        "SELECT 1 FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
         WHERE d.user_id = ?1 AND d.revoked_at IS NULL
           AND (d.login_id = ?2 OR (d.login_id IS NULL AND ?2 IS NULL))
           AND (d.id IN (SELECT value FROM json_each(?3))
                OR (d.disconnected_at IS NULL AND d.connected_at IS NOT NULL AND n.last_beat > ?4))
         LIMIT 1",
    )
    .bind(revoke.user.to_string())
    .bind(login.map(|login| login.to_string()))
    .bind(json_list(&revoke.online))
    .bind(revoke.beating_since.0)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// This run of this node is alive.
pub async fn beat(
    connection: &mut SqliteConnection,
    boot: BootId,
    node: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO nodes (boot_id, node_id, last_beat) VALUES (?, ?, ?)
         ON CONFLICT (boot_id) DO UPDATE SET last_beat = excluded.last_beat",
    )
    .bind(boot.to_string())
    .bind(node)
    .bind(at.0)
    .execute(connection)
    .await
    .map(drop)
}

/// A user's devices, oldest first.
pub async fn list(readers: &SqlitePool, user: UserId) -> Result<Vec<Device>, sqlx::Error> {
    let text = format!(
        "SELECT d.id, d.name, d.type, d.metadata, d.fingerprint, d.created_at, d.connection_id, d.connected_at,
             {LAST_SEEN} AS last_seen
         FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
         WHERE d.user_id = ? AND d.revoked_at IS NULL ORDER BY d.created_at, d.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(user.to_string()).fetch_all(readers).await?;
    rows.iter().map(device).collect()
}

fn device(row: &SqliteRow) -> Result<Device, sqlx::Error> {
    let connected_at: Option<i64> = row.try_get("connected_at")?;
    Ok(Device {
        id: DeviceId(uuid(row, "id")?),
        description: description(row)?,
        fingerprint: row.try_get::<i64, _>("fingerprint")?.cast_unsigned(),
        created_at: time(row, "created_at")?,
        connection: connection_of(row, "connection_id")?,
        connected_at: connected_at.map(Timestamp),
        last_seen: time(row, "last_seen")?,
    })
}

/// Adds an account of the replaced server with its devices, which are offline;
/// false when its address is taken.
pub async fn import_account(
    connection: &mut SqliteConnection,
    import: &ImportAccount,
) -> Result<bool, sqlx::Error> {
    if !logins::insert_account(connection, &import.account).await? {
        return Ok(false);
    }
    for device in &import.devices {
        sqlx::query(
            "INSERT INTO devices (id, user_id, name, type, last_seen, metadata, created_at, fingerprint,
                 connected_at, disconnected_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?5, ?7, ?5, ?5) ON CONFLICT (id) DO NOTHING",
        )
        .bind(device.id.to_string())
        .bind(import.account.user.to_string())
        .bind(&device.info.name)
        .bind(&device.info.kind)
        .bind(device.last_seen.0)
        .bind(&*device.info.metadata)
        .bind(device.info.fingerprint.cast_signed())
        .execute(&mut *connection)
        .await?;
    }
    Ok(true)
}
