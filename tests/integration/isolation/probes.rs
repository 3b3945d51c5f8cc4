//! Another's ids on every route and every event, beside ids of nobody: the answers have to be the same.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::leaks;
use super::person::{Person, TRIED_KEY};
use super::shape;
use crate::support::{Cluster, Device, Rest};

/// Operations that name nothing but their caller. Those with a token or a refresh token act for whoever holds it.
pub const ROUTES_WITHOUT_IDS: [&str; 12] = [
    "POST /api/auth/register",
    "POST /api/auth/login",
    "POST /api/auth/refresh",
    "POST /api/auth/logout",
    "POST /api/auth/logout-all",
    "GET /api/devices",
    "GET /api/health",
    "GET /api/health/live",
    "GET /api/health/ready",
    "GET /metrics",
    "GET /api/openapi.json",
    "GET /api/asyncapi.json",
];

/// Likewise.
pub const EVENTS_WITHOUT_IDS: [&str; 0] = [];

/// What somebody else could have got to know of a person.
pub struct Victim {
    devices: [String; 3],
    user: String,
    key: String,
    message_ids: [String; 2],
    op_id: String,
    token: String,
    password: String,
    position: String,
}

impl Victim {
    pub async fn of(person: &Person) -> Self {
        let session = person.rest.get("/api/session").await.expect(200);
        let ids = person.message_ids.lock().unwrap().clone();
        Self {
            devices: [person.phone.id(), person.laptop.id(), &person.tablet_id].map(str::to_owned),
            user: person.account.id.clone(),
            key: person.key(),
            message_ids: ids.try_into().expect("two ids"),
            op_id: person.op_id(),
            token: person.account.token.clone(),
            password: person.account.password.clone(),
            position: format!("{}:{}", session["epoch"].as_str().unwrap(), session["seq"]),
        }
    }

    fn nobody(of: &Self) -> Self {
        let id = || uuid::Uuid::now_v7().to_string();
        Self {
            devices: [id(), id(), id()],
            user: id(),
            key: format!("key-{}", id()),
            message_ids: [id(), format!("m-{}", id())],
            op_id: format!("op-{}", id()),
            token: "nobody's".to_owned(),
            password: format!("{}'s long password", id()),
            position: of.position.clone(),
        }
    }

    /// `text` without the ids that its reader gave itself.
    fn unnamed(&self, text: &str) -> String {
        let names = self.devices.iter().chain(&self.message_ids);
        let names = names.chain([&self.user, &self.key, &self.op_id]);
        names
            .enumerate()
            .fold(text.to_owned(), |text, (place, name)| text.replace(name, &format!("<{place}>")))
    }
}

/// Tries what is each other's, and beside it what is nobody's; the names of what was tried.
pub async fn try_everything(person: &Person, others: impl Iterator<Item = &Victim>) -> BTreeSet<String> {
    let mut tried = BTreeSet::new();
    let mut expected = None;
    for victim in others {
        if expected.is_none() {
            expected = Some(answers(person, &Victim::nobody(victim)).await);
        }
        let answers = answers(person, victim).await;
        let expected = expected.as_ref().expect("made above");
        assert_eq!(answers.len(), expected.len());
        for ((name, answer), (_, nobodys)) in answers.iter().zip(expected) {
            assert_eq!(answer, nobodys, "{name} tells another's ids from nobody's");
            leaks::without_canaries(&answer.replace(&person.canary, "own"));
            tried.insert(name.clone());
        }
    }
    tried
}

