//! Conflicts are decided by the server: based writes, merges, patches, operations, deletions; each applied once.

use serde_json::{Value, json};

use crate::answers::{accepted, refused};
use crate::support::{Device, Env, Node};

async fn write(device: &Device, payload: Value) -> Value {
    device.emit_ack("session-update", payload).await
}

async fn two_devices() -> (Node, Device, Device) {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;
    (node, phone, laptop)
}

#[tokio::test]
async fn a_write_based_on_the_current_version_is_applied() {
    let (_node, phone, laptop) = two_devices().await;
    accepted(&write(&phone, json!({"sessionKey": "k", "state": 1, "baseVersion": 0})).await);
    let ack = write(&laptop, json!({"sessionKey": "k", "state": 2, "baseVersion": 1})).await;
    assert_eq!((&ack["ok"], &ack["version"]), (&json!(true), &json!(2)), "{ack}");
}

#[tokio::test]
async fn a_write_based_on_an_old_version_is_refused_with_the_current_state() {
    let (_node, phone, laptop) = two_devices().await;
    phone.update("k", json!({"volume": 3})).await;

    for based in [json!(0), json!(7)] {
        let payload = json!({"sessionKey": "k", "state": {"volume": 9}, "baseVersion": based});
        let ack = write(&laptop, payload).await;
        let error = refused(&ack, "conflict");
        assert_eq!(error["version"], 1, "{error}");
        assert_eq!(error["state"], json!({"volume": 3}), "{error}");
        assert_eq!(error["deviceId"], phone.id(), "{error}");
    }
    phone.caught_up_with(&laptop).await;
    phone.expect_none("session-updated").await;
}

#[tokio::test]
async fn a_write_may_overwrite_whatever_is_there() {
    let (_node, phone, laptop) = two_devices().await;
    phone.update("k", json!(1)).await;
    phone.update("k", json!(2)).await;
    let payload = json!({"sessionKey": "k", "state": 9, "baseVersion": 1, "onConflict": "overwrite"});
    let ack = write(&laptop, payload).await;
    assert_eq!((&ack["ok"], &ack["version"]), (&json!(true), &json!(3)), "{ack}");
    assert_eq!(phone.next("session-updated").await["state"], 9);
}

#[tokio::test]
async fn two_devices_that_change_different_fields_both_win_a_merge() {
    let (node, phone, laptop) = two_devices().await;
    phone.update("k", json!({"title": "old", "volume": 3, "deep": {"a": 1, "b": 1}})).await;
    let merge =
        |state: Value| json!({"sessionKey": "k", "state": state, "baseVersion": 1, "onConflict": "merge"});

    let first = merge(json!({"title": "new", "volume": 3, "deep": {"a": 2, "b": 1}}));
    accepted(&write(&phone, first).await);
    let second = merge(json!({"title": "old", "volume": 9, "deep": {"a": 1, "b": 2}}));
    let ack = write(&laptop, second).await;

    let both = json!({"title": "new", "volume": 9, "deep": {"a": 2, "b": 2}});
    accepted(&ack);
    assert_eq!((&ack["merged"], &ack["state"]), (&json!(true), &both), "{ack}");
    assert_eq!(phone.next_where("session-updated", |update| update["version"] == 3).await["state"], both);
    drop(node);
}

#[tokio::test]
async fn a_patch_and_operations_apply_to_whatever_is_there() {
    let (_node, phone, laptop) = two_devices().await;
    accepted(&write(&phone, json!({"sessionKey": "k", "patch": {"a": {"b": 1}, "gone": null}})).await);
    let ops = json!([
        {"op": "inc", "path": "/count", "value": 2},
        {"op": "set", "path": "/a/c", "value": [1]},
        {"op": "add", "path": "/a/c", "value": 2},
        {"op": "unset", "path": "/a/b"},
    ]);
    let ack = write(&laptop, json!({"sessionKey": "k", "ops": ops})).await;
    accepted(&ack);
    let update = phone.next("session-updated").await;
    assert_eq!(update["state"], json!({"a": {"c": [1, 2]}, "count": 2}));
}

#[tokio::test]
async fn concurrent_increments_all_count() {
    let (node, phone, laptop) = two_devices().await;
    let inc = json!({"sessionKey": "k", "ops": [{"op": "inc", "path": "/n", "value": 1}]});
    let (a, b) = tokio::join!(
        phone.emit_ack_all("session-update", vec![inc.clone(); 100]),
        laptop.emit_ack_all("session-update", vec![inc.clone(); 100]),
    );
    for ack in a.into_iter().chain(b) {
        accepted(&ack.unwrap());
    }
    let ack = phone.emit_ack("session-get", json!({"keys": ["k"]})).await;
    assert_eq!(ack["sessionData"], json!({"k": {"n": 200}}));
    drop(node);
}

