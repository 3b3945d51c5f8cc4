//! Locks on users: what makes one user's changes one after the other, whichever
//! node commits them.
//!
//! Two rules keep nodes from waiting for each other in a circle. Whoever waits
//! for users does so in id order and before it holds anything else; whoever
//! holds something takes only what is free.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::sql::{self, number, seq, version};
use crate::model::{Timestamp, UserId};
use crate::store::batch::Head;
use crate::store::{Command, Reply};

/// How long users who were skipped before are waited for while others of the
/// batch wait as well. Whoever waits is next in turn at the server, and a
/// transaction of another node takes some milliseconds.
const PATIENCE_MS: u32 = 100;

/// How long when the batch would be empty without them.
const PATIENCE_ALONE_MS: u32 = 300;

/// What came of locking.
#[derive(Default)]
pub struct Locked {
    /// The heads of the users that are locked; one that does not exist is in
    /// neither.
    pub heads: HashMap<UserId, Head>,
    /// Since when their tokens without a login count.
    pub tokens_since: HashMap<UserId, Timestamp>,
    /// Users whom another transaction holds.
    pub skipped: HashSet<UserId>,
    /// Those of them who were not waited for: their turn is the next time. Whom
    /// waiting did not help does not hold up two batches in a row.
    pub passed_over: HashSet<UserId>,
}

/// The user whom `command` must have to itself. New accounts and logins meet
/// nobody.
pub fn of(command: &Command) -> Option<UserId> {
    match command {
        Command::Write(write) => Some(write.user),
        Command::ConnectDevice(connect) => Some(connect.user),
        Command::LeaveDevice(leave) => Some(leave.user),
        Command::LeaveConnection(leave) => Some(leave.user),
        Command::EndLogins(end) => Some(end.user),
        Command::ChangePassword(change) => Some(change.user),
        Command::RemoveUser { user, .. } => Some(*user),
        Command::MoveDevice(moved) => Some(moved.user),
        Command::UpdateDevice(update) => Some(update.user),
        Command::RevokeDevice(revoke) => Some(revoke.user),
        Command::PostMessage(post) => Some(post.user),
        Command::TakeMessages(take) => Some(take.user),
        // Whose a refresh token is, only its row says; that row is all it touches.
        Command::RotateRefresh(_)
        | Command::CreateAccount(_)
        | Command::ImportAccount(_)
        | Command::AdmitUser(_)
        | Command::OpenLogin(_)
        | Command::Beat { .. } => None,
    }
}

/// The heads of those whom `batch` has brought in.
pub fn imported(batch: &[Command], replies: &[Reply]) -> impl Iterator<Item = (UserId, Head)> {
    batch.iter().zip(replies).filter_map(|(command, reply)| match (command, reply) {
        (Command::ImportAccount(import), Reply::AccountCreated(true)) => {
            Some((import.account.user, Head::default()))
        }
        _ => None,
    })
}

/// Locks the users of `batch` until the transaction ends. Those in `patiently`
/// were skipped before and are waited for, as is a batch that would be empty.
pub async fn lock(
    connection: &mut PgConnection,
    batch: &[Command],
    patiently: &HashSet<UserId>,
) -> Result<Locked, sqlx::Error> {
    let mut locked = Locked::default();
    let mut wanted: BTreeSet<UserId> = batch.iter().filter_map(of).collect();
    let waited_for: BTreeSet<UserId> =
        wanted.iter().filter(|user| patiently.contains(user)).copied().collect();
    if !waited_for.is_empty() {
        let patience_ms = if waited_for.len() == wanted.len() { PATIENCE_ALONE_MS } else { PATIENCE_MS };
        wait_for(connection, &waited_for, patience_ms, &mut locked).await?;
        wanted = wanted.difference(&waited_for).copied().collect();
    }
    if wanted.is_empty() {
        return Ok(locked);
    }
    let rows = sqlx::query(
        "SELECT id, seq, live_keys, live_bytes, kept_bytes, tombstones, version_floor, tokens_since
         FROM users WHERE id = ANY($1)
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
    )
    .bind(ids(&wanted))
    .fetch_all(&mut *connection)
    .await?;
    take(&rows, &mut locked)?;
    let missing: BTreeSet<UserId> =
        wanted.into_iter().filter(|user| !locked.heads.contains_key(user)).collect();
    if missing.is_empty() {
        return Ok(locked);
    }
    let held = existing(connection, &missing).await?;
    let is_idle =
        waited_for.is_empty() && locked.heads.is_empty() && batch.iter().all(|command| of(command).is_some());
    if is_idle && !held.is_empty() {
        wait_for(connection, &held, PATIENCE_ALONE_MS, &mut locked).await?;
    } else {
        locked.skipped.extend(&held);
        locked.passed_over.extend(held);
    }
    Ok(locked)
}

fn ids(users: &BTreeSet<UserId>) -> Vec<Uuid> {
    users.iter().map(|user| user.0).collect()
}

/// Waits a while for `users`, none or all: nothing else may be held.
async fn wait_for(
    connection: &mut PgConnection,
    users: &BTreeSet<UserId>,
    patience_ms: u32,
    locked: &mut Locked,
) -> Result<(), sqlx::Error> {
    /// `lock_not_available` and `query_canceled`.
    const TOO_LONG: &[&str] = &["55P03", "57014"];
    let begin = format!("SAVEPOINT patience; SET LOCAL statement_timeout = '{patience_ms}ms'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut *connection).await?;
    let waiting = sqlx::query(
        "SELECT id, seq, live_keys, live_bytes, kept_bytes, tombstones, version_floor, tokens_since
         FROM users WHERE id = ANY($1)
         ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(ids(users))
    .fetch_all(&mut *connection)
    .await;
    match waiting {
        Ok(rows) => {
            let resume = "RELEASE SAVEPOINT patience; SET LOCAL statement_timeout = '2000ms'";
            sqlx::raw_sql(resume).execute(connection).await?;
            take(&rows, locked)
        }
        Err(sqlx::Error::Database(refusal))
            if refusal.code().is_some_and(|code| TOO_LONG.contains(&&*code)) =>
        {
            sqlx::raw_sql("ROLLBACK TO SAVEPOINT patience").execute(connection).await?;
            locked.skipped.extend(users);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Which of `users` exist, whoever holds them.
async fn existing(
    connection: &mut PgConnection,
    users: &BTreeSet<UserId>,
) -> Result<BTreeSet<UserId>, sqlx::Error> {
    let found: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM users WHERE id = ANY($1)")
        .bind(ids(users))
        .fetch_all(connection)
        .await?;
    Ok(found.into_iter().map(UserId).collect())
}

fn take(rows: &[PgRow], locked: &mut Locked) -> Result<(), sqlx::Error> {
    for row in rows {
        let head = Head {
            seq: seq(row, "seq")?,
            live_keys: number(row, "live_keys")?,
            live_bytes: number(row, "live_bytes")?,
            kept_bytes: number(row, "kept_bytes")?,
            tombstones: number(row, "tombstones")?,
            version_floor: version(row, "version_floor")?,
        };
        locked.tokens_since.insert(sql::user(row, "id")?, sql::time(row, "tokens_since")?);
        locked.heads.insert(sql::user(row, "id")?, head);
    }
    Ok(())
}
