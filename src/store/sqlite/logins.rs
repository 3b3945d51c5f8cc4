//! Accounts and logins: made, refreshed, ended; and the notes that tell other
//! nodes what ended.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::external;
use super::sql::{Insert, insert_all, number, time, uuid};
use crate::model::{ConnectionId, DeviceId, LoginId, Revoked, Timestamp, UserId};
use crate::store::{
    Account, Bearer, ChangePassword, NewAccount, NewLogin, Revocation, RotateRefresh, Rotation, Which,
};

/// Notes that one read returns.
const NOTES_AT_A_GO: i64 = 1_000;

const ACCOUNT: &str = "id, email, password_hash, created_at";

/// Makes an account with its first login; false when its address is taken.
pub async fn create_account(
    connection: &mut SqliteConnection,
    new: &NewAccount,
) -> Result<bool, sqlx::Error> {
    Ok(insert_account(connection, &new.account).await? && {
        open(connection, &new.login).await?;
        true
    })
}

/// Adds an account without a login; false when its address is taken.
pub async fn insert_account(
    connection: &mut SqliteConnection,
    account: &Account,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO users (id, email, password_hash, created_at, updated_at) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (email) DO NOTHING",
    )
    .bind(account.user.to_string())
    .bind(&account.email)
    .bind(&account.password_hash)
    .bind(account.created_at.0)
    .bind(account.created_at.0)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() > 0)
}

/// Keeps a login. Nothing happens when its user has been removed meanwhile.
pub async fn open(connection: &mut SqliteConnection, login: &NewLogin) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO logins (id, user_id, created_at, expires_at, refresh_hash)
         SELECT ?, id, ?, ?, ? FROM users WHERE id = ?",
    )
    .bind(login.login.to_string())
    .bind(login.at.0)
    .bind(login.expires_at.0)
    .bind(&login.refresh_hash[..])
    .bind(login.user.to_string())
    .execute(connection)
    .await
    .map(drop)
}

/// Puts the first successor in the place of the presented token, if that is the
/// one that is good now; see [`RotateRefresh`].
pub async fn rotate(
    connection: &mut SqliteConnection,
    rotate: &RotateRefresh,
) -> Result<Rotation, sqlx::Error> {
    let claimed = sqlx::query(
        "UPDATE logins SET rotated_hash = refresh_hash, refresh_hash = ?, rotated_at = ?, expires_at = ?
         WHERE id = ? AND refresh_hash = ? AND revoked_at IS NULL AND expires_at > ?
           AND coalesce(rotated_at, created_at) > ?
         RETURNING user_id",
    )
    .bind(&rotate.successors[0][..])
    .bind(rotate.at.0)
    .bind(rotate.expires_at.0)
    .bind(rotate.login.to_string())
    .bind(&rotate.presented[..])
    .bind(rotate.at.0)
    .bind(rotate.fresh_since.0)
    .fetch_optional(&mut *connection)
    .await?;
    match claimed {
        Some(row) => rotated(connection, UserId(uuid(&row, "user_id")?), 0).await,
        None => not_claimed(connection, rotate).await,
    }
}

async fn rotated(
    connection: &mut SqliteConnection,
    user: UserId,
    successor: usize,
) -> Result<Rotation, sqlx::Error> {
    let row = sqlx::query("SELECT email FROM users WHERE id = ?")
        .bind(user.to_string())
        .fetch_one(connection)
        .await?;
    Ok(Rotation::Rotated { user, email: row.try_get("email")?, successor })
}

/// The token is not the one that is good now: a repeat, a reuse or nothing.
async fn not_claimed(
    connection: &mut SqliteConnection,
    rotate: &RotateRefresh,
) -> Result<Rotation, sqlx::Error> {
    let row = sqlx::query(
        "SELECT user_id, refresh_hash, rotated_hash, rotated_at FROM logins
         WHERE id = ? AND revoked_at IS NULL AND expires_at > ?",
    )
    .bind(rotate.login.to_string())
    .bind(rotate.at.0)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Rotation::Invalid) };
    let user = UserId(uuid(&row, "user_id")?);
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
    connection: &mut SqliteConnection,
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
        let rows = sqlx::query(
            "UPDATE logins SET revoked_at = ?1 WHERE user_id = ?2 AND revoked_at IS NULL
               AND (?3 IS NULL OR id = ?3) AND (?4 IS NULL OR id <> ?4) RETURNING id",
        )
        .bind(at.0)
        .bind(user.to_string())
        .bind(only.map(|login| login.to_string()))
        .bind(all_but.map(|login| login.to_string()))
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            ended.push(Revoked::Login(Some(LoginId(uuid(row, "id")?))));
        }
    }
    if let Which::Only(Some(login)) = which
        && login.is_external()
    {
        external::end(connection, user, login, at).await?;
        ended.push(Revoked::Login(Some(login)));
    }
    if matches!(which, Which::All | Which::Only(None) | Which::AllBut(Some(_))) {
        sqlx::query("UPDATE users SET tokens_since = ? WHERE id = ?")
            .bind(at.0)
            .bind(user.to_string())
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
    connection: &mut SqliteConnection,
    change: &ChangePassword,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let changed = sqlx::query(
        "UPDATE users SET password_hash = ?1, updated_at = ?2
         WHERE id = ?3 AND (?4 IS NULL OR password_hash = ?4)",
    )
    .bind(&change.new_hash)
    .bind(change.at.0)
    .bind(change.user.to_string())
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
    connection: &mut SqliteConnection,
    user: UserId,
    at: Timestamp,
) -> Result<Option<Vec<Revoked>>, sqlx::Error> {
    let removed = sqlx::query("DELETE FROM users WHERE id = ?")
        .bind(user.to_string())
        .execute(&mut *connection)
        .await?;
    if removed.rows_affected() == 0 {
        return Ok(None);
    }
    if user.is_external() {
        external::removed(connection, user, at).await?;
    }
    note(connection, user, &[Revoked::User], at).await?;
    Ok(Some(vec![Revoked::User]))
}

