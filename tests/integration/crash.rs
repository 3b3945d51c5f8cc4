//! kill -9 under load: what was acknowledged is there, everybody converges, the order has no holes.

use serde_json::Value;

use crate::replica::{Replica, number};
use crate::support::{Device, Env, Node, within, within_secs};
use crate::writers::{History, stored_changes, versions_are_1_to_n, write_until_acked};

const USERS: usize = 5;
const DEVICES_EACH: usize = 2;
const WRITES_EACH: usize = 500;

/// Acks after which the node is killed, of 5,000.
const KILLS_AT: [usize; 3] = [1_000, 2_500, 4_000];

#[tokio::test]
async fn kill_9_during_5_000_updates_loses_no_acked_one_and_everybody_converges() {
    let mut node = Node::start(&Env::new()).await;
    let mut accounts = Vec::new();
    let mut devices = Vec::new();
    for user in 0..USERS {
        let account = node.register(&format!("user{user}")).await;
        for device in 0..DEVICES_EACH {
            let named = Device::named(&node, &account, &format!("device {device}")).await;
            devices.push((user, named));
        }
        accounts.push(account);
    }
    let history = History::default();

    let writing = devices
        .iter()
        .enumerate()
        .map(|(index, (user, device))| write_until_acked(&history, *user, index, device, WRITES_EACH));
    let killing = async {
        let mut count = history.count.subscribe();
        for kill_at in KILLS_AT {
            within_secs(60, count.wait_for(|count| *count >= kill_at)).await.unwrap();
            node.kill_9();
            node.restart().await;
        }
    };
    within_secs(120, async { tokio::join!(futures_util::future::join_all(writing), killing) }).await;

    let acked = history.acked.into_inner().unwrap();
    assert_eq!(acked.len(), USERS * DEVICES_EACH * WRITES_EACH);
    for (user, account) in accounts.iter().enumerate() {
        let session = node.rest_of(account).get("/api/session").await.expect(200);
        for (index, (_, device)) in devices.iter().enumerate().filter(|(_, (owner, _))| *owner == user) {
            let own = acked.iter().filter(|one| one.device == index);
            let own: Vec<_> = own.map(|one| (one.key.as_str(), &one.state, &one.ack)).collect();
            within(async {
                let converged = |_: &[Value]| {
                    let replica = Replica::of(&device.seen()).with_acks(own.iter().copied());
                    replica.equals(&session).then_some(())
                };
                device.until("session-updated", 10, converged).await;
            })
            .await;
        }
        let stored = stored_changes(&node, &account.id).await;
        let head = number(&session["seq"]);
        assert_eq!(stored.keys().copied().collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
        for one in acked.iter().filter(|one| one.user == user) {
            let row = &stored[&number(&one.ack["seq"])];
            let expected = (one.key.clone(), number(&one.ack["version"]), one.state.clone());
            assert_eq!(*row, expected, "an acked write is stored as it was acked");
        }
        versions_are_1_to_n(&stored);
    }
}
