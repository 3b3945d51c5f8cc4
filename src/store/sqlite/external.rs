//! Users whose accounts somebody else keeps, and the ends of their tokens.

use sqlx::sqlite::SqliteConnection;

use crate::model::{LoginId, Timestamp, UserId};
use crate::store::{AdmitUser, Bearer};

/// Adds the user unless they are there, or were removed after their token was
/// made. Older tokens of one who comes back stay dead.
pub async fn admit(connection: &mut SqliteConnection, admit: &AdmitUser) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO users (id, email, password_hash, created_at, updated_at, tokens_since)
         SELECT ?1, ?2, '', ?3, ?3, coalesce((SELECT at FROM removed_users WHERE id = ?1), 0)
         WHERE NOT EXISTS (SELECT 1 FROM removed_users WHERE id = ?1 AND at > ?4)
         ON CONFLICT DO NOTHING",
    )
    .bind(admit.user.to_string())
    .bind(&admit.name)
    .bind(admit.at.0)
    .bind(admit.issued_at.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Whether the user exists and neither this token nor all of its age were ended.
pub async fn authorized(
    connection: &mut SqliteConnection,
    bearer: &Bearer,
    login: LoginId,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query(
        "SELECT 1 FROM users WHERE id = ? AND tokens_since <= ?
           AND NOT EXISTS (SELECT 1 FROM ended_tokens WHERE login_id = ?)",
    )
    .bind(bearer.user.to_string())
    .bind(bearer.issued_at.0)
    .bind(login.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Ends one token.
pub async fn end(
    connection: &mut SqliteConnection,
    user: UserId,
    login: LoginId,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ended_tokens (login_id, user_id, at) SELECT ?, id, ? FROM users WHERE id = ?
         ON CONFLICT DO NOTHING",
    )
    .bind(login.to_string())
    .bind(at.0)
    .bind(user.to_string())
    .execute(connection)
    .await
    .map(drop)
}

/// Remembers that the user was removed.
pub async fn removed(
    connection: &mut SqliteConnection,
    user: UserId,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO removed_users (id, at) VALUES (?, ?)
         ON CONFLICT (id) DO UPDATE SET at = max(at, excluded.at)",
    )
    .bind(user.to_string())
    .bind(at.0)
    .execute(connection)
    .await
    .map(drop)
}
