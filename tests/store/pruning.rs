//! What is forgotten, when, and what that leaves behind.

use std::sync::Arc;

use tandem::model::{Seq, Timestamp, UserId, Version};
use tandem::store::{Retention, Selection, SessionWrite};

use super::bed::{Bed, commit, delete, key, write, written};

on_every_store!(
    the_last_20_versions_stay_and_young_ones_beyond_them,
    superseded_versions_go_after_seven_days_and_current_ones_stay,
    an_old_tombstone_goes_and_leaves_its_floor,
    a_user_keeps_a_thousand_tombstones,
    a_revived_key_is_no_tombstone,
    op_ids_go_after_a_day,
    a_catch_up_past_pruned_changes_brings_what_is_present,
);

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const START: i64 = 1_700_000_000_000;

fn at(time: i64, write: SessionWrite) -> SessionWrite {
    SessionWrite { at: Timestamp(START + time), ..write }
}

async fn prune(bed: &Bed, now: i64) {
    let mut goes = 0;
    while bed.store.prune(&Retention::default(), Timestamp(START + now)).await.unwrap() > 0 {
        goes += 1;
        assert!(goes < 1_000, "it comes to an end");
    }
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

async fn superseded_versions_go_after_seven_days_and_current_ones_stay(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, at(0, write(user, "a", "1"))).await;
    written(&*bed.store, at(DAY, write(user, "a", "2"))).await;
    written(&*bed.store, at(0, write(user, "b", "1"))).await;

    prune(bed, 6 * DAY).await;
    assert_eq!(versions(bed, user, "a").await, [1, 2]);
    prune(bed, 7 * DAY + MINUTE).await;
    assert_eq!(versions(bed, user, "a").await, [2]);
    prune(bed, 20 * DAY).await;
    assert_eq!(versions(bed, user, "a").await, [2], "it is current, so the next merge needs it");
    assert_eq!(versions(bed, user, "b").await, [1]);
    // What was current for long goes when something newer has settled.
    written(&*bed.store, at(20 * DAY, write(user, "a", "3"))).await;
    prune(bed, 20 * DAY + 11 * MINUTE).await;
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
