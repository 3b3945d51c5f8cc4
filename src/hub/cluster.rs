//! The hub's ends of the backplane: what it tells the other nodes, and what it
//! makes of what they tell.
//!
//! Whatever arrives is a hint. A change takes its turn by seq like one of our
//! own; one that came without its state, or that may have been missed, is read
//! from the store. Nothing here waits for Redis on the way of a write.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Class, Departure, Ending, Gone, Hub, Item, Presence};
use crate::backplane::{
    Changed, Delivery, Envelope, Head, HeadsMoved, Inbound, InboundReceiver, Kick, Kind, Message,
    MessageStatus, NodeLife, Online, Ping, Placed, Pong, PresenceChange, PresenceEvent, Realtime, Roster,
    Row,
};
use crate::failure::Code;
use crate::model::{
    Change, Clock, ConnectionId, DeviceId, DeviceInfo, JsonText, MessageId, Revoked, SessionKey, Timestamp,
    UserId,
};
use crate::telemetry::traces::{self, Context};
use crate::wire;

/// How long another node has to ping its device for us: its own wait for the
/// device, and the way there and back.
const REMOTE_PROBE_WITHIN: Duration = Duration::from_millis(700);

/// Departures that are kept for when the others can be told again.
const UNTOLD_MAX: usize = 16_384;

/// Wait before they are tried again.
const UNTOLD_RETRY: Duration = Duration::from_secs(1);

/// How long a connect waits for who is online elsewhere.
const ROSTER_WITHIN: Duration = Duration::from_millis(500);

/// Departures that the others were not told of.
#[derive(Default)]
pub struct Untold {
    departures: Vec<Departure>,
    is_being_told: bool,
}

