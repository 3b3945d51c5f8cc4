//! The hub's ends of the backplane: what it tells the other nodes, and what it
//! makes of what they tell.
//!
//! Whatever arrives is a hint. A change takes its turn by seq like one of our
//! own; one that came without its state, or that may have been missed, is read
//! from the store. Nothing here waits for Redis on the way of a write.

use std::sync::Arc;

use bytes::Bytes;

use super::{Class, Ending, Hub, Item, Mail};
use crate::backplane::{Changed, Envelope, Head, HeadsMoved, Inbound, InboundReceiver, Kick, Kind, Realtime};
use crate::failure::Code;
use crate::model::{Change, DeviceId, Revoked, SessionKey, Timestamp, UserId};
use crate::telemetry::traces::{self, Context};
use crate::wire;

impl Hub {
    /// Whether other nodes can be there.
    pub fn is_clustered(&self) -> bool {
        self.0.clustered
    }

    /// Reaches this user's envelopes from now on, or says so within 500 ms.
    pub(super) async fn subscribe(&self, user: UserId) {
        if self.is_clustered()
            && let Err(error) = self.0.backplane.subscribe(user).await
        {
            // The regular ask finds what does not arrive; so does the resubscription.
            tracing::debug!(%error, "a subscription is not confirmed yet");
        }
    }

    pub(super) fn publish_change(&self, change: &Change) {
        let body = Changed {
            seq: change.seq,
            key: change.key.as_str().to_owned(),
            version: change.version,
            device: change.device,
            at_ms: change.at.0,
            deleted: change.state.is_none(),
        };
        let state = change.state.as_ref().map(|state| Bytes::copy_from_slice(state.as_bytes()));
        self.publish_bytes(change.user, Kind::Change(body), state);
    }

    pub(super) fn publish_realtime(
        &self,
        user: UserId,
        source: DeviceId,
        to: Option<&[DeviceId]>,
        item: &Item,
    ) {
        let coalesce = match &item.class {
            Class::Coalesce(key) => Some(key.to_string()),
            _ => None,
        };
        let body = Realtime { source, to: to.map(<[_]>::to_vec), coalesce };
        self.publish_bytes(user, Kind::Realtime(body), Some(item.frame.bytes()));
    }

    pub(super) fn publish(&self, user: UserId, kind: Kind, payload: Option<String>) {
        self.publish_bytes(user, kind, payload.map(Bytes::from));
    }

    fn publish_bytes(&self, user: UserId, kind: Kind, payload: Option<Bytes>) {
        let step = traces::step("backplane.publish", traces::Role::Producer, Context::current());
        let mut envelope = Envelope::new(kind, payload);
        envelope.trace = Context::of(&step).map(|context| context.traceparent());
        self.0.backplane.publish(user, &envelope);
    }

    pub(super) fn publish_kick(&self, user: UserId, revoked: &Revoked, at: Timestamp) {
        if self.is_clustered() {
            let reason = Code::Unauthorized.as_str().to_owned();
            let (revoked, at_ms) = (Some(*revoked), Some(at.0));
            let kick = Kick { device: None, connection: None, revoked, at_ms, reason };
            self.publish(user, Kind::Kick(kick), None);
        }
    }
}

/// Takes what the other nodes tell until the process ends.
pub async fn listen(hub: Hub, mut inbound: InboundReceiver) {
    loop {
        // The hub holds the backplane, so its end of the queue never closes by itself.
        let next = tokio::select! {
            Some(next) = inbound.recv() => next,
            () = hub.0.tasks.ending() => return,
            else => return,
        };
        match next {
            Inbound::Envelope { user, envelope } => hub.take(user, envelope),
            Inbound::Missed(Some(users)) => users.into_iter().for_each(|user| hub.look_into_store(user)),
            Inbound::Missed(None) => hub.look_into_store_for_all(),
            Inbound::Up => tracing::info!("the backplane is up"),
            Inbound::Overtaken(connections) => hub.overtaken(connections),
            Inbound::Down => tracing::warn!("the backplane is down; going on from the store"),
            Inbound::Reinstated(rows) => hub.reinstate(rows),
        }
    }
}

impl Hub {
    fn take(&self, user: UserId, envelope: Envelope) {
        let from = envelope.trace.as_deref().and_then(Context::parse);
        let _step = traces::step("deliver", traces::Role::Consumer, from).entered();
        let text = |payload: Option<Bytes>| payload.and_then(|bytes| String::from_utf8(bytes.into()).ok());
        match envelope.kind {
            Kind::Change(changed) => self.take_change(user, changed, text(envelope.payload)),
            Kind::Realtime(event) => {
                if let Some(frame) = text(envelope.payload) {
                    let class = event.coalesce.map_or(Class::Plain, |key| Class::Coalesce(key.into()));
                    let item = Item { frame: wire::Frame::new(&frame), class };
                    self.relay_here(user, event.source, event.to.as_deref(), &item);
                }
            }
            Kind::Message(message) => {
                if let Some(json) = text(envelope.payload) {
                    self.pass_on(Mail::Message { user, message, json: json.into() });
                }
            }
            Kind::MessageStatus(status) => self.pass_on(Mail::Status { user, status }),
            Kind::Presence(event) => self.take_presence(user, &event, text(envelope.payload)),
            Kind::Kick(kick) => self.take_kick(user, &kick),
            Kind::Ping(ping) => self.take_ping(user, &ping),
            Kind::Pong(pong) => {
                let answer = self.0.pongs.remove(&pong.id);
                if answer.is_some_and(|(_, answer)| answer.send(pong.answered).is_err()) {
                    tracing::debug!("a ping was answered too late");
                }
            }
            Kind::HeadsMoved(HeadsMoved { what: Head::Mailbox, device }) => {
                self.pass_on(Mail::Kept { user, device });
            }
            Kind::HeadsMoved(_) => self.look_into_store(user),
        }
    }

    fn take_change(&self, user: UserId, changed: Changed, state: Option<String>) {
        let Some(key) = SessionKey::parse(&changed.key) else { return };
        if state.is_none() && !changed.deleted {
            return self.look_into_store(user);
        }
        let change = Change {
            user,
            seq: changed.seq,
            key,
            version: changed.version,
            state: state.map(Into::into),
            device: changed.device,
            at: Timestamp(changed.at_ms),
        };
        // Its ack goes to a connection of the node that committed it.
        self.change(Arc::new(change), None);
    }

    fn take_kick(&self, user: UserId, kick: &Kick) {
        if let Some(revoked) = &kick.revoked {
            return self.kick_here(user, revoked, Timestamp(kick.at_ms.unwrap_or(i64::MAX)));
        }
        for member in self.members(user) {
            let is_meant = kick.device.is_none_or(|device| device == member.device)
                && kick.connection.is_none_or(|connection| connection == member.connection);
            if is_meant && kick.reason == "replaced" {
                member.recipient.end(Ending::Replaced);
            }
        }
    }
}
