//! Many devices of one user writing at once: one order, each change once, one result.

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::replica::{Ledger, Replica, number};
use crate::support::{Device, Env, Node};

const WRITERS: usize = 6;
const WRITES_EACH: usize = 80;
const WRITES: usize = WRITERS * WRITES_EACH;

/// What writer `writer` writes: some keys are its own, some are everybody's.
fn writes(writer: usize) -> Vec<Value> {
    let write = |n: usize| {
        let key = if n.is_multiple_of(2) { format!("own-{writer}") } else { format!("shared-{}", n % 5) };
        json!({"sessionKey": key, "state": {"writer": writer, "n": n, "text": "x".repeat(n)}})
    };
    (0..WRITES_EACH).map(write).collect()
}

#[tokio::test]
async fn six_devices_writing_at_once_see_each_others_changes_in_order_exactly_once() {
    all_agree(Env::new(), &["websocket"]).await;
}

#[tokio::test]
async fn six_devices_on_polling_agree_too() {
    all_agree(Env::new(), &["polling"]).await;
}

#[tokio::test]
async fn six_devices_that_upgrade_while_they_write_agree_too() {
    all_agree(Env::new(), &["polling", "websocket"]).await;
}

async fn all_agree(env: Env, transports: &[&str]) {
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let mut devices = Vec::new();
    for _ in 0..WRITERS {
        devices.push(Device::options(&node, &ann).transports(transports).connect().await);
    }

    // Three more devices connect in the middle: after a first, a second and a third part of the changes.
    let late = async {
        let mut late = Vec::new();
        for part in 1..=3 {
            let seen = part * WRITES_EACH;
            devices[0].until("session-updated", 30, |updates| (updates.len() >= seen).then_some(())).await;
            late.push(Device::options(&node, &ann).transports(transports).connect().await);
        }
        late
    };
    let writing = devices
        .iter()
        .enumerate()
        .map(|(writer, device)| device.emit_ack_all("session-update", writes(writer)));
    let (acks, late) = tokio::join!(futures_util::future::join_all(writing), late);
    let acks: Vec<Vec<Value>> =
        acks.into_iter().map(|acks| acks.into_iter().map(Result::unwrap).collect()).collect();

    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["seq"], WRITES);
    let versions = session["versions"].as_object().unwrap().values().map(number);
    assert_eq!(versions.sum::<u64>(), WRITES as u64, "each write is one version of one key");

    let mut ledger = Ledger::default();
    for (writer, device) in devices.iter().enumerate() {
        let others = WRITES - WRITES_EACH;
        device.until("session-updated", 30, |updates| (updates.len() >= others).then_some(())).await;
        let sent = writes(writer);
        let own = sent
            .iter()
            .zip(&acks[writer])
            .map(|(write, ack)| (write["sessionKey"].as_str().unwrap(), &write["state"], ack));
        let replica = Replica::of(&device.seen()).with_acks(own.clone());
        assert!(replica.equals(&session), "writer {writer}: {replica:?}\n{session}");

        let mut all = replica.seqs.clone();
        all.extend(own.clone().map(|(_, _, ack)| number(&ack["seq"])));
        all.sort_unstable();
        assert_eq!(all, (1..=WRITES as u64).collect::<Vec<_>>(), "the others' 400 and its own 80");
        for (key, state, ack) in own {
            ledger.add(number(&ack["seq"]), key, number(&ack["version"]), state);
        }
        ledger.add_updates_of(device);
    }
    for (index, device) in late.iter().enumerate() {
        let restored_at = number(&device.restored()["seq"]);
        assert!((1..=WRITES as u64).contains(&restored_at), "{restored_at}");
        let rest = WRITES - restored_at as usize;
        device.until("session-updated", 30, |updates| (updates.len() >= rest).then_some(())).await;
        let replica = Replica::of(&device.seen());
        let expected: Vec<_> = (restored_at + 1..=WRITES as u64).collect();
        assert_eq!(replica.seqs, expected, "late device {index}");
        assert!(replica.equals(&session), "late device {index}: {replica:?}\n{session}");
        ledger.add_updates_of(device);
    }
    assert_eq!(ledger.seqs().len(), WRITES);
}

#[tokio::test]
async fn a_device_that_keeps_losing_its_connection_ends_up_equal() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::connect(&node, &ann).await;
    let mut flapping = Device::named(&node, &ann, "Flapping").await;

    for round in 0..10 {
        let busy = (0..60).map(|n| json!({"sessionKey": format!("k{}", n % 9), "state": [round, n]}));
        let flap = async {
            flapping.break_transport().await;
            flapping.restored_again().await;
        };
        let (acks, ()) = tokio::join!(writer.emit_ack_all("session-update", busy.collect()), flap);
        assert!(acks.iter().all(Result::is_ok));
    }

    flapping.caught_up_with(&writer).await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    let replica = Replica::of(&flapping.seen());
    assert!(replica.equals(&session), "{replica:?}\n{session}");
}

#[tokio::test]
async fn a_device_that_connects_while_others_write_misses_nothing_and_sees_nothing_twice() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writers = [Device::connect(&node, &ann).await, Device::connect(&node, &ann).await];
    let mut in_the_middle = 0;
    for round in 0..40 {
        let done = watch::Sender::new(false);
        let writing = writers.iter().map(|writer| write_until(writer, round, done.subscribe()));
        let connecting = async {
            let newcomer = Device::connect(&node, &ann).await;
            // Some more changes after the restore, so that a hole at its edge would show.
            newcomer.until("session-updated", 10, |seen| (seen.len() >= 20).then_some(())).await;
            done.send_replace(true);
            newcomer
        };
        let (newcomer, _) = tokio::join!(connecting, futures_util::future::join_all(writing));

        let session = node.rest_of(&ann).get("/api/session").await.expect(200);
        let (from, head) = (number(&newcomer.restored()["seq"]), number(&session["seq"]));
        newcomer.until("session-updated", 10, |seen| (seen.len() as u64 >= head - from).then_some(())).await;
        let replica = Replica::of(&newcomer.seen());
        assert_eq!(replica.seqs, (from + 1..=head).collect::<Vec<_>>(), "round {round}");
        assert!(replica.equals(&session), "round {round}: {replica:?}\n{session}");
        in_the_middle += u32::from(from > 0 && from < head);
    }
    assert!(in_the_middle >= 30, "only {in_the_middle} of 40 connected in the middle");
}

/// Writes without a pause until told to stop.
async fn write_until(writer: &Device, round: usize, done: watch::Receiver<bool>) {
    while !*done.borrow() {
        let updates = (0..8).map(|n| json!({"sessionKey": format!("k{n}"), "state": [round, n]}));
        for ack in writer.emit_ack_all("session-update", updates.collect()).await {
            assert_eq!(ack.as_ref().unwrap()["ok"], true, "{ack:?}");
        }
    }
}