/// A device that has just connected, as the others will hear of it.
pub struct Arrival {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// Which connection of it.
    pub connection: ConnectionId,
    /// The store's fence of that connection.
    pub fence: u64,
    /// What it said of itself.
    pub info: DeviceInfo,
    /// When.
    pub at: Timestamp,
    /// This node's devices never heard that it was gone.
    pub still_known: bool,
}

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

    fn publish(&self, user: UserId, kind: Kind, payload: Option<String>) {
        self.publish_bytes(user, kind, payload.map(Bytes::from));
    }

    fn publish_bytes(&self, user: UserId, kind: Kind, payload: Option<Bytes>) {
        let step = traces::step("backplane.publish", traces::Role::Producer, Context::current());
        let mut envelope = Envelope::new(kind, payload);
        envelope.trace = Context::of(&step).map(|context| context.traceparent());
        self.0.backplane.publish(user, &envelope);
    }

    /// Tells everyone that a device came, unless they never heard it was gone.
    pub fn arrived(&self, arrival: Arrival) {
        if !self.is_clustered() {
            if !arrival.still_known {
                self.tell_arrival(&arrival);
            }
            return;
        }
        let hub = self.clone();
        self.0.tasks.spawn(async move {
            let online =
                Online { connection: arrival.connection, since_ms: arrival.at.0, fence: arrival.fence };
            let placed = hub.0.backplane.presence_set(arrival.user, arrival.device, online).await;
            if placed.is_ok()
                && let Some(room) = hub.room(arrival.user)
            {
                room.placed(arrival.device, arrival.connection);
            }
            if matches!(hub.presence(&arrival), Presence::Unknown) {
                // Gone already: that it came is no news any more. That it went is, to those who knew it from
                // the connection whose place it took.
                // Its goodbye may have come before its row.
                hub.take_back(&arrival, matches!(placed, Ok(Placed::Stands { replaced: Some(_) }))).await;
                return;
            }
            match placed {
                Ok(Placed::Stands { replaced: Some(row) }) => hub.replace(&arrival, &row),
                Ok(Placed::Fenced { .. }) => {
                    hub.end_connection(arrival.user, arrival.connection, Ending::Replaced)
                }
                Err(_) if arrival.still_known => {}
                // Known here and without a row: others have been told that it is gone.
                Ok(Placed::Stands { replaced: None }) | Err(_) => {
                    hub.tell_arrival(&arrival);
                    hub.publish_arrival(&arrival);
                }
            }
        });
    }

    async fn take_back(&self, arrival: &Arrival, was_known: bool) {
        let gone = Gone::ClientDisconnect;
        let (user, device, connection) = (arrival.user, arrival.device, arrival.connection);
        let left = Departure { user, device, connection, gone, at: arrival.at };
        if self.0.backplane.presence_remove(user, device, connection).await.is_err() {
            self.untold(&left);
        }
        if !was_known {
            return;
        }
        let body = wire::device_disconnected_body(device, gone.as_str(), arrival.at);
        self.tell(user, &wire::event("device-disconnected", &body), Some(device));
        self.publish_departure(&left);
    }

    fn presence(&self, arrival: &Arrival) -> Presence {
        let room = self.room(arrival.user);
        room.map_or(Presence::Unknown, |room| room.presence(arrival.device, arrival.connection))
    }

    /// The device was known elsewhere: whatever socket it has there is told.
    fn replace(&self, arrival: &Arrival, row: &Row) {
        if row.connection != arrival.connection {
            let kick = Kick {
                device: Some(arrival.device),
                connection: Some(row.connection),
                revoked: None,
                reason: "replaced".to_owned(),
            };
            self.publish(arrival.user, Kind::Kick(kick), None);
        }
    }

    pub(super) fn publish_kick(&self, user: UserId, revoked: &Revoked) {
        if self.is_clustered() {
            let reason = Code::Unauthorized.as_str().to_owned();
            let kick = Kick { device: None, connection: None, revoked: Some(*revoked), reason };
            self.publish(user, Kind::Kick(kick), None);
        }
    }

    /// Tells a user's other devices that one has another name or metadata.
    /// `info` is its deviceInfo as JSON.
    pub fn device_updated(&self, user: UserId, device: DeviceId, info: &str) {
        self.tell(user, &wire::device_updated(device, info), Some(device));
        self.publish_presence(user, device, PresenceChange::Updated, Some(info.to_owned()));
    }

    /// Tells a user's other devices that one is no more.
    pub fn device_removed(&self, user: UserId, device: DeviceId) {
        self.tell(user, &wire::device_removed(device), Some(device));
        self.publish_presence(user, device, PresenceChange::Removed, None);
    }

    fn publish_presence(&self, user: UserId, device: DeviceId, event: PresenceChange, info: Option<String>) {
        if self.is_clustered() {
            let at_ms = Clock::now().0;
            let event = PresenceEvent { event, device, connection: None, at_ms, reason: None };
            self.publish(user, Kind::Presence(event), info);
        }
    }

    fn tell_arrival(&self, arrival: &Arrival) {
        let body = wire::device_connected_body(arrival.device, &arrival.info.json, arrival.at);
        self.tell(arrival.user, &wire::event("device-connected", &body), Some(arrival.device));
    }

    fn publish_arrival(&self, arrival: &Arrival) {
        let event = PresenceEvent {
            event: PresenceChange::Connected,
            device: arrival.device,
            connection: Some(arrival.connection),
            at_ms: arrival.at.0,
            reason: None,
        };
        self.publish(arrival.user, Kind::Presence(event), Some(arrival.info.json.to_string()));
    }

    /// Takes a device that is gone out of presence, with its earlier connections
    /// whose places this one had no time to take; false when it is connected
    /// elsewhere by now and nobody is to hear that it went.
    pub(super) async fn are_gone_everywhere(&self, left: &Departure, earlier: Vec<ConnectionId>) -> bool {
        if !self.is_clustered() {
            return true;
        }
        let mut gone = self.is_gone_everywhere(left).await;
        for connection in earlier {
            gone |= self.is_gone_everywhere(&Departure { connection, ..*left }).await;
        }
        gone
    }

    async fn is_gone_everywhere(&self, left: &Departure) -> bool {
        let removed = self.0.backplane.presence_remove(left.user, left.device, left.connection).await;
        if removed.is_err() {
            self.untold(left);
        }
        removed.unwrap_or(true)
    }

    /// Remembers who could not be taken out of presence; a task tries until it is
    /// done.
    fn untold(&self, left: &Departure) {
        let mut untold = self.lock_untold();
        if untold.departures.len() < UNTOLD_MAX {
            untold.departures.push(*left);
        }
        if !std::mem::replace(&mut untold.is_being_told, true) {
            let hub = self.clone();
            self.0.tasks.spawn(async move { hub.tell_departures().await });
        }
    }

    fn lock_untold(&self) -> MutexGuard<'_, Untold> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others who went while they could not be told, and takes them out
    /// of presence, where they would stay online for good.
    async fn tell_departures(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(UNTOLD_RETRY) => {}
                () = self.0.tasks.ending() => return,
            }
            if !self.0.backplane.is_up() {
                continue;
            }
            let departures = {
                let mut untold = self.lock_untold();
                untold.is_being_told = !untold.departures.is_empty();
                std::mem::take(&mut untold.departures)
            };
            if departures.is_empty() {
                return;
            }
            for left in departures {
                self.tell_departure(&left).await;
            }
        }
    }

    async fn tell_departure(&self, left: &Departure) {
        match self.0.backplane.presence_remove(left.user, left.device, left.connection).await {
            Ok(true) => self.publish_departure(left),
            Ok(false) => {
                // Without a row of any connection it is gone too: Redis may have forgotten it.
                let roster = self.roster(left.user).await;
                if roster.complete && roster.rows.iter().all(|(device, _)| *device != left.device) {
                    self.publish_departure(left);
                }
            }
            Err(_) => self.untold(left),
        }
    }

    pub(super) fn publish_departure(&self, left: &Departure) {
        if self.is_clustered() {
            let event = PresenceEvent {
                event: PresenceChange::Disconnected,
                device: left.device,
                connection: Some(left.connection),
                at_ms: left.at.0,
                reason: Some(left.gone.as_str().to_owned()),
            };
            self.publish(left.user, Kind::Presence(event), None);
        }
    }

    /// Who is online on other nodes, as far as can be told in time.
    pub async fn roster(&self, user: UserId) -> Roster {
        let nobody = Roster { rows: Vec::new(), complete: false };
        if !self.is_clustered() || !self.0.backplane.is_up() {
            return nobody;
        }
        tokio::time::timeout(ROSTER_WITHIN, self.0.backplane.presence_of(user)).await.unwrap_or(nobody)
    }

    /// This life of this node, as rosters name it.
    pub fn node_life(&self) -> NodeLife {
        self.0.backplane.node()
    }

    /// Whether a device on another node still answers: false only if its node
    /// says so, or is gone itself.
    pub async fn answers_elsewhere(&self, user: UserId, device: DeviceId, row: &Row) -> bool {
        if matches!(self.0.backplane.is_alive(&row.node).await, Ok(false)) {
            return false;
        }
        let (answer, answered) = oneshot::channel();
        let id = Uuid::new_v4();
        self.0.pongs.insert(id, answer);
        self.publish(user, Kind::Ping(Ping { id, device, connection: row.connection }), None);
        let alive = tokio::time::timeout(REMOTE_PROBE_WITHIN, answered).await;
        self.0.pongs.remove(&id);
        !matches!(alive, Ok(Ok(false)))
    }

    /// Sends a message to the node that holds its device; false when it is known
    /// that none does. `warm`: the device was there a moment ago.
    pub async fn publish_message(&self, user: UserId, message: &Outgoing<'_>, warm: bool) -> bool {
        if !self.is_clustered() || !self.0.backplane.is_up() {
            return false;
        }
        if !warm && !self.may_be_elsewhere(user, message.target).await {
            return false;
        }
        let body = Message {
            id: message.id.as_str().to_owned(),
            source: message.source,
            target: message.target,
            sent_at_ms: message.sent_at.0,
        };
        self.publish(user, Kind::Message(body), Some(message.json.to_owned()));
        true
    }

    /// Tells the node that waits, or the sender's, what became of a message.
    pub fn publish_message_status(
        &self,
        user: UserId,
        sender: DeviceId,
        device: DeviceId,
        id: &MessageId,
        status: Delivery,
    ) {
        if self.is_clustered() {
            let status = MessageStatus { id: id.as_str().to_owned(), device, sender, status };
            self.publish(user, Kind::MessageStatus(status), None);
        }
    }

    /// Tells the other nodes that a message is kept for a device of the user's.
    pub fn publish_mail(&self, user: UserId, device: DeviceId) {
        if self.is_clustered() {
            let moved = HeadsMoved { what: Head::Mailbox, device: Some(device) };
            self.publish(user, Kind::HeadsMoved(moved), None);
        }
    }

    /// Whether a device is connected here or, as far as can be told in time, on
    /// another node.
    pub async fn may_be_online(&self, user: UserId, device: DeviceId) -> bool {
        self.members(user).iter().any(|member| member.device == device)
            || (self.is_clustered() && self.0.backplane.is_up() && self.may_be_elsewhere(user, device).await)
    }

    async fn may_be_elsewhere(&self, user: UserId, device: DeviceId) -> bool {
        let roster = self.roster(user).await;
        !roster.complete || roster.rows.iter().any(|(online, _)| *online == device)
    }

    /// Passes on what was heard of messages; what is too much comes again with
    /// the regular ask or with the sender's patience.
    fn pass_on(&self, mail: Mail) {
        if self.0.mail.try_send(mail).is_err() {
            tracing::debug!("too much is heard of messages at once");
        }
    }

    fn end_connection(&self, user: UserId, connection: ConnectionId, why: Ending) {
        let members = self.members(user);
        if let Some(member) = members.iter().find(|member| member.connection == connection) {
            member.recipient.end(why);
        }
    }
}

