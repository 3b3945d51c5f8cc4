//! A WebSocket and the Engine.IO session on it: one task a connection, which
//! reads, keeps the heartbeat and writes what the kernel did not take at once.
//!
//! It ends when either side closes, when the client answers no heartbeat, when a
//! write makes no progress for [`WRITE_STALL`], or when it is killed; the session
//! hears of it once. See `pipe` for the way out and `frame` for what is read.

pub mod frame;
mod io;
pub mod pipe;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};
use uuid::Uuid;

use self::frame::{Decoder, Message, Violation};
pub use self::io::{Io, Reader};
use self::pipe::{Pipe, Written};
use super::polling::Upgrade;
use super::{Closed, Sent};
use crate::net::link::WRITE_STALL;
use crate::socket::session::Session;

/// The Engine.IO ping, as a whole frame.
const ENGINE_PING: &[u8] = &[0x81, 0x01, b'2'];

/// The answer to an upgrade's probe: `3probe`.
const PROBE_ANSWER: &[u8] = b"\x81\x063probe";

/// How long a closing connection waits for the peer to close, too. Closing under
/// what the peer is just sending would make the kernel throw away what the peer
/// has not read yet.
const LINGER: Duration = Duration::from_secs(2);

/// Heartbeats go out at multiples of this, those of many sockets at once: a thread wakes once for all of them, and for
/// their answers less often. Each is late by up to this. A longer one spares little more, and what is relayed waits behind
/// the burst: at 8,000 sockets and 1,000 events/s p99 was 0.29 ms with 1 ms, 0.35 with 5, 0.42 with 10, 0.49 with 20
/// (medians of three).
const HEARTBEAT_TICK: Duration = Duration::from_millis(5);

/// How long an upgrade may take.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);

/// Reads in a row before others get their turn.
const READS_MAX: usize = 8;

/// Times and bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time between two heartbeats.
    pub ping_interval: Duration,
    /// Time to answer one.
    pub ping_timeout: Duration,
    /// Bytes of the longest message.
    pub message_bytes_max: usize,
}

/// The Engine.IO handshake of a session that begins as a WebSocket. Its id is of
/// no use to anybody: it opens nothing.
pub fn hello(sid: Uuid, settings: Settings) -> Bytes {
    let sid = sid.simple();
    let (interval, timeout) = (settings.ping_interval.as_millis(), settings.ping_timeout.as_millis());
    let bytes_max = settings.message_bytes_max;
    frame::text(&format!(
        "0{{\"sid\":\"{sid}\",\"upgrades\":[],\"pingInterval\":{interval},\"pingTimeout\":{timeout},\
         \"maxPayload\":{bytes_max}}}"
    ))
}

/// One connection; see the module's comment. A future that ends with it.
pub struct Connection {
    pipe: Arc<Pipe>,
    reader: Reader,
    decoder: Decoder,
    stage: Stage,
    settings: Settings,
    /// The next heartbeat, its deadline, or that of the present stage.
    timer: Pin<Box<Sleep>>,
    stall: Option<Pin<Box<Sleep>>>,
}

enum Stage {
    /// An upgrade: the session still polls.
    Probing(Upgrade),
    /// Waits for what the polling left.
    Switching(Upgrade),
    /// Serves. `pinged`: nothing was read since the last ping went out.
    Open { session: Arc<Session>, pinged: bool },
    /// The session is over; the peer may still have to read why. `told`: the peer knows that nothing follows.
    Lingering { told: bool },
}

/// What a message means for the connection.
enum Then {
    GoOn,
    /// The session ends like this.
    End(Closed),
}

impl Connection {
    /// A connection of a session that begins with it.
    pub fn open(reader: Reader, pipe: Arc<Pipe>, session: Arc<Session>, settings: Settings) -> Self {
        let stage = Stage::Open { session, pinged: false };
        Self::new(reader, pipe, stage, settings, on_tick_after(settings.ping_interval))
    }

    /// A connection to which a polling session is to be upgraded.
    pub fn probing(reader: Reader, pipe: Arc<Pipe>, upgrade: Upgrade, settings: Settings) -> Self {
        Self::new(reader, pipe, Stage::Probing(upgrade), settings, Instant::now() + UPGRADE_WITHIN)
    }

