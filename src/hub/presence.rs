//! Who comes and goes, as the user's other devices hear it, on this node and on
//! the others.

use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Departure, Ending, Gone, Hub, Presence};
use crate::backplane::{
    Kick, Kind, NodeLife, Online, Ping, Placed, Pong, PresenceChange, PresenceEvent, Roster, Row, Unavailable,
};
use crate::model::{Clock, ConnectionId, DeviceId, JsonText, Timestamp, UserId};
use crate::store::StoreResult;
use crate::wire;

/// How long another node has to ping its device for us: its own wait for the
/// device, and the way there and back.
const REMOTE_PROBE_WITHIN: Duration = Duration::from_millis(700);

/// How long a connect waits for who is online elsewhere.
const ROSTER_WITHIN: Duration = Duration::from_millis(500);

/// Whether a device that left here is connected nowhere else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Everywhere {
    /// It is out of presence.
    Yes,
    /// It is connected elsewhere by now, and nobody is to hear that it went.
    No,
    /// It could not be taken out of presence yet; see [`super::untold`].
    Unknown,
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
    /// Its deviceInfo as others get it.
    pub info: JsonText,
    /// That is something new.
    pub described_anew: bool,
    /// When.
    pub at: Timestamp,
    /// This node's devices never heard that it was gone.
    pub still_known: bool,
}

