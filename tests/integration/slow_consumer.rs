//! A client that reads nothing is cut, and slows nobody down; two hundred of them do not, either.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::answers::accepted;
use crate::support::{
    Account, Device, Env, Node, RawSocket, RawTcp, client_frame, eventually, short_or_long, within_secs,
};

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_and_the_others_go_on() {
    let node = Node::start(&Env::new().set("DISCONNECT_GRACE_SECONDS", 0)).await;
    let ann = node.register("ann").await;
    let sender = Device::connect(&node, &ann).await;
    let reader = Device::connect(&node, &ann).await;
    // It reads as far as the restore, and never again.
    let (_stalled, _) = RawTcp::joined(&node, &ann.token).await;
    let stalled_id = reader.next("device-connected").await["deviceId"].as_str().unwrap().to_owned();

    // More than the socket buffers of both sides and the outbox can take.
    let mut cut = None;
    for round in 0..400 {
        let payload = json!({"round": round, "padding": "x".repeat(60 * 1_024)});
        let event = json!({"type": "t", "payload": payload});
        accepted(&sender.emit_ack("realtime-event", event).await);
        cut = reader.events("device-disconnected").into_iter().next();
        if cut.is_some() {
            break;
        }
    }

    // A stalled write ends within 12 s of a full outbox.
    let cut = match cut {
        Some(cut) => cut,
        None => reader.until("device-disconnected", 15, |events| events.first().cloned()).await,
    };
    assert_eq!(cut["deviceId"], stalled_id.as_str());
    reader.caught_up_with(&sender).await;
    let seen = reader.events("realtime-event").len();
    assert!(seen > 0, "the reader got its events");
}

#[tokio::test]
async fn a_device_that_fell_behind_ends_up_with_the_newest_state_of_every_key() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::connect(&node, &ann).await;
    let (mut slow, _) = RawSocket::connect(&node, &ann).await;

    // While it reads nothing, far more is written than its outbox may hold.
    for round in 0..40 {
        let state = |n: usize| json!({"round": round, "n": n, "padding": "x".repeat(20 * 1_024)});
        let updates = (0..10).map(|n| json!({"sessionKey": format!("k{n}"), "state": state(n)}));
        for ack in writer.emit_ack_all("session-update", updates.collect()).await {
            accepted(&ack.unwrap());
        }
    }

    // Either it is still connected and the newest of each key arrives, or it was cut and restores.
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    let head = session["seq"].as_u64().unwrap();
    let newest = format!(r#""seq":{head}"#);
    let mut seqs = Vec::new();
    let mut ended = false;
    loop {
        match slow.next_or_end().await {
            Some(text) if text.contains("session-updated") => {
                let update: Value = serde_json::from_str(&text[2..]).unwrap();
                seqs.push(update[1]["seq"].as_u64().unwrap());
                if text.contains(&newest) {
                    break;
                }
            }
            Some(_) => {}
            None => {
                ended = true;
                break;
            }
        }
    }
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    if ended {
        let (_, restored) = RawSocket::connect(&node, &ann).await;
        assert!(restored.contains(&newest), "the restore is up to date");
    }
}

/// Some 17 of them fill an outbox, 50 more the kernel's buffers before it.
const EVENT_BYTES: usize = 60 * 1_024;

