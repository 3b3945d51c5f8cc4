//! What is forgotten, when, and what that leaves behind. Asked through the seam,
//! so that it can be asked of every store.

use std::sync::Arc;

use tempfile::TempDir;

use crate::merge::{self, OnConflict};
use crate::model::{JsonText, LoginId, Seq, SessionKey, Timestamp, UserId, Version};
use crate::store::{
    Account, Bounds, CatchUp, Command, Database, NewAccount, NewLogin, Reply, Retention, Selection,
    SessionWrite, Snapshot, Store, WriteChange, WriteRefusal, Written, open,
};

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;
const START: i64 = 1_700_000_000_000;

struct Bed {
    store: Arc<dyn Store>,
    retention: Retention,
    _folder: TempDir,
}

impl Bed {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { path: folder.path().join("tandem.db"), full_sync: false };
        let bounds = Bounds {
            merge: merge::Limits::default(),
            keys_per_user: 2_000,
            bytes_per_user: 8 << 20,
            devices_per_user: 3,
        };
        Self {
            store: open(&database, bounds).await.unwrap(),
            retention: Retention::default(),
            _folder: folder,
        }
    }

    async fn user(&self) -> UserId {
        let user = UserId::fresh();
        let account = NewAccount {
            account: Account {
                user,
                email: format!("{user}@example.org"),
                password_hash: "hash".into(),
                created_at: Timestamp(1),
            },
            login: NewLogin {
                user,
                login: LoginId::fresh(),
                at: Timestamp(1),
                expires_at: Timestamp(START + 1_000 * DAY),
                refresh_hash: [7; 32],
            },
        };
        self.store.commit(&[Command::CreateAccount(account)]).await.unwrap();
        user
    }

    async fn commit(
        &self,
        writes: impl IntoIterator<Item = SessionWrite>,
    ) -> Vec<Result<Written, WriteRefusal>> {
        let batch: Vec<_> = writes.into_iter().map(|write| Command::Write(Arc::new(write))).collect();
        let replies = self.store.commit(&batch).await.unwrap();
        let outcome = |reply| match reply {
            Reply::Written(outcome) => outcome,
            other => panic!("a write is answered by {other:?}"),
        };
        replies.into_iter().map(outcome).collect()
    }

    async fn written(&self, write: SessionWrite) -> (Version, Seq) {
        let written = self.commit([write]).await.remove(0).unwrap();
        (written.version, written.seq)
    }

    /// Prunes at `now` until nothing is left to do; how many goes it took.
    async fn prune(&self, now: i64) -> u32 {
        let mut goes = 0;
        while self.store.prune(&self.retention, Timestamp(START + now)).await.unwrap() > 0 {
            goes += 1;
            assert!(goes < 1_000, "it comes to an end");
        }
        goes
    }

    async fn versions(&self, user: UserId, name: &str) -> Vec<u64> {
        let kept = self.store.history(user, &key(name)).await.unwrap();
        kept.into_iter().rev().map(|change| change.version.0).collect()
    }

    async fn delta(&self, user: UserId, since: u64) -> Snapshot {
        let selection = Selection { keys: None, since: Some((self.store.epoch(), Seq(since))) };
        self.store.snapshot(user, &selection).await.unwrap().unwrap()
    }

    async fn exists(&self, user: UserId, name: &str) -> bool {
        self.store.entry(user, &key(name)).await.unwrap().is_some()
    }
}

fn key(text: &str) -> SessionKey {
    SessionKey::parse(text).unwrap()
}

fn write(user: UserId, name: &str, state: &str) -> SessionWrite {
    SessionWrite {
        user,
        device: None,
        key: key(name),
        change: WriteChange::State(JsonText::from(state)),
        base_version: None,
        on_conflict: OnConflict::Overwrite,
        op_id: None,
        at: Timestamp(START),
    }
}

fn delete(user: UserId, name: &str) -> SessionWrite {
    SessionWrite { change: WriteChange::Delete, ..write(user, name, "") }
}

fn at(time: i64, write: SessionWrite) -> SessionWrite {
    SessionWrite { at: Timestamp(START + time), ..write }
}

