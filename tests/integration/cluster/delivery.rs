//! What a device causes on one node reaches the user's devices on the others: in order, once, and no other node.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::session_everywhere;
use crate::replica::{Ledger, Replica, number};
use crate::support::{Cluster, Device, eventually, short_or_long};

const NODES: usize = 3;
const DEVICES_A_NODE: usize = 6;

#[tokio::test]
async fn changes_events_and_messages_reach_devices_on_other_nodes_in_order_and_once() {
    const EACH: usize = 100;
    let cluster = Cluster::start(NODES).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    let tablet = cluster.named(2, &ann, "Tablet").await;

    let changes = (0..EACH).map(|n| json!({"sessionKey": format!("k{}", n % 3), "state": n}));
    let events = (0..EACH).map(|n| json!({"type": "t", "payload": n}));
    let messages = (0..EACH).map(|n| json!({"targetDeviceId": tablet.id(), "message": n}));
    let (changes, events, messages) = tokio::join!(
        phone.emit_ack_all("session-update", changes.collect()),
        phone.emit_ack_all("realtime-event", events.collect()),
        phone.emit_ack_all("device-message", messages.collect()),
    );
    assert!(changes.iter().chain(&events).all(|ack| ack.as_ref().unwrap()["ok"] == true));
    assert!(messages.iter().all(|ack| ack.as_ref().unwrap()["status"] == "delivered"), "{messages:?}");

    let numbers = |of: &Device, event: &str, field: &str| {
        of.events(event).iter().map(|payload| number(&payload[field])).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (0..EACH as u64).collect();
    for device in [&laptop, &tablet] {
        device.until("session-updated", 10, |seen| (seen.len() >= EACH).then_some(())).await;
        device.until("realtime-event", 10, |seen| (seen.len() >= EACH).then_some(())).await;
        assert_eq!(numbers(device, "session-updated", "seq"), (1..=EACH as u64).collect::<Vec<_>>());
        assert_eq!(numbers(device, "realtime-event", "payload"), expected);
    }
    tablet.until("device-message", 10, |seen| (seen.len() >= EACH).then_some(())).await;
    assert_eq!(numbers(&tablet, "device-message", "message"), expected);
    laptop.caught_up_with(&phone).await;
    assert_eq!(laptop.events("device-message"), Vec::<Value>::new(), "a message is for one device");
}

#[tokio::test]
async fn eighteen_devices_on_three_nodes_writing_at_once_agree_on_one_order() {
    let writes_each = short_or_long(20, 200);
    let cluster = Cluster::start(NODES).await;
    let ann = cluster.register("ann").await;
    let mut devices = Vec::new();
    for n in 0..NODES * DEVICES_A_NODE {
        devices.push(cluster.named(n % NODES, &ann, &format!("device {n}")).await);
    }
    let writes = |writer: usize| -> Vec<Value> {
        let key = |n: usize| {
            if n.is_multiple_of(2) { format!("own-{writer}") } else { format!("shared-{}", n % 5) }
        };
        (0..writes_each).map(|n| json!({"sessionKey": key(n), "state": {"writer": writer, "n": n}})).collect()
    };

    let writing = devices.iter().enumerate();
    let writing = writing.map(|(writer, device)| device.emit_ack_all("session-update", writes(writer)));
    let acks: Vec<Vec<Value>> = join_all(writing)
        .await
        .into_iter()
        .map(|acks| acks.into_iter().map(Result::unwrap).collect())
        .collect();

    let all = devices.len() * writes_each;
    let session = session_everywhere(&cluster, &ann).await;
    assert_eq!(session["seq"], all);
    let mut ledger = Ledger::default();
    for (writer, device) in devices.iter().enumerate() {
        let others = all - writes_each;
        device.until("session-updated", 30, |seen| (seen.len() >= others).then_some(())).await;
        let sent = writes(writer);
        let own = sent.iter().zip(&acks[writer]);
        let own = own.map(|(write, ack)| (write["sessionKey"].as_str().unwrap(), &write["state"], ack));
        let replica = Replica::of(&device.seen()).with_acks(own.clone());
        assert!(replica.equals(&session), "device {writer}: {replica:?}\n{session}");
        let mut seqs = replica.seqs.clone();
        seqs.extend(own.clone().map(|(_, _, ack)| number(&ack["seq"])));
        seqs.sort_unstable();
        assert_eq!(
            seqs,
            (1..=all as u64).collect::<Vec<_>>(),
            "device {writer}: the others' and its own, once each"
        );
        for (key, state, ack) in own {
            ledger.add(number(&ack["seq"]), key, number(&ack["version"]), state);
        }
        ledger.add_updates_of(device);
    }
    assert_eq!(ledger.seqs().len(), all);
}

#[tokio::test]
async fn a_device_that_connects_anywhere_while_others_write_misses_nothing_and_sees_nothing_twice() {
    let cluster = Cluster::start(NODES).await;
    let ann = cluster.register("ann").await;
    let writers = [cluster.named(0, &ann, "one").await, cluster.named(1, &ann, "two").await];
    for round in 0..short_or_long(15, 100) {
        let burst =
            |_| (0..60).map(|n| json!({"sessionKey": format!("k{}", n % 7), "state": [round, n]})).collect();
        let writing =
            join_all(writers.iter().map(|writer| writer.emit_ack_all("session-update", burst(writer))));
        let (acks, newcomer) = tokio::join!(writing, cluster.connect(round % NODES, &ann));
        assert!(acks.iter().flatten().all(|ack| ack.as_ref().unwrap()["ok"] == true));

        let session = session_everywhere(&cluster, &ann).await;
        let (from, head) = (number(&newcomer.restored()["seq"]), number(&session["seq"]));
        newcomer.until("session-updated", 10, |seen| (seen.len() as u64 >= head - from).then_some(())).await;
        let replica = Replica::of(&newcomer.seen());
        assert_eq!(replica.seqs, (from + 1..=head).collect::<Vec<_>>(), "round {round}");
        assert!(replica.equals(&session), "round {round}: {replica:?}\n{session}");
        newcomer.disconnect().await;
    }
}

#[tokio::test]
async fn a_message_to_a_device_that_no_node_holds_is_kept_at_once() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;
    phone.next("device-connected").await;
    laptop.disconnect().await;
    phone.next("device-disconnected").await;

    let message = json!({"targetDeviceId": laptop.id(), "message": 1});
    let ack = phone.emit_ack("device-message", message).await;

    assert_eq!(ack["status"], "queued", "{ack}");
}

