//! Which device a connection is: named, resumed, new; and two that claim to be one.

use serde_json::json;
use tandem::model::Clock;

use crate::answers::is_error;
use crate::support::{ChaosProxy, Device, Env, Node, Polling, Postgres, RawSocket, eventually, within_secs};

#[tokio::test]
async fn a_client_that_names_its_device_is_that_device_again() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let before = Device::named(&node, &ann, "Phone").await;
    before.disconnect().await;

    let after = Device::options(&node, &ann).named("Renamed").auth("deviceId", before.id());
    let after = after.connect().await;

    assert_eq!(after.id(), before.id());
    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1, "{devices}");
}

#[tokio::test]
async fn an_unknown_or_foreign_device_id_gets_a_fresh_one() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let bobs = Device::connect(&node, &bob).await;
    let unknown = uuid::Uuid::now_v7().to_string();

    for claimed in [&unknown, bobs.id(), "no uuid", ""] {
        let device = Device::options(&node, &ann).auth("deviceId", claimed).connect().await;
        assert_ne!(device.id(), claimed);
    }
    assert_eq!(bobs.inspect().await["connected"], true);
}

#[tokio::test]
async fn a_connect_whose_commit_was_not_answered_costs_no_identity_and_no_message() {
    let database = Postgres::start().await;
    let node = Node::start(&Env::new().set("DATABASE_URL", database.url())).await;
    let ann = node.register("ann").await;
    let laptop = Device::named(&node, &ann, "Laptop").await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let id = phone.id().to_owned();
    phone.disconnect().await;
    laptop.next("device-disconnected").await;
    let message = json!({"targetDeviceId": id, "message": "for the phone"});
    assert_eq!(laptop.emit_ack("device-message", message).await["status"], "queued");

    database.waits_for_standby("away").await;
    let mut unlucky = RawSocket::open(&node).await;
    let auth = json!({"token": ann.token, "deviceInfo": {"name": "Phone", "type": "test"}});
    unlucky.send(&format!("40{auth}")).await;
    within_secs(20, unlucky.closed()).await;
    database.waits_for_standby("").await;

    // What the store still cannot take closes the transport, and a stock client comes again.
    let phone = Device::named(&node, &ann, "Phone").await;
    assert_eq!(phone.id(), id);
    assert_eq!(phone.next("device-message").await["message"], "for the phone");
}

#[tokio::test]
async fn a_stock_client_keeps_its_identity_over_a_blip() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut phone = Device::options(&node, &ann).stock().named("Phone").connect().await;
    let id = phone.id().to_owned();
    for _ in 0..3 {
        phone.break_transport().await;
        phone.restored_again().await;
        assert_eq!(phone.id(), id);
    }
}

#[tokio::test]
async fn a_client_with_the_same_device_info_resumes_within_the_window() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Phone", "type": "mobile", "viewport": "390x844"});
    let same = json!({"viewport": "390x844", "type": "mobile", "name": "Phone"});
    let before = Device::options(&node, &ann).device_info(&info).connect().await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    before.disconnect().await;
    watcher.next("device-disconnected").await;

    let other = Device::named(&node, &ann, "Another").await;
    let after = Device::options(&node, &ann).device_info(&same).connect().await;

    assert_ne!(other.id(), before.id());
    assert_eq!(after.id(), before.id());
}

