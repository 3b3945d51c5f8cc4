//! Logins and accounts beyond their making: refreshed, ended, removed; and the
//! notes that tell other nodes what ended. These commands are rare: each is a
//! few statements, in the order of the batch. Their users are locked.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::external;
use super::sql::{FROM_POSITION, OLDEST_OPEN, holdable, number, time, user};
use crate::model::{ConnectionId, DeviceId, LoginId, Revoked, Timestamp, UserId};
use crate::store::{
    Account, Bearer, ChangePassword, ImportAccount, Revocation, RevokeDevice, RotateRefresh, Rotation, Which,
};

/// Notes that one read returns, about. Those of one transaction have one position,
/// so a read is never cut inside one.
const NOTES_AT_A_GO: i64 = 10_000;

const ACCOUNT: &str = "id, email, password_hash, created_at";

/// Puts the first successor in the place of the presented token, if that is the
/// one that is good now; see [`RotateRefresh`].
pub async fn rotate(connection: &mut PgConnection, rotate: &RotateRefresh) -> Result<Rotation, sqlx::Error> {
    let claimed: Option<Uuid> = sqlx::query_scalar(
        "UPDATE logins SET rotated_hash = refresh_hash, refresh_hash = $1, rotated_at = $2, expires_at = $3
         WHERE id = $4 AND refresh_hash = $5 AND revoked_at IS NULL AND expires_at > $2
           AND coalesce(rotated_at, created_at) > $6
         RETURNING user_id",
    )
    .bind(&rotate.successors[0][..])
    .bind(rotate.at.0)
    .bind(rotate.expires_at.0)
    .bind(rotate.login.0)
    .bind(&rotate.presented[..])
    .bind(rotate.fresh_since.0)
    .fetch_optional(&mut *connection)
    .await?;
    match claimed {
        Some(user) => rotated(connection, UserId(user), 0).await,
        None => not_claimed(connection, rotate).await,
    }
}

async fn rotated(
    connection: &mut PgConnection,
    user: UserId,
    successor: usize,
) -> Result<Rotation, sqlx::Error> {
    let email: Option<String> = sqlx::query_scalar("SELECT email FROM users WHERE id = $1")
        .bind(user.0)
        .fetch_optional(connection)
        .await?;
    Ok(email.map_or(Rotation::Invalid, |email| Rotation::Rotated { user, email, successor }))
}

/// The token is not the one that is good now: a repeat, a reuse or nothing.
async fn not_claimed(connection: &mut PgConnection, rotate: &RotateRefresh) -> Result<Rotation, sqlx::Error> {
    let row = sqlx::query(
        "SELECT user_id, refresh_hash, rotated_hash, rotated_at FROM logins
         WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2",
    )
    .bind(rotate.login.0)
    .bind(rotate.at.0)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Rotation::Invalid) };
    let user = user(&row, "user_id")?;
    let current: Option<Vec<u8>> = row.try_get("refresh_hash")?;
    let previous: Option<Vec<u8>> = row.try_get("rotated_hash")?;
    let rotated_at: Option<i64> = row.try_get("rotated_at")?;
    let is = |kept: &Option<Vec<u8>>, hash: &[u8; 32]| kept.as_deref() == Some(&hash[..]);
    let was_rotated = is(&previous, &rotate.presented);
    if was_rotated && rotated_at.is_some_and(|at| at > rotate.grace_since.0) {
        let known = rotate.successors.iter().position(|successor| is(&current, successor));
        if let Some(successor) = known {
            return rotated(connection, user, successor).await;
        }
    }
    // The good one, but it came too late.
    if is(&current, &rotate.presented) || !(was_rotated || rotate.genuine) {
        return Ok(Rotation::Invalid);
    }
    end(connection, user, Which::Only(Some(rotate.login)), rotate.at).await?;
    Ok(Rotation::Reused { user })
}

