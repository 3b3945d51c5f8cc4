//! The epoch: when the store's past is not what clients saw, they load everything anew and mix nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::is_not_sent_away;
use crate::support::{
    Account, Cluster, Device, Env, Exit, Node, Postgres, RedisServer, eventually, run_to_exit, within_secs,
};

/// The node's database in `folder`, for a command.
fn on(folder: &Path, args: &[&str]) -> Env {
    let database = format!("sqlite://{}", folder.join("tandem.db").display());
    args.iter().fold(Env::new().set("DATABASE_URL", database), |env, arg| env.arg(arg))
}

async fn run(folder: &Path, args: &[&str]) -> Exit {
    let exit = run_to_exit(&on(folder, args)).await;
    assert_eq!(exit.code, Some(0), "{args:?}: {}", exit.output);
    exit
}

/// Puts the database `backup` in the place of the one in `folder`.
fn put_back(backup: &Path, folder: &Path) {
    for rest in ["tandem.db-wal", "tandem.db-shm"] {
        drop(std::fs::remove_file(folder.join(rest)));
    }
    std::fs::copy(backup, folder.join("tandem.db")).unwrap();
}

async fn full(node: &Node, ann: &Account) -> Value {
    node.rest_of(ann).get("/api/session").await.expect(200)
}

#[tokio::test]
async fn a_backup_that_is_put_back_begins_a_new_epoch_and_clients_load_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &Env::new()).await;
    let ann = node.register("ann").await;
    let mut device = Device::named(&node, &ann, "Phone").await;
    device.update("a", json!("before")).await;
    let backup = folder.path().join("backup.db");
    run(folder.path(), &["backup", backup.to_str().unwrap()]).await;
    // These seqs the backup will give out again, with other content.
    device.update("a", json!("after")).await;
    device.update("b", json!("after")).await;
    let before = full(&node, &ann).await;

    node.kill_9();
    put_back(&backup, folder.path());
    node.restart().await;
    let restored = within_secs(20, device.restored_again()).await.clone();

    assert_ne!(restored["epoch"], before["epoch"]);
    assert_eq!(restored["mode"], "full");
    assert_eq!(restored["sessionData"], json!({"a": "before"}));
    let rest = node.rest_of(&ann);
    rest.put("/api/session/c", &json!("new")).await.expect(200);
    let since = format!("/api/session?since={}:{}", before["epoch"].as_str().unwrap(), before["seq"]);
    let caught_up = rest.get(&since).await.expect(200);
    assert_eq!(caught_up["mode"], "full", "a position of the old past is none");
    assert_eq!(device.next("session-updated").await["sessionKey"], "c", "and the device goes on from there");
}

#[tokio::test]
async fn after_a_backup_is_put_back_devices_that_return_stay_whatever_redis_holds_of_before() {
    a_device_that_returns_stays(true).await;
}

#[tokio::test]
async fn devices_that_return_stay_also_where_no_change_was_lost_and_the_epoch_is_the_same() {
    a_device_that_returns_stays(false).await;
}

async fn a_device_that_returns_stays(a_change_is_lost: bool) {
    let folder = tempfile::tempdir().unwrap();
    let redis = RedisServer::start().await;
    let mut node = Node::start_in(folder.path(), &Env::new().set("REDIS_URL", redis.url())).await;
    let ann = node.register("ann").await;
    let mut phone = Device::named(&node, &ann, "Phone").await;
    let backup = folder.path().join("backup.db");
    run(folder.path(), &["backup", backup.to_str().unwrap()]).await;
    // Each connection raises the device's fence in its row.
    for _ in 0..4 {
        phone.break_transport().await;
        phone.restored_again().await;
    }
    if a_change_is_lost {
        phone.update("a", json!("after")).await;
    }

    // Its row stays in Redis.
    node.kill_9();
    put_back(&backup, folder.path());
    let named = Device::options(&node, &ann).auth("deviceId", phone.id());
    drop(phone);
    node.restart().await;

    let phone = named.connect().await;
    is_not_sent_away(&node, &phone).await;
}

#[tokio::test]
async fn a_restart_after_a_crash_or_an_orderly_end_goes_on_in_the_same_epoch() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    let first = rest.put("/api/session/a", &json!(1)).await.expect(200)["seq"].as_u64().unwrap();
    let epoch = full(&node, &ann).await["epoch"].clone();

    for _ in 0..3 {
        rest.put("/api/session/a", &json!(2)).await.expect(200);
        node.kill_9();
        node.restart().await;
        let since = format!("/api/session?since={}:{first}", epoch.as_str().unwrap());
        let caught_up = node.rest_of(&ann).get(&since).await.expect(200);
        assert_eq!((&caught_up["mode"], &caught_up["epoch"]), (&json!("delta"), &epoch));
    }
}

