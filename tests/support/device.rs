//! A device: the stock socket.io-client, as a person's phone or laptop would run it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::driver::Driver;
use super::inbox::{Inbox, Received};
use super::{Account, Node, within, within_secs};

/// How long a client waits for an ack before the test calls it missing.
const ACK_TIMEOUT_MS: u64 = 9_000;

pub struct Device {
    driver: &'static Driver,
    socket: u64,
    inbox: Arc<Inbox>,
    restored: Value,
}

/// What a device connects with. The tests' own defaults are a quick reconnection and WebSocket only; `stock` gives
/// the client's.
#[derive(Clone)]
pub struct DeviceOptions {
    url: String,
    auth: Value,
    query: Value,
    options: Value,
}

impl Device {
    /// Connects as a device of `account` and waits until it is restored.
    pub async fn connect(node: &Node, account: &Account) -> Self {
        Self::options(node, account).connect().await
    }

    /// The same device, described as `{name, type: "test"}`.
    pub async fn named(node: &Node, account: &Account, name: &str) -> Self {
        Self::options(node, account).named(name).connect().await
    }

    pub fn options(node: &Node, account: &Account) -> DeviceOptions {
        Self::options_at(&node.url(), account)
    }

    /// For an address that is no node's own, a proxy's say.
    pub fn options_at(url: &str, account: &Account) -> DeviceOptions {
        DeviceOptions {
            url: url.to_owned(),
            auth: json!({"token": account.token}),
            query: json!({}),
            options: json!({
                "forceNew": true,
                "transports": ["websocket"],
                "reconnectionDelay": 50,
                "reconnectionDelayMax": 500,
                "randomizationFactor": 0,
            }),
        }
    }

    /// The payload of the latest `session-restored` that `connect` or `restored_again` waited for.
    pub fn restored(&self) -> &Value {
        &self.restored
    }

    /// The id that the server gave it.
    pub fn id(&self) -> &str {
        self.restored["deviceId"].as_str().expect("a restored device has an id")
    }

    /// Waits for the next `session-restored`, that of a reconnection.
    pub async fn restored_again(&mut self) -> &Value {
        self.restored = self.next("session-restored").await;
        &self.restored
    }

    /// Emits and waits for the ack's first argument; fails the test if none comes.
    pub async fn emit_ack(&self, event: &str, payload: Value) -> Value {
        self.emit_ack_args(event, vec![payload]).await
    }

    /// The same with any number of arguments.
    pub async fn emit_ack_args(&self, event: &str, args: Vec<Value>) -> Value {
        let answer = self.try_emit_ack(event, args).await;
        answer.unwrap_or_else(|error| panic!("no ack for {event}: {error}"))
    }

