//! The stock client's own retries through a line that loses acks: every write is applied exactly once.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{ChaosProxy, Device, Env, Node};

const DEVICES: usize = 10;
const WRITES: usize = 2_000;

#[tokio::test]
async fn writes_with_an_op_id_are_applied_once_however_often_they_are_sent() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let proxy = ChaosProxy::start(node.address()).await;
    let connecting = (0..DEVICES).map(|index| {
        let options = Device::options_at(&proxy.url(), &ann).named(&format!("device {index}"));
        options.transports(&["websocket"]).option("retries", 3).option("ackTimeout", 300).connect()
    });
    let devices = join_all(connecting).await;
    proxy.lose_acks(0.05);

    let writing = devices.iter().enumerate().map(|(index, device)| async move {
        let mut acked = 0;
        for write in 0..WRITES / DEVICES {
            let ops = json!([{"op": "inc", "path": "/count", "value": 1}]);
            let payload = json!({"sessionKey": "counter", "ops": ops, "opId": format!("{index}-{write}")});
            let answer = device.try_emit_ack("session-update", vec![payload]).await;
            acked += u64::from(answer.is_ok_and(|ack| ack["ok"] == true));
        }
        acked
    });
    let acked: u64 = join_all(writing).await.into_iter().sum();
    let lost = proxy.acks_lost();
    proxy.restore();

    assert!(lost > WRITES as u64 / 100, "only {lost} acks were lost: this would prove nothing");
    let rest = node.rest_of(&ann);
    // A retry that is still on its way when its client gave up may yet arrive: acked is the least.
    let session = rest.get("/api/session").await.expect(200);
    let count = session["sessionData"]["counter"]["count"].as_u64().unwrap_or(0);
    assert_eq!(session["versions"]["counter"], count, "each applied write counts once");
    assert!((acked..=WRITES as u64).contains(&count), "{acked} acked, {count} applied, {WRITES} sent");
}
