//! What a batch makes of what is there.

use super::*;
use crate::merge::{Limits, OnConflict};

const BOUNDS: Bounds = Bounds {
    merge: Limits { state_bytes_max: 100, depth_max: 64, ops_max: 1_000 },
    keys_per_user: 3,
    bytes_per_user: 200,
    devices_per_user: 10,
};

fn user() -> (UserId, Loaded) {
    let user = UserId::fresh();
    (user, Loaded { heads: HashMap::from([(user, Head::default())]), ..Loaded::default() })
}

fn write(user: UserId, key: &str, change: WriteChange) -> SessionWrite {
    SessionWrite {
        user,
        device: Some(DeviceId::fresh()),
        key: SessionKey::parse(key).unwrap(),
        change,
        base_version: None,
        on_conflict: OnConflict::Reject,
        op_id: None,
        at: Timestamp(7),
    }
}

fn set(user: UserId, key: &str, state: &str) -> SessionWrite {
    write(user, key, WriteChange::State(state.into()))
}

fn decided(loaded: Loaded, writes: Vec<SessionWrite>) -> Plan {
    let writes: Vec<_> = writes.into_iter().map(Arc::new).collect();
    plan(loaded, &writes, &BOUNDS)
}

fn numbers(plan: &Plan) -> Vec<Option<(u64, u64)>> {
    let number = |written: &Written| (written.version.0, written.seq.0);
    plan.outcomes.iter().map(|outcome| outcome.as_ref().ok().map(number)).collect()
}

#[test]
fn seqs_have_no_holes_and_versions_count_each_key() {
    let (user, loaded) = user();
    let writes = vec![set(user, "a", "1"), set(user, "b", "1"), set(user, "a", "2"), set(user, "a", "2")];
    let plan = decided(loaded, writes);
    assert_eq!(numbers(&plan), [Some((1, 1)), Some((1, 2)), Some((2, 3)), Some((3, 4))]);
    assert_eq!(plan.changes.len(), 4, "every change has its row");
    assert_eq!(plan.entries.len(), 2, "every key is saved once");
    assert_eq!(plan.heads[&user].seq, Seq(4));
}

#[test]
fn a_refused_write_takes_no_seq_and_harms_no_neighbour() {
    let (user, loaded) = user();
    let stale = SessionWrite { base_version: Some(Version(9)), ..set(user, "a", "2") };
    let too_big = set(user, "a", &format!("\"{}\"", "x".repeat(100)));
    let plan = decided(loaded, vec![set(user, "a", "1"), stale, too_big, set(user, "a", "3")]);
    assert_eq!(numbers(&plan), [Some((1, 1)), None, None, Some((2, 2))]);
    let Err(WriteRefusal::Conflict { version, state, .. }) = &plan.outcomes[1] else { panic!("a conflict") };
    assert_eq!((version.0, state.as_deref()), (1, Some("1")));
}

#[test]
fn versions_continue_through_deletion_so_an_old_one_never_matches_again() {
    let (user, loaded) = user();
    let delete = write(user, "a", WriteChange::Delete);
    let stale = SessionWrite { base_version: Some(Version(1)), ..set(user, "a", "2") };
    let anew = SessionWrite { base_version: Some(Version(0)), ..set(user, "a", "3") };
    let plan = decided(loaded, vec![set(user, "a", "1"), delete.clone(), delete, stale, anew]);
    assert_eq!(numbers(&plan), [Some((1, 1)), Some((2, 2)), None, None, Some((3, 3))]);
    assert!(matches!(plan.outcomes[2], Err(WriteRefusal::UnknownKey)), "there is nothing to delete");
}

#[test]
fn an_op_id_is_applied_once_also_within_a_batch() {
    let (user, loaded) = user();
    let once = SessionWrite { op_id: Some("op".into()), ..set(user, "a", "1") };
    let other = SessionWrite { op_id: Some("op".into()), ..set(user, "a", "2") };
    let plan = decided(loaded, vec![once.clone(), once, other]);
    assert_eq!(numbers(&plan), [Some((1, 1)), Some((1, 1)), None]);
    assert!(plan.outcomes[1].as_ref().unwrap().change.is_none(), "it made no change of its own");
    assert!(matches!(plan.outcomes[2], Err(WriteRefusal::OpIdReused)));
    assert_eq!(plan.op_ids.len(), 1);
}

#[test]
fn a_refused_write_does_not_use_up_its_op_id() {
    let (user, loaded) = user();
    let stale =
        SessionWrite { op_id: Some("op".into()), base_version: Some(Version(5)), ..set(user, "a", "1") };
    let good = SessionWrite { op_id: Some("op".into()), ..set(user, "a", "1") };
    let plan = decided(loaded, vec![stale, good]);
    assert_eq!(numbers(&plan), [None, Some((1, 1))]);
}

#[test]
fn quotas_count_live_keys_and_bytes_and_never_refuse_what_shrinks() {
    let (user, loaded) = user();
    let big = format!("\"{}\"", "x".repeat(90));
    let plan = decided(
        loaded,
        vec![
            set(user, "a", &big),
            set(user, "b", &big),
            set(user, "c", &big),
            set(user, "c", "1"),
            set(user, "d", "1"),
            write(user, "c", WriteChange::Delete),
            set(user, "d", "1"),
        ],
    );
    assert!(matches!(plan.outcomes[2], Err(WriteRefusal::Quota("LIMIT_USER_BYTES"))));
    assert!(matches!(plan.outcomes[4], Err(WriteRefusal::Quota("LIMIT_KEYS_PER_USER"))));
    assert!(plan.outcomes[6].is_ok());
    let head = plan.heads[&user];
    assert_eq!((head.live_keys, head.live_bytes), (3, 92 + 92 + 1));
}

#[test]
fn a_kept_version_is_brought_back_as_a_new_one() {
    let (user, loaded) = user();
    let back = |version| write(user, "a", WriteChange::Restore(Version(version)));
    let plan = decided(loaded, vec![set(user, "a", "\"old\""), set(user, "a", "2"), back(1), back(9)]);
    assert_eq!(numbers(&plan), [Some((1, 1)), Some((2, 2)), Some((3, 3)), None]);
    assert_eq!(plan.changes[2].state.as_deref(), Some("\"old\""));
}

#[test]
fn a_returning_key_starts_above_the_floor_of_pruned_tombstones() {
    let user = UserId::fresh();
    let head = Head { version_floor: Version(40), seq: Seq(90), ..Head::default() };
    let loaded = Loaded { heads: HashMap::from([(user, head)]), ..Loaded::default() };
    assert_eq!(numbers(&decided(loaded, vec![set(user, "a", "1")])), [Some((41, 91))]);
}

#[test]
fn writes_of_a_user_that_is_gone_are_refused() {
    let plan = decided(Loaded::default(), vec![set(UserId::fresh(), "a", "1")]);
    assert!(matches!(plan.outcomes[0], Err(WriteRefusal::UnknownUser)));
}
