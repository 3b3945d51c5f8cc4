//! The clock of one node jumps two hours ahead and back: order, versions, presence and logins go on as before.

use serde_json::{Value, json};

use super::{all_list_online, session_everywhere, sorted};
use crate::replica::number;
use crate::support::{Account, Cluster, FakeClock, Node};

/// Right, two hours ahead, two hours behind, right again.
const JUMPS: [i32; 4] = [0, 2, -2, 0];

#[tokio::test]
async fn a_clock_that_jumps_two_hours_changes_neither_order_nor_presence_nor_logins() {
    let clock = FakeClock::new();
    let mut cluster = Cluster::start(2).await;
    cluster.add_node_with(|env| clock.env(env)).await;
    const OFF: usize = 2;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(OFF, &ann, "Laptop").await;
    let tablet = cluster.named(1, &ann, "Tablet").await;
    let everybody = sorted([phone.id(), laptop.id(), tablet.id()]);
    let mut writes = 0;

    for hours in JUMPS {
        clock.is_off_by_hours(hours);
        assert_eq!(hours_between(&cluster.nodes[OFF], &cluster.nodes[0], &ann).await, i64::from(hours));

        for writer in [&phone, &laptop, &phone, &laptop] {
            let ack = writer.update("note", json!({"n": writes})).await;
            writes += 1;
            assert_eq!((number(&ack["version"]), number(&ack["seq"])), (writes, writes));
        }
        for (from, to) in [(&phone, &laptop), (&laptop, &phone)] {
            let sent = from.emit_ack("device-message", json!({"targetDeviceId": to.id(), "message": writes}));
            assert_eq!(sent.await["status"], "delivered");
            assert_eq!(
                to.next_where("device-message", |got| got["message"] == writes).await["message"],
                writes
            );
        }

        // Away and back through the node that is off, and exactly what was missed.
        // Known by its name alone, which is new each time: who was seen last is a question of the clock.
        let mut watch = cluster.named(OFF, &ann, &format!("Watch {writes}")).await;
        watch.disconnect().await;
        all_list_online(&cluster, &ann, &everybody).await;
        let kept = json!({"targetDeviceId": watch.id(), "message": "kept"});
        assert_eq!(laptop.emit_ack("device-message", kept.clone()).await["status"], "queued");
        let missed = tablet.update("note", json!({"n": writes})).await;
        writes += 1;
        watch.reconnect().await;
        let restored = watch.restored_again().await;
        assert_eq!(restored["deviceId"], kept["targetDeviceId"]);
        assert_eq!(restored["versions"]["note"], missed["version"]);
        assert_eq!(restored["seq"], missed["seq"]);
        watch.next_where("device-message", |got| got["message"] == "kept").await;
        let known = sorted(everybody.iter().map(String::as_str).chain([watch.id()]));
        all_list_online(&cluster, &ann, &known).await;
        watch.disconnect().await;
        all_list_online(&cluster, &ann, &everybody).await;

        // One that comes without an id takes nobody's place who is there.
        let namesake = cluster.named(OFF, &ann, "Phone").await;
        assert!(!everybody.contains(&namesake.id().to_owned()));
        namesake.disconnect().await;
        all_list_online(&cluster, &ann, &everybody).await;

        // A login that starts or ends there is one everywhere, and ends no other.
        let (here, there) = (ann.log_in(&cluster.nodes[0]).await, ann.log_in(&cluster.nodes[OFF]).await);
        for login in [&here, &there] {
            session_everywhere(&cluster, login).await;
        }
        cluster.rest_of(OFF, &there).post("/api/auth/logout", &json!({})).await.expect(204);
        for node in 0..cluster.nodes.len() {
            cluster.rest_of(node, &there).get("/api/session").await.expect_error(401, "unauthorized");
        }
        session_everywhere(&cluster, &here).await;
    }

    phone.caught_up_with(&laptop).await;
    tablet.caught_up_with(&phone).await;
    for device in [&phone, &laptop, &tablet] {
        let seqs: Vec<_> =
            device.events("session-updated").iter().map(|event| number(&event["seq"])).collect();
        assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
        assert_eq!(
            device.events("device-disconnected").iter().filter(|gone| is_of(gone, &everybody)).count(),
            0
        );
    }
    assert!(cluster.nodes.iter().all(|node| !node.log().contains("panicked")));
}

fn is_of(gone: &Value, devices: &[String]) -> bool {
    devices.iter().any(|device| gone["deviceId"] == **device)
}

/// How many hours later it is for one node than for another.
async fn hours_between(node: &Node, other: &Node, account: &Account) -> i64 {
    let ends = [token_ends(node, account).await, token_ends(other, account).await];
    ((ends[0] - ends[1]).num_seconds() as f64 / 3_600.0).round() as i64
}

/// When a token ends that the node signs now; all live as long.
async fn token_ends(node: &Node, account: &Account) -> chrono::DateTime<chrono::FixedOffset> {
    let credentials = json!({"email": account.email, "password": account.password});
    let login = node.rest().post("/api/auth/login", &credentials).await.expect(200);
    chrono::DateTime::parse_from_rfc3339(login["expiresAt"].as_str().unwrap()).unwrap()
}
