//! The stream below a WebSocket, taken back from hyper after the handshake: the
//! socket itself, read by the connection's task and written by everybody, or TLS
//! over it, which only that task touches.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

use super::pipe::{Pipe, Written};
use crate::net::link::{Guarded, OpenConnection};

/// Bytes that are read at a time. One buffer a thread, not one a socket.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

type Tls = TlsStream<TcpStream>;

/// A stream that carries a WebSocket from now on.
pub struct Io {
    reader: Reader,
    writer: Option<OwnedWriteHalf>,
}

/// What a connection's task owns.
pub struct Reader {
    stream: Stream,
    /// What came with the handshake's request.
    early: Bytes,
    _open: OpenConnection,
}

/// See [`Reader`].
enum Stream {
    Tcp(OwnedReadHalf),
    Tls(Box<Tls>),
}

/// What a read brought.
pub enum Read<T> {
    Some(T),
    End,
    Failed,
}

impl Io {
    /// Takes the stream out of hyper; nothing when it is none of ours.
    pub fn of(upgraded: Upgraded) -> Option<Self> {
        let upgraded = match upgraded.downcast::<TokioIo<Guarded<TcpStream>>>() {
            Ok(parts) => {
                let (stream, open) = parts.io.into_inner().into_parts();
                let (reader, writer) = stream.into_split();
                let reader = Reader { stream: Stream::Tcp(reader), early: parts.read_buf, _open: open };
                return Some(Self { reader, writer: Some(writer) });
            }
            Err(upgraded) => upgraded,
        };
        let parts = upgraded.downcast::<TokioIo<Guarded<Box<Tls>>>>().ok()?;
        let (stream, open) = parts.io.into_inner().into_parts();
        let reader = Reader { stream: Stream::Tls(stream), early: parts.read_buf, _open: open };
        Some(Self { reader, writer: None })
    }

    /// What the connection's task owns, and where everybody writes; nothing
    /// under TLS.
    pub fn into_parts(self) -> (Reader, Option<OwnedWriteHalf>) {
        (self.reader, self.writer)
    }
}

impl Reader {
    /// Reads once and hands what came to `take`, which may change it.
    pub fn poll_read<T>(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&mut [u8]) -> T) -> Poll<Read<T>> {
        if !self.early.is_empty() {
            let mut early = std::mem::take(&mut self.early).to_vec();
            return Poll::Ready(Read::Some(take(&mut early)));
        }
        let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice());
        let mut read = ReadBuf::new(&mut buffer);
        let polled = match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, &mut read),
            Stream::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, &mut read),
        };
        let outcome = match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Read::Failed),
            Poll::Ready(Ok(())) if read.filled().is_empty() => Poll::Ready(Read::End),
            Poll::Ready(Ok(())) => Poll::Ready(Read::Some(take(read.filled_mut()))),
        };
        BUFFER.set(Some(buffer));
        outcome
    }

    /// Writes what waits in `pipe`.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_write(&mut self, pipe: &Pipe, cx: &mut Context<'_>) -> io::Result<Written> {
        match &mut self.stream {
            Stream::Tcp(_) => pipe.poll_write_tcp(cx),
            Stream::Tls(tls) => {
                let written =
                    pipe.poll_write(cx, |cx, bytes| Pin::new(tls.as_mut()).poll_write(cx, bytes))?;
                match Pin::new(tls.as_mut()).poll_flush(cx) {
                    Poll::Ready(flushed) => flushed.map(|()| written),
                    Poll::Pending => {
                        Ok(Written::Some { progress: written != Written::Some { progress: false } })
                    }
                }
            }
        }
    }

    /// Tells the peer that nothing follows.
    pub fn poll_shutdown(&mut self, pipe: &Pipe, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Stream::Tcp(_) => pipe.shutdown_tcp(),
            Stream::Tls(tls) => drop(ready!(Pin::new(tls.as_mut()).poll_shutdown(cx))),
        }
        Poll::Ready(())
    }
}
