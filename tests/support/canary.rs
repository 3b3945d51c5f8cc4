//! Good clients that have to be served whatever others have just done: two devices that were there before, and one
//! that comes new each time.

use serde_json::json;
use tokio::sync::Mutex;

use super::{Account, Device, Node, Rest};

/// A bad row may cost its own connection, never a word of these.
pub struct Canary<'a> {
    node: &'a Node,
    account: Account,
    phone: Device,
    laptop: Device,
    /// Rows that end at the same time are heard one after the other.
    singing: Mutex<()>,
}

impl<'a> Canary<'a> {
    /// An account of its own with two devices.
    pub async fn on(node: &'a Node) -> Self {
        let account = node.register(&format!("canary-{}", uuid::Uuid::new_v4())).await;
        let phone = Device::named(node, &account, "Phone").await;
        let laptop = Device::named(node, &account, "Laptop").await;
        Self { node, account, phone, laptop, singing: Mutex::default() }
    }

    /// Fails unless, after `row`, the old devices still exchange an update, a new one is restored and heard, REST
    /// answers, and the node's log tells of no defect.
    pub async fn sings_after(&self, row: &str) {
        let _alone = self.singing.lock().await;
        let mark = json!(uuid::Uuid::new_v4());
        self.phone.update("song", mark.clone()).await;
        self.laptop.next_where("session-updated", |update| update["state"] == mark).await;

        let newcomer = Device::named(self.node, &self.account, "Newcomer").await;
        assert_eq!(newcomer.restored()["sessionData"]["song"], mark, "after {row}");
        newcomer.emit("realtime-event", json!({"type": "song", "payload": mark})).await;
        self.phone.next_where("realtime-event", |event| event["payload"] == mark).await;

        let rest = self.node.rest_of(&self.account);
        let health = Rest::send(rest.request(reqwest::Method::GET, "/api/health/ready")).await;
        assert_eq!((health.status, rest.get("/api/session/song").await.body), (200, mark), "after {row}");
        let log = self.node.log();
        let defect =
            log.lines().find(|line| line.contains("panicked") || line.contains(r#""level":"ERROR""#));
        assert_eq!(defect, None, "after {row}");
    }
}