impl Hub {
    /// Tells everyone that a device came, or, if they never heard it was gone, what
    /// is new about it.
    pub fn arrived(&self, arrival: Arrival) {
        if !self.is_clustered() {
            match arrival.still_known {
                true => self.tell_what_is_new(&arrival),
                false => self.announce(&arrival),
            }
            return;
        }
        let hub = self.clone();
        self.0.tasks.spawn(async move {
            let online = Online {
                connection: arrival.connection,
                since_ms: arrival.at.0,
                fence: arrival.fence,
                epoch: hub.0.store.epoch(),
            };
            let mut placed = hub.0.backplane.presence_set(arrival.user, arrival.device, online.clone()).await;
            if let Ok(Placed::Fenced { by }) = &placed {
                match hub.is_latest(&arrival).await {
                    Ok(true) => placed = hub.place_instead(&arrival, online, by.connection).await,
                    Ok(false) => {}
                    // Who comes again finds out.
                    Err(_) => return hub.end_connection(arrival.user, arrival.connection, Ending::ComeBack),
                }
            }
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
                Ok(Placed::Stands { replaced: Some(row) }) => {
                    hub.replace(&arrival, &row);
                    hub.tell_what_is_new(&arrival);
                }
                Ok(Placed::Fenced { .. }) => {
                    hub.end_connection(arrival.user, arrival.connection, Ending::Replaced)
                }
                Err(_) if arrival.still_known => hub.tell_what_is_new(&arrival),
                // Known here and without a row: others have been told that it is gone.
                Ok(Placed::Stands { replaced: None }) | Err(_) => hub.announce(&arrival),
            }
        });
    }

    /// Whether the store gave this connection the device last.
    async fn is_latest(&self, arrival: &Arrival) -> StoreResult<bool> {
        let devices = self.0.store.devices(arrival.user).await?;
        let latest = devices.iter().find(|device| device.id == arrival.device);
        Ok(latest.is_some_and(|device| device.connection == Some(arrival.connection)))
    }

    /// The row that keeps it out is one of before the database was put back: it goes.
    async fn place_instead(
        &self,
        arrival: &Arrival,
        online: Online,
        by: ConnectionId,
    ) -> Result<Placed, Unavailable> {
        self.0.backplane.presence_remove(arrival.user, arrival.device, by).await?;
        self.0.backplane.presence_set(arrival.user, arrival.device, online).await
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
                at_ms: None,
                reason: "replaced".to_owned(),
            };
            self.publish(arrival.user, Kind::Kick(kick), None);
        }
    }

    fn tell_what_is_new(&self, arrival: &Arrival) {
        if arrival.described_anew {
            self.device_updated(arrival.user, arrival.device, &self.latest_info(arrival));
        }
    }

    /// Its deviceInfo may have changed again since it connected.
    fn latest_info(&self, arrival: &Arrival) -> JsonText {
        match self.presence(arrival) {
            Presence::Here(member) => member.info.clone(),
            Presence::Leaving | Presence::Unknown => arrival.info.clone(),
        }
    }

    /// Tells a user's other devices that one has another name, type or metadata.
    /// `info` is its deviceInfo.
    pub fn device_updated(&self, user: UserId, device: DeviceId, info: &JsonText) {
        self.describe(user, device, info);
        self.tell(user, &wire::device_updated(device, info), Some(device));
        self.publish_presence(user, device, PresenceChange::Updated, Some(info.to_string()));
    }

    fn describe(&self, user: UserId, device: DeviceId, info: &JsonText) {
        if let Some(room) = self.room(user) {
            room.describe(device, info);
        }
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

    /// Tells everyone that a connection came, before anybody hears that it went.
    fn announce(&self, arrival: &Arrival) {
        let Some(room) = self.room(arrival.user) else { return };
        let info = self.latest_info(arrival);
        let body = wire::device_connected_body(arrival.device, &info, arrival.at);
        let event = wire::event("device-connected", &body);
        room.tell_arrival(arrival.device, arrival.connection, &event, || {
            if self.is_clustered() {
                self.publish_arrival(arrival, &info);
            }
        });
    }

    fn publish_arrival(&self, arrival: &Arrival, info: &JsonText) {
        let event = PresenceEvent {
            event: PresenceChange::Connected,
            device: arrival.device,
            connection: Some(arrival.connection),
            at_ms: arrival.at.0,
            reason: None,
        };
        self.publish(arrival.user, Kind::Presence(event), Some(info.to_string()));
    }

    /// Takes a device that is gone out of presence, with its earlier connections
    /// whose places this one had no time to take.
    pub(super) async fn are_gone_everywhere(
        &self,
        left: &Departure,
        earlier: Vec<ConnectionId>,
    ) -> Everywhere {
        if !self.is_clustered() {
            return Everywhere::Yes;
        }
        let mut unknown = Vec::new();
        for connection in std::iter::once(left.connection).chain(earlier) {
            let departure = Departure { connection, ..*left };
            match self.0.backplane.presence_remove(left.user, left.device, connection).await {
                // It has but one row.
                Ok(true) => return Everywhere::Yes,
                Ok(false) => {}
                Err(_) => unknown.push(departure),
            }
        }
        if unknown.is_empty() {
            return Everywhere::No;
        }
        unknown.iter().for_each(|departure| self.untold(departure));
        Everywhere::Unknown
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

    /// Whether a device is connected here or, as far as can be told in time, on
    /// another node.
    pub async fn may_be_online(&self, user: UserId, device: DeviceId) -> bool {
        self.members(user).iter().any(|member| member.device == device)
            || (self.is_clustered() && self.0.backplane.is_up() && self.may_be_elsewhere(user, device).await)
    }

    pub(super) async fn may_be_elsewhere(&self, user: UserId, device: DeviceId) -> bool {
        let roster = self.roster(user).await;
        !roster.complete || roster.rows.iter().any(|(online, _)| *online == device)
    }

    pub(super) fn take_presence(&self, user: UserId, event: &PresenceEvent, info: Option<String>) {
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
            PresenceChange::Updated => {
                let info: JsonText = info.unwrap_or("{}".to_owned()).into();
                self.describe(user, event.device, &info);
                wire::device_updated(event.device, &info)
            }
            PresenceChange::Removed => wire::device_removed(event.device),
        };
        self.tell(user, &frame, Some(event.device));
    }

    pub(super) fn take_ping(&self, user: UserId, ping: &Ping) {
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
    pub(super) fn overtaken(&self, connections: Vec<(UserId, DeviceId, ConnectionId)>) {
        for (user, device, connection) in connections {
            if self.members(user).iter().any(|member| member.connection == connection) {
                self.end_connection(user, connection, Ending::Replaced);
            } else {
                let (device, connection) = (Some(device), Some(connection));
                let reason = "replaced".to_owned();
                let kick = Kick { device, connection, revoked: None, at_ms: None, reason };
                self.publish(user, Kind::Kick(kick), None);
            }
        }
    }

    /// Others thought this node dead and said so; its devices are still here.
    pub(super) fn reinstate(&self, rows: Vec<(UserId, DeviceId, Row)>) {
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
                described_anew: false,
                at: member.connected_at,
                still_known: false,
            };
            self.announce(&arrival);
        }
    }

    fn end_connection(&self, user: UserId, connection: ConnectionId, why: Ending) {
        let members = self.members(user);
        if let Some(member) = members.iter().find(|member| member.connection == connection) {
            member.recipient.end(why);
        }
    }
}