#[tokio::test]
async fn the_last_20_versions_stay_and_young_ones_beyond_them() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    for batch in 0..4 {
        bed.commit((0..400).map(|i| at(batch, write(user, "a", &i.to_string())))).await;
    }
    bed.commit((0..30).map(|i| at(60 * MINUTE, write(user, "b", &i.to_string())))).await;

    bed.prune(61 * MINUTE).await;
    assert_eq!(bed.versions(user, "a").await, (1_581..=1_600).collect::<Vec<_>>());
    assert_eq!(bed.versions(user, "b").await.len(), 30, "they are a minute old");
    bed.prune(71 * MINUTE).await;
    assert_eq!(bed.versions(user, "b").await, (11..=30).collect::<Vec<_>>());
    // Each further version pushes one out, once it is old enough itself.
    bed.written(at(80 * MINUTE, write(user, "b", "x"))).await;
    bed.prune(81 * MINUTE).await;
    assert_eq!(bed.versions(user, "b").await.len(), 21);
    bed.prune(91 * MINUTE).await;
    assert_eq!(bed.versions(user, "b").await, (12..=31).collect::<Vec<_>>());
}

#[tokio::test]
async fn superseded_versions_go_after_seven_days_and_current_ones_stay() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.written(at(0, write(user, "a", "1"))).await;
    bed.written(at(DAY, write(user, "a", "2"))).await;
    bed.written(at(0, write(user, "b", "1"))).await;

    bed.prune(6 * DAY).await;
    assert_eq!(bed.versions(user, "a").await, [1, 2]);
    bed.prune(7 * DAY + MINUTE).await;
    assert_eq!(bed.versions(user, "a").await, [2]);
    bed.prune(20 * DAY).await;
    assert_eq!(bed.versions(user, "a").await, [2], "it is current, so the next merge needs it");
    assert_eq!(bed.versions(user, "b").await, [1]);
    // What was current for long goes when something newer has settled.
    bed.written(at(20 * DAY, write(user, "a", "3"))).await;
    bed.prune(20 * DAY + 11 * MINUTE).await;
    assert_eq!(bed.versions(user, "a").await, [3]);
}

#[tokio::test]
async fn a_clock_that_ran_ahead_holds_nothing_up() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.written(at(300 * DAY, write(user, "ahead", "1"))).await;
    bed.commit((0..40).map(|i| at(0, write(user, "a", &i.to_string())))).await;

    bed.prune(20 * MINUTE).await;

    assert_eq!(bed.versions(user, "a").await.len(), 20);
}

#[tokio::test]
async fn a_users_history_keeps_within_its_bytes_whatever_its_age() {
    let mut bed = Bed::new().await;
    bed.retention.history_bytes_per_user = 10_000;
    let (user, other) = (bed.user().await, bed.user().await);
    let state = |i: usize| format!("\"{i:03}{}\"", "x".repeat(995));
    bed.written(at(0, write(user, "old", &state(0)))).await;
    bed.commit((0..15).map(|i| at(0, write(user, "a", &state(i))))).await;
    bed.commit((0..11).map(|i| at(0, write(other, "a", &state(i))))).await;

    bed.prune(1).await;

    assert_eq!(
        bed.versions(user, "a").await,
        (5..=15).collect::<Vec<_>>(),
        "ten of 1,000 bytes, and 15 is now"
    );
    assert_eq!(bed.versions(user, "old").await, [1], "what is current is no history");
    assert_eq!(bed.versions(other, "a").await.len(), 11, "exactly the bound is fine");
    assert_eq!(bed.prune(2).await, 0);
    // One more for each: the bound goes on holding.
    bed.written(at(2, write(user, "old", &state(1)))).await;
    bed.written(at(2, write(other, "a", "1"))).await;
    bed.prune(3).await;
    assert_eq!(bed.versions(user, "old").await, [2], "the oldest went");
    assert_eq!(bed.versions(user, "a").await.len(), 11);
    assert_eq!(bed.versions(other, "a").await, (2..=12).collect::<Vec<_>>());
}

#[tokio::test]
async fn much_history_goes_in_small_transactions() {
    let mut bed = Bed::new().await;
    bed.retention.history_bytes_per_user = 1_000_000;
    let user = bed.user().await;
    let state = format!("\"{}\"", "x".repeat(250_000));
    for _ in 0..4 {
        bed.commit((0..16).map(|_| at(0, write(user, "a", &state)))).await;
    }

    let goes = bed.prune(1).await;

    assert_eq!(bed.versions(user, "a").await, [61, 62, 63, 64], "and 64 is now");
    assert!(goes >= 7, "15 MB of it, 2 MiB at a go: {goes}");
}

