//! A TCP proxy that can go silent without closing anything, as a cut cable does.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Proxy {
    pub port: u16,
    silent: Arc<watch::Sender<bool>>,
    /// Connections made through it so far.
    accepted: watch::Receiver<usize>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        Self::slow_to(port, Duration::ZERO).await
    }

    /// Every piece takes `delay` on its way there.
    pub async fn slow_to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let silent = Arc::new(watch::Sender::new(false));
        let mut accepting = JoinSet::new();
        let (count, accepted) = watch::channel(0);
        accepting.spawn(accept(listener, port, delay, silent.clone(), count));
        Self { port: own, silent, accepted, _accepting: accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn accepted(&self, n: usize) {
        self.accepted.clone().wait_for(|accepted| *accepted >= n).await.unwrap();
    }

    /// Swallows everything in both directions; connections stay open.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }

    /// Lets new connections through; old ones stay dead.
    pub fn heal(&self) {
        self.silent.send_replace(false);
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    delay: Duration,
    silent: Arc<watch::Sender<bool>>,
    count: watch::Sender<usize>,
) {
    let mut pumps = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        count.send_modify(|n| *n += 1);
        let silent = silent.clone();
        pumps.spawn(async move {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::join!(
                pump(near_in, far_out, delay, silent.subscribe()),
                pump(far_in, near_out, Duration::ZERO, silent.subscribe())
            );
        });
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut dead = *silent.borrow();
    while let Ok(n) = from.read(&mut buffer).await {
        tokio::time::sleep(delay).await;
        dead |= *silent.borrow();
        if n == 0 || (!dead && to.write_all(&buffer[..n]).await.is_err()) {
            break;
        }
    }
    if dead {
        std::future::pending::<()>().await;
    }
}