    /// The ack, or why the client gave up on it.
    pub async fn try_emit_ack(&self, event: &str, args: Vec<Value>) -> Result<Value, String> {
        let details = json!({"event": event, "args": args, "timeoutMs": ACK_TIMEOUT_MS});
        let mut answer = within_secs(30, self.driver.call(self.socket, "emitAck", details)).await;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["reply"][0].take()),
        }
    }

    /// Emits many events at once and waits for all their acks, in the order of the events. `Err`: why none came.
    pub async fn emit_ack_all(&self, event: &str, payloads: Vec<Value>) -> Vec<Result<Value, String>> {
        let events: Vec<_> = payloads.into_iter().map(|payload| json!([event, payload])).collect();
        let details = json!({"events": events, "timeoutMs": ACK_TIMEOUT_MS});
        let mut answer = within_secs(60, self.driver.call(self.socket, "emitAckAll", details)).await;
        let Value::Array(replies) = answer["replies"].take() else { panic!("the driver failed: {answer}") };
        let settled = replies.into_iter().map(|mut reply| match reply["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(reply["reply"].take()),
        });
        settled.collect()
    }

    /// Emits without asking for an ack.
    pub async fn emit(&self, event: &str, payload: Value) {
        self.emit_args(event, vec![payload]).await;
    }

    pub async fn emit_args(&self, event: &str, args: Vec<Value>) {
        self.command("emit", json!({"event": event, "args": args})).await;
    }

    /// Writes a key and returns the ack, which has to be `ok`.
    pub async fn update(&self, key: &str, state: Value) -> Value {
        let reply = self.emit_ack("session-update", json!({"sessionKey": key, "state": state})).await;
        assert_eq!(reply["ok"], true, "{reply}");
        reply
    }

    /// The payload of the first unread event of this name.
    pub async fn next(&self, event: &str) -> Value {
        self.next_where(event, |_| true).await
    }

    /// The payload of the first unread event of this name that `wanted` likes.
    pub async fn next_where(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let taken = self.inbox.take(|received| received.name == event && wanted(&received.payload()));
        match tokio::time::timeout(std::time::Duration::from_secs(10), taken).await {
            Ok(received) => received.payload(),
            Err(_) => panic!("no {event} came; seen: {}", self.names().join(" ")),
        }
    }

    /// The payloads of all events of this name so far, read or not.
    pub fn events(&self, event: &str) -> Vec<Value> {
        let all = self.inbox.all().into_iter();
        all.filter(|received| received.name == event).map(|received| received.payload()).collect()
    }

    /// Everything it saw so far, in order, the client's own news (`$connect`, ...) among it.
    pub fn seen(&self) -> Vec<Received> {
        self.inbox.all()
    }

    /// The names of everything it saw so far, in order.
    pub fn names(&self) -> Vec<String> {
        self.inbox.all().into_iter().map(|received| received.name).collect()
    }

    /// Waits until `answer` has one for the payloads of all events of this name.
    pub async fn until<T>(
        &self,
        event: &str,
        seconds: u64,
        mut answer: impl FnMut(&[Value]) -> Option<T>,
    ) -> T {
        let looking = self.inbox.until(|seen| {
            let named = seen.iter().filter(|received| received.name == event);
            answer(&named.map(Received::payload).collect::<Vec<_>>())
        });
        within_secs(seconds, looking).await
    }

    /// Fails if an unread event of this name has come. Proven by round trips on its own socket, which the server
    /// answers in order: whatever was on its way to this device before has arrived.
    pub async fn expect_none(&self, event: &str) {
        for _ in 0..2 {
            let reply =
                self.emit_ack("realtime-event", json!({"payload": "a sentinel without a type"})).await;
            assert_eq!(reply["error"]["code"], "invalid_field", "{reply}");
        }
        let unread =
            self.inbox.unread(|received| received.name == event && !is_sentinel(&received.payload()));
        assert!(unread.is_empty(), "unexpected: {unread:?}");
    }

    /// Waits until a session change and a realtime event that `other` sends now have come here: what `other`
    /// caused before has arrived, or never will.
    pub async fn caught_up_with(&self, other: &Device) {
        let mark = format!("sentinel {}", uuid::Uuid::new_v4());
        let event = json!({"type": mark, "payload": null, "to": [self.id()]});
        assert_eq!(other.emit_ack("realtime-event", event).await["ok"], true);
        other.update(SENTINEL_KEY, json!(mark)).await;
        self.next_where("realtime-event", |payload| payload["type"] == mark).await;
        self.next_where("session-updated", |payload| payload["state"] == mark).await;
    }

    /// Waits for the next connection of its socket.
    pub async fn connected(&self) -> Value {
        self.next("$connect").await
    }

    /// Waits for the next lost connection: why the client thinks it ended.
    pub async fn disconnected(&self) -> String {
        self.next("$disconnect").await["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits for a refusal of its connection: the message of the server.
    pub async fn refused(&self) -> String {
        let error = self.next("$connect_error").await;
        error["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The application's own `disconnect()`: the server is told.
    pub async fn disconnect(&self) {
        self.command("disconnect", json!({})).await;
    }

    /// The application's own `connect()` after a disconnection.
    pub async fn reconnect(&self) {
        self.command("reconnect", json!({})).await;
    }

    /// What the next connection will present.
    pub async fn set_auth(&self, auth: Value) {
        self.command("setAuth", json!({"auth": auth})).await;
    }

    /// Breaks the transport without a word to the server, as a lost network does.
    pub async fn break_transport(&self) {
        self.command("breakTransport", json!({})).await;
    }

    /// Closes the transport properly, without Socket.IO's goodbye.
    pub async fn close_engine(&self) {
        self.command("closeEngine", json!({})).await;
    }

    /// `{connected, active, transport, sendBuffer, receiveBuffer, queued}` of the client.
    pub async fn inspect(&self) -> Value {
        self.command("inspect", json!({})).await
    }

    async fn command(&self, op: &str, details: Value) -> Value {
        let answer = within(self.driver.call(self.socket, op, details)).await;
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }
}

/// The session key that `caught_up_with` writes.
pub const SENTINEL_KEY: &str = "sentinel";

fn is_sentinel(payload: &Value) -> bool {
    let sentinel = |field: &str| payload[field].as_str().is_some_and(|text| text.starts_with("sentinel "));
    sentinel("type") || sentinel("state")
}

impl Drop for Device {
    fn drop(&mut self) {
        self.driver.drop_socket(self.socket);
    }
}

impl DeviceOptions {
    /// As a seed's client does it: `deviceInfo` in the query.
    pub fn device_info(mut self, info: &Value) -> Self {
        self.query["deviceInfo"] = json!(info.to_string());
        self
    }

    pub fn named(self, name: &str) -> Self {
        self.device_info(&json!({"name": name, "type": "test"}))
    }

    /// One more field of `auth`.
    pub fn auth(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.auth[field] = value.into();
        self
    }

    pub fn without_auth(mut self) -> Self {
        self.auth = json!({});
        self
    }

    /// One more field of the query string.
    pub fn query(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.query[field] = value.into();
        self
    }

    /// Any other option of the client: `retries`, `ackTimeout`, `reconnection`, ...
    pub fn option(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options[name] = value.into();
        self
    }

    pub fn transports(self, names: &[&str]) -> Self {
        self.option("transports", json!(names))
    }

    /// The client's own defaults: polling first, then an upgrade, and its own pace of reconnecting.
    pub fn stock(mut self) -> Self {
        self.options = json!({"forceNew": true});
        self
    }

    pub fn without_reconnection(self) -> Self {
        self.option("reconnection", false)
    }

    /// Opens the socket and waits for nothing: for connections that are to be refused.
    pub async fn open(self) -> Device {
        let driver = Driver::get();
        let (socket, inbox) = driver.open();
        let Self { url, auth, query, mut options } = self;
        options["auth"] = auth;
        options["query"] = query;
        let device = Device { driver, socket, inbox, restored: Value::Null };
        device.command("connect", json!({"url": url, "options": options})).await;
        device
    }

    /// Opens the socket and waits until it is restored.
    pub async fn connect(self) -> Device {
        let mut device = self.open().await;
        device.restored_again().await;
        device
    }
}
