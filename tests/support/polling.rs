//! A hand-driven Engine.IO session over HTTP long-polling.

use reqwest::Method;
use serde_json::Value;

use super::{Node, Reply, Rest};

/// Engine.IO's separator of packets in one polling payload.
const RECORD_SEPARATOR: char = '\u{1e}';

pub struct Polling {
    rest: Rest,
    pub sid: String,
}

impl Polling {
    /// The handshake; its open packet is read.
    pub async fn open(node: &Node) -> Self {
        let rest = node.rest();
        let reply = rest.get("/socket.io/?EIO=4&transport=polling").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let opened: Value = serde_json::from_str(&reply.text[1..]).expect("the open packet is JSON");
        let sid = opened["sid"].as_str().expect("the open packet has a sid").to_owned();
        Self { rest, sid }
    }

    /// Posts one payload.
    pub async fn post(&self, payload: impl Into<String>) -> Reply {
        let request = self.rest.request(Method::POST, &self.path());
        Rest::send(request.header("content-type", "text/plain;charset=UTF-8").body(payload.into())).await
    }

    /// One poll: the packets that it brought.
    pub async fn poll(&self) -> Vec<String> {
        let reply = self.rest.get(&self.path()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.text.split(RECORD_SEPARATOR).map(str::to_owned).collect()
    }

    pub fn path(&self) -> String {
        format!("/socket.io/?EIO=4&transport=polling&sid={}", self.sid)
    }
}
