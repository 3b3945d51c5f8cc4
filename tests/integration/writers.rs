//! Devices that write until everything is acknowledged, and what the database says of it: for tests in which nodes
//! die.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::{Device, Node, within};

/// Writes that a device has in flight at a time.
const IN_FLIGHT: usize = 20;

/// One acknowledged write.
#[derive(Debug)]
pub struct Acked {
    pub user: usize,
    pub device: usize,
    pub key: String,
    pub state: Value,
    pub ack: Value,
}

/// What the devices were told, and how much of it.
#[derive(Default)]
pub struct History {
    pub acked: Mutex<Vec<Acked>>,
    pub count: watch::Sender<usize>,
}

/// Sends this device's writes, some at a time, each again until it is acknowledged.
pub async fn write_until_acked(history: &History, user: usize, index: usize, device: &Device, writes: usize) {
    let mut waiting: Vec<_> =
        (0..writes).map(|n| (format!("k{}", n % 7), json!({"device": index, "n": n}))).collect();
    while !waiting.is_empty() {
        let batch: Vec<_> = waiting.drain(..waiting.len().min(IN_FLIGHT)).collect();
        let payloads = batch.iter().map(|(key, state)| json!({"sessionKey": key, "state": state}));
        let acks = device.emit_ack_all("session-update", payloads.collect()).await;
        let mut again = Vec::new();
        for ((key, state), ack) in batch.into_iter().zip(acks) {
            match ack {
                Ok(ack) if ack["ok"] == true => {
                    history.acked.lock().unwrap().push(Acked { user, device: index, key, state, ack });
                    history.count.send_modify(|count| *count += 1);
                }
                // A retryable refusal or a lost connection: nobody knows whether it was applied.
                Ok(ack) => {
                    assert_eq!(ack["error"]["retryable"], true, "{ack}");
                    again.push((key, state));
                }
                Err(_) => again.push((key, state)),
            }
        }
        again.append(&mut waiting);
        waiting = again;
    }
}

/// All changes of a user as the database keeps them: seq to key, version and state.
pub async fn stored_changes(node: &Node, user: &str) -> BTreeMap<u64, (String, u64, Value)> {
    if node.database().starts_with("postgres://") {
        let mut connection =
            within(PgConnection::connect(node.database())).await.expect("the database can be reached");
        let user: Uuid = user.parse().expect("a user's id is a UUID");
        let text = CHANGES_OF_A_USER.replace('?', "$1");
        let rows = sqlx::query(AssertSqlSafe(text)).bind(user).fetch_all(&mut connection);
        return within(rows).await.expect("the changes can be read").iter().map(change).collect();
    }
    let file = SqliteConnectOptions::new().filename(node.folder().join("tandem.db")).read_only(true);
    let pool = within(SqlitePool::connect_with(file)).await.expect("the database is a SQLite file");
    let rows = sqlx::query(CHANGES_OF_A_USER).bind(user.to_owned()).fetch_all(&pool);
    let rows = within(rows).await.expect("the changes can be read");
    pool.close().await;
    rows.iter().map(change).collect()
}

fn change<'r, R: Row>(row: &'r R) -> (u64, (String, u64, Value))
where
    &'static str: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let (seq, version): (i64, i64) = (row.get("seq"), row.get("version"));
    let state = serde_json::from_str(&row.get::<String, _>("state")).expect("a state is JSON");
    (seq as u64, (row.get("key"), version as u64, state))
}

const CHANGES_OF_A_USER: &str = "SELECT seq, session_key AS key, version, data AS state \
    FROM changes WHERE user_id = ? ORDER BY seq";

pub fn versions_are_1_to_n(stored: &BTreeMap<u64, (String, u64, Value)>) {
    let mut versions = BTreeMap::<&str, Vec<u64>>::new();
    for (key, version, _) in stored.values() {
        versions.entry(key).or_default().push(*version);
    }
    for (key, versions) in versions {
        assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>(), "{key}");
    }
}
