//! A user of many: two devices on two nodes, one that is away, and a life in which every value carries the canary.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::leaks::CANARY;
use crate::answers::accepted;
use crate::support::{Account, Cluster, Device, Reply, Rest, SENTINEL_KEY, eventually};

/// Messages that wait for the device that is away.
const WAITING: usize = 2;

pub struct Person {
    pub canary: String,
    pub account: Account,
    pub rest: Rest,
    pub phone: Device,
    pub laptop: Device,
    /// Connected once and away since.
    pub tablet_id: String,
    /// Of a message that waits: the server's own id, and one of the sender's.
    pub message_ids: Mutex<Vec<String>>,
    /// Everything that was answered in this life.
    answers: Mutex<Vec<String>>,
}

impl Person {
    /// Registers and connects; every other one is at home on the other node.
    pub async fn settle(cluster: &Cluster, index: usize) -> Self {
        let canary = format!("{CANARY}{}", uuid::Uuid::new_v4().simple());
        let (near, far) = (&cluster.nodes[index % 2], &cluster.nodes[(index + 1) % 2]);
        let account = near.register(&canary).await;
        let device = |node, name: &str| {
            let info = json!({"name": format!("{name} {canary}"), "type": "test", "owner": canary});
            Device::options(node, &account).device_info(&info)
        };
        let phone = device(near, "Phone").connect().await;
        let laptop = device(far, "Laptop").connect().await;
        let tablet = device(far, "Tablet").without_reconnection().connect().await;
        let tablet_id = tablet.id().to_owned();
        let is_tablet = |event: &Value| event["deviceId"] == *tablet_id;
        phone.next_where("device-connected", is_tablet).await;
        tablet.disconnect().await;
        phone.next_where("device-disconnected", is_tablet).await;
        let rest = near.rest_of(&account);
        let (message_ids, answers) = Default::default();
        Self { canary, account, rest, phone, laptop, tablet_id, message_ids, answers }
    }

    /// The key that only this person has.
    pub fn key(&self) -> String {
        format!("key-{}", self.canary)
    }

    /// The id of a write of this person's.
    pub fn op_id(&self) -> String {
        format!("op-{}", self.canary)
    }

    /// Whatever names something of this person's.
    pub fn ids(&self) -> Vec<String> {
        let own = [&self.account.id, self.phone.id(), self.laptop.id(), &self.tablet_id].map(str::to_owned);
        own.into_iter().chain(self.message_ids.lock().unwrap().clone()).collect()
    }

    fn told(&self, text: String) {
        self.answers.lock().unwrap().push(text);
    }

    async fn says(&self, event: &str, payload: Value) -> Value {
        let ack = self.phone.emit_ack(event, payload).await;
        accepted(&ack);
        self.told(ack.to_string());
        ack
    }

    async fn heard(&self, reply: Reply) -> Value {
        assert!(reply.status < 300, "{}", reply.text);
        self.told(format!("{:?} {}", reply.headers, reply.text));
        reply.body
    }

    /// Uses everything there is.
    pub async fn live(&self) {
        let (canary, key) = (&self.canary, self.key());
        let value = json!({"secret": canary, "list": [canary]});
        for name in [&key, "shared"] {
            self.says("session-update", json!({"sessionKey": name, "state": value})).await;
        }
        let patch = json!({"sessionKey": "shared", "patch": {"patched": canary}, "opId": self.op_id()});
        self.says("session-update", patch).await;
        let ops = json!([{"op": "add", "path": "/list", "value": format!("more {canary}")}]);
        self.says("session-update", json!({"sessionKey": key, "ops": ops})).await;
        let gone = format!("gone-{canary}");
        self.says("session-update", json!({"sessionKey": gone, "state": canary})).await;
        self.says("session-delete", json!({"sessionKey": gone})).await;
        self.says("session-get", json!({})).await;
        let event = json!({"type": format!("type-{canary}"), "payload": value, "coalesce": canary});
        self.says("realtime-event", event).await;
        self.says("auth-refresh", json!({"token": self.account.token})).await;

        self.says("device-message", json!({"targetDeviceId": self.laptop.id(), "message": value})).await;
        let kept =
            self.says("device-message", json!({"targetDeviceId": self.tablet_id, "message": value})).await;
        assert_eq!(kept["status"], "queued", "{kept}");
        let named = format!("m-{canary}");
        let own = json!({"targetDeviceId": "*", "message": value, "messageId": named});
        self.says("device-message", own).await;
        *self.message_ids.lock().unwrap() = vec![kept["messageId"].as_str().unwrap().to_owned(), named];

        let device = format!("/api/devices/{}", self.laptop.id());
        let changed = json!({"name": format!("Renamed {canary}"), "metadata": {"owner": canary}});
        self.heard(self.rest.patch(&device, &changed).await).await;
        let path = format!("/api/session/{key}");
        self.heard(self.rest.put(&path, &json!({"put": canary})).await).await;
        self.heard(self.rest.patch(&path, &json!({"patched": canary})).await).await;
        self.heard(self.rest.get(&format!("{path}/history")).await).await;
        self.heard(self.rest.post(&format!("{path}/restore"), &json!({"version": 1})).await).await;
        for path in [&path, "/api/session", "/api/session?keys=shared", "/api/devices"] {
            self.heard(self.rest.get(path).await).await;
        }
        self.laptop.until("device-message", 20, |seen| (seen.len() >= 2).then_some(())).await;
        self.phone.caught_up_with(&self.laptop).await;
        self.laptop.caught_up_with(&self.phone).await;
    }

