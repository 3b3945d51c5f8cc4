//! A hand-driven Socket.IO client over WebSocket: every frame as the text it is.
//!
//! For what a JavaScript client would change on the way (digits, spacing, duplicate keys) and for frames that no
//! proper client sends.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{Account, Node, within};

pub struct RawSocket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The JSON of the Engine.IO open packet.
    pub opened: Value,
    next_ack: u64,
}

impl RawSocket {
    /// Opens the transport and reads its open packet; no Socket.IO yet.
    pub async fn open(node: &Node) -> Self {
        Self::open_at(node.address(), "").await
    }

    /// The same at an address, with more query (`&deviceInfo=...`).
    pub async fn open_at(address: &str, query: &str) -> Self {
        let mut socket = Self::dial(address, query).await;
        let open = socket.next().await;
        let json = open.strip_prefix('0').unwrap_or_else(|| panic!("no open packet: {open}"));
        socket.opened = serde_json::from_str(json).expect("the open packet is JSON");
        socket
    }

    /// A WebSocket that a polling session has probed and is free to go over to.
    pub async fn probe(node: &Node, sid: &str) -> Self {
        let mut socket = Self::dial(node.address(), &format!("&sid={sid}")).await;
        socket.send("2probe").await;
        assert_eq!(socket.next().await, "3probe");
        socket
    }

    async fn dial(address: &str, query: &str) -> Self {
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket{query}");
        let (stream, _) = within(connect_async(url)).await.expect("the server accepts a WebSocket");
        Self { stream, opened: Value::Null, next_ack: 0 }
    }

    /// A connected and restored device of `account`; the text of `session-restored` comes back too. Each has a
    /// name of its own: it answers pings only while it is read, so a later twin would be taken for its return.
    pub async fn connect(node: &Node, account: &Account) -> (Self, String) {
        let mut socket = Self::open(node).await;
        let info = json!({"name": uuid::Uuid::new_v4(), "type": "raw"});
        socket.join(&json!({"token": account.token, "deviceInfo": info})).await;
        let restored = socket.next_event("session-restored").await;
        (socket, restored)
    }

    /// Socket.IO's CONNECT, answered positively.
    pub async fn join(&mut self, auth: &Value) {
        self.send(&format!("40{auth}")).await;
        let answer = self.next_where(|text| text.starts_with("40") || text.starts_with("44")).await;
        assert!(answer.starts_with("40"), "refused: {answer}");
    }

    pub async fn send(&mut self, text: &str) {
        within(self.stream.send(Message::text(text))).await.expect("the connection takes a frame");
    }

    /// Sends whatever the connection still takes.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        within(self.stream.send(message)).await
    }

    /// The next text frame that is not a ping; pings are answered.
    pub async fn next(&mut self) -> String {
        self.next_or_end().await.unwrap_or_else(|| panic!("the connection ended"))
    }

    /// The same, or `None` when the connection ends.
    pub async fn next_or_end(&mut self) -> Option<String> {
        within(self.next_or_end_patiently()).await
    }

    /// The same for a wait that the caller bounds.
    pub async fn next_or_end_patiently(&mut self) -> Option<String> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Text(text)) if text.as_str() == "2" => self.send("3").await,
                // Engine.IO's close packet: the end, whatever the transport does next.
                Ok(Message::Text(text)) if text.as_str() == "1" => return None,
                Ok(Message::Text(text)) => return Some(text.as_str().to_owned()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn next_where(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let text = self.next().await;
            if wanted(&text) {
                return text;
            }
        }
    }

    /// The whole text of the next `42["event",...]` of this name.
    pub async fn next_event(&mut self, event: &str) -> String {
        let start = format!("42[\"{event}\"");
        self.next_where(|text| text.starts_with(&start)).await
    }

    /// Emits with an ack id: `args` is the text after the event's name. The whole text of the ack comes back.
    pub async fn emit_ack(&mut self, event: &str, args: &str) -> String {
        self.next_ack += 1;
        let (id, name) = (self.next_ack, json!(event));
        self.send(&format!("42{id}[{name},{args}]")).await;
        let start = format!("43{id}[");
        self.next_where(|text| text.starts_with(&start)).await
    }

    /// Reads until the server has closed the connection; what still came is handed back.
    pub async fn closed(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(text) = self.next_or_end().await {
            rest.push(text);
        }
        rest
    }
}
