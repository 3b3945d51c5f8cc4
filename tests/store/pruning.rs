//! What is forgotten, when, and what that leaves behind.

use std::sync::Arc;

use tandem::model::{Seq, Timestamp, UserId, Version};
use tandem::store::{Retention, Selection, SessionWrite};

use super::bed::{Bed, commit, delete, key, write, written};

on_every_store!(
    the_last_20_versions_stay_and_young_ones_beyond_them,
    versions_go_seven_days_after_they_were_superseded_and_current_ones_stay,
    an_old_tombstone_goes_and_leaves_its_floor,
    a_user_keeps_a_thousand_tombstones,
    a_revived_key_is_no_tombstone,
    op_ids_go_after_a_day,
    a_catch_up_past_pruned_changes_brings_what_is_present,
    a_catch_up_past_a_forgotten_deletion_says_so,
    a_clock_that_ran_ahead_holds_nothing_up,
    a_users_history_keeps_within_its_bytes_whatever_its_age,
);

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const START: i64 = 1_700_000_000_000;

fn at(time: i64, write: SessionWrite) -> SessionWrite {
    SessionWrite { at: Timestamp(START + time), ..write }
}

async fn prune(bed: &Bed, now: i64) {
    prune_to(bed, &Retention::default(), now).await;
}

/// Prunes until nothing is left to do; how many goes it took.
async fn prune_to(bed: &Bed, retention: &Retention, now: i64) -> u32 {
    let mut goes = 0;
    while bed.store.prune(retention, Timestamp(START + now)).await.unwrap() > 0 {
        goes += 1;
        assert!(goes < 1_000, "it comes to an end");
    }
    goes
}

async fn versions(bed: &Bed, user: UserId, name: &str) -> Vec<u64> {
    let kept = bed.store.history(user, &key(name)).await.unwrap();
    kept.into_iter().rev().map(|change| change.version.0).collect()
}

async fn the_last_20_versions_stay_and_young_ones_beyond_them(bed: &Bed) {
    let user = bed.user().await;
    for batch in 0..4 {
        commit(&*bed.store, (0..400).map(|i| at(batch, write(user, "a", &i.to_string())))).await;
    }
    commit(&*bed.store, (0..30).map(|i| at(60 * MINUTE, write(user, "b", &i.to_string())))).await;

    prune(bed, 61 * MINUTE).await;
    assert_eq!(versions(bed, user, "a").await, (1_581..=1_600).collect::<Vec<_>>());
    assert_eq!(versions(bed, user, "b").await.len(), 30, "they are a minute old");
    prune(bed, 71 * MINUTE).await;
    assert_eq!(versions(bed, user, "b").await, (11..=30).collect::<Vec<_>>());
    // Each further version pushes one out, once it is old enough itself.
    written(&*bed.store, at(80 * MINUTE, write(user, "b", "x"))).await;
    prune(bed, 81 * MINUTE).await;
    assert_eq!(versions(bed, user, "b").await.len(), 21);
    prune(bed, 91 * MINUTE).await;
    assert_eq!(versions(bed, user, "b").await, (12..=31).collect::<Vec<_>>());
}

async fn versions_go_seven_days_after_they_were_superseded_and_current_ones_stay(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, at(0, write(user, "a", "1"))).await;
    written(&*bed.store, at(DAY, write(user, "a", "2"))).await;
    written(&*bed.store, at(0, write(user, "b", "1"))).await;

    prune(bed, 6 * DAY).await;
    assert_eq!(versions(bed, user, "a").await, [1, 2]);
    prune(bed, 7 * DAY + MINUTE).await;
    assert_eq!(versions(bed, user, "a").await, [1, 2], "it was superseded six days ago");
    prune(bed, 8 * DAY + MINUTE).await;
    assert_eq!(versions(bed, user, "a").await, [2]);
    prune(bed, 20 * DAY).await;
    assert_eq!(versions(bed, user, "a").await, [2], "it is current, so the next merge needs it");
    assert_eq!(versions(bed, user, "b").await, [1]);
    // What was current for long can be brought back as long as anything else.
    written(&*bed.store, at(20 * DAY, write(user, "a", "3"))).await;
    prune(bed, 20 * DAY + 11 * MINUTE).await;
    assert_eq!(versions(bed, user, "a").await, [2, 3]);
    prune(bed, 27 * DAY).await;
    assert_eq!(versions(bed, user, "a").await, [3]);
}

