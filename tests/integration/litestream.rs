//! The copy that Litestream keeps: what is lost with the whole machine, and that clients mix no pasts afterwards.
//!
//! Server and Litestream are killed under load, and a new machine has the copy alone. With the defaults the last
//! moments may be gone; with `DURABILITY=replicated` no acknowledged write is, nor after an orderly end.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{
    Account, Copy, Device, Env, Litestream, Node, Rest, S3Server, eventually, short_or_long, within_secs,
};

/// Clients that write at a time, each its own key.
const WRITERS: usize = 8;

/// What may be lost at defaults.
const LOST_AT_MOST: Duration = Duration::from_secs(3);

fn settings(copy: &Copy, durability: &str) -> Env {
    Env::new().set("DURABILITY", durability).set("LITESTREAM_SOCKET", copy.socket().display())
}

/// What one writer counted up to, number by number.
#[derive(Default)]
struct Counted {
    writer: usize,
    acked: Vec<Instant>,
    waits: Vec<Duration>,
}

/// Counts a key up, each number after the last one's ack, until nobody answers any more.
async fn count_up(rest: Rest, writer: usize, total: watch::Sender<usize>) -> Counted {
    let mut counted = Counted { writer, ..Counted::default() };
    loop {
        let sent = Instant::now();
        let path = format!("/api/session/w{writer}");
        let request = rest.request(Method::PUT, &path).json(&json!(counted.acked.len() + 1));
        if Rest::try_status(request).await != Some(200) {
            return counted;
        }
        counted.acked.push(Instant::now());
        counted.waits.push(sent.elapsed());
        total.send_modify(|total| *total += 1);
    }
}

/// Lets writers write until `acks` writes are acknowledged, then does `end`; what was acknowledged, and when it
/// ended.
async fn written_until(
    node: &mut Node,
    ann: &Account,
    acks: usize,
    end: impl FnOnce(&mut Node),
) -> (Vec<Counted>, Instant) {
    let (total, mut enough) = watch::channel(0);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(count_up(node.rest_of(ann), writer, total.clone()));
    }
    within_secs(120, enough.wait_for(|total| *total >= acks)).await.unwrap();
    let ended = Instant::now();
    end(node);
    (within_secs(60, writers.join_all()).await, ended)
}

/// How long before the end the first of the acknowledged writes that are not in `session` was acknowledged.
fn lost(counted: &[Counted], session: &Value, ended: Instant) -> Option<Duration> {
    let lost = counted.iter().filter_map(|counted| {
        let kept = session[format!("w{}", counted.writer)].as_u64().unwrap_or(0) as usize;
        counted.acked.get(kept).map(|at| ended.saturating_duration_since(*at))
    });
    lost.max()
}

fn tell(what: &str, counted: &[Counted], lost: Option<Duration>) {
    let mut waits: Vec<_> = counted.iter().flat_map(|counted| &counted.waits).collect();
    waits.sort_unstable();
    let (half, most) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!("{what}: {} acked, p50 {half:?}, p99 {most:?}, lost {lost:?}", waits.len());
}

/// Kills server and Litestream after `acks` writes and goes on elsewhere from the copy alone: how much was lost. A
/// device that was connected finds a new epoch there, and all that is left.
async fn lose_the_machine(copy: &Copy, durability: &str, acks: usize) -> Option<Duration> {
    let machine = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(machine.path(), &settings(copy, durability)).await;
    let mut litestream = Litestream::start(copy, machine.path()).await;
    copy.sync(machine.path()).await;
    let ann = node.register("ann").await;
    let mut phone = Device::named(&node, &ann, "Phone").await;
    let before = phone.restored()["epoch"].clone();
    // Whatever the setting is, there is somebody to ask for afterwards.
    copy.sync(machine.path()).await;

    let kill = |node: &mut Node| {
        litestream.kill_9();
        node.kill_9();
    };
    let (counted, ended) = written_until(&mut node, &ann, acks, kill).await;

    let elsewhere = tempfile::tempdir().unwrap();
    copy.restore(elsewhere.path()).await;
    node.restart_with(&settings(copy, "local").set("DATABASE_URL", database(elsewhere.path()))).await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200)["sessionData"].clone();
    let restored = within_secs(30, phone.restored_again()).await;
    assert_eq!((&restored["mode"], &restored["sessionData"]), (&json!("full"), &session));
    assert_ne!(restored["epoch"], before);
    let lost = lost(&counted, &session, ended);
    tell(durability, &counted, lost);
    lost
}

