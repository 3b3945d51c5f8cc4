//! Connections that are begun and abandoned, tens of thousands of them, at every stage of their life: nothing of
//! them stays behind.

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::{
    Account, Canary, Env, Node, RawTcp, client_frame, eventually, short_or_long, within_secs,
};

/// Under way at once.
const AT_ONCE: usize = 32;

const USERS: usize = 50;

/// What may be more in the end than after the first sixth, when all pools and caches are warm.
const GROWTH_KIB_MAX: u64 = 20 * 1_024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_thousand_abandoned_connections_leave_nothing_behind() {
    let all = short_or_long(3_000, 30_000);
    let env = Env::new()
        .set("LOG", "info,tandem::socket=warn")
        .set("DISCONNECT_GRACE_SECONDS", 0.5)
        // What is kept of a device is a record, and not what is looked for here.
        .set("LIMIT_DEVICES_PER_USER", 30)
        .set("PING_INTERVAL_SECONDS", 1)
        .set("PING_TIMEOUT_SECONDS", 3);
    let node = Node::start(&env).await;
    // So many that hardly two connections at a time are of one user, whose connects take turns.
    let mut users = Vec::new();
    for n in 0..USERS {
        users.push(node.register(&format!("user-{n}")).await);
    }
    let files = node.metric("process_open_fds").await;

    // The first sixth warms pools and caches, and fills the users' lists of devices.
    let mut resident = Vec::new();
    for sixth in 0..6 {
        cycles(&node, &users, sixth * all / 6..(sixth + 1) * all / 6).await;
        resident.push(at_rest(&node, files).await);
    }

    println!("resident after each sixth of {all} cycles: {resident:?} KiB");
    let (warm, last) = (resident[0], resident[5]);
    assert!(last.saturating_sub(warm) <= GROWTH_KIB_MAX.max(warm / 10), "it grew: {resident:?} KiB");
    Canary::on(&node).await.sings_after("all of them").await;
}

async fn cycles(node: &Node, users: &[Account], numbers: std::ops::Range<usize>) {
    let silent = Mutex::new(JoinSet::new());
    let cycle = async |n: usize| {
        if let Some(left_alone) = begin_and_abandon(node, &users[n % users.len()], n).await {
            // The heartbeat ends it; meanwhile the others go on.
            silent.lock().await.spawn(async move {
                let mut tcp = left_alone;
                tcp.read_to_close(60).await
            });
        }
    };
    within_secs(900, stream::iter(numbers).for_each_concurrent(AT_ONCE, cycle)).await;
    let mut silent = silent.into_inner();
    while let Some(ended) = silent.join_next().await {
        ended.expect("the server ends a silent connection");
    }
}

/// One of sixteen ways to go; a connection that comes back is open and says nothing more.
async fn begin_and_abandon(node: &Node, user: &Account, n: usize) -> Option<RawTcp> {
    let connect = |name: String| {
        let connect = format!("40{}", json!({"token": user.token, "deviceInfo": {"name": name}}));
        client_frame(0x81, connect.as_bytes())
    };
    let way = n % 16;
    let tcp = match way {
        0 => RawTcp::open(node).await,
        1 => sent(RawTcp::open(node).await, b"GET /socket.io/?EIO=4&transp").await,
        2 => {
            let polling = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: tandem\r\n\r\n";
            let mut tcp = sent(RawTcp::open(node).await, polling).await;
            tcp.read_until("\"sid\"").await;
            tcp
        }
        3 => RawTcp::upgraded(node).await,
        4 => sent(RawTcp::upgraded(node).await, &client_frame(0x81, b"40{}")).await,
        5 => sent(RawTcp::upgraded(node).await, &connect(format!("new-{n}"))[..20]).await,
        // Nobody waits for the restore: of a new device, of one that was there before.
        6 => sent(RawTcp::upgraded(node).await, &connect(format!("new-{n}"))).await,
        7 => sent(RawTcp::upgraded(node).await, &connect("old".to_owned())).await,
        8 => {
            let update = r#"421["session-update",{"sessionKey":"k","state":{"n":1}}]"#;
            sent(RawTcp::joined_at_last(node, &user.token).await, &client_frame(0x81, update.as_bytes()))
                .await
        }
        9 => {
            let event = format!(r#"421["realtime-event",{{"type":"t","payload":{n}}}]"#);
            sent(RawTcp::joined_at_last(node, &user.token).await, &client_frame(0x81, event.as_bytes())).await
        }
        10 => sent(RawTcp::joined_at_last(node, &user.token).await, &client_frame(0x81, b"41")).await,
        11 => sent(RawTcp::joined_at_last(node, &user.token).await, &client_frame(0x88, b"")).await,
        _ => RawTcp::joined_at_last(node, &user.token).await,
    };
    if way == 15 {
        return Some(tcp);
    }
    tcp.abandon();
    None
}

async fn sent(mut tcp: RawTcp, bytes: &[u8]) -> RawTcp {
    // It may be closed already: that is a way to go, too.
    drop(tcp.write(bytes).await);
    tcp
}

/// Waits until no connection, device or file is left of what was, and says what memory is.
async fn at_rest(node: &Node, files: f64) -> u64 {
    let gauges = ["tandem_sockets", "tandem_users", "tandem_store_queue"];
    eventually("nobody is there any more", || async {
        for gauge in gauges {
            if node.metric(gauge).await > 0.5 {
                return None;
            }
        }
        // The question itself comes over one; the store opens some as it needs them.
        let connections = node.metric("tandem_tcp_connections").await;
        let open = node.metric("process_open_fds").await;
        (connections < 1.5 + f64::EPSILON && open <= files + 16.0).then_some(())
    })
    .await;
    node.memory_kib().0
}
