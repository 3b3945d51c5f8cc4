//! A power cut: the disk as it is at one moment, the page cache lost.
//!
//! The database lies on an ext4 image mounted through a loop device (see `DiskImage`), which needs root. The node
//! is frozen while the image is copied, so that the copy is of one moment; whatever it had acknowledged until then
//! has to be in the copy. The same with NORMAL has to lose writes, or the test proves nothing.

use std::sync::Mutex;

use serde_json::json;
use tokio::sync::watch;

use crate::replica::number;
use crate::support::{Account, Device, DiskImage, Env, Node, within_secs};

/// Acks after which the power goes.
const ACKS: usize = 500;

const DEVICES: usize = 5;

#[tokio::test]
async fn a_power_cut_loses_none_of_500_acked_updates() {
    let Some(lost) = lost_in_a_power_cut(&Env::new()).await else {
        return;
    };
    assert_eq!(lost, Vec::<String>::new(), "with the shipped settings");
}

#[tokio::test]
async fn the_power_cut_test_notices_a_database_that_does_not_sync() {
    let env = Env::new().set("SQLITE_SYNCHRONOUS", "NORMAL");
    let Some(lost) = lost_in_a_power_cut(&env).await else {
        return;
    };
    assert!(!lost.is_empty(), "NORMAL lost nothing, so the test proves nothing");
}

/// Cuts the power after 500 acks and says which acknowledged writes are gone; `None` where images cannot be
/// mounted.
async fn lost_in_a_power_cut(env: &Env) -> Option<Vec<String>> {
    let disk = match DiskImage::mount() {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("SKIPPED, and so unproven here: {reason}");
            return None;
        }
    };
    let mut node = Node::start_in(&disk.path(), env).await;
    let ann = node.register("ann").await;
    // The account is on the disk whatever the settings are: what is lost is asked for in its name.
    rustix::fs::sync();
    let mut devices = Vec::new();
    for _ in 0..DEVICES {
        devices.push(Device::connect(&node, &ann).await);
    }

    let (acked, count) = (Mutex::new(Vec::new()), watch::Sender::new(0));
    let mut enough = count.subscribe();
    let writing = devices.iter().enumerate().map(|(index, device)| write(index, device, &acked, &count));
    tokio::select! {
        _ = futures_util::future::join_all(writing) => unreachable!("they write until the power goes"),
        result = within_secs(60, enough.wait_for(|acks| *acks >= ACKS)) => drop(result.unwrap()),
    }
    node.stop();
    let after = disk.after_power_cut();
    let acked = acked.into_inner().unwrap();
    assert!(acked.len() >= ACKS);
    drop(devices);
    node.kill_9();

    let lost = missing(&after, env, &ann, &acked).await;
    eprintln!("{} of {} acknowledged updates lost", lost.len(), acked.len());
    Some(lost)
}

/// Writes one key of its own again and again, one write at a time, and notes what was acknowledged.
async fn write(
    index: usize,
    device: &Device,
    acked: &Mutex<Vec<(String, u64)>>,
    count: &watch::Sender<usize>,
) {
    for n in 1_u64.. {
        let key = format!("device-{index}-{}", n % 3);
        let ack = device.update(&key, json!({"n": n, "padding": "x".repeat(200)})).await;
        acked.lock().unwrap().push((key, number(&ack["version"])));
        count.send_modify(|count| *count += 1);
    }
}

/// Which acknowledged versions a node that starts on the surviving disk no longer knows.
async fn missing(disk: &DiskImage, env: &Env, account: &Account, acked: &[(String, u64)]) -> Vec<String> {
    let node = Node::start_in(&disk.path(), env).await;
    let session = node.rest_of(account).get("/api/session").await.expect(200);
    let known = |key: &str| session["versions"][key].as_u64().unwrap_or(0);
    let missing = acked.iter().filter(|(key, version)| known(key) < *version);
    missing.map(|(key, version)| format!("{key} version {version}")).collect()
}
