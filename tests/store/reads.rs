//! Snapshots, catch-ups and history.

use tandem::model::{Epoch, Seq, UserId};
use tandem::store::{Selection, Snapshot};

use super::bed::{Bed, commit, delete, key, write};

on_every_store!(
    a_snapshot_is_full_without_a_position_the_store_can_tell_from,
    a_snapshot_since_a_position_is_what_changed,
    a_snapshot_of_some_keys_holds_only_those,
    a_catch_up_has_every_change_in_order_a_piece_at_a_time,
    a_catch_up_is_bounded_in_bytes,
    every_position_catches_up_to_the_same,
    a_store_opened_again_has_the_same_epoch,
);

async fn snapshot(bed: &Bed, user: UserId, since: Option<(Epoch, u64)>) -> Snapshot {
    let since = since.map(|(epoch, seq)| (epoch, Seq(seq)));
    bed.store.snapshot(user, &Selection { keys: None, since }).await.unwrap().unwrap()
}

fn names(snapshot: &Snapshot) -> Vec<(&str, u64, Option<&str>)> {
    snapshot.entries.iter().map(|entry| (entry.key.as_str(), entry.seq.0, entry.state.as_deref())).collect()
}

async fn a_snapshot_is_full_without_a_position_the_store_can_tell_from(bed: &Bed) {
    let user = bed.user().await;
    let empty = snapshot(bed, user, None).await;
    assert!(empty.entries.is_empty() && empty.seq == Seq(0) && !empty.delta);
    commit(
        &*bed.store,
        [write(user, "a", "1"), write(user, "b", "2"), write(user, "a", "3"), delete(user, "b")],
    )
    .await;

    for since in [None, Some((Epoch("other".into()), 2)), Some((bed.store.epoch(), 5))] {
        let full = snapshot(bed, user, since).await;
        assert!(!full.delta);
        assert_eq!(full.seq, Seq(4));
        assert_eq!(names(&full), [("a", 3, Some("3"))]);
    }
    let nobody = bed.store.snapshot(UserId::fresh(), &Selection::default()).await.unwrap();
    assert!(nobody.is_none());
}

async fn a_snapshot_since_a_position_is_what_changed(bed: &Bed) {
    let user = bed.user().await;
    commit(
        &*bed.store,
        [write(user, "a", "1"), write(user, "b", "2"), write(user, "c", "3"), delete(user, "b")],
    )
    .await;

    let delta = snapshot(bed, user, Some((bed.store.epoch(), 1))).await;
    assert!(delta.delta);
    assert_eq!(names(&delta), [("c", 3, Some("3")), ("b", 4, None)]);
    let nothing = snapshot(bed, user, Some((bed.store.epoch(), 4))).await;
    assert!(nothing.delta && nothing.entries.is_empty() && nothing.seq == Seq(4));
}

async fn a_snapshot_of_some_keys_holds_only_those(bed: &Bed) {
    let user = bed.user().await;
    commit(&*bed.store, ["a", "b", "c"].map(|name| write(user, name, "1"))).await;
    let some =
        |keys: &[&str]| Selection { keys: Some(keys.iter().map(|name| key(name)).collect()), since: None };

    let chosen = bed.store.snapshot(user, &some(&["c", "a", "z"])).await.unwrap().unwrap();
    assert_eq!(names(&chosen), [("a", 1, Some("1")), ("c", 3, Some("1"))]);
    let none = bed.store.snapshot(user, &some(&[])).await.unwrap().unwrap();
    assert!(none.entries.is_empty() && none.seq == Seq(3));

    commit(&*bed.store, [delete(user, "a")]).await;
    let since = Some((bed.store.epoch(), Seq(1)));
    let both = bed.store.snapshot(user, &Selection { since, ..some(&["a", "b"]) }).await.unwrap().unwrap();
    assert!(both.delta && both.seq == Seq(4));
    assert_eq!(names(&both), [("b", 2, Some("1")), ("a", 4, None)]);
}

async fn a_catch_up_has_every_change_in_order_a_piece_at_a_time(bed: &Bed) {
    let user = bed.user().await;
    for batch in 0..3 {
        commit(
            &*bed.store,
            (0..500).map(|i| write(user, &format!("k{}", i % 7), &(batch * 500 + i).to_string())),
        )
        .await;
    }
    let mut after = Seq(3);
    let mut seen = Vec::new();
    loop {
        let piece = bed.store.changes_after(user, after).await.unwrap();
        assert!(piece.up_to > after);
        seen.extend(piece.changes.iter().map(|change| change.seq.0));
        after = piece.up_to;
        if !piece.more {
            break;
        }
    }
    assert_eq!(seen, (4..=1_500).collect::<Vec<_>>());
    let done = bed.store.changes_after(user, Seq(1_500)).await.unwrap();
    assert!(done.changes.is_empty() && done.up_to == Seq(1_500) && !done.more);
    let beyond = bed.store.changes_after(user, Seq(1_501)).await.unwrap();
    assert!(beyond.forgotten && beyond.up_to == Seq(1_500), "a place of another past: {beyond:?}");
    let nobody = bed.store.changes_after(UserId::fresh(), Seq(5)).await.unwrap();
    assert!(nobody.changes.is_empty() && nobody.up_to == Seq(5) && !nobody.more);
}

async fn a_catch_up_is_bounded_in_bytes(bed: &Bed) {
    let user = bed.user().await;
    let big = format!("\"{}\"", "x".repeat(200_000));
    for _ in 0..5 {
        commit(&*bed.store, [write(user, "a", &big), write(user, "a", &big)]).await;
    }
    let piece = bed.store.changes_after(user, Seq(0)).await.unwrap();
    assert!(piece.more, "2 MB do not come at once");
    assert!((5..=6).contains(&piece.changes.len()), "{}", piece.changes.len());
}

async fn every_position_catches_up_to_the_same(bed: &Bed) {
    let user = bed.user().await;
    for i in 0..40 {
        let name = format!("k{}", i % 5);
        if i % 9 == 8 {
            commit(&*bed.store, [delete(user, &name)]).await;
        } else {
            commit(&*bed.store, [write(user, &name, &i.to_string())]).await;
        }
    }
    let full = snapshot(bed, user, None).await;
    let present = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.entries.iter().filter(|entry| entry.state.is_some()).cloned().collect()
    };
    for since in 0..=full.seq.0 {
        let delta = snapshot(bed, user, Some((bed.store.epoch(), since))).await;
        assert!(delta.delta);
        let expected: Vec<_> = present(&full).into_iter().filter(|entry| entry.seq.0 > since).collect();
        assert_eq!(present(&delta), expected, "since {since}");
    }
}

async fn a_store_opened_again_has_the_same_epoch(bed: &Bed) {
    let again = bed.another().await;
    assert_eq!(again.epoch(), bed.store.epoch());
    again.ping().await.unwrap();
    again.close().await;
}
