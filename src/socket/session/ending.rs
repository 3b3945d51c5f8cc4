//! How a session ends, whoever ends it, and what its client is told before.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Session, Who};
use crate::failure::Failure;
use crate::hub::Gone;
use crate::model::ConnectionId;
use crate::socket::engine::Closed;
use crate::wire;

/// What is in an inbox when the node drains is answered within this.
const DRAIN_ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// How long a client may take to fetch why it has to go.
const FAREWELL_WAIT: Duration = Duration::from_secs(3);

/// A client has heard that the node is going by then. Closing earlier, under what
/// it is just sending, would make the kernel throw away what it has not read.
const DRAIN_HEARD_AFTER: Duration = Duration::from_millis(100);

/// How often a draining session looks whether its inbox is empty.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(5);

impl Session {
    /// CONNECT was refused: the client has a moment to read why.
    pub(in crate::socket) fn refused(&self) {
        self.inbox.close();
        self.close_later();
    }

    /// Closes the transport once the client has had time to read what it was told.
    fn close_later(&self) {
        let transport = self.transport.clone();
        self.services.tasks.spawn(async move {
            tokio::time::sleep(FAREWELL_WAIT).await;
            transport.close();
        });
    }

    /// Announces that the node is going, answers what is in the inbox, refuses
    /// what comes after, then closes the transport: stock clients come back, to another node.
    pub(super) fn drain(&self) {
        if self.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        self.push(wire::event("server-draining", "{\"reconnectInMs\":0}"));
        self.inbox.close();
        let me = self.me.clone();
        self.services.tasks.spawn(async move {
            let announced = Instant::now();
            while let Some(session) = me.upgrade() {
                let waited = announced.elapsed();
                let is_answered = session.inbox.is_at_rest()
                    && session.answers_owed.load(Ordering::Acquire) == 0
                    && waited >= DRAIN_HEARD_AFTER;
                if is_answered || waited > DRAIN_ANSWERS_WITHIN {
                    return session.transport.close();
                }
                drop(session);
                tokio::time::sleep(DRAIN_LOOK_EVERY).await;
            }
        });
    }

    /// Tells the client why it has to go, in a way that makes stock clients stay
    /// away, and closes. What the client sent before is not answered any more.
    pub(super) fn farewell(&self, why: Failure, gone: Gone) {
        // First: a client that is quick closes the transport as soon as it reads that, and would pass for one
        // that was lost and may be back.
        if let Some(who) = self.who.get() {
            self.leave(*who, gone);
        }
        let farewell = [wire::error_event(&why, None), wire::disconnect()];
        if self.outbox.is_held() {
            // Before the restore nothing else is on its way; the client has not
            // even heard that it is connected.
            let connection = self.who().map_or_else(ConnectionId::fresh, |who| who.connection);
            self.transport.send_or_close(&wire::connected(connection));
            farewell.iter().for_each(|frame| self.transport.send_or_close(frame));
        } else {
            farewell.into_iter().for_each(|frame| self.push(frame));
        }
        self.gone(gone);
        if self.transport.is_websocket() {
            return self.transport.close();
        }
        // A polling client fetches what is left for it, and closes by itself.
        self.close_later();
    }

    /// The client's own `disconnect()`: the others hear of it at once.
    pub(super) fn goodbye(&self) {
        self.gone(Gone::ClientDisconnect);
        self.transport.close();
    }

    /// The transport is closed.
    pub fn closed(&self, how: Closed) {
        let gone = match how {
            Closed::ByClient => Gone::TransportClose,
            Closed::Broken => Gone::TransportError,
            Closed::Silent => Gone::PingTimeout,
            Closed::ByServer => Gone::ServerClose,
        };
        self.gone(gone);
    }

    fn gone(&self, gone: Gone) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.outbox.close();
        self.inbox.close();
        if let Some(who) = self.who.get() {
            self.leave(*who, gone);
        }
    }

    /// Takes the device out of the hub, once, whoever notices first.
    pub(super) fn leave(&self, who: Who, gone: Gone) {
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let metrics = &self.services.metrics;
        match gone {
            Gone::ClientDisconnect => metrics.disconnects_client.increment(1),
            Gone::TransportClose | Gone::TransportError => metrics.disconnects_transport.increment(1),
            Gone::PingTimeout => metrics.disconnects_heartbeat.increment(1),
            Gone::ServerClose | Gone::ServerDisconnect => metrics.disconnects_server.increment(1),
        }
        metrics.sockets.decrement(1);
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.services.shares.forget(who.user);
        self.services.expiry.forget(who.connection, self.token_ends());
        self.services.mailbox.left(who.device, who.connection);
        self.services.devices.leave(who.user, who.device, who.connection, gone);
        let (user, device, connection) = (who.user, who.device, who.connection);
        let reason = gone.as_str();
        tracing::info!(user.id = %user, device.id = %device, connection.id = %connection, reason, "device disconnected");
    }
}
