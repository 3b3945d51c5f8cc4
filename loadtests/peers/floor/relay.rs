//! The relay itself: accepts, answers handshakes, copies frames.

use std::collections::HashMap;
use std::io::ErrorKind;

use anyhow::Context;
use loadtests::wire::frame::{self, Parsed};
use loadtests::wire::handshake;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::connection::{Arrived, Connection};
use crate::redis;

const LISTENER: Token = Token(usize::MAX);
/// The Redis links come first, so that no user's connection takes their places.
const PUBLISHER: usize = 0;
const SUBSCRIBER: usize = 1;

const OPEN: &[u8] =
    br#"0{"sid":"floor","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#;

pub struct Relay {
    poll: Poll,
    listener: TcpListener,
    port: u16,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    group_of: HashMap<Vec<u8>, usize>,
    groups: Vec<Group>,
    clustered: bool,
    /// Tells this floor's own publications from the others'.
    instance: [u8; 4],
    accounts: u64,
    scratch: Vec<u8>,
    outgoing: Vec<u8>,
}

/// One user's sockets.
struct Group {
    name: Vec<u8>,
    members: Vec<usize>,
}

impl Relay {
    pub fn bind(port: u16, redis_port: Option<u16>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut listener =
            TcpListener::bind(([127, 0, 0, 1], port).into()).context("cannot listen on PORT")?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let mut relay = Self {
            poll,
            listener,
            port,
            connections: Vec::new(),
            free: Vec::new(),
            group_of: HashMap::new(),
            groups: Vec::new(),
            clustered: redis_port.is_some(),
            instance: std::process::id().to_be_bytes(),
            accounts: 0,
            scratch: vec![0; 64 << 10],
            outgoing: Vec::new(),
        };
        if let Some(redis_port) = redis_port {
            for _ in [PUBLISHER, SUBSCRIBER] {
                let stream = std::net::TcpStream::connect(("127.0.0.1", redis_port))
                    .context("no Redis on REDIS_PORT")?;
                stream.set_nonblocking(true)?;
                relay.adopt(TcpStream::from_std(stream))?;
            }
        }
        Ok(relay)
    }