async fn an_old_tombstone_goes_and_leaves_its_floor(bed: &Bed) {
    let user = bed.user().await;
    commit(&*bed.store, (0..4).map(|i| at(0, write(user, "a", &i.to_string())))).await;
    written(&*bed.store, at(0, delete(user, "a"))).await;
    written(&*bed.store, at(0, write(user, "b", "1"))).await;
    let delta = async |since| {
        let selection = Selection { keys: None, since: Some((bed.store.epoch(), Seq(since))) };
        bed.store.snapshot(user, &selection).await.unwrap().unwrap()
    };

    prune(bed, 6 * DAY).await;
    assert!(delta(4).await.delta, "the tombstone is there to be told");
    prune(bed, 7 * DAY + MINUTE).await;

    assert!(bed.store.entry(user, &key("a")).await.unwrap().is_none());
    assert!(versions(bed, user, "a").await.is_empty());
    let full = delta(4).await;
    assert!(!full.delta, "whoever has not seen the deletion starts anew");
    assert_eq!(full.entries.len(), 1);
    assert!(delta(5).await.delta, "whoever has seen it need not");
    let floor = written(&*bed.store, at(8 * DAY, write(user, "a", "back"))).await;
    assert_eq!(floor, (Version(6), Seq(7)));
}

async fn a_user_keeps_a_thousand_tombstones(bed: &Bed) {
    let (user, other) = (bed.user().await, bed.user().await);
    for batch in 0..3 {
        let names: Vec<_> = (0..400).map(|i| format!("k{batch}-{i}")).collect();
        commit(&*bed.store, names.iter().map(|name| at(0, write(user, name, "1")))).await;
        commit(&*bed.store, names.iter().map(|name| at(0, delete(user, name)))).await;
    }
    commit(&*bed.store, [at(0, write(other, "a", "1")), at(0, delete(other, "a"))]).await;

    prune(bed, 20 * MINUTE).await;

    let gone = bed.store.entry(user, &key("k0-199")).await.unwrap();
    let kept = bed.store.entry(user, &key("k0-200")).await.unwrap();
    assert!(gone.is_none() && kept.is_some_and(|entry| entry.state.is_none()));
    assert!(bed.store.entry(other, &key("a")).await.unwrap().is_some());
    assert_eq!(written(&*bed.store, at(DAY, write(user, "k0-0", "1"))).await.0, Version(3));
}

async fn a_revived_key_is_no_tombstone(bed: &Bed) {
    let user = bed.user().await;
    commit(&*bed.store, [at(0, write(user, "a", "1")), at(0, delete(user, "a"))]).await;
    written(&*bed.store, at(6 * DAY, write(user, "a", "2"))).await;
    prune(bed, 30 * DAY).await;
    assert_eq!(super::bed::state(&*bed.store, user, "a").await.as_deref(), Some("2"));
}

async fn op_ids_go_after_a_day(bed: &Bed) {
    let user = bed.user().await;
    let named = |i: i64| SessionWrite { op_id: Some(Arc::from(format!("op{i}"))), ..write(user, "a", "1") };
    commit(&*bed.store, (0..1_200).map(|i| at(i, named(i)))).await;
    let is_known = async |i: i64| commit(&*bed.store, [named(i)]).await.remove(0).unwrap().change.is_none();

    prune(bed, DAY).await;
    assert!(is_known(0).await);
    prune(bed, DAY + 600).await;
    assert!(is_known(600).await);
    assert!(!is_known(599).await);
}

