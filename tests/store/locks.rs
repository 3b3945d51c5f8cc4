//! What a node does while another holds a user.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Executor;
use tandem::drain::Tasks;
use tandem::model::Seq;
use tandem::store::{Command, MovedSince, Reply, Retention, StoreError};

use super::bed::{Bed, write, writer};
use super::support::within;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whom_another_node_holds_holds_up_nobody_else() {
    let bed = Bed::postgres().await;
    let (held, free) = (bed.user().await, bed.user().await);
    let tasks = Tasks::default();
    let writer = writer(bed.store.clone(), &tasks);
    let mut other = bed.connection().await;
    other.execute(sqlx::raw_sql("BEGIN")).await.unwrap();
    let hold = format!("SELECT 1 FROM users WHERE id = '{held}' FOR UPDATE");
    other.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(hold))).await.unwrap();

    let waiting: Vec<_> = (1..=5)
        .map(|i| writer.enqueue(Command::Write(Arc::new(write(held, "a", &i.to_string()))), None).unwrap())
        .collect();
    let started = Instant::now();
    for i in 0..3 {
        writer.write(Arc::new(write(free, "a", &i.to_string()))).await.unwrap().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    other.execute(sqlx::raw_sql("ROLLBACK")).await.unwrap();
    for (waiting, seq) in waiting.into_iter().zip(1..) {
        let Reply::Written(outcome) = within(waiting.answered()).await.unwrap() else { panic!("a write") };
        assert_eq!(outcome.unwrap().seq, Seq(seq), "in the order they came");
    }
    tasks.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_held_for_long_is_answered_in_time() {
    let bed = Bed::postgres().await;
    let held = bed.user().await;
    let tasks = Tasks::default();
    let writer = writer(bed.store.clone(), &tasks);
    let mut other = bed.connection().await;
    other.execute(sqlx::raw_sql("BEGIN")).await.unwrap();
    let hold = format!("SELECT 1 FROM users WHERE id = '{held}' FOR UPDATE");
    other.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(hold))).await.unwrap();

    let started = Instant::now();
    let outcome = writer.write(Arc::new(write(held, "a", "1"))).await;

    assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
    assert!(started.elapsed() < Duration::from_secs(3));
    tasks.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_holds_back_only_the_users_it_cannot_have() {
    let bed = Bed::postgres().await;
    let (held, free) = (bed.user().await, bed.user().await);
    let mut other = bed.connection().await;
    other.execute(sqlx::raw_sql("BEGIN")).await.unwrap();
    let hold = format!("UPDATE users SET updated_at = 2 WHERE id = '{held}'");
    other.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(hold))).await.unwrap();
    let batch = [held, free].map(|user| Command::Write(Arc::new(write(user, "a", "1"))));

    let replies = bed.store.commit(&batch).await.unwrap();
    assert!(matches!(replies[..], [Reply::Held, Reply::Written(Ok(_))]), "{replies:?}");
    let replies = bed.store.commit(&batch[..1]).await.unwrap();
    assert!(matches!(replies[..], [Reply::Held]), "waited for, and not had");
    other.execute(sqlx::raw_sql("COMMIT")).await.unwrap();
    let replies = bed.store.commit(&batch).await.unwrap();
    assert!(matches!(&replies[..], [Reply::Written(Ok(one)), Reply::Written(Ok(two))]
        if one.seq == Seq(1) && two.seq == Seq(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_commits_late_is_told_all_the_same() {
    let bed = Bed::postgres().await;
    let (late, early) = (bed.user().await, bed.user().await);
    let start = bed.store.moved(&MovedSince::default()).await.unwrap().next;
    let mut other = bed.connection().await;
    let begin = format!(
        "BEGIN; INSERT INTO moves (xid, user_id, seq, at)
         VALUES (pg_current_xact_id()::text::bigint, '{late}', 7, 0)"
    );
    other.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(begin))).await.unwrap();
    super::bed::written(&*bed.store, write(early, "a", "1")).await;

    let first = bed.store.moved(&start).await.unwrap();
    assert_eq!(first.heads, [(early, Seq(1))]);
    other.execute(sqlx::raw_sql("COMMIT")).await.unwrap();

    let second = bed.store.moved(&first.next).await.unwrap();
    assert!(second.heads.contains(&(late, Seq(7))), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_after_moves_were_pruned_is_told_every_head() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;
    let start = bed.store.moved(&MovedSince::default()).await.unwrap().next;
    super::bed::written(&*bed.store, write(user, "a", "1")).await;
    let later = tandem::model::Clock::now().plus_ms(601_000);
    bed.store.prune(&Retention::default(), later).await.unwrap();

    let moved = bed.store.moved(&start).await.unwrap();
    assert_eq!(moved.heads, [(user, Seq(1))]);
    assert!(bed.store.moved(&moved.next).await.unwrap().heads.is_empty());
}
