//! Bytes over TCP, for requests that no HTTP client would send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Node, within, within_secs};

pub struct RawTcp {
    stream: TcpStream,
}

impl RawTcp {
    pub async fn open(node: &Node) -> Self {
        let stream = within(TcpStream::connect(node.address())).await.expect("the server listens");
        Self { stream }
    }

    /// Writes; an `Err` means that the server has closed.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within(self.stream.write_all(bytes)).await
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
}