/// Ends logins, and notes it.
pub async fn end(
    connection: &mut PgConnection,
    user: UserId,
    which: Which,
    at: Timestamp,
) -> Result<Vec<Revoked>, sqlx::Error> {
    let (only, all_but) = match which {
        Which::All => (None, None),
        Which::Only(login) => (login, None),
        Which::AllBut(login) => (None, login),
    };
    let mut ended = Vec::new();
    if which != Which::Only(None) {
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "UPDATE logins SET revoked_at = $1 WHERE user_id = $2 AND revoked_at IS NULL
               AND ($3::uuid IS NULL OR id = $3) AND ($4::uuid IS NULL OR id <> $4) RETURNING id",
        )
        .bind(at.0)
        .bind(user.0)
        .bind(only.map(|login| login.0))
        .bind(all_but.map(|login| login.0))
        .fetch_all(&mut *connection)
        .await?;
        ended.extend(ids.into_iter().map(|id| Revoked::Login(Some(LoginId(id)))));
    }
    if let Which::Only(Some(login)) = which
        && login.is_external()
    {
        external::end(connection, user, login, at).await?;
        ended.push(Revoked::Login(Some(login)));
    }
    if matches!(which, Which::All | Which::Only(None) | Which::AllBut(Some(_))) {
        sqlx::query("UPDATE users SET tokens_since = $1 WHERE id = $2")
            .bind(at.0)
            .bind(user.0)
            .execute(&mut *connection)
            .await?;
        ended.push(Revoked::Login(None));
    }
    note(connection, user, &ended, at).await?;
    Ok(ended)
}

/// Replaces a password; nothing when there is no such user, or it is another
/// by now.
pub async fn change_password(
    connection: &mut PgConnection,
    change: &ChangePassword,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let changed = sqlx::query(
        "UPDATE users SET password_hash = $1, updated_at = $2
         WHERE id = $3 AND ($4::text IS NULL OR password_hash = $4)",
    )
    .bind(&change.new_hash)
    .bind(change.at.0)
    .bind(change.user.0)
    .bind(change.old_hash.as_deref())
    .execute(&mut *connection)
    .await?;
    if changed.rows_affected() == 0 {
        return Ok(None);
    }
    match change.end {
        Some(which) => end(connection, change.user, which, change.at).await.map(Some),
        None => Ok(Some(Vec::new())),
    }
}

/// Removes a user; every table that names them follows.
pub async fn remove_user(
    connection: &mut PgConnection,
    user: UserId,
    at: Timestamp,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let removed =
        sqlx::query("DELETE FROM users WHERE id = $1").bind(user.0).execute(&mut *connection).await?;
    if removed.rows_affected() == 0 {
        return Ok(None);
    }
    if user.is_external() {
        external::removed(connection, user, at).await?;
    }
    note(connection, user, &[Revoked::User], at).await?;
    Ok(Some(vec![Revoked::User]))
}

/// The device may not come back; see [`RevokeDevice`].
pub async fn revoke_device(
    connection: &mut PgConnection,
    revoke: &RevokeDevice,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let row = sqlx::query(
        "WITH mail AS (DELETE FROM messages WHERE device_id = $2 AND user_id = $3)
         UPDATE devices SET revoked_at = $1, disconnected_at = coalesce(disconnected_at, $1)
         WHERE id = $2 AND user_id = $3 AND revoked_at IS NULL RETURNING login_id",
    )
    .bind(revoke.at.0)
    .bind(revoke.device.0)
    .bind(revoke.user.0)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let login = row.try_get::<Option<Uuid>, _>("login_id")?.map(LoginId);
    let device = Revoked::Device(revoke.device);
    note(connection, revoke.user, &[device], revoke.at).await?;
    let mut revoked = vec![device];
    if !is_used_by_another(connection, revoke, login).await? {
        revoked.extend(end(connection, revoke.user, Which::Only(login), revoke.at).await?);
    }
    Ok(Some(revoked))
}

