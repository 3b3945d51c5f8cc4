//! One TCP connection as the rest of the server may touch it: [`Link`] is the
//! handle, [`Guarded`] the stream that obeys it.
//!
//! The HTTP layer above cannot cut a peer that stopped reading; that is decided
//! here, below it: a write that makes no progress for [`WRITE_STALL`] fails, and
//! `kill` fails every read and write at once. A WebSocket takes the stream out
//! again and looks after itself (`socket/engine/websocket`).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

/// How long a write may make no progress before the connection is cut.
pub const WRITE_STALL: Duration = Duration::from_secs(10);

/// A handle to one TCP connection.
#[derive(Default)]
pub struct Link {
    killed: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// A signal that costs one load while nobody waits for it.
#[derive(Default)]
pub struct Waited {
    wanted: AtomicBool,
    signal: Notify,
}

impl Waited {
    /// Waits for the next signal.
    pub async fn wait(&self) {
        let signalled = self.signal.notified();
        self.wanted.store(true, Ordering::Release);
        signalled.await;
    }

    /// Wakes whoever waits.
    pub fn signal(&self) {
        if self.wanted.load(Ordering::Acquire) {
            self.wanted.store(false, Ordering::Release);
            self.signal.notify_waiters();
        }
    }
}

impl Link {
    /// Fails every read and write from now on, also those that wait.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// Whether it was killed.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }
}

/// The stream below everything else; see the module's comment.
pub struct Guarded<S> {
    stream: S,
    link: Arc<Link>,
    stall: Option<Pin<Box<Sleep>>>,
    open: OpenConnection,
}

/// Runs `on_close` when the connection is gone, whoever dropped it.
pub struct OpenConnection(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl OpenConnection {
    /// A guard that calls `on_close` once.
    pub fn new(on_close: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(on_close))))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Ok(slot) = self.0.get_mut()
            && let Some(on_close) = slot.take()
        {
            on_close();
        }
    }
}

impl<S> Guarded<S> {
    /// Puts `stream` under the control of `link`.
    pub fn new(stream: S, link: Arc<Link>, open: OpenConnection) -> Self {
        Self { stream, link, stall: None, open }
    }

    /// The stream itself, not guarded any more.
    pub fn into_parts(self) -> (S, OpenConnection) {
        (self.stream, self.open)
    }

    fn check_killed(&self) -> io::Result<()> {
        if self.link.is_killed() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Starts or checks the stall deadline of a write that cannot proceed.
    fn stalled<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.link.writer.register(cx.waker());
        self.check_killed()?;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        match stall.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.link.kill();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.link.reader.register(cx.waker());
        self.check_killed()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    fn poll_guarded_write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.check_killed()?;
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(Ok(bytes)) => {
                self.stall = None;
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.stalled(cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_guarded_write(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_guarded_write(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.stalled(cx),
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn guarded<S>(stream: S) -> (Guarded<S>, Arc<Link>) {
        let link = Arc::new(Link::default());
        (Guarded::new(stream, link.clone(), OpenConnection::new(|| ())), link)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_stalls_for_10_s_fails_and_kills_the_link() {
        let (near, _far) = duplex(4);
        let (mut stream, link) = guarded(near);
        let error = stream.write_all(b"more than fits").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(link.is_killed());
    }

    #[tokio::test]
    async fn kill_ends_a_read_and_a_write_that_wait() {
        let (near, _far) = duplex(4);
        let (stream, link) = guarded(near);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let reading = async move { reader.read_u8().await };
        let writing = async move { writer.write_all(b"more than fits").await };
        let killing = async {
            tokio::task::yield_now().await;
            link.kill();
        };
        let (read, written, ()) = tokio::join!(reading, writing, killing);
        assert!(read.is_err() && written.is_err());
    }
}
