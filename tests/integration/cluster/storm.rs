//! Many clients that lose their connections at one moment.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use super::{all_list_online, sorted};
use crate::support::{ChaosProxy, Cluster, Device, Env, short_or_long, within_secs};

const NODES: usize = 3;

/// Within this everybody is restored.
const RESTORED_WITHIN_SECONDS: u64 = 20;

/// Devices that connect at the same time at the start.
const CONNECTING: usize = 25;

#[tokio::test]
async fn after_a_storm_of_reconnections_everybody_is_restored_within_20_s_as_themselves() {
    let (sockets, users) = short_or_long((200, 20), (2_000, 200));
    let cluster = Cluster::start_with(NODES, &Env::new()).await;
    let mut proxies = Vec::new();
    for node in &cluster.nodes {
        proxies.push(ChaosProxy::start(node.address()).await);
    }
    let mut accounts = Vec::new();
    for user in 0..users {
        let account = cluster.register(&format!("user{user}")).await;
        let keys =
            (0..20).map(|n| json!({"sessionKey": format!("k{n}"), "state": {"text": "x".repeat(200)}}));
        cluster.connect(0, &account).await.emit_ack_all("session-update", keys.collect()).await;
        accounts.push(account);
    }
    let mut devices: Vec<Device> = Vec::new();
    for start in (0..sockets).step_by(CONNECTING) {
        let connecting = (start..sockets.min(start + CONNECTING)).map(|n| {
            let options = Device::options_at(&proxies[n % NODES].url(), &accounts[n % users]);
            options.named(&format!("device {n}")).connect()
        });
        devices.extend(join_all(connecting).await);
    }
    let before: Vec<_> = devices.iter().map(|device| device.id().to_owned()).collect();

    let began = Instant::now();
    // Every client goes to another node than before.
    for (n, proxy) in proxies.iter().enumerate() {
        proxy.retarget(cluster.nodes[(n + 1) % NODES].address());
        proxy.cut();
    }
    let restored = join_all(devices.iter().map(|device| {
        device.until("session-restored", RESTORED_WITHIN_SECONDS, |seen| {
            (seen.len() >= 2).then(|| seen[1].clone())
        })
    }));
    let restored = within_secs(RESTORED_WITHIN_SECONDS, restored).await;
    println!("{sockets} sockets were restored within {:?}", began.elapsed());

    for (restored, id) in restored.iter().zip(&before) {
        assert_eq!(restored["deviceId"], id.as_str());
        assert_eq!(restored["sessionData"].as_object().unwrap().len(), 20);
    }
    for (user, account) in accounts.iter().enumerate().take(3) {
        let ids = before.iter().skip(user).step_by(users).map(String::as_str);
        all_list_online(&cluster, account, &sorted(ids)).await;
    }
}
