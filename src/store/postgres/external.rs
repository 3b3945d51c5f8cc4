//! Users whose accounts somebody else keeps, and the ends of their tokens.

use std::collections::HashSet;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::sql::holdable;
use crate::model::{LoginId, Timestamp, UserId};
use crate::store::{AdmitUser, Bearer};

/// Adds users unless they are there, or were removed after their token was made.
/// Older tokens of one who comes back stay dead. In the order of their ids, so
/// that two nodes which add the same ones wait in one direction only.
pub async fn admit(connection: &mut PgConnection, admitted: &[&AdmitUser]) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = admitted.iter().map(|admit| admit.user.0).collect();
    sqlx::query(
        "INSERT INTO users (id, email, password_hash, created_at, updated_at)
         SELECT new.id, new.name, '', new.at, new.at
         FROM UNNEST($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) AS new (id, name, at, issued_at)
         WHERE NOT EXISTS (SELECT 1 FROM removed_users AS r WHERE r.id = new.id AND r.at > new.issued_at)
         ORDER BY new.id ON CONFLICT DO NOTHING",
    )
    .bind(&ids)
    .bind(admitted.iter().map(|admit| holdable(&admit.name)).collect::<Vec<_>>())
    .bind(admitted.iter().map(|admit| admit.at.0).collect::<Vec<_>>())
    .bind(admitted.iter().map(|admit| admit.issued_at.0).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    // In a statement of its own: a removal that the first one waited for is only seen now.
    sqlx::query(
        "UPDATE users SET tokens_since = removed.at FROM removed_users AS removed
         WHERE users.id = ANY($1) AND removed.id = users.id AND users.tokens_since < removed.at",
    )
    .bind(&ids)
    .execute(connection)
    .await
    .map(drop)
}

/// Whether the user exists and neither this token nor all of its age were ended.
pub async fn authorized(
    connection: &mut PgConnection,
    bearer: &Bearer,
    login: LoginId,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM users WHERE id = $1 AND tokens_since <= $2)
           AND NOT EXISTS (SELECT 1 FROM ended_tokens WHERE login_id = $3)",
    )
    .bind(bearer.user.0)
    .bind(bearer.issued_at.0)
    .bind(login.0)
    .fetch_one(connection)
    .await
}

/// Those of `logins` that were ended.
pub async fn ended(connection: &mut PgConnection, logins: &[Uuid]) -> Result<HashSet<LoginId>, sqlx::Error> {
    let ended: Vec<Uuid> = sqlx::query_scalar("SELECT login_id FROM ended_tokens WHERE login_id = ANY($1)")
        .bind(logins)
        .fetch_all(connection)
        .await?;
    Ok(ended.into_iter().map(LoginId).collect())
}

/// Ends one token. Its user is locked.
pub async fn end(
    connection: &mut PgConnection,
    user: UserId,
    login: LoginId,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ended_tokens (login_id, user_id, at) SELECT $1, id, $2 FROM users WHERE id = $3
         ON CONFLICT DO NOTHING",
    )
    .bind(login.0)
    .bind(at.0)
    .bind(user.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Remembers that the user was removed.
pub async fn removed(connection: &mut PgConnection, user: UserId, at: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO removed_users (id, at) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET at = greatest(removed_users.at, excluded.at)",
    )
    .bind(user.0)
    .bind(at.0)
    .execute(connection)
    .await
    .map(drop)
}
