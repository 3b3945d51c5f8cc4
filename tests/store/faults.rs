//! What PostgreSQL's faults, and those of the way to it, do to the store: every call is answered within 3 s, nothing
//! acked is lost, and it works again within 5 s.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::Executor;
use tandem::drain::Tasks;
use tandem::model::{Seq, UserId};
use tandem::store::{Command, Reply, Selection, Store, StoreError, StoreResult};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::bed::{Bed, key, state, write, writer};
use super::support::{ChaosProxy, Postgres, within, within_secs};

const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// What every client of the store sees, and how long the longest call took.
#[derive(Default)]
struct Seen {
    acked: HashSet<String>,
    refused: HashSet<String>,
    longest: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_immediate_restarts_lose_nothing_acked() {
    let mut server = Postgres::start().await;
    let database = tandem::store::Database::Postgres { url: tandem::model::Secret::new(server.url()) };
    let store = tandem::store::open(&database, super::bed::bounds()).await.unwrap();
    let user = super::bed::new_user(&*store).await;
    let tasks = Tasks::default();
    let writer = writer(store.clone(), &tasks);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (acks, mut acked) = watch::channel(0_u64);
    let stopping = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let (writer, seen, acks, stopping) = (writer.clone(), seen.clone(), acks.clone(), stopping.clone());
        clients.spawn(async move {
            for i in 0.. {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                let text = format!("{}", client * 1_000_000 + i);
                let sent = Instant::now();
                let outcome = writer.write(Arc::new(write(user, &format!("k{client}"), &text))).await;
                let mut seen = seen.lock().unwrap();
                seen.longest = seen.longest.max(sent.elapsed());
                match outcome {
                    Ok(outcome) => {
                        outcome.unwrap();
                        seen.acked.insert(text);
                        acks.send_modify(|count| *count += 1);
                    }
                    Err(StoreError::Unavailable { unknown: true }) => {}
                    Err(_) => drop(seen.refused.insert(text)),
                }
            }
        });
    }

    let mut slowest_return = Duration::ZERO;
    for _ in 0..20 {
        let before = *acked.borrow();
        within_secs(20, acked.wait_for(|count| *count > before + 40)).await.unwrap();
        within_secs(60, server.restart()).await;
        let (back, before) = (Instant::now(), *acked.borrow());
        within_secs(20, acked.wait_for(|count| *count > before)).await.unwrap();
        slowest_return = slowest_return.max(back.elapsed());
    }
    stopping.store(true, Ordering::Relaxed);
    within_secs(20, clients.join_all()).await;

    let mut kept = HashSet::new();
    let mut after = Seq(0);
    loop {
        let piece = store.changes_after(user, after).await.unwrap();
        for (change, expected) in piece.changes.iter().zip(after.0 + 1..) {
            assert_eq!(change.seq.0, expected);
            kept.extend(change.state.as_deref().map(str::to_owned));
        }
        after = piece.up_to;
        if !piece.more {
            break;
        }
    }
    let seen = seen.lock().unwrap();
    eprintln!(
        "{} acked, {} refused, longest call {:?}, slowest return {slowest_return:?}",
        seen.acked.len(),
        seen.refused.len(),
        seen.longest
    );
    assert_eq!(seen.acked.difference(&kept).count(), 0, "acked and lost");
    assert_eq!(seen.refused.intersection(&kept).count(), 0, "refused for certain and yet there");
    assert!(seen.longest < ANSWER_WITHIN, "{:?}", seen.longest);
    assert!(slowest_return < BACK_WITHIN, "{slowest_return:?}");
    tasks.end();
}

async fn behind_a_proxy() -> (Bed, ChaosProxy) {
    let server = Postgres::start().await;
    let proxy = ChaosProxy::start(&server.address()).await;
    let bed = Bed::postgres_through(server, &proxy).await;
    (bed, proxy)
}