    /// What is kept of this person, but for what the tries themselves write.
    pub async fn records(&self) -> Value {
        let session = self.rest.get("/api/session").await.expect(200);
        let devices = self.rest.get("/api/devices").await.expect(200);
        let mut own = Vec::new();
        for device in devices["devices"].as_array().unwrap() {
            if self.ids().iter().any(|id| device["id"] == **id) {
                own.push(json!({"id": device["id"], "name": device["name"], "metadata": device["metadata"],
                                "online": device["online"]}));
            }
        }
        let keys = ["shared".to_owned(), self.key()];
        let states: Vec<_> =
            keys.iter().map(|key| json!([session["sessionData"][key], session["versions"][key]])).collect();
        let tried = |key: &str| [TRIED_KEY, SENTINEL_KEY].contains(&key);
        let others = session["sessionData"].as_object().unwrap().keys();
        let others: Vec<_> = others.filter(|key| !keys.contains(key) && !tried(key)).collect();
        json!({"devices": own, "states": states, "others": others})
    }

    /// Its connections stood through it all, its devices are what they were, and what waits for the one that is
    /// away comes when it does.
    pub async fn nobody_meddled(&self, cluster: &Cluster) {
        self.phone.caught_up_with(&self.laptop).await;
        self.laptop.caught_up_with(&self.phone).await;
        for device in [&self.phone, &self.laptop] {
            for event in ["error", "$disconnect", "device-removed"] {
                assert_eq!(device.events(event), Vec::<Value>::new(), "{event}");
            }
            let renamed = device.events("device-updated").len();
            assert_eq!(renamed, usize::from(device.id() == self.phone.id()), "device-updated");
        }
        let tablet =
            Device::options(&cluster.nodes[0], &self.account).auth("deviceId", self.tablet_id.clone());
        let tablet = tablet.connect().await;
        assert_eq!(tablet.id(), self.tablet_id);
        let own =
            |seen: &[Value]| seen.iter().filter(|event| event["message"]["secret"] == *self.canary).count();
        tablet.until("device-message", 20, |seen| (own(seen) >= WAITING).then_some(())).await;
        eventually("nothing waits any more", || async {
            let again = tablet.events("device-message");
            (again.len() as u64 >= tablet.restored()["queuedMessages"].as_u64().unwrap()).then_some(again)
        })
        .await
        .iter()
        .for_each(|event| assert_eq!(event["sourceDeviceId"], self.phone.id(), "{event}"));
        assert_eq!(own(&tablet.events("device-message")), WAITING);
    }

    /// Every event of its devices and every answer.
    pub async fn all_it_was_told(&self) -> Vec<String> {
        let seen = [&self.phone, &self.laptop].into_iter().flat_map(Device::seen);
        let seen = seen.map(|received| format!("{} {}", received.name, json!(received.args)));
        let mut told: Vec<_> = seen.collect();
        assert!(told.len() > 20, "its devices heard of its life");
        told.extend(self.answers.lock().unwrap().clone());
        for path in ["/api/session", "/api/devices"] {
            told.push(self.rest.get(path).await.text);
        }
        told
    }
}

/// The key of its own on which a person tries others' op ids.
pub const TRIED_KEY: &str = "tried";