#[tokio::test]
async fn after_the_resume_window_the_same_device_info_is_a_new_device() {
    let node = Node::start(&Env::new().set("RESUME_WINDOW_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let before = Device::named(&node, &ann, "Phone").await;
    before.disconnect().await;
    watcher.next("device-disconnected").await;

    let after = Device::named(&node, &ann, "Phone").await;

    assert_ne!(after.id(), before.id());
}

#[tokio::test]
async fn of_several_offline_devices_the_one_offline_most_recently_is_resumed() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let first = Device::named(&node, &ann, "Phone").await;
    let second = Device::named(&node, &ann, "Phone").await;
    let third = Device::named(&node, &ann, "Phone").await;
    for device in [&third, &first, &second] {
        device.disconnect().await;
        let gone = watcher.next("device-disconnected").await;
        assert_eq!(gone["deviceId"], device.id());
        // Of two that go in one millisecond none is the later one.
        eventually("the millisecond is over", || async {
            (Clock::now().to_string().as_str() > gone["lastSeen"].as_str()?).then_some(())
        })
        .await;
    }

    let resumed = Device::named(&node, &ann, "Phone").await;
    let next = Device::named(&node, &ann, "Phone").await;

    assert_eq!((resumed.id(), next.id()), (second.id(), first.id()));
}

#[tokio::test]
async fn a_live_device_never_loses_its_identity_to_a_twin() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let first = Device::named(&node, &ann, "Phone").await;

    let twin = Device::named(&node, &ann, "Phone").await;

    assert_ne!(twin.id(), first.id());
    first.update("k", json!(1)).await;
    assert_eq!(twin.next("session-updated").await["deviceId"], first.id());
    assert_eq!(first.events("$disconnect"), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn a_device_that_is_asked_while_it_upgrades_is_alive() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let connect = format!("40{}", json!({"token": ann.token, "deviceInfo": {"name": "Phone"}}));
    for _ in 0..5 {
        let polling = Polling::open(&node).await;
        assert_eq!(polling.post(connect.as_str()).await.status, 200);
        let first = loop {
            let packets = polling.poll().await;
            if let Some(restored) = packets.iter().find(|packet| packet.contains("session-restored")) {
                break device_of(restored);
            }
        };
        // From here on it polls no more.
        let mut upgraded = RawSocket::probe(&node, &polling.sid).await;
        let mut twin = RawSocket::open(&node).await;
        twin.send(&connect).await;
        // Time enough for the server to ask who is there.
        for _ in 0..3 {
            node.rest_of(&ann).get("/api/devices").await.expect(200);
        }

        upgraded.send("5").await;

        assert_ne!(device_of(&twin.next_event("session-restored").await), first);
        assert!(upgraded.emit_ack("session-get", r#"{"key":"k"}"#).await.contains("\"ok\":true"));
    }
}

/// The device's id in the text of a `session-restored`.
fn device_of(restored: &str) -> String {
    let (_, rest) = restored.split_once("\"deviceId\":\"").expect("a restore says which device it is");
    rest.split_once('"').expect("an id ends").0.to_owned()
}

#[tokio::test]
async fn twins_that_lose_their_network_together_come_back_as_themselves() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let mut twins = Vec::new();
    for _ in 0..4 {
        twins.push(Device::options_at(&proxy.url(), &ann).named("Phone").connect().await);
    }
    let sorted = |twins: &[Device]| {
        let mut ids: Vec<_> = twins.iter().map(|twin| twin.id().to_owned()).collect();
        ids.sort();
        ids
    };
    let before = sorted(&twins);

    proxy.cut();
    for twin in &mut twins {
        twin.restored_again().await;
    }

    assert_eq!(sorted(&twins), before, "four devices before and after, none shared");
}

#[tokio::test]
async fn a_client_whose_old_connection_fell_silent_is_the_same_device_again() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let silent = Device::options_at(&proxy.url(), &ann).named("Phone").without_reconnection();
    let silent = silent.connect().await;
    proxy.freeze();

    let back = Device::named(&node, &ann, "Phone").await;

    assert_eq!(back.id(), silent.id());
}

#[tokio::test]
async fn of_two_live_sockets_with_one_device_id_the_newer_wins() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let older = Device::connect(&node, &ann).await;
    let watcher = Device::connect(&node, &ann).await;

    let newer = Device::options(&node, &ann).auth("deviceId", older.id()).connect().await;

    assert_eq!(newer.id(), older.id());
    is_error(&older.next("error").await, "replaced");
    let gone = older.next("$disconnect").await;
    assert_eq!(gone, json!({"reason": "io server disconnect", "retries": false}));
    newer.update("k", json!("the newer writes")).await;
    assert_eq!(watcher.next("session-updated").await["state"], "the newer writes");
}

#[tokio::test]
async fn a_late_goodbye_of_the_older_socket_changes_nothing() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let older = Device::connect(&node, &ann).await;
    let newer = Device::options(&node, &ann).auth("deviceId", older.id()).connect().await;
    older.disconnected().await;

    // A device that comes and goes afterwards: with it the older's going would have been told.
    let marker = Device::named(&node, &ann, "Marker").await;
    marker.disconnect().await;
    watcher.next_where("device-disconnected", |gone| gone["deviceId"] == marker.id()).await;

    watcher.expect_none("device-disconnected").await;
    let devices = node.rest_of(&ann).get("/api/devices").await.expect(200);
    let all = devices["devices"].as_array().unwrap();
    let listed = all.iter().find(|device| device["id"] == newer.id());
    assert_eq!(listed.unwrap()["online"], true);
}

#[tokio::test]
async fn an_identity_outlives_the_process() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut phone = Device::named(&node, &ann, "Phone").await;
    let id = phone.id().to_owned();

    node.kill_9();
    node.restart().await;
    phone.restored_again().await;

    assert_eq!(phone.id(), id);
    let rest = node.rest_of(&ann);
    eventually("the phone is online", || async {
        let devices = rest.get("/api/devices").await.expect(200);
        (devices["devices"][0]["online"] == true).then_some(())
    })
    .await;
}
