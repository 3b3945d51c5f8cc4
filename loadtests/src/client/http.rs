//! One HTTP/1.1 connection for the few REST calls a load needs. Blocking, with a deadline on every read and write.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::wire::handshake;

const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;

pub struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    patience: Duration,
}

pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Self::patient(address, TIMEOUT)
    }

    /// One that waits so long for every answer.
    pub fn patient(address: SocketAddr, patience: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)
            .with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { address, stream, patience })
    }

    pub fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.call(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address))
    }

    pub fn post(&mut self, path: &str, json: &str) -> anyhow::Result<Answer> {
        let (address, length) = (self.address, json.len());
        self.call(&format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
        ))
    }

    pub fn put(&mut self, path: &str, token: &str, json: &str) -> anyhow::Result<Answer> {
        let (address, length) = (self.address, json.len());
        self.call(&format!(
            "PUT {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
        ))
    }

    fn call(&mut self, request: &str) -> anyhow::Result<Answer> {
        self.stream.write_all(request.as_bytes()).context("cannot send a request")?;
        let mut received = Vec::new();
        let head_bytes = loop {
            if let Some(end) = handshake::head_end(&received) {
                break end;
            }
            self.receive(&mut received)?;
        };
        let head = String::from_utf8_lossy(&received[..head_bytes]).into_owned();
        let status = handshake::status(&head).context("not an HTTP answer")?;
        let Some(length) = handshake::field(&head, "content-length") else {
            bail!("answer {status} without Content-Length");
        };
        let length: usize = length.parse().context("Content-Length is no number")?;
        ensure!(length <= ANSWER_BYTES_MAX, "answer of {length} bytes");
        while received.len() < head_bytes + length {
            self.receive(&mut received)?;
        }
        if handshake::field(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            *self = Self::patient(self.address, self.patience)?;
        }
        let body = received[head_bytes..head_bytes + length].to_vec();
        Ok(Answer { status, retry_after: handshake::field(&head, "retry-after").map(str::to_owned), body })
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut chunk = [0; 4096];
        let bytes = self.stream.read(&mut chunk).context("no answer")?;
        ensure!(bytes > 0, "connection closed in the middle of an answer");
        into.extend_from_slice(&chunk[..bytes]);
        ensure!(into.len() <= ANSWER_BYTES_MAX + 16_384, "endless answer");
        Ok(())
    }
}
