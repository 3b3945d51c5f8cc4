//! Who is there: devices that come, devices that go, and those that are back before anybody noticed.

use serde_json::json;

use crate::answers::is_time;
use crate::support::{ChaosProxy, Device, Env, Node, eventually};

#[tokio::test]
async fn the_others_are_told_of_a_device_that_connects() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let info = json!({"name": "Laptop", "type": "desktop", "viewport": "1920x1080"});

    let laptop = Device::options(&node, &ann).device_info(&info).connect().await;

    let connected = phone.next("device-connected").await;
    assert_eq!(connected["deviceId"], laptop.id());
    assert_eq!(connected["deviceInfo"], info);
    is_time(&connected["connectedAt"]);
    laptop.caught_up_with(&phone).await;
    laptop.expect_none("device-connected").await;
}

#[tokio::test]
async fn a_device_that_says_nothing_of_itself_has_an_empty_name_and_an_unknown_type() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::named(&node, &ann, "Phone").await;

    let silent = Device::connect(&node, &ann).await;
    let half = Device::options(&node, &ann).device_info(&json!({"size": 2})).connect().await;

    let expected = [
        (silent, json!({"name": "", "type": "unknown"})),
        (half, json!({"name": "", "type": "unknown", "size": 2})),
    ];
    for (device, info) in expected {
        let connected = phone.next("device-connected").await;
        assert_eq!((&connected["deviceId"], &connected["deviceInfo"]), (&json!(device.id()), &info));
    }
}

#[tokio::test]
async fn a_device_that_comes_back_is_announced_by_the_name_it_was_given_meanwhile() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let info = json!({"name": "Phone", "type": "mobile", "viewport": "390x844"});
    let phone = Device::options(&node, &ann).device_info(&info).connect().await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let path = format!("/api/devices/{}", phone.id());
    node.rest_of(&ann).patch(&path, &json!({"name": "Ann's phone"})).await.expect(200);
    phone.disconnect().await;
    watcher.next("device-disconnected").await;

    let back = Device::options(&node, &ann).device_info(&info).connect().await;

    assert_eq!(back.id(), phone.id());
    let connected = watcher.next_where("device-connected", |one| one["deviceId"] == back.id()).await;
    let renamed = json!({"name": "Ann's phone", "type": "mobile", "viewport": "390x844"});
    assert_eq!(connected["deviceInfo"], renamed);
}

#[tokio::test]
async fn a_device_that_was_never_gone_and_describes_itself_anew_is_told_as_updated() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 300)).await;
    let ann = node.register("ann").await;
    let phone = Device::options(&node, &ann).named("Phone").without_reconnection().connect().await;
    let watcher = Device::named(&node, &ann, "Watcher").await;
    let other_info = |name: &str| json!({"name": name, "type": "mobile", "theme": "dark"});
    let anew =
        |name: &str| Device::options(&node, &ann).device_info(&other_info(name)).auth("deviceId", phone.id());

    let replacing = anew("Replacing").without_reconnection().connect().await;
    let updated = watcher.next("device-updated").await;
    assert_eq!(updated, json!({"deviceId": phone.id(), "deviceInfo": other_info("Replacing")}));

    replacing.break_transport().await;
    let back = anew("Back").connect().await;
    let updated = watcher.next("device-updated").await;
    assert_eq!(updated, json!({"deviceId": phone.id(), "deviceInfo": other_info("Back")}));

    let same = anew("Back").connect().await;
    same.caught_up_with(&watcher).await;
    watcher.caught_up_with(&same).await;
    watcher.expect_none("device-updated").await;
    watcher.expect_none("device-connected").await;
    same.expect_none("device-updated").await;
    assert_eq!(back.id(), same.id());
}

#[tokio::test]
async fn another_users_devices_come_and_go_unseen() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let bobs = Device::connect(&node, &bob).await;
    let anns = Device::connect(&node, &ann).await;
    let watcher = Device::connect(&node, &ann).await;

    anns.disconnect().await;
    watcher.next("device-disconnected").await;

    bobs.expect_none("device-connected").await;
    bobs.expect_none("device-disconnected").await;
}

#[tokio::test]
async fn a_devices_own_goodbye_is_told_at_once() {
    // With a grace far beyond what a test waits, only "at once" passes.
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 300)).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;

    laptop.disconnect().await;

    let gone = phone.next("device-disconnected").await;
    assert_eq!(gone["deviceId"], laptop.id());
    assert!(gone["reason"].is_string(), "{gone}");
    is_time(&gone["lastSeen"]);
}

#[tokio::test]
async fn a_lost_device_is_told_once_after_the_grace() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 1)).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::options(&node, &ann).without_reconnection().connect().await;

    let lost_at = std::time::Instant::now();
    laptop.break_transport().await;
    let gone = phone.next("device-disconnected").await;

    assert_eq!(gone["deviceId"], laptop.id());
    assert!(lost_at.elapsed().as_secs_f64() > 0.9, "after {:?}", lost_at.elapsed());
    phone.expect_none("device-disconnected").await;
}

#[tokio::test]
async fn a_device_that_is_back_within_the_grace_was_never_gone() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 1)).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let mut laptop = Device::named(&node, &ann, "Laptop").await;
    let id = laptop.id().to_owned();

    laptop.break_transport().await;
    laptop.restored_again().await;
    assert_eq!(laptop.id(), id);

    // A device that really goes marks the time by which the laptop would have been told of.
    let marker = Device::options(&node, &ann).named("Marker").without_reconnection();
    let marker = marker.connect().await;
    marker.break_transport().await;
    let gone = phone.next("device-disconnected").await;
    assert_eq!(gone["deviceId"], marker.id());
    phone.expect_none("device-disconnected").await;
}

#[tokio::test]
async fn a_device_whose_network_went_silent_is_told_after_its_heartbeat() {
    let env = Env::new().set("PING_INTERVAL_SECONDS", 1).set("PING_TIMEOUT_SECONDS", 1);
    let node = Node::start(&env.set("DISCONNECT_GRACE_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::options_at(&proxy.url(), &ann).without_reconnection().connect().await;

    proxy.freeze();

    assert_eq!(phone.next("device-disconnected").await["deviceId"], laptop.id());
}

#[tokio::test]
async fn last_seen_is_when_the_device_was_last_there() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let phone = Device::connect(&node, &ann).await;
    let laptop = Device::connect(&node, &ann).await;
    let connected_at = phone.next("device-connected").await["connectedAt"].clone();

    laptop.disconnect().await;
    let gone = phone.next("device-disconnected").await;

    let seen = gone["lastSeen"].as_str().unwrap();
    assert!(seen >= connected_at.as_str().unwrap(), "{seen} before {connected_at}");
    // The goodbye is told first and noted a moment later.
    let rest = node.rest_of(&ann);
    eventually("the device list says so too", || async {
        let devices = rest.get("/api/devices").await.expect(200);
        let mut listed = devices["devices"].as_array().unwrap().iter();
        let laptops = listed.find(|one| one["id"] == laptop.id()).unwrap();
        (laptops["lastSeen"] == seen && laptops["online"] == false).then_some(())
    })
    .await;
}