/// Whether another of the user's devices is online with this login.
async fn is_used_by_another(
    connection: &mut PgConnection,
    revoke: &RevokeDevice,
    login: Option<LoginId>,
) -> Result<bool, sqlx::Error> {
    let online: Vec<Uuid> = revoke.online.iter().map(|device| device.0).collect();
    sqlx::query_scalar(
        "SELECT EXISTS (
             SELECT 1 FROM devices AS d LEFT JOIN nodes AS n ON n.boot_id = d.boot_id
             WHERE d.user_id = $1 AND d.revoked_at IS NULL AND d.login_id IS NOT DISTINCT FROM $2
               AND (d.id = ANY($3)
                    OR (d.disconnected_at IS NULL AND d.connected_at IS NOT NULL AND n.last_beat > $4)))",
    )
    .bind(revoke.user.0)
    .bind(login.map(|login| login.0))
    .bind(online)
    .bind(revoke.beating_since.0)
    .fetch_one(connection)
    .await
}

/// An account of the replaced server with its devices; false when its address
/// or its id is taken.
pub async fn import_account(
    connection: &mut PgConnection,
    import: &ImportAccount,
) -> Result<bool, sqlx::Error> {
    let account = &import.account;
    let inserted = sqlx::query(
        "INSERT INTO users (id, email, password_hash, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(account.user.0)
    .bind(holdable(&account.email))
    .bind(&account.password_hash)
    .bind(account.created_at.0)
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    for device in &import.devices {
        sqlx::query(
            "INSERT INTO devices (id, user_id, name, type, last_seen, metadata, created_at, fingerprint,
                 disconnected_at)
             VALUES ($1, $2, $3, $4, $5, $6, $5, $7, $5) ON CONFLICT (id) DO NOTHING",
        )
        .bind(device.id.0)
        .bind(account.user.0)
        .bind(holdable(&device.info.name))
        .bind(holdable(&device.info.kind))
        .bind(device.last_seen.0)
        .bind(holdable(&device.info.metadata))
        .bind(device.info.fingerprint.cast_signed())
        .execute(&mut *connection)
        .await?;
    }
    Ok(true)
}

/// Notes what ended, for the nodes that are not told.
pub async fn note(
    connection: &mut PgConnection,
    user: UserId,
    ended: &[Revoked],
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let notes: Vec<_> = ended.iter().map(|revoked| (user, *revoked, at)).collect();
    note_all(connection, &notes).await
}

/// The same for several users.
pub async fn note_all(
    connection: &mut PgConnection,
    ended: &[(UserId, Revoked, Timestamp)],
) -> Result<(), sqlx::Error> {
    if ended.is_empty() {
        return Ok(());
    }
    let kind = |revoked: &Revoked| match revoked {
        Revoked::User => "user",
        Revoked::Device(_) => "device",
        Revoked::Login(_) => "login",
        Revoked::Connection(_) => "connection",
    };
    let subject = |revoked: &Revoked| match revoked {
        Revoked::User => None,
        Revoked::Device(device) => Some(device.0),
        Revoked::Login(login) => login.map(|login| login.0),
        Revoked::Connection(connection) => Some(connection.0),
    };
    sqlx::query(
        "INSERT INTO revocations (user_id, kind, subject, at)
         SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::uuid[], $4::bigint[])",
    )
    .bind(ended.iter().map(|(user, ..)| user.0).collect::<Vec<_>>())
    .bind(ended.iter().map(|(_, revoked, _)| kind(revoked)).collect::<Vec<_>>())
    .bind(ended.iter().map(|(_, revoked, _)| subject(revoked)).collect::<Vec<_>>())
    .bind(ended.iter().map(|(.., at)| at.0).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}