/// Asks everything at once, on warm connections, and wants each answered in time.
async fn assert_unavailable_in_time(store: &Arc<dyn Store>, user: UserId) {
    async fn in_time<T>(call: impl Future<Output = StoreResult<T>>) -> StoreError {
        let started = Instant::now();
        let answer = tokio::time::timeout(2 * ANSWER_WITHIN, call).await.expect("an answer");
        assert!(started.elapsed() < ANSWER_WITHIN, "{:?}", started.elapsed());
        answer.err().expect("the store is away")
    }
    let batch = [Command::Write(Arc::new(write(user, "a", "1")))];
    let (key, selection) = (key("a"), Selection::default());
    let many = futures_util::future::join_all((0..40).map(|_| in_time(store.entry(user, &key))));
    let (many, commit, snapshot, changes, ping) = tokio::join!(
        many,
        in_time(store.commit(&batch)),
        in_time(store.snapshot(user, &selection)),
        in_time(store.changes_after(user, Seq(0))),
        in_time(store.ping()),
    );
    for error in many.into_iter().chain([commit, snapshot, changes, ping]) {
        assert!(matches!(error, StoreError::Unavailable { .. } | StoreError::Busy), "{error:?}");
    }
}

async fn assert_back_in_time(store: &Arc<dyn Store>, user: UserId) {
    let started = Instant::now();
    while store.commit(&[Command::Write(Arc::new(write(user, "a", "back")))]).await.is_err() {
        assert!(started.elapsed() < BACK_WITHIN, "{:?}", started.elapsed());
    }
    while state(&**store, user, "a").await.as_deref() != Some("back") {
        assert!(started.elapsed() < BACK_WITHIN);
    }
    store.ping().await.unwrap();
    eprintln!("back after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_way_is_noticed_and_given_up() {
    let (bed, proxy) = behind_a_proxy().await;
    let user = bed.user().await;
    let key = key("a");
    futures_util::future::join_all((0..8).map(|_| bed.store.entry(user, &key))).await;

    proxy.freeze();
    assert_unavailable_in_time(&bed.store, user).await;
    proxy.restore();
    assert_back_in_time(&bed.store, user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_at_rest_is_not_lent() {
    let (bed, proxy) = behind_a_proxy().await;
    let user = bed.user().await;
    let key = key("a");
    futures_util::future::join_all((0..8).map(|_| bed.store.entry(user, &key))).await;

    proxy.cut();
    // Time itself is meant: after a quarter of a second a connection has rested.
    tokio::time::sleep(Duration::from_millis(300)).await;

    for _ in 0..10 {
        bed.store.entry(user, &key).await.unwrap();
    }
    assert!(super::bed::commit(&*bed.store, [write(user, "a", "1")]).await[0].is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_answered_and_got_over() {
    let (bed, proxy) = behind_a_proxy().await;
    let user = bed.user().await;
    proxy.partition();
    assert_unavailable_in_time(&bed.store, user).await;
    proxy.restore();
    assert_back_in_time(&bed.store, user).await;
}

/// Makes every COMMIT that has a change take a while.
async fn slow_commits(connection: &mut sqlx::PgConnection) {
    connection
        .execute(sqlx::raw_sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON changes DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION slow();",
        ))
        .await
        .unwrap();
}

/// Until a COMMIT is at work in the server.
async fn commit_is_running(connection: &mut sqlx::PgConnection) {
    let looking = async {
        loop {
            let running: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'",
            )
            .fetch_one(&mut *connection)
            .await
            .unwrap();
            if running > 0 {
                return;
            }
        }
    };
    within(looking).await;
}

async fn while_committing<F: Future<Output = ()>>(
    bed: &Bed,
    user: UserId,
    harm: impl FnOnce(sqlx::PgConnection) -> F,
) -> StoreResult<Vec<Reply>> {
    let mut connection = bed.connection().await;
    slow_commits(&mut connection).await;
    let store = bed.store.clone();
    let committing = tokio::spawn(async move {
        let started = Instant::now();
        let outcome = store.commit(&[Command::Write(Arc::new(write(user, "a", "1")))]).await;
        assert!(started.elapsed() < ANSWER_WITHIN, "{:?}", started.elapsed());
        outcome
    });
    commit_is_running(&mut connection).await;
    harm(connection).await;
    within(committing).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_happened_is_acked_although_its_answer_was_lost() {
    let (bed, proxy) = behind_a_proxy().await;
    let user = bed.user().await;

    let outcome = while_committing(&bed, user, async |_| proxy.cut()).await;

    assert!(matches!(outcome.unwrap()[..], [Reply::Written(Ok(_))]));
    assert_eq!(state(&*bed.store, user, "a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_stopped_is_known_not_to_have_happened() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;

    let outcome = while_committing(&bed, user, async |mut connection| {
        connection
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT'")
            .await
            .unwrap();
    })
    .await;

    assert_eq!(outcome.unwrap_err(), StoreError::Unavailable { unknown: false });
    assert_eq!(state(&*bed.store, user, "a").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_nobody_can_be_asked_about_is_unknown() {
    let (bed, proxy) = behind_a_proxy().await;
    let user = bed.user().await;

    let outcome = while_committing(&bed, user, async |_| proxy.freeze()).await;

    assert_eq!(outcome.unwrap_err(), StoreError::Unavailable { unknown: true });
    proxy.restore();
    assert_back_in_time(&bed.store, user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_only_reads_is_one_that_is_down() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;
    let mut connection = bed.connection().await;
    connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on").await.unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tandem'";
    connection.execute(cut).await.unwrap();

    assert_unavailable_in_time(&bed.store, user).await;
    connection
        .execute(sqlx::raw_sql("SET transaction_read_only = off; ALTER DATABASE postgres RESET ALL"))
        .await
        .unwrap();
    assert_back_in_time(&bed.store, user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_reads_go_on() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;
    let mut connection = bed.connection().await;
    connection
        .execute(sqlx::raw_sql(
            "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$;
             CREATE TRIGGER no_space BEFORE INSERT ON changes FOR EACH ROW EXECUTE FUNCTION no_space();",
        ))
        .await
        .unwrap();
    let batch = [Command::Write(Arc::new(write(user, "a", "1")))];

    assert_eq!(bed.store.commit(&batch).await.unwrap_err(), StoreError::Full);
    assert_eq!(state(&*bed.store, user, "a").await, None);
    bed.store.ping().await.unwrap();

    connection.execute("DROP TRIGGER no_space ON changes").await.unwrap();
    assert_back_in_time(&bed.store, user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_hangs_is_given_up() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;
    let mut connection = bed.connection().await;
    connection.execute(sqlx::raw_sql("BEGIN; LOCK TABLE sessions")).await.unwrap();

    assert_store_answers_in_time(&bed, user).await;
    connection.execute(sqlx::raw_sql("ROLLBACK")).await.unwrap();
    assert_back_in_time(&bed.store, user).await;
}

async fn assert_store_answers_in_time(bed: &Bed, user: UserId) {
    let started = Instant::now();
    let batch = [Command::Write(Arc::new(write(user, "a", "1")))];
    let selection = Selection::default();
    let (commit, read) = tokio::join!(bed.store.commit(&batch), bed.store.snapshot(user, &selection));
    assert!(commit.is_err() && read.is_err());
    assert!(started.elapsed() < ANSWER_WITHIN, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_at_most_ten_connections() {
    let bed = Bed::postgres_alone().await;
    let user = bed.user().await;
    let name = key("a");
    let reads = futures_util::future::join_all((0..400).map(|_| bed.store.entry(user, &name)));
    let (reads, written) = tokio::join!(reads, super::bed::commit(&*bed.store, [write(user, "a", "1")]));
    assert!(reads.iter().all(Result::is_ok) && written[0].is_ok());

    let mut connection = bed.connection().await;
    let open: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert!((2..=10).contains(&open), "{open}");
}
