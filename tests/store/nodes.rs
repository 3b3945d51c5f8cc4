//! Two nodes on one database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem::drain::Tasks;
use tandem::model::{Seq, UserId};
use tandem::store::{MovedSince, Store, StoreError};
use tokio::task::JoinSet;

use super::bed::{Bed, write, writer};
use super::support::within_secs;

on_every_store!(
    two_nodes_number_one_users_writes_without_holes,
    two_nodes_on_the_same_users_never_deadlock,
    a_node_is_told_whose_head_another_moved,
);

async fn a_node_is_told_whose_head_another_moved(bed: &Bed) {
    let (one, two) = (bed.user().await, bed.user().await);
    super::bed::written(&*bed.store, write(two, "a", "before")).await;
    let asking = bed.another().await;
    let first = asking.moved(&MovedSince::default()).await.unwrap();
    assert!(first.heads.is_empty(), "from now on");

    super::bed::commit(&*bed.store, ["1", "2", "3"].map(|state| write(one, "a", state))).await;

    let moved = asking.moved(&first.next).await.unwrap();
    assert!(moved.heads.contains(&(one, Seq(3))), "{moved:?}");
    super::bed::written(&*bed.store, write(two, "a", "after")).await;
    let moved = asking.moved(&moved.next).await.unwrap();
    assert!(moved.heads.contains(&(two, Seq(2))), "{moved:?}");
    asking.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_makes_nothing_come_twice_and_is_heard_at_its_end() {
    let bed = Bed::postgres().await;
    let (one, two) = (bed.user().await, bed.user().await);
    let mut holder = bed.connection().await;
    let open = format!(
        "BEGIN; INSERT INTO moves (xid, user_id, seq, at)
         VALUES (pg_current_xact_id()::text::bigint, '{}', 7, 0)",
        two.0
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(open)).execute(&mut holder).await.unwrap();
    let start = bed.store.moved(&MovedSince::default()).await.unwrap();
    super::bed::written(&*bed.store, write(one, "a", "1")).await;

    let moved = bed.store.moved(&start.next).await.unwrap();
    assert_eq!(moved.heads, [(one, Seq(1))]);
    let moved = bed.store.moved(&moved.next).await.unwrap();
    assert_eq!(moved.heads, [], "that is known");

    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    let moved = bed.store.moved(&moved.next).await.unwrap();
    assert_eq!(moved.heads, [(two, Seq(7))]);
}

/// Ten writers a node, 200 writes each; a refusal for load is tried again.
async fn hammer(bed: &Bed, users: &[UserId]) {
    let tasks = Tasks::default();
    let other = bed.another().await;
    let writers = [writer(bed.store.clone(), &tasks), writer(other.clone(), &tasks)];
    let busy = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for (node, writer) in writers.iter().enumerate() {
        for client in 0..10 {
            let (writer, busy, users) = (writer.clone(), busy.clone(), users.to_vec());
            clients.spawn(async move {
                for i in 0..200 {
                    let user = users[(client + i) % users.len()];
                    let write = Arc::new(write(user, &format!("k{client}"), &format!("{node}{i:03}1")));
                    loop {
                        match writer.write(write.clone()).await {
                            Ok(outcome) => break drop(outcome.unwrap()),
                            Err(StoreError::Busy) => busy.fetch_add(1, Ordering::Relaxed),
                            Err(error) => panic!("{error}"),
                        };
                    }
                }
            });
        }
    }
    within_secs(120, clients.join_all()).await;
    tasks.end();
    other.close().await;
    eprintln!("refused for load and tried again: {}", busy.load(Ordering::Relaxed));
}

async fn all_seqs(store: &dyn Store, user: UserId) -> Vec<(Seq, String, u64)> {
    let mut changes = Vec::new();
    let mut after = Seq(0);
    loop {
        let piece = store.changes_after(user, after).await.unwrap();
        let rows =
            piece.changes.into_iter().map(|change| (change.seq, change.key.to_string(), change.version.0));
        changes.extend(rows);
        after = piece.up_to;
        if !piece.more {
            return changes;
        }
    }
}

/// Seqs are 1 to N, and so are each key's versions.
async fn assert_without_holes(store: &dyn Store, user: UserId) -> usize {
    let changes = all_seqs(store, user).await;
    let mut versions = std::collections::HashMap::new();
    for (place, (seq, key, version)) in changes.iter().enumerate() {
        assert_eq!(seq.0, place as u64 + 1);
        let last: &mut u64 = versions.entry(key.clone()).or_default();
        *last += 1;
        assert_eq!(version, last, "{key}");
    }
    changes.len()
}

async fn two_nodes_number_one_users_writes_without_holes(bed: &Bed) {
    let user = bed.user().await;
    hammer(bed, &[user]).await;
    assert_eq!(assert_without_holes(&*bed.store, user).await, 4_000);
}

async fn two_nodes_on_the_same_users_never_deadlock(bed: &Bed) {
    let mut users = Vec::new();
    for _ in 0..7 {
        users.push(bed.user().await);
    }
    hammer(bed, &users).await;
    let mut total = 0;
    for user in users {
        total += assert_without_holes(&*bed.store, user).await;
    }
    assert_eq!(total, 4_000);
}