    pub fn run(mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(slot) => self.serve(slot, event.is_writable())?,
                }
            }
        }
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.adopt(stream)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("cannot accept"),
            }
        }
    }

    fn adopt(&mut self, mut stream: TcpStream) -> anyhow::Result<()> {
        // Without it a relayed event waits 40 ms for the receiver's delayed acknowledgement.
        stream.set_nodelay(true)?;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.connections[slot] = Some(Connection::new(stream));
        Ok(())
    }

    fn serve(&mut self, slot: usize, writable: bool) -> anyhow::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut alive = !writable || self.connections[slot].as_mut().is_some_and(Connection::flush);
        while alive {
            let Some(connection) = &mut self.connections[slot] else { break };
            let kept = connection.unfinished.len();
            if scratch.len() < 2 * kept {
                scratch.resize(2 * kept, 0);
            }
            scratch[..kept].copy_from_slice(&connection.unfinished);
            let bytes = match connection.read(&mut scratch[kept..]) {
                Arrived::Bytes(bytes) => bytes,
                Arrived::Nothing => break,
                Arrived::Gone => {
                    alive = false;
                    break;
                }
            };
            let filled = kept + bytes;
            let Some(used) = self.take_in(slot, &mut scratch[..filled]) else {
                alive = false;
                break;
            };
            if let Some(connection) = &mut self.connections[slot] {
                connection.unfinished.clear();
                connection.unfinished.extend_from_slice(&scratch[used..filled]);
            }
            // A short read emptied the socket: epoll tells when there is more.
            if filled < scratch.len() {
                break;
            }
        }
        self.scratch = scratch;
        if !alive {
            anyhow::ensure!(!self.is_redis(slot), "Redis closed the connection");
            self.close(slot);
        }
        Ok(())
    }

    fn is_redis(&self, slot: usize) -> bool {
        self.clustered && slot <= SUBSCRIBER
    }

    /// Acts on what is whole in `bytes` and says how much that was; `None` ends the connection.
    fn take_in(&mut self, slot: usize, bytes: &mut [u8]) -> Option<usize> {
        if self.is_redis(slot) {
            return Some(self.take_replies(slot, bytes));
        }
        let mut used = 0;
        while used < bytes.len() {
            let upgraded = self.connections[slot].as_ref()?.upgraded;
            let step = if upgraded {
                self.take_frame(slot, &mut bytes[used..])?
            } else {
                self.take_request(slot, &bytes[used..])?
            };
            if step == 0 {
                break;
            }
            used += step;
        }
        Some(used)
    }

    fn take_replies(&mut self, slot: usize, bytes: &[u8]) -> usize {
        if slot == PUBLISHER {
            return bytes.len();
        }
        let mut used = 0;
        while let Some(reply) = redis::reply(&bytes[used..]) {
            used += reply.size;
            let Some((channel, payload)) = reply.message else { continue };
            let Some((instance, frame)) = payload.split_at_checked(4) else { continue };
            if instance != self.instance
                && let Some(group) = self.group_of.get(channel)
            {
                self.copy_to(*group, frame, None);
            }
        }
        used
    }

    /// One HTTP request: an upgrade, a registration, or a question after health.
    fn take_request(&mut self, slot: usize, bytes: &[u8]) -> Option<usize> {
        let Some(head_bytes) = handshake::head_end(bytes) else { return Some(0) };
        let head = std::str::from_utf8(&bytes[..head_bytes]).ok()?;
        if let Some(key) = handshake::field(head, "sec-websocket-key") {
            let accept = handshake::accept_for(key);
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            self.connections[slot].as_mut()?.upgraded = true;
            self.send(slot, answer.as_bytes())?;
            self.send_message(slot, OPEN)?;
            return Some(head_bytes);
        }
        let body_bytes: usize =
            handshake::field(head, "content-length").map_or(Some(0), |length| length.parse().ok())?;
        if bytes.len() < head_bytes + body_bytes {
            return Some(0);
        }
        let (status, body) = if head.starts_with("POST") {
            self.accounts += 1;
            ("201 Created", format!(r#"{{"token":"{}-{}"}}"#, self.port, self.accounts))
        } else {
            ("200 OK", r#"{"status":"ok"}"#.to_owned())
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.send(slot, answer.as_bytes())?;
        Some(head_bytes + body_bytes)
    }

    fn take_frame(&mut self, slot: usize, bytes: &mut [u8]) -> Option<usize> {
        let frame = match frame::from_client(bytes) {
            Parsed::Whole(frame) => frame,
            Parsed::Partial => return Some(0),
            Parsed::Broken(_) => return None,
        };
        match (frame.opcode, frame.payload) {
            (frame::CLOSE, _) => return None,
            (frame::TEXT, [b'4', b'0', auth @ ..]) => self.join(slot, auth)?,
            (frame::TEXT, [b'4', b'2', event @ ..]) => self.relay(slot, event)?,
            _ => {}
        }
        Some(frame.size)
    }

    /// Everybody with the same `auth` is one user.
    fn join(&mut self, slot: usize, auth: &[u8]) -> Option<()> {
        let group = match self.group_of.get(auth) {
            Some(group) => *group,
            None => {
                self.groups.push(Group { name: auth.to_vec(), members: Vec::new() });
                self.group_of.insert(auth.to_vec(), self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        if self.clustered && self.groups[group].members.is_empty() {
            self.tell_redis(SUBSCRIBER, &[b"SUBSCRIBE", auth]);
        }
        self.groups[group].members.push(slot);
        self.connections[slot].as_mut()?.group = Some(group);
        self.send_message(slot, br#"40{"sid":"floor"}"#)?;
        let restored = format!(r#"42["session-restored",{{"sessionData":{{}},"deviceId":"device-{slot}"}}]"#);
        self.send_message(slot, restored.as_bytes())
    }

    /// `event` is `[...]`, or an ack id before it.
    fn relay(&mut self, slot: usize, event: &[u8]) -> Option<()> {
        let id_bytes = event.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (id, array) = event.split_at(id_bytes);
        if !id.is_empty() {
            let ack = [b"43", id, br#"[{"ok":true}]"#].concat();
            self.send_message(slot, &ack)?;
        }
        let group = self.connections[slot].as_ref()?.group?;
        let mut copy = std::mem::take(&mut self.outgoing);
        copy.clear();
        copy.extend_from_slice(&self.instance);
        frame::push_server_parts(&mut copy, frame::TEXT, [b"42", array]);
        self.copy_to(group, &copy[self.instance.len()..], Some(slot));
        if self.clustered {
            let name = std::mem::take(&mut self.groups[group].name);
            self.tell_redis(PUBLISHER, &[b"PUBLISH", &name, &copy]);
            self.groups[group].name = name;
        }
        self.outgoing = copy;
        Some(())
    }

    fn copy_to(&mut self, group: usize, frame: &[u8], except: Option<usize>) {
        for &member in &self.groups[group].members {
            if Some(member) != except
                && let Some(connection) = &mut self.connections[member]
            {
                // A dead receiver closes itself: epoll reports it.
                connection.send(frame);
            }
        }
    }

    fn tell_redis(&mut self, link: usize, command: &[&[u8]]) {
        let mut bytes = Vec::new();
        redis::push_command(&mut bytes, command);
        if let Some(connection) = &mut self.connections[link] {
            connection.send(&bytes);
        }
    }

    fn send(&mut self, slot: usize, bytes: &[u8]) -> Option<()> {
        self.connections[slot].as_mut()?.send(bytes).then_some(())
    }

    fn send_message(&mut self, slot: usize, message: &[u8]) -> Option<()> {
        let mut bytes = Vec::with_capacity(message.len() + 10);
        frame::push_server(&mut bytes, frame::TEXT, message);
        self.send(slot, &bytes)
    }

    fn close(&mut self, slot: usize) {
        let Some(mut connection) = self.connections[slot].take() else { return };
        // Closing the descriptor would deregister it too; a failure here changes nothing.
        let _ = self.poll.registry().deregister(connection.stream_mut());
        if let Some(group) = connection.group {
            self.groups[group].members.retain(|member| *member != slot);
        }
        self.free.push(slot);
    }
}