/// Users that write at a time: two hundred at once would starve each other on two cores.
const WRITING_AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_that_answer_pings_and_read_nothing_are_cut_in_time_and_cost_little() {
    let count = short_or_long(40, 200);
    // A heartbeat that is not answered would end a device long before a stalled write does.
    let env = Env::new()
        .set("DISCONNECT_GRACE_SECONDS", 0)
        .set("PING_INTERVAL_SECONDS", 1)
        .set("PING_TIMEOUT_SECONDS", 5);
    let node = Node::start(&env).await;
    let cut_by =
        async |reason| node.metric(&format!("tandem_disconnects_total{{reason=\"{reason}\"}}")).await;
    let good = node.register("good").await;
    let (phone, laptop) = (Device::connect(&node, &good).await, Device::connect(&node, &good).await);

    // How many events one takes before its outbox overflows, after which it is cut at once.
    let probe = Slow::join(&node, "probe".to_owned()).await;
    let overflowing = probe.overflow(&node).await;
    assert!(cut_by("slow_consumer").await > 0.5);
    // A little less, so that all outboxes are almost full until the stalled writes end them.
    let slow = join_all((0..count).map(|n| Slow::join(&node, n.to_string()))).await;
    let (before, _) = node.memory_kib();
    let turns = Semaphore::new(WRITING_AT_ONCE);
    let cutting = join_all(slow.into_iter().map(|slow| slow.fill(&node, overflowing - 3, &turns)));
    let (cut, ()) = within_secs(180, async { tokio::join!(cutting, chat(&phone, &laptop)) }).await;

    let (_, most) = node.memory_kib();
    let each_kib = most.saturating_sub(before) / count as u64;
    let slowest = cut.iter().map(|(_, took)| *took).max().unwrap();
    println!(
        "{count} with {overflowing} events each: {each_kib} KiB each, cut at most {slowest:.1?} after the last"
    );
    assert!(each_kib < 2_048, "{each_kib} KiB each");
    assert!(slowest <= Duration::from_secs(12), "{slowest:?} after the outbox was full");
    assert!(cut_by("heartbeat").await < 0.5, "they did answer their pings");

    for (account, _) in &cut[..4] {
        let (_, restored) = RawSocket::connect(&node, account).await;
        assert!(restored.contains(r#""k":"written meanwhile""#), "{restored:.300}");
    }
    let alone = async || (node.metric("tandem_sockets").await < 2.5).then_some(());
    eventually("all of them are gone", alone).await;
    phone.update("k", json!("after")).await;
    laptop.next_where("session-updated", |update| update["state"] == "after").await;
}

/// A user with a device that answers pings and reads nothing.
struct Slow {
    account: Account,
    /// Answers pings for as long as its connection lives.
    _pongs: JoinHandle<()>,
}

impl Slow {
    async fn join(node: &Node, name: String) -> Self {
        let account = node.register(&format!("slow-{name}")).await;
        let (mut stalled, _) = RawTcp::joined(node, &account.token).await;
        let pongs = tokio::spawn(async move {
            while stalled.write(&client_frame(0x81, b"3")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { account, _pongs: pongs }
    }

    /// Sends it events until it is gone; how many those were.
    async fn overflow(self, node: &Node) -> usize {
        let (mut writer, _) = RawSocket::connect(node, &self.account).await;
        for n in 1.. {
            if relay(&mut writer, n).await {
                return n;
            }
        }
        unreachable!("it counts for ever")
    }

    /// Sends it so many events when it is its turn; how long after the last one the others hear that it is gone.
    async fn fill(self, node: &Node, events: usize, turns: &Semaphore) -> (Account, Duration) {
        let turn = turns.acquire().await.unwrap();
        let rest = node.rest_of(&self.account);
        rest.put("/api/session/k", &json!("written meanwhile")).await.expect(200);
        let (mut writer, _) = RawSocket::connect(node, &self.account).await;
        let mut gone = false;
        for n in 1..=events {
            gone |= relay(&mut writer, n).await;
        }
        let full = Instant::now();
        drop(turn);
        if !gone {
            within_secs(30, async { while !is_gone(&writer.next_or_end_patiently().await.unwrap()) {} })
                .await;
        }
        (self.account, full.elapsed())
    }
}

/// Relays one event; whether the slow device was told to be gone before its ack came.
async fn relay(writer: &mut RawSocket, n: usize) -> bool {
    let padding = "x".repeat(EVENT_BYTES);
    writer.send(&format!(r#"42{n}["realtime-event",{{"type":"t","payload":"{padding}"}}]"#)).await;
    let (ack, mut gone) = (format!("43{n}["), false);
    loop {
        let text = writer.next().await;
        gone |= is_gone(&text);
        if text.starts_with(&ack) {
            assert!(text.contains(r#""ok":true"#), "{text}");
            return gone;
        }
    }
}

fn is_gone(text: &str) -> bool {
    text.starts_with("42[\"device-disconnected\"")
}

/// Two good devices, while the others are cut: every event arrives once and in order, every update too.
async fn chat(phone: &Device, laptop: &Device) {
    for n in 0..200 {
        accepted(&phone.emit_ack("realtime-event", json!({"type": "chat", "payload": n})).await);
        phone.update("chat", json!(n)).await;
        assert_eq!(laptop.next("realtime-event").await["payload"], n);
        assert_eq!(laptop.next("session-updated").await["state"], n);
        // They are people, and it is to last as long as the others take.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(laptop.events("realtime-event").len(), 200, "each once");
}

/// Of the live state that a user may have, in states of the greatest size.
const BIG_KEYS: usize = 12;

#[tokio::test]
async fn whoever_asks_for_much_at_once_gets_all_of_it_on_either_transport() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let writer = Device::connect(&node, &ann).await;
    for key in 0..BIG_KEYS {
        let state = json!({"count": 0, "padding": "x".repeat(250 * 1_024)});
        writer.update(&format!("k{key}"), state).await;
    }
    for transport in ["websocket", "polling"] {
        let device = Device::options(&node, &ann).transports(&[transport]).connect().await;
        // Sessions: each far more than may wait for a device.
        for ack in device.emit_ack_all("session-get", vec![json!({}); 4]).await {
            let ack = ack.unwrap();
            assert_eq!(
                ack["sessionData"].as_object().map(serde_json::Map::len),
                Some(BIG_KEYS),
                "{transport}"
            );
        }
        // Writes whose acks hold what became of them.
        let ops = json!([{"op": "inc", "path": "/count", "value": 1}]);
        let write = json!({"sessionKey": "k0", "ops": ops});
        for ack in device.emit_ack_all("session-update", vec![write; 10]).await {
            accepted(&ack.unwrap());
        }
        assert_eq!(device.events("$disconnect"), Vec::<Value>::new(), "{transport}");
    }
    let session = node.rest_of(&ann).get("/api/session?keys=k0").await.expect(200);
    assert_eq!(session["sessionData"]["k0"]["count"], 20);
    assert_eq!(node.metric("tandem_disconnects_total{reason=\"slow_consumer\"}").await, 0.0);
}