/// The answers to everything that can be tried with these ids, by what was tried.
async fn answers(person: &Person, victim: &Victim) -> Vec<(String, String)> {
    let mut answers = Vec::new();
    for (event, payload) in events(person, victim) {
        let ack = person.phone.emit_ack(event, payload).await;
        answers.push((event.to_owned(), victim.unnamed(&shape(&ack).to_string())));
    }
    for (method, route, path, body) in requests(victim) {
        let mut request = person.rest.request(method.clone(), &path);
        if [Method::PUT, Method::PATCH].contains(&method) && path.starts_with("/api/session") {
            // What there is not is not to be made: that would write a key of one's own.
            request = request.header("if-match", "\"1\"");
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let reply = Rest::send(request).await;
        let mut headers: Vec<_> = reply.headers.keys().map(ToString::to_string).collect();
        headers.sort();
        let answer = format!("{} {headers:?} {}", reply.status, shape(&reply.body));
        answers.push((format!("{method} {route}"), victim.unnamed(&answer)));
    }
    answers
}

fn events(person: &Person, victim: &Victim) -> Vec<(&'static str, Value)> {
    let [phone, laptop, tablet] = &victim.devices;
    let mut events = Vec::new();
    for target in [json!(phone), json!(laptop), json!(tablet), json!(victim.user), json!(victim.devices)] {
        events.push(("device-message", json!({"targetDeviceId": target, "message": "tried"})));
    }
    let mixed = json!([person.laptop.id(), phone]);
    events.push(("device-message", json!({"targetDeviceId": mixed, "message": "tried"})));
    for id in &victim.message_ids {
        events.push(("device-message-ack", json!({"messageId": id})));
        // Taken as a new one: another's ids are not one's own.
        let own = json!({"targetDeviceId": person.tablet_id, "message": "tried", "messageId": id});
        events.push(("device-message", own));
    }
    events.push(("realtime-event", json!({"type": "tried", "payload": 1, "to": victim.devices})));
    events.push(("session-get", json!({"keys": [victim.key]})));
    let (epoch, seq) = victim.position.rsplit_once(':').expect("a position");
    let since = json!({"epoch": epoch, "seq": seq.parse::<u64>().expect("a number")});
    events.push(("session-get", json!({"keys": [victim.key], "since": since})));
    for base in [1, 2] {
        let write = json!({"sessionKey": victim.key, "state": "tried", "baseVersion": base});
        events.push(("session-update", write));
    }
    events.push(("session-delete", json!({"sessionKey": victim.key})));
    let named = json!({"sessionKey": TRIED_KEY, "state": "tried", "opId": victim.op_id});
    events.push(("session-update", named));
    events.push(("auth-refresh", json!({"token": victim.token})));
    events
}

/// Method, route, path and body.
fn requests(victim: &Victim) -> Vec<(Method, &'static str, String, Value)> {
    let mut requests = Vec::new();
    for id in victim.devices.iter().chain([&victim.user]) {
        let path = format!("/api/devices/{id}");
        requests.push((Method::PATCH, "/api/devices/{id}", path.clone(), json!({"name": "tried"})));
        requests.push((Method::DELETE, "/api/devices/{id}", path, Value::Null));
    }
    let key = &victim.key;
    let path = format!("/api/session/{key}");
    requests.push((Method::GET, "/api/session", format!("/api/session?keys={key}"), Value::Null));
    let since = format!("/api/session?keys={key}&since={}", victim.position);
    requests.push((Method::GET, "/api/session", since, Value::Null));
    for (method, body) in [
        (Method::GET, Value::Null),
        (Method::PUT, json!("tried")),
        (Method::PATCH, json!({"tried": 1})),
        (Method::DELETE, Value::Null),
    ] {
        requests.push((method, "/api/session/{key}", path.clone(), body));
    }
    requests.push((Method::GET, "/api/session/{key}/history", format!("{path}/history"), Value::Null));
    let restore = format!("{path}/restore");
    requests.push((Method::POST, "/api/session/{key}/restore", restore, json!({"version": 1})));
    let passwords = json!({"current": victim.password, "new": "a new long password"});
    requests.push((Method::POST, "/api/auth/password", "/api/auth/password".to_owned(), passwords));
    let password = json!({"password": victim.password});
    requests.push((Method::DELETE, "/api/account", "/api/account".to_owned(), password));
    requests
}

/// Connects under the id of another's device: a fresh one, as with an id of nobody's.
pub async fn come_as(cluster: &Cluster, person: &Person, victim: &Victim) {
    let nobody = Victim::nobody(victim);
    for (node, id) in cluster.nodes.iter().zip([&victim.devices[0], &nobody.devices[0]]) {
        let options = Device::options(node, &person.account).auth("deviceId", id.clone());
        let device = options.named("tried").connect().await;
        assert_ne!(device.id(), id);
        let restored = device.restored();
        let names: Vec<_> = restored.as_object().unwrap().keys().collect();
        assert_eq!(restored["queuedMessages"], 0, "{names:?}");
        assert!(!restored.to_string().contains(id.as_str()));
        device.disconnect().await;
    }
}