    fn new(reader: Reader, pipe: Arc<Pipe>, stage: Stage, settings: Settings, first: Instant) -> Self {
        Self {
            pipe,
            reader,
            decoder: Decoder::new(settings.message_bytes_max),
            stage,
            settings,
            timer: Box::pin(tokio::time::sleep_until(first)),
            stall: None,
        }
    }

    /// Ends the session and says goodbye.
    fn end(&mut self, how: Closed, status: u16) {
        let stage = std::mem::replace(&mut self.stage, Stage::Lingering { told: false });
        if matches!(stage, Stage::Lingering { .. }) {
            self.stage = stage;
            return;
        }
        self.pipe.close(status);
        self.timer.as_mut().reset(Instant::now() + LINGER);
        match stage {
            Stage::Open { session, .. } => session.closed(how),
            Stage::Probing(upgrade) | Stage::Switching(upgrade) => upgrade.abandon(),
            Stage::Lingering { .. } => {}
        }
    }

    /// Writes what waits. Ready: the connection is over.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.reader.poll_write(&self.pipe, cx) {
            Ok(Written::All) => {
                self.stall = None;
                if let Stage::Lingering { told: told @ false } = &mut self.stage {
                    *told = self.reader.poll_shutdown(&self.pipe, cx).is_ready();
                }
                Poll::Pending
            }
            Ok(Written::Some { progress }) => {
                let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
                if progress {
                    stall.as_mut().reset(Instant::now() + WRITE_STALL);
                }
                stall.as_mut().poll(cx)
            }
            Err(_) => Poll::Ready(()),
        }
    }

    /// Reads and handles what came. Ready: the connection is over.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..READS_MAX {
            match self.stage {
                Stage::Open { .. } | Stage::Probing(_) if self.pipe.is_paused() => return Poll::Pending,
                Stage::Switching(_) => return Poll::Pending,
                _ => {}
            }
            let (decoder, stage, pipe) = (&mut self.decoder, &mut self.stage, &self.pipe);
            let read = ready!(self.reader.poll_read(cx, |bytes| read(decoder, stage, pipe, bytes)));
            self.heard();
            match read {
                io::Read::Some(Ok(Then::GoOn)) => {}
                io::Read::Some(Ok(Then::End(how))) => self.end(how, 1000),
                io::Read::Some(Err(violation)) => self.end(Closed::Broken, Violation::status(violation)),
                io::Read::End => {
                    self.end(Closed::ByClient, 1000);
                    return Poll::Ready(());
                }
                io::Read::Failed => {
                    self.end(Closed::Broken, 1000);
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whatever is read after a ping says that somebody is there: the next thing to wait for is the next ping.
    fn heard(&mut self) {
        let Stage::Open { pinged: pinged @ true, .. } = &mut self.stage else { return };
        *pinged = false;
        let pinged_at = self.timer.deadline() - self.settings.ping_timeout;
        self.timer.as_mut().reset(pinged_at + self.settings.ping_interval);
    }

    /// Ready: the connection is over.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            match &mut self.stage {
                Stage::Open { pinged: pinged @ false, .. } => {
                    *pinged = true;
                    self.pipe.send_in_any_case(Bytes::from_static(ENGINE_PING));
                    self.timer.as_mut().reset(on_tick_after(self.settings.ping_timeout));
                }
                Stage::Open { .. } => {
                    self.end(Closed::Silent, 1001);
                    return Poll::Ready(());
                }
                Stage::Probing(_) | Stage::Switching(_) => self.end(Closed::Silent, 1001),
                Stage::Lingering { .. } => return Poll::Ready(()),
            }
        }
    }

    /// Reads, and goes on reading where an upgrade has come to its end. Ready:
    /// the connection is over.
    fn poll_read_and_switch(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.poll_read(cx).is_ready() {
                return Poll::Ready(());
            }
            let Stage::Switching(upgrade) = &mut self.stage else { return Poll::Pending };
            match ready!(upgrade.poll_switched(cx, &self.pipe)) {
                Some(session) => {
                    self.stage = Stage::Open { session, pinged: false };
                    self.timer.as_mut().reset(on_tick_after(self.settings.ping_interval));
                }
                None => self.end(Closed::Broken, 1001),
            }
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.get_mut();
        me.pipe.register(cx);
        if me.pipe.is_killed() {
            me.end(Closed::ByServer, 1001);
            return Poll::Ready(());
        }
        if me.pipe.is_closing() && !matches!(me.stage, Stage::Lingering { .. }) {
            me.end(Closed::ByServer, 1000);
        }
        let over = me.poll_read_and_switch(cx).is_ready()
            || me.poll_write(cx).is_ready()
            || me.poll_timer(cx).is_ready();
        if over || me.pipe.is_killed() {
            me.end(Closed::Broken, 1001);
            me.pipe.kill();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Connection {
    /// The runtime may drop a connection that has not ended.
    fn drop(&mut self) {
        self.pipe.kill();
        self.end(Closed::ByServer, 1001);
    }
}

/// The first tick after `wait` from now. A second is a whole number of ticks.
fn on_tick_after(wait: Duration) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let at = Instant::now() + wait;
    let into = at.duration_since(*START).subsec_nanos() % HEARTBEAT_TICK.subsec_nanos();
    at + HEARTBEAT_TICK - Duration::from_nanos(into.into())
}

/// Takes what was read.
fn read(
    decoder: &mut Decoder,
    stage: &mut Stage,
    pipe: &Arc<Pipe>,
    bytes: &mut [u8],
) -> Result<Then, Violation> {
    if matches!(stage, Stage::Lingering { .. }) {
        return Ok(Then::GoOn);
    }
    pipe.note_read();
    let mut then = Then::GoOn;
    decoder.feed(bytes, &mut |message| {
        then = take(stage, pipe, &message);
        matches!(then, Then::GoOn) && !pipe.is_killed()
    })?;
    Ok(then)
}

/// Takes one message from the client.
fn take(stage: &mut Stage, pipe: &Arc<Pipe>, message: &Message<'_>) -> Then {
    match (message, &mut *stage) {
        (Message::Ping(payload), _) => {
            pipe.pong(payload);
            Then::GoOn
        }
        (Message::Pong, _) => Then::GoOn,
        (Message::Close, _) => Then::End(Closed::ByClient),
        (Message::Text(text), Stage::Open { session, .. }) => take_packet(session, text),
        (Message::Binary, Stage::Open { session, .. }) => {
            session.binary();
            Then::GoOn
        }
        (Message::Text("2probe"), Stage::Probing(upgrade)) => {
            upgrade.begin();
            match pipe.send_in_any_case(Bytes::from_static(PROBE_ANSWER)) {
                Sent::Yes => Then::GoOn,
                _ => Then::End(Closed::Broken),
            }
        }
        (Message::Text("5"), Stage::Probing(_)) => {
            let Stage::Probing(upgrade) = std::mem::replace(stage, Stage::Lingering { told: false }) else {
                return Then::End(Closed::Broken);
            };
            *stage = Stage::Switching(upgrade.switch());
            Then::GoOn
        }
        // The client may already use what it has asked for.
        (Message::Text(text), Stage::Switching(upgrade)) => {
            upgrade.keep(text);
            Then::GoOn
        }
        (Message::Text(_) | Message::Binary, _) => Then::End(Closed::Broken),
    }
}

/// An Engine.IO packet of an open session.
pub(super) fn take_engine_packet(session: &Arc<Session>, text: &str) -> bool {
    matches!(take_packet(session, text), Then::GoOn)
}

fn take_packet(session: &Arc<Session>, text: &str) -> Then {
    match text.as_bytes().first() {
        Some(b'4') => {
            session.text(&text[1..]);
            Then::GoOn
        }
        // A pong was heard when it was read; a ping is none of a client's.
        Some(b'2' | b'3') => Then::GoOn,
        Some(b'1') => Then::End(Closed::ByClient),
        _ => Then::End(Closed::ByServer),
    }
}
