//! Bytes over TCP, for requests that no HTTP client would send and frames that no WebSocket client would.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Node, within, within_secs};

pub struct RawTcp {
    stream: TcpStream,
}

impl RawTcp {
    pub async fn open(node: &Node) -> Self {
        Self::open_at(node.address()).await
    }

    pub async fn open_at(address: &str) -> Self {
        let stream = within(TcpStream::connect(address)).await.expect("the server listens");
        Self { stream }
    }

    /// A connection that has become a WebSocket; the open packet is still to be read.
    pub async fn upgraded(node: &Node) -> Self {
        let mut tcp = Self::open(node).await;
        let upgrade = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: tandem\r\n\
            Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        tcp.write(upgrade.as_bytes()).await.expect("the connection is open");
        let answer = tcp.read_until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        tcp
    }

    /// Upgrades, joins with `token` and reads as far as the restore, of which the last read part comes back.
    pub async fn joined(node: &Node, token: &str) -> (Self, String) {
        let (tcp, read) = Self::joining(node, token).await;
        assert!(read.contains("session-restored"), "{read:?}");
        (tcp, read)
    }

    /// The same, and once more when the node sends it away: one that is starved of a processor asks everybody who
    /// connects whether they are still there, and may not get to hear the answer.
    pub async fn joined_at_last(node: &Node, token: &str) -> Self {
        let trying = async {
            loop {
                let (tcp, read) = Self::joining(node, token).await;
                if read.contains("session-restored") {
                    return tcp;
                }
            }
        };
        within_secs(60, trying).await
    }

    async fn joining(node: &Node, token: &str) -> (Self, String) {
        let mut tcp = Self::upgraded(node).await;
        let info = serde_json::json!({"name": uuid::Uuid::new_v4(), "type": "raw"});
        let connect = format!("40{}", serde_json::json!({"token": token, "deviceInfo": info}));
        tcp.write(&client_frame(0x81, connect.as_bytes())).await.expect("the connection is open");
        let read = within(tcp.answer_pings_until("session-restored")).await;
        (tcp, read)
    }

    /// Reads as far as `end`, or until the server closes, and answers pings as every client does.
    async fn answer_pings_until(&mut self, end: &str) -> String {
        const PINGS: [(&[u8], u8, &[u8]); 2] = [(&[0x89, 0], 0x8a, b""), (b"\x81\x012", 0x81, b"3")];
        let mut read = String::new();
        let mut buffer = [0; 4_096];
        while !read.contains(end) {
            let count = match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            for (ping, opcode, answer) in PINGS {
                if buffer[..count].windows(ping.len()).any(|bytes| bytes == ping) {
                    drop(self.stream.write_all(&client_frame(opcode, answer)).await);
                }
            }
            read.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        read
    }

    /// Writes; an `Err` means that the server has closed.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within(self.stream.write_all(bytes)).await
    }

    /// Writes while it reads what comes back, until `end` was read or the server closed: for more than the buffers
    /// between the two hold.
    pub async fn write_and_read(
        &mut self,
        bytes: &[u8],
        seconds: u64,
        mut end: impl FnMut(&str) -> bool,
    ) -> String {
        let (mut reader, mut writer) = self.stream.split();
        let reading = async {
            let mut read = String::new();
            let mut buffer = vec![0; 65_536];
            while !end(&read) {
                match reader.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => read.push_str(&String::from_utf8_lossy(&buffer[..count])),
                }
            }
            read
        };
        within_secs(seconds, async { tokio::join!(writer.write_all(bytes), reading).1 }).await
    }

    /// Says that nothing more follows; what comes back can still be read.
    pub async fn finish(&mut self) {
        within(self.stream.shutdown()).await.expect("the connection is open");
    }

    /// Ends as a client does whose machine resets it: no goodbye, and no port that waits for late packets.
    pub fn abandon(self) {
        self.stream.set_zero_linger().expect("a socket takes the option");
    }

    /// The answer up to and including `end`, or whatever came before the server closed.
    pub async fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        let mut buffer = [0; 4_096];
        within(async {
            while !String::from_utf8_lossy(&read).contains(end) {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => read.extend_from_slice(&buffer[..count]),
                }
            }
        })
        .await;
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Everything until the server closes, which it has to within `seconds`.
    pub async fn read_to_close(&mut self, seconds: u64) -> String {
        let mut read = Vec::new();
        // A reset closes as well as a FIN; what was read before it stays.
        drop(within_secs(seconds, self.stream.read_to_end(&mut read)).await);
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Writes `drop` again and again, `every` so often, until the server closes; everything that it said. `None`
    /// when it has not closed after `seconds`.
    pub async fn drip(&mut self, drop: &[u8], every: std::time::Duration, seconds: u64) -> Option<String> {
        let (mut reader, mut writer) = self.stream.split();
        let dripping = async {
            while writer.write_all(drop).await.is_ok() {
                tokio::time::sleep(every).await;
            }
            std::future::pending::<()>().await;
        };
        let mut read = Vec::new();
        let until_closed = async {
            tokio::select! {
                _ = reader.read_to_end(&mut read) => {}
                () = dripping => {}
            }
        };
        let limit = std::time::Duration::from_secs(seconds);
        tokio::time::timeout(limit, until_closed).await.ok()?;
        Some(String::from_utf8_lossy(&read).into_owned())
    }
}

/// A client's frame with this first byte (FIN and opcode), masked with zeros (RFC 6455, section 5).
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}