/// See [`crate::store::Store::revocations`]; the position is that of the oldest
/// transaction which may still write, or behind the last one that was told, if
/// there are more. A position that is yet to come is one of a past that was put
/// away: then all there are are told.
pub async fn revocations(
    connection: &mut PgConnection,
    after: Option<u64>,
) -> Result<(u64, Vec<Revocation>), sqlx::Error> {
    let text = format!(
        "SELECT {OLDEST_OPEN} AS next, r.xid, r.user_id, r.kind, r.subject, r.at
         FROM (SELECT 1) AS one LEFT JOIN (
             SELECT * FROM revocations WHERE xid >= {FROM_POSITION}
             ORDER BY xid FETCH FIRST $2 ROWS WITH TIES
         ) AS r ON true ORDER BY r.xid, r.id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(after.map(u64::cast_signed))
        .bind(NOTES_AT_A_GO)
        .fetch_all(connection)
        .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mut next = number(first, "next")?;
    if rows.len() as i64 >= NOTES_AT_A_GO
        && let Some(last) = rows.last()
    {
        next = next.min(number(last, "xid")? + 1);
    }
    let noted = rows.iter().filter_map(|row| revocation_of(row).transpose());
    Ok((next, noted.collect::<Result<_, _>>()?))
}

/// Nothing where the outer join found no note.
fn revocation_of(row: &PgRow) -> Result<Option<Revocation>, sqlx::Error> {
    let Some(kind) = row.try_get::<Option<&str>, _>("kind")? else { return Ok(None) };
    let subject: Option<Uuid> = row.try_get("subject")?;
    let revoked = match (kind, subject) {
        ("login", login) => Revoked::Login(login.map(LoginId)),
        ("device", Some(device)) => Revoked::Device(DeviceId(device)),
        ("connection", Some(connection)) => Revoked::Connection(ConnectionId(connection)),
        _ => Revoked::User,
    };
    Ok(Some(Revocation { user: user(row, "user_id")?, revoked, at: Timestamp(row.try_get("at")?) }))
}

/// The account of an e-mail address.
pub async fn account(connection: &mut PgConnection, email: &str) -> Result<Option<Account>, sqlx::Error> {
    let text = format!("SELECT {ACCOUNT} FROM users WHERE email = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(holdable(email)).fetch_optional(connection).await?;
    row.as_ref().map(account_in).transpose()
}

/// The account of a user.
pub async fn account_of(connection: &mut PgConnection, user: UserId) -> Result<Option<Account>, sqlx::Error> {
    let text = format!("SELECT {ACCOUNT} FROM users WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(user.0).fetch_optional(connection).await?;
    row.as_ref().map(account_in).transpose()
}

/// Accounts in the order of their addresses, byte by byte as SQLite has it.
pub async fn accounts_after(
    connection: &mut PgConnection,
    email: &str,
    limit: u32,
) -> Result<Vec<Account>, sqlx::Error> {
    let text = format!(
        "SELECT {ACCOUNT} FROM users WHERE email COLLATE \"C\" > $1 ORDER BY email COLLATE \"C\" LIMIT $2"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(holdable(email))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(account_in).collect()
}

fn account_in(row: &PgRow) -> Result<Account, sqlx::Error> {
    Ok(Account {
        user: user(row, "id")?,
        email: row.try_get("email")?,
        password_hash: row.try_get("password_hash")?,
        created_at: time(row, "created_at")?,
    })
}

/// Whether the user exists and the login, if named, is good.
pub async fn is_authorized(
    connection: &mut PgConnection,
    bearer: &Bearer,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let found = match bearer.login {
        None => {
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE id = $1 AND tokens_since <= $2)")
                .bind(bearer.user.0)
                .bind(bearer.issued_at.0)
        }
        Some(login) if login.is_external() => return external::authorized(connection, bearer, login).await,
        Some(login) => sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM logins
             WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL AND expires_at > $3)",
        )
        .bind(login.0)
        .bind(bearer.user.0)
        .bind(at.0),
    };
    found.fetch_one(connection).await
}