/// A message that goes to another node.
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Outgoing<'a> {
    pub id: &'a MessageId,
    pub source: DeviceId,
    pub target: DeviceId,
    pub sent_at: Timestamp,
    pub json: &'a str,
}

/// What is heard of device messages.
#[derive(Debug)]
pub enum Mail {
    /// One that was sent on another node.
    Message {
        /// Whose.
        user: UserId,
        /// Its head.
        message: Message,
        /// What was sent.
        json: JsonText,
    },
    /// What became of one.
    Status {
        /// Whose.
        user: UserId,
        /// Which, and what.
        status: MessageStatus,
    },
    /// Some are kept for a device; without one, for any of the user's.
    Kept {
        /// Whose.
        user: UserId,
        /// For which.
        device: Option<DeviceId>,
    },
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
        self.change(Arc::new(Change {
            user,
            seq: changed.seq,
            key,
            version: changed.version,
            state: state.map(Into::into),
            device: changed.device,
            at: Timestamp(changed.at_ms),
        }));
    }

    fn take_presence(&self, user: UserId, event: &PresenceEvent, info: Option<String>) {
        let at = Timestamp(event.at_ms);
        let frame = match event.event {
            PresenceChange::Connected => {
                let body = wire::device_connected_body(event.device, &info.unwrap_or("{}".to_owned()), at);
                wire::event("device-connected", &body)
            }
            PresenceChange::Disconnected => {
                // It may have come here meanwhile.
                if self.members(user).iter().any(|member| member.device == event.device) {
                    return;
                }
                let reason = event.reason.as_deref().unwrap_or("transport close");
                let body = wire::device_disconnected_body(event.device, reason, at);
                wire::event("device-disconnected", &body)
            }
            PresenceChange::Updated => wire::device_updated(event.device, info.as_deref().unwrap_or("{}")),
            PresenceChange::Removed => wire::device_removed(event.device),
        };
        self.tell(user, &frame, Some(event.device));
    }

    fn take_kick(&self, user: UserId, kick: &Kick) {
        if let Some(revoked) = &kick.revoked {
            return self.kick_here(user, revoked);
        }
        for member in self.members(user) {
            let is_meant = kick.device.is_none_or(|device| device == member.device)
                && kick.connection.is_none_or(|connection| connection == member.connection);
            if is_meant && kick.reason == "replaced" {
                member.recipient.end(Ending::Replaced);
            }
        }
    }

    fn take_ping(&self, user: UserId, ping: &Ping) {
        let Some(room) = self.room(user) else { return };
        let (hub, id) = (self.clone(), ping.id);
        let member = match room.presence(ping.device, ping.connection) {
            Presence::Here(member) => member,
            // Within its grace: nobody was told, and nobody need be if it is back now.
            Presence::Leaving => return self.publish(user, Kind::Pong(Pong { id, answered: false }), None),
            Presence::Unknown => return,
        };
        self.0.tasks.spawn(async move {
            let answered = member.recipient.probe().await;
            if !answered {
                // Its client is back elsewhere: this end is let go.
                member.recipient.end(Ending::ComeBack);
            }
            hub.publish(user, Kind::Pong(Pong { id, answered }), None);
        });
    }

    /// Newer connections of the same devices stand where these stood.
    fn overtaken(&self, connections: Vec<(UserId, DeviceId, ConnectionId)>) {
        for (user, device, connection) in connections {
            if self.members(user).iter().any(|member| member.connection == connection) {
                self.end_connection(user, connection, Ending::Replaced);
            } else {
                let (device, connection) = (Some(device), Some(connection));
                let kick = Kick { device, connection, reason: "replaced".to_owned(), revoked: None };
                self.publish(user, Kind::Kick(kick), None);
            }
        }
    }

    /// Others thought this node dead and said so; its devices are still here.
    fn reinstate(&self, rows: Vec<(UserId, DeviceId, Row)>) {
        for (user, device, row) in rows {
            let members = self.members(user);
            let Some(member) = members.iter().find(|member| member.connection == row.connection) else {
                continue;
            };
            let arrival = Arrival {
                user,
                device,
                connection: row.connection,
                fence: row.fence,
                info: member.info.clone(),
                at: member.connected_at,
                still_known: false,
            };
            self.tell_arrival(&arrival);
            self.publish_arrival(&arrival);
        }
    }
}