fn database(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("tandem.db").display())
}

#[tokio::test]
async fn a_lost_machine_loses_at_most_3_seconds_at_defaults() {
    let lost = lose_the_machine(&Copy::in_a_folder(), "local", short_or_long(2_000, 10_000)).await;
    assert!(lost.unwrap_or_default() <= LOST_AT_MOST, "{lost:?}");
}

#[tokio::test]
async fn a_lost_machine_loses_no_acked_write_when_acks_wait_for_the_copy() {
    for _ in 0..short_or_long(2, 5) {
        let lost = lose_the_machine(&Copy::in_a_folder(), "replicated", short_or_long(400, 2_000)).await;
        assert_eq!(lost, None);
    }
}

#[tokio::test]
async fn a_lost_machine_whose_copy_is_on_s3_loses_no_more() {
    let server = S3Server::start().await;
    let lost = lose_the_machine(&Copy::on(&server, "local"), "local", short_or_long(1_000, 10_000)).await;
    assert!(lost.unwrap_or_default() <= LOST_AT_MOST, "{lost:?}");
    for run in 0..short_or_long(1, 5) {
        let copy = Copy::on(&server, &format!("replicated-{run}"));
        assert_eq!(lose_the_machine(&copy, "replicated", short_or_long(200, 1_000)).await, None);
    }
}

#[tokio::test]
async fn an_orderly_end_loses_nothing_and_an_empty_disk_is_filled_again() {
    let copy = Copy::in_a_folder();
    let mut counted = Vec::new();
    let mut account = None;
    // The second machine has nothing but the copy.
    for round in 0..2 {
        let machine = tempfile::tempdir().unwrap();
        let env = settings(&copy, "local")
            .set("DATABASE_URL", database(machine.path()))
            .set("DRAIN_SECONDS", 0)
            .set("DRAIN_LAG_SECONDS", 0);
        let mut litestream = Litestream::around(&env, &copy, machine.path()).await;
        let rest = Rest::new(litestream.url().await);
        if round == 1 {
            let ann: &Account = account.as_ref().unwrap();
            let session = rest.with_token(&ann.token).get("/api/session").await.expect(200);
            assert_eq!(lost(&counted, &session["sessionData"], Instant::now()), None);
            return;
        }
        let ann = account.insert(Account::register(&rest, "ann").await);
        let (total, mut enough) = watch::channel(0);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(count_up(rest.with_token(&ann.token), writer, total.clone()));
        }
        within_secs(60, enough.wait_for(|total| *total >= 500)).await.unwrap();
        litestream.terminate();
        counted = within_secs(30, writers.join_all()).await;
        let exit = within_secs(30, litestream.wait_exit()).await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
    }
}

