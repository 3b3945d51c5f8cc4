//! What a batch of writes makes of what is there, and what becomes of each.

use std::sync::Arc;

use tandem::merge::OnConflict;
use tandem::model::{JsonText, Seq, Timestamp, UserId, Version};
use tandem::store::{SessionWrite, WriteChange, WriteRefusal};

use super::bed::{Bed, bounds, commit, delete, state, write, written};

on_every_store!(
    a_batch_answers_each_write_and_a_refused_one_takes_no_seq,
    a_batch_of_512_users_is_applied_whole,
    a_batch_of_any_shape_is_applied_whole,
    a_state_comes_back_as_it_was_written,
    an_op_id_is_applied_once,
    a_stale_base_is_told_what_is_current,
    a_merge_finds_its_base_in_the_history,
    a_kept_version_is_brought_back,
    a_deleted_key_returns_above_its_last_version,
    quotas_refuse_what_grows_and_allow_what_shrinks,
);

async fn a_batch_answers_each_write_and_a_refused_one_takes_no_seq(bed: &Bed) {
    let (one, two) = (bed.user().await, bed.user().await);
    let stale = SessionWrite {
        base_version: Some(Version(7)),
        on_conflict: OnConflict::Reject,
        ..write(one, "a", "2")
    };
    let outcomes = commit(
        &*bed.store,
        [
            write(one, "a", "1"),
            write(two, "a", "1"),
            stale,
            delete(one, "none"),
            write(UserId::fresh(), "a", "1"),
            write(one, "a", "3"),
            write(one, "b", "4"),
            write(two, "a", "2"),
        ],
    )
    .await;

    let seen: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().map(|written| (written.version.0, written.seq.0)))
        .collect();
    assert_eq!(seen[0], Ok((1, 1)));
    assert_eq!(seen[1], Ok((1, 1)));
    assert!(matches!(&seen[2], Err(WriteRefusal::Conflict { version: Version(1), state: Some(state), .. })
        if &**state == "1"));
    assert_eq!(seen[3], Err(&WriteRefusal::UnknownKey));
    assert_eq!(seen[4], Err(&WriteRefusal::UnknownUser));
    assert_eq!(seen[5], Ok((2, 2)));
    assert_eq!(seen[6], Ok((1, 3)));
    assert_eq!(seen[7], Ok((2, 2)));
    assert_eq!(state(&*bed.store, one, "a").await.as_deref(), Some("3"));
    let kept = bed.store.changes_after(one, Seq(0)).await.unwrap();
    assert_eq!(kept.changes.iter().map(|change| change.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
}

async fn a_batch_of_512_users_is_applied_whole(bed: &Bed) {
    let mut users = Vec::new();
    for _ in 0..64 {
        users.push(bed.user().await);
    }
    let batch = (0..512).map(|i| write(users[i % 64], &format!("key-{}", i / 64), &i.to_string()));

    let outcomes = commit(&*bed.store, batch).await;

    for (i, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.unwrap().seq, Seq(i as u64 / 64 + 1));
    }
    assert_eq!(state(&*bed.store, users[63], "key-7").await.as_deref(), Some("511"));
}

/// Few or many writes, of keys of their own or of a few, named by op ids all, in part or not at all.
async fn a_batch_of_any_shape_is_applied_whole(bed: &Bed) {
    let user = bed.user().await;
    let shapes = [1, 2, 3, 15, 16, 17, 40];
    let shapes = shapes.into_iter().flat_map(|writes| [(writes, 100), (writes, 2)]);
    let shapes =
        shapes.flat_map(|(writes, keys)| [(writes, keys, 1), (writes, keys, 2), (writes, keys, 100)]);
    let mut seq = 0;
    for (writes, keys, named) in shapes {
        let batch: Vec<_> = (0..writes)
            .map(|nth| SessionWrite {
                op_id: (nth % named == 0).then(|| format!("{seq} {nth}").into()),
                ..write(user, &format!("key-{}", nth % keys), &format!("[{seq},{nth}]"))
            })
            .collect();

        let outcomes = commit(&*bed.store, batch.clone()).await;

        let seqs: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().seq.0).collect();
        assert_eq!(seqs, (seq + 1..=seq + writes).collect::<Vec<_>>());
        let kept = bed.store.kept_changes(user, Seq(seq)).await.unwrap();
        let wrote = batch.iter().map(|write| (&write.key, Some(state_of(write))));
        assert!(
            kept.iter().map(|change| (&change.key, change.state.as_deref())).eq(wrote),
            "{writes} writes"
        );
        for write in batch.iter().rev().take(keys as usize) {
            assert_eq!(state(&*bed.store, user, write.key.as_str()).await.as_deref(), Some(state_of(write)));
        }
        for repeat in commit(&*bed.store, batch.into_iter().filter(|write| write.op_id.is_some())).await {
            assert!(repeat.unwrap().change.is_none(), "{writes} writes of which one in {named} is named");
        }
        seq += writes;
        assert_eq!(bed.store.head(user).await.unwrap().unwrap().seq, Seq(seq));
    }
}

fn state_of(write: &SessionWrite) -> &str {
    match &write.change {
        WriteChange::State(state) => state,
        other => panic!("the batch has no {other:?}"),
    }
}

async fn a_state_comes_back_as_it_was_written(bed: &Bed) {
    let user = bed.user().await;
    for text in [
        r#"{"n":9007199254740993,"big":123456789012345678901234567890.10,"e":1E+2}"#,
        r#"{"a":1,"a":2,  "b" : [ ]}"#,
        r#""\u0000\ud83d\ude00 \/ ü""#,
        "null",
        &format!("\"{}\"", "x".repeat(200_000)),
    ] {
        written(&*bed.store, write(user, "a", text)).await;
        assert_eq!(state(&*bed.store, user, "a").await.as_deref(), Some(text));
    }
}