/// Notes what ended, for the nodes that are not told.
pub async fn note(
    connection: &mut SqliteConnection,
    user: UserId,
    ended: &[Revoked],
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    insert_all(
        connection,
        &Insert {
            head: "INSERT INTO revocations (user_id, kind, subject, at) VALUES",
            row: "(?, ?, ?, ?)",
            tail: "",
        },
        ended,
        |script, revoked| {
            let (kind, subject) = match revoked {
                Revoked::User => ("user", None),
                Revoked::Device(device) => ("device", Some(device.to_string())),
                Revoked::Login(login) => ("login", login.map(|login| login.to_string())),
                Revoked::Connection(connection) => ("connection", Some(connection.to_string())),
            };
            script.bind(user.to_string()).bind(kind).bind(subject).bind(at.0);
        },
    )
    .await
}

/// See [`crate::store::Store::revocations`].
pub async fn revocations(
    readers: &SqlitePool,
    after: Option<u64>,
) -> Result<(u64, Vec<Revocation>), sqlx::Error> {
    let Some(after) = after else {
        let row =
            sqlx::query("SELECT coalesce(max(id), 0) AS id FROM revocations").fetch_one(readers).await?;
        return Ok((number(&row, "id")?, Vec::new()));
    };
    let rows = sqlx::query(
        "SELECT id, user_id, kind, subject, at FROM revocations WHERE id > ? ORDER BY id LIMIT ?",
    )
    .bind(after.cast_signed())
    .bind(NOTES_AT_A_GO)
    .fetch_all(readers)
    .await?;
    let position = rows.last().map_or(Ok(after), |row| number(row, "id"))?;
    let noted = rows.iter().map(revocation_of).collect::<Result<_, _>>()?;
    Ok((position, noted))
}

fn revocation_of(row: &SqliteRow) -> Result<Revocation, sqlx::Error> {
    let subject: Option<&str> = row.try_get("subject")?;
    let revoked = match (row.try_get("kind")?, subject) {
        ("login", None) => Revoked::Login(None),
        ("login", Some(_)) => Revoked::Login(Some(LoginId(uuid(row, "subject")?))),
        ("connection", _) => Revoked::Connection(ConnectionId(uuid(row, "subject")?)),
        ("device", _) => Revoked::Device(DeviceId(uuid(row, "subject")?)),
        _ => Revoked::User,
    };
    Ok(Revocation { user: UserId(uuid(row, "user_id")?), revoked, at: Timestamp(row.try_get("at")?) })
}

/// The account of an e-mail address.
pub async fn account(readers: &SqlitePool, email: &str) -> Result<Option<Account>, sqlx::Error> {
    let text = format!("SELECT {ACCOUNT} FROM users WHERE email = ?");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(email).fetch_optional(readers).await?;
    row.as_ref().map(account_in).transpose()
}

/// The account of a user.
pub async fn account_of(readers: &SqlitePool, user: UserId) -> Result<Option<Account>, sqlx::Error> {
    let text = format!("SELECT {ACCOUNT} FROM users WHERE id = ?");
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(user.to_string()).fetch_optional(readers).await?;
    row.as_ref().map(account_in).transpose()
}

/// Accounts in the order of their addresses.
pub async fn accounts_after(
    readers: &SqlitePool,
    email: &str,
    limit: u32,
) -> Result<Vec<Account>, sqlx::Error> {
    let text = format!("SELECT {ACCOUNT} FROM users WHERE email > ? ORDER BY email LIMIT ?");
    let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(email).bind(limit).fetch_all(readers).await?;
    rows.iter().map(account_in).collect()
}

fn account_in(row: &SqliteRow) -> Result<Account, sqlx::Error> {
    Ok(Account {
        user: UserId(uuid(row, "id")?),
        email: row.try_get("email")?,
        password_hash: row.try_get("password_hash")?,
        created_at: time(row, "created_at")?,
    })
}

/// Whether the user exists and the login, if named, is good.
pub async fn is_authorized(
    readers: &SqlitePool,
    bearer: &Bearer,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let mut connection = readers.acquire().await?;
    authorized(&mut connection, bearer, at).await
}

/// The same on a connection at hand.
pub async fn authorized(
    connection: &mut SqliteConnection,
    bearer: &Bearer,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let row = match bearer.login {
        None => sqlx::query("SELECT 1 FROM users WHERE id = ? AND tokens_since <= ?")
            .bind(bearer.user.to_string())
            .bind(bearer.issued_at.0),
        Some(login) if login.is_external() => return external::authorized(connection, bearer, login).await,
        Some(login) => sqlx::query(
            "SELECT 1 FROM logins WHERE id = ? AND user_id = ? AND revoked_at IS NULL AND expires_at > ?",
        )
        .bind(login.to_string())
        .bind(bearer.user.to_string())
        .bind(at.0),
    };
    Ok(row.fetch_optional(connection).await?.is_some())
}

#[cfg(test)]
mod tests;
