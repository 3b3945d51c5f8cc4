//! One TCP connection: its socket, what was read of an unfinished frame, what the kernel did not take yet.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

/// A peer that leaves this much unread is cut.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

pub struct Connection {
    stream: TcpStream,
    pub unfinished: Vec<u8>,
    output: Vec<u8>,
    /// Past the WebSocket upgrade.
    pub upgraded: bool,
    /// The user whose events it hears.
    pub group: Option<usize>,
}

/// What a read brought.
pub enum Arrived {
    Bytes(usize),
    Nothing,
    Gone,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, unfinished: Vec::new(), output: Vec::new(), upgraded: false, group: None }
    }

    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub fn read(&mut self, room: &mut [u8]) -> Arrived {
        loop {
            return match self.stream.read(room) {
                Ok(0) => Arrived::Gone,
                Ok(bytes) => Arrived::Bytes(bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Arrived::Nothing,
                Err(_) => Arrived::Gone,
            };
        }
    }

    /// Writes at once, or behind what still waits. False: the connection is of no more use.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = if self.output.is_empty() { write_some(&mut self.stream, bytes) } else { Some(0) };
        let Some(sent) = sent else { return false };
        self.output.extend_from_slice(&bytes[sent..]);
        if self.output.len() > OUTPUT_BYTES_MAX {
            // Reported by epoll as gone, so that also a copy to somebody else's socket ends it.
            self.output = Vec::new();
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            return false;
        }
        true
    }

    /// Goes on with what waits. False: the connection is of no more use.
    pub fn flush(&mut self) -> bool {
        if self.output.is_empty() {
            return true;
        }
        match write_some(&mut self.stream, &self.output) {
            Some(sent) => {
                self.output.drain(..sent);
                true
            }
            None => false,
        }
    }
}

/// Writes until the kernel takes no more; how much it took, or `None` on a dead connection.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> Option<usize> {
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
