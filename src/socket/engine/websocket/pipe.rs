//! A WebSocket's way out, shared by all who send on it.
//!
//! What is sent goes to the kernel at once, from whoever sends it: no queue, no
//! other task to wake. Only what the kernel does not take waits here, up to
//! [`WINDOW_BYTES`]; then there is no room until the connection's own task has
//! written some of it. Under TLS that task writes everything, since the
//! encryption has one owner.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::net::tcp::OwnedWriteHalf;

use super::frame;
use crate::net::link::Waited;
use crate::socket::engine::Sent;

/// Bytes that may wait for the kernel. What comes on top waits in the outbox,
/// where a newer change replaces an older one.
const WINDOW_BYTES: usize = 64 * 1024;

/// See the module's comment.
pub struct Pipe {
    out: Mutex<Out>,
    /// Where to write at once; nothing under TLS.
    tcp: Option<OwnedWriteHalf>,
    /// The connection's task.
    task: AtomicWaker,
    killed: AtomicBool,
    paused: AtomicBool,
    reads: AtomicU64,
    room: Waited,
    heard: Waited,
}

#[derive(Default)]
struct Out {
    /// In order; of the first one a part may have left already.
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing is sent any more; a close frame is the last that waits.
    closing: bool,
}

/// How far the writing is.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing waits.
    All,
    /// Something waits; `progress`: some of it has left.
    Some {
        /// Whether any byte left.
        progress: bool,
    },
}

impl Pipe {
    /// A way out over `tcp`, or over what the connection's task owns.
    pub fn new(tcp: Option<OwnedWriteHalf>) -> Self {
        Self {
            out: Mutex::default(),
            tcp,
            task: AtomicWaker::new(),
            killed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            room: Waited::default(),
            heard: Waited::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a whole frame, if there is room.
    pub fn send(&self, frame: &Bytes) -> Sent {
        let mut out = self.lock();
        if out.closing || self.is_killed() {
            Sent::Gone
        } else if out.bytes >= WINDOW_BYTES {
            Sent::Full
        } else {
            self.put(&mut out, frame.clone())
        }
    }

    /// Sends a whole frame of which there cannot be many.
    pub fn send_in_any_case(&self, frame: Bytes) -> Sent {
        let mut out = self.lock();
        if out.closing || self.is_killed() { Sent::Gone } else { self.put(&mut out, frame) }
    }

    /// Answers a ping; a peer that does not read gets none.
    pub fn pong(&self, payload: &[u8]) {
        let mut out = self.lock();
        if !out.closing && out.bytes < WINDOW_BYTES {
            self.put(&mut out, frame::pong(payload).into());
        }
    }

    /// Sends a ping frame. Every client answers it by itself.
    pub fn ping(&self) -> Sent {
        self.send_in_any_case(Bytes::from_static(frame::PING))
    }

    fn put(&self, out: &mut Out, frame: Bytes) -> Sent {
        let mut left = 0;
        if let (Some(tcp), true) = (&self.tcp, out.waiting.is_empty()) {
            match tcp.try_write(&frame) {
                Ok(bytes) if bytes == frame.len() => return Sent::Yes,
                Ok(bytes) => left = bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.kill();
                    return Sent::Gone;
                }
            }
        }
        out.bytes += frame.len() - left;
        out.waiting.push_back(frame.slice(left..));
        self.task.wake();
        Sent::Yes
    }

    /// Says goodbye to the WebSocket after what is on its way; the task then
    /// ends the connection.
    pub fn close(&self, status: u16) {
        let mut out = self.lock();
        if !out.closing && !self.is_killed() {
            self.put(&mut out, Bytes::copy_from_slice(&frame::close(status)));
            out.closing = true;
        }
        drop(out);
        self.task.wake();
    }

    /// Closes the socket's sending side.
    pub fn shutdown_tcp(&self) {
        if let Some(tcp) = &self.tcp {
            // One that is gone already needs no goodbye.
            drop(socket2::SockRef::from(tcp.as_ref()).shutdown(std::net::Shutdown::Write));
        }
    }

    /// Whether nothing is sent any more.
    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Ends the connection at once, also under a peer that reads nothing.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.task.wake();
        self.room.signal();
        self.heard.signal();
    }

    /// Whether it was killed.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Stops reading until [`Pipe::resume`]; TCP then slows the peer down.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    /// Reads again.
    pub fn resume(&self) {
        if self.paused.swap(false, Ordering::AcqRel) {
            self.task.wake();
        }
    }

    /// Whether nothing is to be read now.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Waits until there may be room, or the connection was killed.
    pub async fn room(&self) {
        self.room.wait().await;
    }

    /// How often something was read so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Waits until something is read, or the connection was killed.
    pub async fn heard(&self) {
        self.heard.wait().await;
    }

    /// The task has read something.
    pub fn note_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.heard.signal();
    }

    /// Wakes this task whenever there is something for it to do.
    pub fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Writes what waits, as far as `write` goes.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> io::Result<Written> {
        let mut progress = false;
        loop {
            let mut out = self.lock();
            let Some(first) = out.waiting.front_mut() else { break };
            match write(cx, first) {
                Poll::Pending => return Ok(Written::Some { progress }),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => {
                    bytes::Buf::advance(first, bytes);
                    let done = first.is_empty();
                    if done {
                        out.waiting.pop_front();
                    }
                    out.bytes -= bytes;
                    progress = true;
                    if out.waiting.is_empty() {
                        // A socket at rest keeps no buffer.
                        out.waiting = VecDeque::new();
                    }
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Err(error),
            }
            drop(out);
            self.room.signal();
        }
        Ok(Written::All)
    }

    /// Writes what waits to the socket itself.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_write_tcp(&self, cx: &mut Context<'_>) -> io::Result<Written> {
        let Some(tcp) = &self.tcp else { return Ok(Written::All) };
        self.poll_write(cx, |cx, bytes| {
            loop {
                match tcp.as_ref().poll_write_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
                match tcp.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            }
        })
    }
}