async fn a_catch_up_past_pruned_changes_brings_what_is_present(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, at(0, write(user, "b", "1"))).await;
    commit(&*bed.store, (0..100).map(|i| at(0, write(user, "a", &i.to_string())))).await;
    written(&*bed.store, at(0, delete(user, "b"))).await;
    prune(bed, 20 * MINUTE).await;

    let caught_up = bed.store.changes_after(user, Seq(1)).await.unwrap();
    let seqs: Vec<_> =
        caught_up.changes.iter().map(|change| (change.seq.0, change.state.is_some())).collect();
    assert_eq!(seqs, [(101, true), (102, false)]);
    assert_eq!((caught_up.up_to, caught_up.more), (Seq(102), false));
    let kept = bed.store.changes_after(user, Seq(90)).await.unwrap();
    assert_eq!(kept.changes.len(), 12, "from here on nothing is missing");
}

async fn a_catch_up_past_a_forgotten_deletion_says_so(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, at(0, write(user, "a", "1"))).await;
    written(&*bed.store, at(0, delete(user, "a"))).await;
    written(&*bed.store, at(8 * DAY, write(user, "b", "1"))).await;
    prune(bed, 8 * DAY).await;

    let caught_up = bed.store.changes_after(user, Seq(1)).await.unwrap();
    assert!(caught_up.forgotten && caught_up.changes.is_empty(), "{caught_up:?}");
    assert_eq!(caught_up.up_to, Seq(3));
    let caught_up = bed.store.changes_after(user, Seq(2)).await.unwrap();
    assert!(!caught_up.forgotten && caught_up.changes.len() == 1, "{caught_up:?}");
}

async fn a_clock_that_ran_ahead_holds_nothing_up(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, at(300 * DAY, write(user, "ahead", "1"))).await;
    commit(&*bed.store, (0..40).map(|i| at(0, write(user, "a", &i.to_string())))).await;

    prune(bed, 20 * MINUTE).await;

    assert_eq!(versions(bed, user, "a").await.len(), 20);
}

async fn a_users_history_keeps_within_its_bytes_whatever_its_age(bed: &Bed) {
    let retention = Retention { history_bytes_per_user: 10_000, ..Retention::default() };
    let (user, other) = (bed.user().await, bed.user().await);
    let state = |i: usize| format!("\"{i:03}{}\"", "x".repeat(995));
    written(&*bed.store, at(0, write(user, "old", &state(0)))).await;
    commit(&*bed.store, (0..15).map(|i| at(0, write(user, "a", &state(i))))).await;
    commit(&*bed.store, (0..11).map(|i| at(0, write(other, "a", &state(i))))).await;

    prune_to(bed, &retention, 1).await;

    assert_eq!(
        versions(bed, user, "a").await,
        (5..=15).collect::<Vec<_>>(),
        "ten of 1,000 bytes, and 15 is now"
    );
    assert_eq!(versions(bed, user, "old").await, [1], "what is current is no history");
    assert_eq!(versions(bed, other, "a").await.len(), 11, "exactly the bound is fine");
    assert_eq!(prune_to(bed, &retention, 2).await, 0);
    // One more for each: the bound goes on holding.
    written(&*bed.store, at(2, write(user, "old", &state(1)))).await;
    written(&*bed.store, at(2, write(other, "a", "1"))).await;
    prune_to(bed, &retention, 3).await;
    assert_eq!(versions(bed, user, "old").await, [2], "the oldest went");
    assert_eq!(versions(bed, user, "a").await.len(), 11);
    assert_eq!(versions(bed, other, "a").await, (2..=12).collect::<Vec<_>>());
}

/// SQLite has one writer, and reads the pages that it frees.
#[tokio::test]
async fn sqlite_forgets_much_history_in_small_transactions() {
    let bed = &Bed::sqlite().await;
    let retention = Retention { history_bytes_per_user: 1_000_000, ..Retention::default() };
    let user = bed.user().await;
    let state = format!("\"{}\"", "x".repeat(250_000));
    for _ in 0..4 {
        commit(&*bed.store, (0..16).map(|_| at(0, write(user, "a", &state)))).await;
    }

    let goes = prune_to(bed, &retention, 1).await;

    assert_eq!(versions(bed, user, "a").await, [61, 62, 63, 64], "and 64 is now");
    assert!(goes >= 7, "15 MB of it, about 2 MiB at a go: {goes}");
}