#[tokio::test]
async fn a_node_that_hosts_none_of_the_busy_users_receives_nothing_of_them() {
    let cluster = Cluster::start(NODES).await;
    let quiet = cluster.register("quiet").await;
    let watcher = cluster.named(2, &quiet, "Watcher").await;
    let mut busy = Vec::new();
    for user in 0..4 {
        let account = cluster.register(&format!("busy{user}")).await;
        let (one, other) =
            (cluster.named(0, &account, "one").await, cluster.named(1, &account, "other").await);
        busy.push((one, other));
    }
    let before = cluster.nodes[1].metric(RECEIVED).await;
    let acting = busy.iter().map(|(one, other)| async move {
        let changes = (0..50).map(|n| json!({"sessionKey": "k", "state": n})).collect();
        let events = (0..50).map(|n| json!({"type": "t", "payload": n})).collect();
        let messages = (0..50).map(|n| json!({"targetDeviceId": other.id(), "message": n})).collect();
        one.emit_ack_all("session-update", changes).await;
        one.emit_ack_all("realtime-event", events).await;
        one.emit_ack_all("device-message", messages).await;
        other.disconnect().await;
    });
    join_all(acting).await;

    eventually("the other node has counted what came", || async {
        (cluster.nodes[1].metric(RECEIVED).await >= before + 600.0).then_some(())
    })
    .await;
    assert!(cluster.nodes[2].metric(RECEIVED).await < 0.5, "the quiet node heard of somebody else's");

    // It does count: what its own user causes elsewhere is all that it ever receives.
    let second = cluster.named(0, &quiet, "Second").await;
    watcher.next("device-connected").await;
    second.emit_ack("realtime-event", json!({"type": "t", "payload": 1})).await;
    watcher.next("realtime-event").await;
    eventually("the quiet node has counted its own", || async {
        (cluster.nodes[2].metric(RECEIVED).await >= 2.0).then_some(())
    })
    .await;
    assert!(cluster.nodes[2].metric(RECEIVED).await < 2.5);
}

const RECEIVED: &str = "tandem_backplane_received_total";