#[tokio::test]
async fn an_operation_that_cannot_be_applied_refuses_the_whole_write() {
    let (_node, phone, _laptop) = two_devices().await;
    phone.update("k", json!({"n": "text"})).await;
    let tables = [
        json!([{"op": "set", "path": "/a", "value": 1}, {"op": "inc", "path": "/n", "value": 1}]),
        json!([{"op": "set", "path": "no slash", "value": 1}]),
        json!([{"op": "explode", "path": "/a"}]),
        json!([{"op": "set", "path": "/a"}]),
    ];
    for ops in tables {
        let ack = write(&phone, json!({"sessionKey": "k", "ops": ops})).await;
        refused(&ack, "invalid_operation");
    }
    let ack = write(&phone, json!({"sessionKey": "k", "ops": "not a list"})).await;
    assert_eq!(ack["ok"], false, "{ack}");
    let many = vec![json!({"op": "inc", "path": "/m", "value": 1}); 1_001];
    let ack = write(&phone, json!({"sessionKey": "k", "ops": many})).await;
    assert_eq!(ack["ok"], false, "{ack}");
    let ack = phone.emit_ack("session-get", json!({})).await;
    assert_eq!((&ack["sessionData"], &ack["seq"]), (&json!({"k": {"n": "text"}}), &json!(1)));
}

#[tokio::test]
async fn of_ten_writers_on_one_version_exactly_one_wins() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut devices = Vec::new();
    for _ in 0..10 {
        devices.push(Device::connect(&node, &ann).await);
    }
    for round in 0..30 {
        let writes = devices.iter().enumerate().map(|(index, device)| {
            let state = json!({"round": round, "writer": index});
            write(device, json!({"sessionKey": "k", "state": state, "baseVersion": round}))
        });
        let acks = futures_util::future::join_all(writes).await;
        let winner = acks.iter().position(|ack| ack["ok"] == true).expect("somebody wins");
        for (index, ack) in acks.iter().enumerate().filter(|(index, _)| *index != winner) {
            let error = refused(ack, "conflict");
            assert_eq!(error["version"], round + 1, "{index}: {error}");
            assert_eq!(error["state"], json!({"round": round, "writer": winner}), "{index}: {error}");
        }
    }
}

#[tokio::test]
async fn a_write_with_an_op_id_is_applied_once() {
    let (_node, phone, laptop) = two_devices().await;
    let payload = json!({"sessionKey": "k", "state": 1, "opId": "one"});

    let first = write(&phone, payload.clone()).await;
    let again = write(&phone, payload.clone()).await;
    let in_one_batch =
        phone.emit_ack_all("session-update", vec![json!({"sessionKey": "k", "state": 2, "opId": "two"}); 20]);

    assert_eq!(first["duplicate"], Value::Null, "{first}");
    let repeated = (&again["duplicate"], &again["version"], &again["seq"]);
    assert_eq!(repeated, (&json!(true), &first["version"], &first["seq"]), "{again}");
    let batch: Vec<_> = in_one_batch.await.into_iter().map(Result::unwrap).collect();
    assert!(batch.iter().all(|ack| ack["ok"] == true && ack["seq"] == 2), "{batch:?}");
    assert_eq!(batch.iter().filter(|ack| ack["duplicate"] == true).count(), 19);
    let other = write(&phone, json!({"sessionKey": "k", "state": 9, "opId": "one"})).await;
    refused(&other, "op_id_reused");
    laptop.caught_up_with(&phone).await;
    let updates = laptop.events("session-updated");
    let seen = updates.iter().filter(|update| update["sessionKey"] == "k").count();
    assert_eq!(seen, 2);
}

#[tokio::test]
async fn a_deleted_key_is_gone_and_its_versions_go_on() {
    let (node, phone, laptop) = two_devices().await;
    phone.update("k", json!(1)).await;
    let ack = phone.emit_ack("session-delete", json!({"sessionKey": "k"})).await;
    assert_eq!((&ack["ok"], &ack["version"], &ack["seq"]), (&json!(true), &json!(2), &json!(2)), "{ack}");

    let told = laptop.next_where("session-updated", |update| update["seq"] == 2).await;
    assert_eq!((&told["deleted"], &told["state"]), (&json!(true), &Value::Null));
    let ack = phone.emit_ack("session-get", json!({})).await;
    assert_eq!((&ack["sessionData"], &ack["seq"]), (&json!({}), &json!(2)));
    let stale = write(&laptop, json!({"sessionKey": "k", "state": 2, "baseVersion": 1})).await;
    let error = refused(&stale, "conflict");
    assert_eq!((&error["deleted"], &error["version"]), (&json!(true), &json!(2)), "{error}");
    let ack = write(&laptop, json!({"sessionKey": "k", "state": 3, "baseVersion": 0})).await;
    assert_eq!((&ack["ok"], &ack["version"]), (&json!(true), &json!(3)), "{ack}");
    drop(node);
}
