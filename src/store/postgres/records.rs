//! Accounts, logins and beats of a batch, all at once; and what is rare, one by
//! one.

use std::collections::{BTreeMap, HashSet};

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::sql::holdable;
use super::{devices, external, logins, messages};
use crate::model::UserId;
use crate::store::{Command, NewAccount, NewLogin, Reply};

/// Saves what `batch` has of them and answers the new accounts in `replies`.
pub async fn apply(
    connection: &mut PgConnection,
    batch: &[Command],
    replies: &mut [Reply],
) -> Result<(), sqlx::Error> {
    let mut accounts = Vec::new();
    let mut admitted = Vec::new();
    let mut logins = Vec::new();
    let mut beats = BTreeMap::new();
    for (place, command) in batch.iter().enumerate() {
        match command {
            Command::CreateAccount(account) => accounts.push((place, account)),
            Command::AdmitUser(admit) => admitted.push(admit),
            Command::OpenLogin(login) => logins.push(login),
            Command::Beat { boot, node, at } => {
                beats.insert(boot.0, (holdable(node).into_owned(), at.0));
            }
            _ => {}
        }
    }
    if !accounts.is_empty() {
        let created = create_accounts(connection, &accounts).await?;
        for (place, new) in accounts {
            let is_created = created.contains(&new.account.user.0);
            replies[place] = Reply::AccountCreated(is_created);
            if is_created {
                logins.push(&new.login);
            }
        }
    }
    if !admitted.is_empty() {
        external::admit(connection, &admitted).await?;
    }
    if !logins.is_empty() {
        open_logins(connection, &logins).await?;
    }
    if !beats.is_empty() {
        save_beats(connection, beats).await?;
    }
    Ok(())
}

/// Does the commands of `batch` that are rare, in its order; users who were
/// removed are in `removed`. Those that are held are left alone.
pub async fn apply_singly(
    connection: &mut PgConnection,
    batch: &[Command],
    removed: &mut HashSet<UserId>,
    replies: &mut [Reply],
) -> Result<(), sqlx::Error> {
    for (reply, command) in replies.iter_mut().zip(batch) {
        if matches!(reply, Reply::Held) {
            continue;
        }
        *reply = match command {
            Command::ImportAccount(import) => {
                Reply::AccountCreated(logins::import_account(connection, import).await?)
            }
            Command::RotateRefresh(rotate) => Reply::Rotated(logins::rotate(connection, rotate).await?),
            Command::EndLogins(end) => {
                Reply::Revoked(Some(logins::end(connection, end.user, end.which, end.at).await?))
            }
            Command::ChangePassword(change) => {
                Reply::Revoked(logins::change_password(connection, change).await?)
            }
            Command::RemoveUser { user, at } => {
                removed.insert(*user);
                Reply::Revoked(logins::remove_user(connection, *user, *at).await?)
            }
            Command::RevokeDevice(revoke) => Reply::Revoked(logins::revoke_device(connection, revoke).await?),
            Command::LeaveConnection(left) => {
                devices::leave_connection(connection, left).await.map(|()| Reply::Done)?
            }
            Command::MoveDevice(moved) => devices::move_to(connection, moved).await.map(|()| Reply::Done)?,
            Command::UpdateDevice(update) => Reply::Updated(devices::update(connection, update).await?),
            Command::PostMessage(post) => Reply::Posted(messages::post(connection, post).await?),
            Command::TakeMessages(take) => Reply::Taken(messages::take(connection, take).await?),
            Command::Write(_)
            | Command::CreateAccount(_)
            | Command::AdmitUser(_)
            | Command::OpenLogin(_)
            | Command::ConnectDevice(_)
            | Command::LeaveDevice(_)
            | Command::Beat { .. } => continue,
        };
    }
    Ok(())
}

/// In the order of their e-mails, so that two nodes that create the same ones
/// wait for each other in one direction only. Returns who got one.
async fn create_accounts(
    connection: &mut PgConnection,
    accounts: &[(usize, &NewAccount)],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let mut sorted: Vec<_> = accounts.iter().map(|(_, new)| &new.account).collect();
    sorted.sort_by(|a, b| a.email.cmp(&b.email));
    let created: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO users (id, email, password_hash, created_at, updated_at)
         SELECT id, email, password_hash, created_at, created_at
         FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::bigint[])
             AS new (id, email, password_hash, created_at)
         ON CONFLICT (email) DO NOTHING RETURNING id",
    )
    .bind(sorted.iter().map(|account| account.user.0).collect::<Vec<_>>())
    .bind(sorted.iter().map(|account| holdable(&account.email)).collect::<Vec<_>>())
    .bind(sorted.iter().map(|account| &*account.password_hash).collect::<Vec<_>>())
    .bind(sorted.iter().map(|account| account.created_at.0).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(created.into_iter().collect())
}

/// Logins of users who are gone are left out.
async fn open_logins(connection: &mut PgConnection, logins: &[&NewLogin]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH known AS (SELECT id FROM users WHERE id = ANY($2::uuid[]) ORDER BY id FOR KEY SHARE)
         INSERT INTO logins (id, user_id, created_at, expires_at, refresh_hash)
         SELECT new.* FROM UNNEST($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bytea[])
             AS new (id, user_id, created_at, expires_at, refresh_hash)
         JOIN known ON known.id = new.user_id
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(logins.iter().map(|login| login.login.0).collect::<Vec<_>>())
    .bind(logins.iter().map(|login| login.user.0).collect::<Vec<_>>())
    .bind(logins.iter().map(|login| login.at.0).collect::<Vec<_>>())
    .bind(logins.iter().map(|login| login.expires_at.0).collect::<Vec<_>>())
    .bind(logins.iter().map(|login| &login.refresh_hash[..]).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}

async fn save_beats(
    connection: &mut PgConnection,
    beats: BTreeMap<Uuid, (String, i64)>,
) -> Result<(), sqlx::Error> {
    let (boots, said): (Vec<_>, Vec<_>) = beats.into_iter().unzip();
    let (nodes, times): (Vec<_>, Vec<_>) = said.into_iter().unzip();
    sqlx::query(
        "INSERT INTO nodes (boot_id, node_id, last_beat)
         SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::bigint[])
         ON CONFLICT (boot_id) DO UPDATE SET last_beat = excluded.last_beat",
    )
    .bind(boots)
    .bind(nodes)
    .bind(times)
    .execute(connection)
    .await
    .map(drop)
}
