//! What comes in from a session's client: each packet is judged and takes its
//! turn, or is refused.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Session;
use crate::failure::{Code, Failure, Outcome};
use crate::socket::inbox::Turn;
use crate::socket::packet::{self, Kind, Packet};
use crate::socket::share::Verdict;
use crate::socket::{connect, events, fields};
use crate::wire::{self, AckId};

/// Refusals after which reading rests for a moment.
const REFUSALS_BEFORE_REST: u32 = 64;

/// That moment.
const REST: Duration = Duration::from_millis(5);

impl Session {
    /// A text message from the client: one Socket.IO packet.
    pub fn text(self: &Arc<Self>, text: &str) {
        // A packet that interrupts another's attachments, or none at all.
        let parsed = packet::parse(text).ok().filter(|_| self.attachments_left.load(Ordering::Relaxed) == 0);
        let Some(packet) = parsed else { return self.transport.close() };
        match packet.kind {
            Kind::Connect => self.connect(&packet),
            _ if packet.namespace != "/" => self.transport.close(),
            _ if !self.connecting.load(Ordering::Acquire) => self.transport.close(),
            Kind::Disconnect => self.goodbye(),
            Kind::Event => self.event(packet.id, packet.json),
            Kind::BinaryEvent => self.binary_event(&packet),
            Kind::Ack => {}
            Kind::BinaryAck => self.attachments_left.store(packet.attachments, Ordering::Relaxed),
            Kind::ConnectError => self.transport.close(),
        }
    }

    /// A binary message: an attachment, of which nothing is wanted.
    pub fn binary(&self) {
        let left = self.attachments_left.load(Ordering::Relaxed);
        match left.checked_sub(1) {
            Some(left) => self.attachments_left.store(left, Ordering::Relaxed),
            None => self.transport.close(),
        }
    }

    fn connect(self: &Arc<Self>, packet: &Packet<'_>) {
        if packet.namespace != "/" {
            // Not through the outbox, which waits for a restore.
            self.transport.send_or_close(&wire::unknown_namespace(packet.namespace));
            return;
        }
        if self.connecting.swap(true, Ordering::AcqRel) {
            let failure = Failure::new(Code::InvalidOperation, "This socket is connected already.");
            self.push(wire::error_event(&failure, Some("connect")));
            return;
        }
        let (session, auth) = (self.clone(), packet.json.to_owned());
        self.services.tasks.spawn(async move { connect::connect(&session, &auth).await });
    }

    /// The restore is out: events that waited for it are handled now.
    pub(in crate::socket) fn open_inbox(self: &Arc<Self>) {
        if self.inbox.open() {
            self.start_worker();
        }
    }

    fn event(self: &Arc<Self>, id: Option<AckId>, json: &str) {
        self.services.metrics.events_in.increment(1);
        if let Err(failure) = self.judge(json.len()) {
            return self.refuse(id, json, failure);
        }
        if self.draining.load(Ordering::Acquire) {
            return self.refuse(id, json, Failure::new(Code::Draining, "This node is going away."));
        }
        match self.inbox.arrive(id, json) {
            Turn::Now => {
                if events::handle_at_once(self, id, json) {
                    self.take_next();
                } else {
                    self.start_worker_with(id, json.into());
                }
            }
            Turn::Waits { crowded: false } => {}
            Turn::Waits { crowded: true } => {
                self.transport.pause();
                // The worker may have made room, and seen nothing to resume, before that.
                if self.inbox.has_room() {
                    self.transport.resume();
                }
            }
            Turn::Full => {
                self.services.metrics.inbox_full.increment(1);
                self.refuse(id, json, Failure::rate_limited(100));
            }
        }
    }

    /// Binary payloads cannot be merged, kept or replayed as JSON.
    fn binary_event(self: &Arc<Self>, packet: &Packet<'_>) {
        self.attachments_left.store(packet.attachments, Ordering::Relaxed);
        self.services.metrics.events_in.increment(1);
        let failure = self.judge(packet.json.len()).err().unwrap_or_else(|| {
            Failure::field("payload", "Payloads are JSON; binary attachments are not taken.")
        });
        self.refuse(packet.id, packet.json, failure);
    }

    /// Refuses an event that was not looked into; its name is only read where the
    /// answer needs it.
    fn refuse(&self, id: Option<AckId>, json: &str, failure: Failure) {
        let name = if id.is_none() { fields::named(json).ok().map(|event| event.name) } else { None };
        self.answer(id, name.as_deref(), Err(failure));
    }

    fn judge(&self, bytes: usize) -> Outcome<()> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = share.as_mut().map_or(Verdict::Take, |share| share.judge(bytes, Instant::now()));
        drop(share);
        match verdict {
            Verdict::Take => Ok(()),
            Verdict::Refuse(wait) => {
                self.services.metrics.events_rate_limited.increment(1);
                if self.refusals.fetch_add(1, Ordering::Relaxed) % REFUSALS_BEFORE_REST
                    == REFUSALS_BEFORE_REST - 1
                {
                    self.rest();
                }
                Err(Failure::rate_limited(wait.as_millis() as u64))
            }
            Verdict::Flood => {
                self.services.metrics.disconnects_flood.increment(1);
                self.transport.cut();
                Err(Failure::rate_limited(10_000))
            }
        }
    }

    /// Reads nothing for a moment: TCP slows the sender down.
    fn rest(&self) {
        self.transport.pause();
        let me = self.me.clone();
        self.services.tasks.spawn(async move {
            tokio::time::sleep(REST).await;
            if let Some(session) = me.upgrade()
                && session.inbox.has_room()
            {
                session.transport.resume();
            }
        });
    }

    fn take_next(self: &Arc<Self>) {
        if let Some(next) = self.inbox.next() {
            self.start_worker_with(next.id, next.json);
        }
    }

    fn start_worker(self: &Arc<Self>) {
        self.take_next();
    }

    fn start_worker_with(self: &Arc<Self>, id: Option<AckId>, json: Box<str>) {
        let session = self.clone();
        self.services.tasks.spawn(async move { events::work(&session, id, json).await });
    }
}