#[tokio::test]
async fn without_litestream_writes_are_refused_and_all_else_goes_on() {
    let copy = Copy::in_a_folder();
    let machine = tempfile::tempdir().unwrap();
    let node = Node::start_in(machine.path(), &settings(&copy, "replicated")).await;
    let body = json!({"email": "eve@example.test", "password": "long enough"});
    let refused = node.rest().post("/api/auth/register", &body).await;
    let error = refused.expect_error(503, "store_unavailable");
    assert!(error["unknown"].is_null(), "nothing was committed: {error}");
    let mut litestream = Litestream::start(&copy, machine.path()).await;
    eventually("Litestream is found", || async {
        let body = json!({"email": "bob@example.test", "password": "long enough"});
        (node.rest().post("/api/auth/register", &body).await.status == 201).then_some(())
    })
    .await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let write =
        async |state: u64| phone.emit_ack("session-update", json!({"sessionKey": "a", "state": state})).await;
    assert_eq!(write(1).await["ok"], true);

    litestream.kill_9();
    // The first may find out by itself that there is no copy.
    let first = write(2).await;
    assert_eq!(
        (&first["error"]["code"], &first["error"]["unknown"]),
        (&json!("store_unavailable"), &json!(true))
    );
    let known = phone.emit_ack("session-get", json!({})).await;
    let second = write(3).await;
    assert_eq!(second["error"]["code"], "store_unavailable");
    assert!(second["error"]["unknown"].is_null(), "refused before the commit: {second}");
    let laptop = Device::named(&node, &ann, "Laptop").await;
    assert_eq!(laptop.restored()["seq"], known["seq"]);
    assert_eq!(laptop.restored()["sessionData"], known["sessionData"]);

    let _litestream = Litestream::start(&copy, machine.path()).await;
    eventually("writes go on", || async { (write(4).await["ok"] == true).then_some(()) }).await;
    assert_eq!(laptop.next_where("session-updated", |update| update["state"] == 4).await["state"], 4);
}

#[tokio::test]
async fn a_copy_that_cannot_be_made_is_answered_in_time() {
    let copy = Copy::in_a_folder();
    let machine = tempfile::tempdir().unwrap();
    let node = Node::start_in(machine.path(), &settings(&copy, "replicated")).await;
    let litestream = Litestream::start(&copy, machine.path()).await;
    copy.sync(machine.path()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    rest.put("/api/session/a", &json!(1)).await.expect(200);

    // Frozen, then with its target gone: each time found out by a write, answered within 3 s.
    let asked = Instant::now();
    litestream.stop();
    let error = rest.put("/api/session/a", &json!(2)).await.expect_error(503, "store_unavailable").clone();
    assert_eq!(error["unknown"], true);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    litestream.cont();
    eventually("writes go on", || async {
        (rest.put("/api/session/a", &json!(3)).await.status == 200).then_some(())
    })
    .await;
    copy.set_broken(true);
    let error = rest.put("/api/session/a", &json!(4)).await.expect_error(503, "store_unavailable").clone();
    assert_eq!(error["unknown"], true);
    copy.set_broken(false);
    eventually("writes go on", || async {
        (rest.put("/api/session/a", &json!(5)).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_never_was_grows_old_and_is_warned_of_once() {
    let node = Node::start(&settings(&Copy::in_a_folder(), "local")).await;
    let missing = |log: &str| log.lines().filter(|line| line.contains("Litestream tells of no copy")).count();
    node.log_line(|line| (missing(line) == 1).then_some(())).await;
    let grown = async { while node.metric("tandem_replica_age_seconds").await < 8.5 {} };
    within_secs(20, grown).await;
    assert_eq!(missing(&node.log()), 1, "{}", node.log());
}

#[tokio::test]
async fn the_copys_age_is_a_metric() {
    let copy = Copy::in_a_folder();
    let machine = tempfile::tempdir().unwrap();
    let node = Node::start_in(machine.path(), &settings(&copy, "local")).await;
    let litestream = Litestream::start(&copy, machine.path()).await;
    let age = async || {
        let text = node.rest().get("/metrics").await.text;
        let line = text.lines().find_map(|line| line.strip_prefix("tandem_replica_age_seconds "));
        line.expect("the metric is there").parse::<f64>().unwrap()
    };
    within_secs(
        20,
        eventually("a fresh copy", || async { (0.001..3.5).contains(&age().await).then_some(()) }),
    )
    .await;
    litestream.stop();
    let grown = async { while age().await < 6.0 {} };
    within_secs(20, grown).await;
    litestream.cont();
    within_secs(20, eventually("a fresh copy again", || async { (age().await < 3.5).then_some(()) })).await;
}
