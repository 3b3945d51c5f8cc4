//! One device's connection as a state machine: dial, upgrade, open, join, restore, live. It knows bytes and
//! stages; `swarm` owns the socket's readiness and tells the outside what happened.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;
use mio::net::TcpStream;

use crate::wire::{frame, handshake};

/// A server that reads so slowly that this much waits is overloaded: the connection is given up and counted.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No connection.
    Away,
    Dialing,
    /// The upgrade is asked for.
    Upgrading,
    /// WebSocket up; Engine.IO and Socket.IO handshakes and the restore are under way.
    Joining,
    /// `session-restored` arrived.
    Live,
}

pub struct Device {
    pub user: usize,
    pub node: usize,
    pub stage: Stage,
    /// When this connection was begun.
    pub began: Instant,
    /// As the server named it; kept over a reconnect.
    pub device_id: String,
    stream: Option<TcpStream>,
    unfinished: Vec<u8>,
    output: Vec<u8>,
}

/// What a read brought.
pub enum Arrived {
    Bytes(usize),
    Nothing,
    Gone,
}

impl Device {
    pub fn new(user: usize, node: usize) -> Self {
        Self {
            user,
            node,
            stage: Stage::Away,
            began: Instant::now(),
            device_id: String::new(),
            stream: None,
            unfinished: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Begins to connect; the stream is for registering.
    pub fn dial(&mut self, address: SocketAddr) -> anyhow::Result<&mut TcpStream> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot dial {address}"))?;
        stream.set_nodelay(true)?;
        self.stage = Stage::Dialing;
        self.began = Instant::now();
        self.unfinished.clear();
        self.output.clear();
        Ok(self.stream.insert(stream))
    }

    /// Ends the connection without a word, as a lost network does.
    pub fn drop_connection(&mut self) -> Option<TcpStream> {
        self.stage = Stage::Away;
        self.stream.take()
    }

    /// Whether a dialing socket has become connected; an error means that it never will.
    pub fn is_connected(&self) -> std::io::Result<bool> {
        let Some(stream) = &self.stream else { return Ok(false) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for the WebSocket; the device describes itself in the query, as stock clients do.
    pub fn ask_upgrade(&mut self, address: SocketAddr, device_info: &str) -> bool {
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket&deviceInfo={} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n",
            percent_encoded(device_info),
            handshake::CLIENT_KEY,
        );
        self.stage = Stage::Upgrading;
        self.send(request.as_bytes())
    }

    /// Copies what waits for its rest to the front of `room` and reads behind it; the count is of both.
    pub fn read(&mut self, room: &mut Vec<u8>) -> Arrived {
        let Some(stream) = &mut self.stream else { return Arrived::Nothing };
        let kept = self.unfinished.len();
        if room.len() < 2 * kept {
            room.resize(2 * kept, 0);
        }
        room[..kept].copy_from_slice(&self.unfinished);
        loop {
            return match stream.read(&mut room[kept..]) {
                Ok(0) => Arrived::Gone,
                Ok(bytes) => Arrived::Bytes(kept + bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Arrived::Nothing,
                Err(_) => Arrived::Gone,
            };
        }
    }

    /// Keeps the start of a message whose rest is still to come.
    pub fn keep(&mut self, rest: &[u8]) {
        self.unfinished.clear();
        self.unfinished.extend_from_slice(rest);
    }

    /// Sends one frame. False: the connection is of no more use.
    pub fn send_frame(&mut self, opcode: u8, payload: &[u8], mask: [u8; 4], scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        frame::push_client(scratch, opcode, payload, mask);
        self.send(scratch)
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        if !self.output.is_empty() {
            self.output.extend_from_slice(bytes);
            return self.output.len() <= OUTPUT_BYTES_MAX;
        }
        match self.write_some(bytes) {
            Some(sent) => {
                self.output.extend_from_slice(&bytes[sent..]);
                true
            }
            None => false,
        }
    }

    /// Goes on with what waits. False: the connection is of no more use.
    pub fn flush(&mut self) -> bool {
        if self.output.is_empty() {
            return true;
        }
        let mut waiting = std::mem::take(&mut self.output);
        let sent = self.write_some(&waiting);
        waiting.drain(..sent.unwrap_or(0));
        self.output = waiting;
        sent.is_some()
    }

    /// Writes until the kernel takes no more; how much it took, or `None` on a dead connection.
    fn write_some(&mut self, bytes: &[u8]) -> Option<usize> {
        let stream = self.stream.as_mut()?;
        let mut sent = 0;
        while sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(taken) => sent += taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        Some(sent)
    }
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(3 * text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn json_fits_into_a_query() {
        assert_eq!(super::percent_encoded(r#"{"a":"b c"}"#), "%7B%22a%22%3A%22b%20c%22%7D");
    }
}