#[tokio::test]
async fn data_without_its_marker_begins_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &Env::new()).await;
    let ann = node.register("ann").await;
    let before = full(&node, &ann).await;

    // Nothing was written yet: a copy may be from before all that clients saw.
    node.kill_9();
    std::fs::remove_file(folder.path().join("tandem.epoch")).unwrap();
    node.restart().await;

    let after = full(&node, &ann).await;
    assert_ne!(after["epoch"], before["epoch"]);
    assert_eq!((&after["sessionData"], &after["seq"]), (&before["sessionData"], &before["seq"]));
}

#[tokio::test]
async fn a_new_epoch_while_nodes_run_closes_every_transport_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let one = Node::start_in(folder.path(), &Env::new()).await;
    let other = Node::start_in(folder.path(), &Env::new()).await;
    let ann = one.register("ann").await;
    let mut phone = Device::named(&one, &ann, "Phone").await;
    let mut laptop = Device::named(&other, &ann, "Laptop").await;
    phone.update("a", json!(1)).await;
    laptop.next("session-updated").await;
    let before = full(&one, &ann).await;

    let said = run(folder.path(), &["new-epoch"]).await.output;

    for device in [&mut phone, &mut laptop] {
        let restored = within_secs(20, device.restored_again()).await;
        assert_eq!((&restored["mode"], &restored["sessionData"]), (&json!("full"), &json!({"a": 1})));
        assert_ne!(restored["epoch"], before["epoch"]);
        assert!(said.contains(restored["epoch"].as_str().unwrap()), "{said}");
    }
    laptop.update("a", json!(2)).await;
    assert_eq!(phone.next("session-updated").await["state"], 2);
}

#[tokio::test]
async fn a_backup_is_of_one_moment_and_never_replaces_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start_in(folder.path(), &Env::new()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    let backup = folder.path().join("backup.db");
    let args = ["backup", backup.to_str().unwrap()];
    let writing = async {
        for n in 1.. {
            rest.put("/api/session/a", &json!(n)).await.expect(200);
            rest.put("/api/session/b", &json!(n)).await.expect(200);
        }
    };
    tokio::select! {
        () = writing => unreachable!("it writes until the copy is made"),
        _ = run(folder.path(), &args) => {}
    }
    let again = run_to_exit(&on(folder.path(), &args)).await;
    assert!(again.code == Some(1) && again.output.contains("exists already"), "{}", again.output);

    let elsewhere = tempfile::tempdir().unwrap();
    put_back(&backup, elsewhere.path());
    let copy = Node::start_in(elsewhere.path(), &Env::new()).await;
    let session = full(&copy, &ann).await;
    let number = |key: &str| session["sessionData"][key].as_u64().unwrap_or(0);
    assert!((0..=1).contains(&(number("a") - number("b"))), "{session}");
    assert_eq!(session["seq"], number("a") + number("b"));
}

#[tokio::test]
async fn a_standby_that_takes_over_under_running_nodes_begins_a_new_epoch_and_everybody_equals_it() {
    let mut database = Postgres::start().await;
    let cluster = Cluster::start_with(2, &Env::new().set("DATABASE_URL", database.url())).await;
    let ann = cluster.register("ann").await;
    let mut phone = cluster.named(0, &ann, "Phone").await;
    let mut laptop = cluster.named(1, &ann, "Laptop").await;
    phone.update("a", json!("before")).await;
    database.copy_data("standby");
    // The standby missed these, and will give their numbers out again.
    for key in ["a", "b", "c"] {
        phone.update(key, json!("after")).await;
    }
    laptop.next_where("session-updated", |update| update["sessionKey"] == "c").await;
    let before = full(&cluster.nodes[0], &ann).await;

    within_secs(60, database.fail_over("standby")).await;

    let mut epochs = Vec::new();
    for device in [&mut phone, &mut laptop] {
        let restored = within_secs(30, device.restored_again()).await;
        assert_eq!((&restored["mode"], &restored["sessionData"]), (&json!("full"), &json!({"a": "before"})));
        epochs.push(restored["epoch"].clone());
    }
    assert!(epochs[0] == epochs[1] && epochs[0] != before["epoch"], "{epochs:?} after {before}");
    let rest = cluster.rest_of(1, &ann);
    let put = async |key: &str| (rest.put(key, &json!("new")).await.status == 200).then_some(());
    for (key, path) in [("d", "/api/session/d"), ("e", "/api/session/e")] {
        eventually("the new primary takes writes", || put(path)).await;
        for device in [&mut phone, &mut laptop] {
            device.next_where("session-updated", |update| update["sessionKey"] == key).await;
        }
    }
    let session = full(&cluster.nodes[0], &ann).await;
    assert_eq!(session["sessionData"], json!({"a": "before", "d": "new", "e": "new"}));
    assert_eq!(session["epoch"], epochs[0]);
}