async fn an_op_id_is_applied_once(bed: &Bed) {
    let user = bed.user().await;
    let named =
        |state: &str, op: &str| SessionWrite { op_id: Some(Arc::from(op)), ..write(user, "a", state) };
    let first =
        commit(&*bed.store, [named("1", "op"), named("1", "op"), named("2", "op"), named("1", "nul\0")])
            .await;

    assert_eq!(first[0].as_ref().unwrap().seq, Seq(1));
    let again = first[1].as_ref().unwrap();
    assert!(again.change.is_none() && again.seq == Seq(1) && again.version == Version(1));
    assert_eq!(first[2].as_ref().unwrap_err(), &WriteRefusal::OpIdReused);

    let later =
        commit(&*bed.store, [named("1", "op"), named("2", "op"), named("1", "nul\0"), named("1", "x")]).await;
    assert!(later[0].as_ref().unwrap().change.is_none());
    assert_eq!(later[1].as_ref().unwrap_err(), &WriteRefusal::OpIdReused);
    assert!(later[2].as_ref().unwrap().change.is_none());
    assert_eq!(later[3].as_ref().unwrap().seq, Seq(3));
}

async fn a_stale_base_is_told_what_is_current(bed: &Bed) {
    let user = bed.user().await;
    let based = |base: u64, state: &str| SessionWrite {
        base_version: Some(Version(base)),
        on_conflict: OnConflict::Reject,
        ..write(user, "a", state)
    };
    let outcomes = commit(&*bed.store, [based(0, "1"), based(1, "2"), based(1, "3")]).await;

    assert!(outcomes[0].is_ok() && outcomes[1].is_ok());
    let current = WriteRefusal::Conflict { version: Version(2), state: Some("2".into()), device: None };
    assert_eq!(outcomes[2].as_ref().unwrap_err(), &current);
    let next = commit(&*bed.store, [based(1, "4")]).await;
    assert_eq!(next[0].as_ref().unwrap_err(), &current);
}

async fn a_merge_finds_its_base_in_the_history(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, write(user, "a", r#"{"x":1,"y":1}"#)).await;
    written(&*bed.store, write(user, "a", r#"{"x":2,"y":1}"#)).await;
    let merge = SessionWrite {
        base_version: Some(Version(1)),
        on_conflict: OnConflict::Merge,
        ..write(user, "a", r#"{"x":1,"y":2}"#)
    };

    let merged = commit(&*bed.store, [merge]).await.remove(0).unwrap();

    assert!(merged.merged);
    assert_eq!(state(&*bed.store, user, "a").await.as_deref(), Some(r#"{"x":2,"y":2}"#));
}

async fn a_kept_version_is_brought_back(bed: &Bed) {
    let user = bed.user().await;
    written(&*bed.store, write(user, "a", r#"{"old" : 1}"#)).await;
    written(&*bed.store, write(user, "a", "2")).await;
    let restore =
        |version| SessionWrite { change: WriteChange::Restore(Version(version)), ..write(user, "a", "") };

    let outcomes = commit(&*bed.store, [restore(1), restore(9)]).await;

    assert_eq!(outcomes[0].as_ref().unwrap().version, Version(3));
    assert_eq!(outcomes[1].as_ref().unwrap_err(), &WriteRefusal::UnknownKey);
    assert_eq!(state(&*bed.store, user, "a").await.as_deref(), Some(r#"{"old" : 1}"#));
}

async fn a_deleted_key_returns_above_its_last_version(bed: &Bed) {
    let user = bed.user().await;
    commit(&*bed.store, [write(user, "a", "1"), delete(user, "a")]).await;
    assert_eq!(state(&*bed.store, user, "a").await, None);

    assert_eq!(written(&*bed.store, write(user, "a", "2")).await, (Version(3), Seq(3)));

    let states: Vec<_> = bed.store.history(user, &super::bed::key("a")).await.unwrap();
    let states: Vec<_> =
        states.into_iter().map(|change| change.state.as_deref().map(str::to_owned)).collect();
    assert_eq!(states, [Some("2".to_owned()), None, Some("1".to_owned())]);
}

async fn quotas_refuse_what_grows_and_allow_what_shrinks(bed: &Bed) {
    let tight = bed.bounded(tandem::store::Bounds { keys_per_user: 2, bytes_per_user: 10, ..bounds() }).await;
    let user = bed.user().await;
    let outcomes = commit(
        &*tight,
        [
            write(user, "a", "1234"),
            write(user, "b", "1234"),
            write(user, "c", "1"),
            write(user, "a", "1234567"),
            delete(user, "b"),
            write(user, "c", "1"),
        ],
    )
    .await;

    let refused: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().cloned()).collect();
    let quota = |name| Some(WriteRefusal::Quota(name));
    assert_eq!(refused[2..4], [quota("LIMIT_KEYS_PER_USER"), quota("LIMIT_USER_BYTES")]);
    assert!(refused[4].is_none() && refused[5].is_none());
    // The counts outlive the batch.
    let more = commit(&*tight, [write(user, "d", "1"), write(user, "a", "12345678901")]).await;
    assert_eq!(more[0].as_ref().err().cloned(), quota("LIMIT_KEYS_PER_USER"));
    assert_eq!(more[1].as_ref().err().cloned(), quota("LIMIT_USER_BYTES"));
    let device = SessionWrite { at: Timestamp(99), ..write(user, "a", &JsonText::from("1")) };
    assert!(commit(&*tight, [device]).await[0].is_ok());
    tight.close().await;
}
