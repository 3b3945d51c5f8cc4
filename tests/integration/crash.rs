//! kill -9 under load: what was acknowledged is there, everybody converges, the order has no holes.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::sync::watch;

use crate::replica::{Replica, number};
use crate::support::{Device, Env, Node, within, within_secs};

const USERS: usize = 5;
const DEVICES_EACH: usize = 2;
const WRITES_EACH: usize = 500;

/// Acks after which the node is killed, of 5,000.
const KILLS_AT: [usize; 3] = [1_000, 2_500, 4_000];

/// Writes that a device has in flight at a time.
const IN_FLIGHT: usize = 20;

/// One acknowledged write.
#[derive(Debug)]
struct Acked {
    user: usize,
    device: usize,
    key: String,
    state: Value,
    ack: Value,
}

/// What the devices were told, and how much of it.
#[derive(Default)]
struct History {
    acked: Mutex<Vec<Acked>>,
    count: watch::Sender<usize>,
}

#[tokio::test]
async fn kill_9_during_5_000_updates_loses_no_acked_one_and_everybody_converges() {
    let mut node = Node::start(&Env::new()).await;
    let mut accounts = Vec::new();
    let mut devices = Vec::new();
    for user in 0..USERS {
        let account = node.register(&format!("user{user}")).await;
        for device in 0..DEVICES_EACH {
            let named = Device::named(&node, &account, &format!("device {device}")).await;
            devices.push((user, named));
        }
        accounts.push(account);
    }
    let history = History::default();

    let writing = devices
        .iter()
        .enumerate()
        .map(|(index, (user, device))| write_until_acked(&history, *user, index, device));
    let killing = async {
        let mut count = history.count.subscribe();
        for kill_at in KILLS_AT {
            within_secs(60, count.wait_for(|count| *count >= kill_at)).await.unwrap();
            node.kill_9();
            node.restart().await;
        }
    };
    within_secs(120, async { tokio::join!(futures_util::future::join_all(writing), killing) }).await;

    let acked = history.acked.into_inner().unwrap();
    assert_eq!(acked.len(), USERS * DEVICES_EACH * WRITES_EACH);
    for (user, account) in accounts.iter().enumerate() {
        let session = node.rest_of(account).get("/api/session").await.expect(200);
        for (index, (_, device)) in devices.iter().enumerate().filter(|(_, (owner, _))| *owner == user) {
            let own = acked.iter().filter(|one| one.device == index);
            let own: Vec<_> = own.map(|one| (one.key.as_str(), &one.state, &one.ack)).collect();
            within(async {
                let converged = |_: &[Value]| {
                    let replica = Replica::of(&device.seen()).with_acks(own.iter().copied());
                    replica.equals(&session).then_some(())
                };
                device.until("session-updated", 10, converged).await;
            })
            .await;
        }
        let stored = stored_changes(&node, &account.id).await;
        let head = number(&session["seq"]);
        assert_eq!(stored.keys().copied().collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
        for one in acked.iter().filter(|one| one.user == user) {
            let row = &stored[&number(&one.ack["seq"])];
            let expected = (one.key.clone(), number(&one.ack["version"]), one.state.clone());
            assert_eq!(*row, expected, "an acked write is stored as it was acked");
        }
        versions_are_1_to_n(&stored);
    }
}

/// Sends this device's writes, some at a time, each again until it is acknowledged.
async fn write_until_acked(history: &History, user: usize, index: usize, device: &Device) {
    let mut waiting: Vec<_> =
        (0..WRITES_EACH).map(|n| (format!("k{}", n % 7), json!({"device": index, "n": n}))).collect();
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
async fn stored_changes(node: &Node, user: &str) -> BTreeMap<u64, (String, u64, Value)> {
    let file = SqliteConnectOptions::new().filename(node.folder().join("tandem.db")).read_only(true);
    let pool = within(SqlitePool::connect_with(file)).await.expect("the database is a SQLite file");
    let rows = sqlx::query(CHANGES_OF_A_USER).bind(user.to_owned()).fetch_all(&pool);
    let rows = within(rows).await.expect("the changes can be read");
    pool.close().await;
    let change = |row: &sqlx::sqlite::SqliteRow| {
        let (seq, version): (i64, i64) = (row.get("seq"), row.get("version"));
        let state = serde_json::from_str(row.get::<&str, _>("state")).expect("a state is JSON");
        (seq as u64, (row.get("key"), version as u64, state))
    };
    rows.iter().map(change).collect()
}

const CHANGES_OF_A_USER: &str = "SELECT seq, session_key AS key, version, data AS state \
    FROM changes WHERE user_id = ? ORDER BY seq";

fn versions_are_1_to_n(stored: &BTreeMap<u64, (String, u64, Value)>) {
    let mut versions = BTreeMap::<&str, Vec<u64>>::new();
    for (key, version, _) in stored.values() {
        versions.entry(key).or_default().push(*version);
    }
    for (key, versions) in versions {
        assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>(), "{key}");
    }
}