#[tokio::test]
async fn an_old_tombstone_goes_and_leaves_its_floor() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.commit((0..4).map(|i| at(0, write(user, "a", &i.to_string())))).await;
    bed.written(at(0, delete(user, "a"))).await;
    bed.written(at(0, write(user, "b", "1"))).await;

    bed.prune(6 * DAY).await;
    assert!(bed.delta(user, 4).await.delta, "the tombstone is there to be told");
    bed.prune(7 * DAY + MINUTE).await;

    assert!(!bed.exists(user, "a").await);
    assert!(bed.versions(user, "a").await.is_empty());
    let full = bed.delta(user, 4).await;
    assert!(!full.delta, "whoever has not seen the deletion starts anew");
    assert_eq!(full.entries.len(), 1);
    assert!(bed.delta(user, 5).await.delta, "whoever has seen it need not");
    let floor = bed.written(at(8 * DAY, write(user, "a", "back"))).await;
    assert_eq!(floor, (Version(6), Seq(7)));
}

#[tokio::test]
async fn a_user_keeps_a_thousand_tombstones() {
    let bed = Bed::new().await;
    let (user, other) = (bed.user().await, bed.user().await);
    for batch in 0..3 {
        let names: Vec<_> = (0..400).map(|i| format!("k{batch}-{i}")).collect();
        bed.commit(names.iter().map(|name| at(0, write(user, name, "1")))).await;
        bed.commit(names.iter().map(|name| at(0, delete(user, name)))).await;
    }
    bed.commit([at(0, write(other, "a", "1")), at(0, delete(other, "a"))]).await;

    bed.prune(MINUTE).await;

    assert!(!bed.exists(user, "k0-199").await && bed.exists(user, "k0-200").await);
    assert!(bed.exists(other, "a").await);
    assert_eq!(bed.written(at(DAY, write(user, "k0-0", "1"))).await.0, Version(3));
    // One that comes back is none; the next deletion fits.
    bed.written(at(DAY, write(user, "k2-0", "1"))).await;
    bed.written(at(DAY, delete(user, "k2-0"))).await;
    bed.prune(DAY).await;
    assert!(bed.exists(user, "k0-200").await);
}

#[tokio::test]
async fn a_revived_key_is_no_tombstone() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.commit([at(0, write(user, "a", "1")), at(0, delete(user, "a"))]).await;
    bed.written(at(6 * DAY, write(user, "a", "2"))).await;
    bed.prune(30 * DAY).await;
    assert!(bed.exists(user, "a").await);
}

#[tokio::test]
async fn op_ids_go_after_a_day() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    let named = |i: i64| SessionWrite { op_id: Some(Arc::from(format!("op{i}"))), ..write(user, "a", "1") };
    bed.commit((0..1_200).map(|i| at(i, named(i)))).await;
    let is_known = async |i: i64| bed.commit([named(i)]).await.remove(0).unwrap().change.is_none();

    bed.prune(DAY).await;
    assert!(is_known(0).await);
    bed.prune(DAY + 600).await;
    assert!(is_known(600).await);
    assert!(!is_known(599).await);
}

#[tokio::test]
async fn a_catch_up_past_pruned_changes_brings_what_is_present() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.written(at(0, write(user, "b", "1"))).await;
    bed.commit((0..100).map(|i| at(0, write(user, "a", &i.to_string())))).await;
    bed.written(at(0, delete(user, "b"))).await;
    bed.prune(20 * MINUTE).await;

    let caught_up = bed.store.changes_after(user, Seq(1)).await.unwrap();
    let seqs: Vec<_> =
        caught_up.changes.iter().map(|change| (change.seq.0, change.state.is_some())).collect();
    assert_eq!(seqs, [(101, true), (102, false)]);
    assert_eq!((caught_up.up_to, caught_up.more), (Seq(102), false));
    let kept = bed.store.changes_after(user, Seq(90)).await.unwrap();
    assert_eq!(kept.changes.len(), 12, "from here on nothing is missing");
}

#[tokio::test]
async fn a_catch_up_past_a_forgotten_deletion_says_so() {
    let bed = Bed::new().await;
    let user = bed.user().await;
    bed.written(at(0, write(user, "a", "1"))).await;
    bed.written(at(0, delete(user, "a"))).await;
    bed.written(at(8 * DAY, write(user, "b", "1"))).await;
    bed.prune(8 * DAY).await;

    let caught_up = bed.store.changes_after(user, Seq(1)).await.unwrap();
    assert!(matches!(caught_up, CatchUp { forgotten: true, up_to: Seq(3), .. }), "{caught_up:?}");
    let caught_up = bed.store.changes_after(user, Seq(2)).await.unwrap();
    assert!(!caught_up.forgotten && caught_up.changes.len() == 1);
}
