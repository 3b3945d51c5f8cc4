//! A user's devices: who connects as which, who is online, who was there.
//!
//! A device keeps its identity when it names itself by `deviceId`, and, so that
//! stock clients keep theirs over a blip, when it comes back within the resume
//! window with the same deviceInfo as one that is offline. A device whose
//! transport only seems alive is asked first: `Recipient::probe`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::auth::Identity;
use crate::backplane::Roster;
use crate::drain::Tasks;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Departure, Ending, Gone, Hub, Member, Recipient};
use crate::merge::{self, Field};
use crate::model::{
    BootId, Clock, ConnectionId, Description, Device, DeviceId, DeviceInfo, JsonText, Timestamp, UserId,
};
use crate::store::{
    Command, ConnectDevice, ConnectRefusal, Connected, LeaveConnection, LeaveDevice, MoveDevice,
    RevokeDevice, StillThere, Store, StoreError, UpdateDevice, Writer,
};
use crate::wire;

/// Bytes of deviceInfo.
const INFO_BYTES_MAX: usize = 4 * 1024;

/// Wait before a goodbye that the store could not take is tried again, and how
/// often.
const LEAVE_RETRY: Duration = Duration::from_secs(1);
const LEAVE_TRIES: u32 = 60;

/// Reads what a device says of itself. Without it the name is empty and the
/// type `unknown`; fields beside those two are metadata.
///
/// # Errors
/// `invalid_device_info` when it is no JSON object or over 4 KiB.
pub fn parse_info(text: Option<&str>) -> Outcome<DeviceInfo> {
    let text = text.unwrap_or("{}");
    let invalid = || {
        Failure::new(Code::InvalidDeviceInfo, "deviceInfo is a JSON object of at most 4 KiB.")
            .with("field", "deviceInfo")
    };
    if text.len() > INFO_BYTES_MAX {
        return Err(invalid());
    }
    let fields = merge::fields(text).ok_or_else(invalid)?;
    let word = |name: &str| merge::text(merge::value(&fields, name)?).map(|said| said.text);
    Ok(DeviceInfo {
        name: word("name").unwrap_or_default(),
        kind: word("type").filter(|kind| !kind.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        json: text.trim().into(),
        metadata: merge::object(beside_name_and_type(&fields)).into(),
        fingerprint: fingerprint(text, &fields),
    })
}

/// The same of a JSON value: an object, or a string that holds one, as in the
/// query.
///
/// # Errors
/// As [`parse_info`].
pub fn read_info(json: &str) -> Outcome<DeviceInfo> {
    match merge::text(json) {
        Some(said) => parse_info(Some(&said.text)),
        None => parse_info(Some(json)),
    }
}

fn beside_name_and_type(fields: &[Field]) -> impl Iterator<Item = &Field> {
    fields.iter().filter(|field| !["name", "type"].contains(&field.name.as_str()))
}

/// The same for objects that differ only in the order of their fields.
fn fingerprint(text: &str, fields: &[Field]) -> u64 {
    let in_order = match serde_json::from_str(text) {
        Ok(value) => sorted(&value).to_string(),
        // Something that serde cannot hold. Devices are known by what it makes of the rest.
        Err(_) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|field| &field.name);
            merge::object(fields)
        }
    };
    let digest = Sha256::digest(in_order);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.iter().collect();
            names.sort_by_key(|(name, _)| *name);
            Value::Object(names.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// What a user changes of a device.
#[derive(Debug, Default)]
pub struct Patch {
    /// Another name.
    pub name: Option<String>,
    /// Other metadata, in the place of all there was.
    pub metadata: Option<JsonText>,
}

impl Patch {
    /// Reads `{name?, metadata?}`.
    ///
    /// # Errors
    /// `invalid_field` for anything but a string and an object that together are
    /// no bigger than a deviceInfo may be, and for nothing at all.
    pub fn of(fields: &[Field]) -> Outcome<Self> {
        let name = match merge::value(fields, "name").map(merge::text) {
            None => None,
            Some(Some(name)) => Some(name.text),
            Some(None) => return Err(Failure::field("name", "name must be a string.")),
        };
        let metadata = merge::value(fields, "metadata");
        if metadata.is_some_and(|metadata| !metadata.starts_with('{')) {
            return Err(Failure::field("metadata", "metadata must be an object."));
        }
        if name.as_ref().map_or(0, String::len) > INFO_BYTES_MAX {
            return Err(Failure::field("name", "name has at most 4 KiB."));
        }
        if metadata.map_or(0, str::len) > INFO_BYTES_MAX {
            return Err(Failure::field("metadata", "metadata has at most 4 KiB of JSON."));
        }
        if name.is_none() && metadata.is_none() {
            return Err(Failure::field("name", "Give name, metadata or both."));
        }
        Ok(Self { name, metadata: metadata.map(Into::into) })
    }
}

/// A device as it would say it of itself: the deviceInfo that others get.
pub fn info_of(device: &Description) -> JsonText {
    let mut info = format!("{{\"name\":{},\"type\":{}", wire::json(&device.name), wire::json(&device.kind));
    let fields = merge::fields(&device.metadata).unwrap_or_default();
    let others = merge::object(beside_name_and_type(&fields));
    if let Some(others) = others.strip_prefix('{').filter(|others| *others != "}") {
        info.push(',');
        info.push_str(others);
    } else {
        info.push('}');
    }
    info.into()
}

/// The user's share of sockets is used up.
pub fn too_many_sockets() -> Failure {
    Failure::new(Code::TooManyConnections, "This user has too many sockets.")
}

fn unknown_device() -> Failure {
    Failure::new(Code::UnknownDevice, "There is no such device.")
}

/// A device as clients see it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: DeviceId,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    online: bool,
    connected_at: Option<Timestamp>,
    last_seen: Timestamp,
    created_at: Timestamp,
    metadata: Box<RawValue>,
}

/// A run of a node beats every two seconds; one that has been silent for so long
/// is dead.
const NODE_SILENCE_MAX: Duration = Duration::from_secs(10);

/// A client that was heard is there for so long at least: none gives up sooner. One that was heard longer
/// ago may be connected to another node by now.
const HEARD_FOR: Duration = Duration::from_millis(800);

/// Asks a client for a sign of life. Twice, since what comes first may be an answer to something older.
///
/// # Errors
/// `draining` when nobody answers: who is there after all comes again.
pub async fn must_answer(client: &impl Recipient) -> Outcome<()> {
    if !client.is_closed() && client.probe().await && client.probe().await {
        return Ok(());
    }
    Err(Failure::new(Code::Draining, "Nobody is there any more."))
}

/// A claim may wait long for its turn: behind a lock, in a queue, on a node that stands still. Were it then
/// granted to a client that has gone to another node, it would be the newest, and the connection that the
/// client has by now would be sent away for good.
fn heard_just_now(client: Arc<impl Recipient + 'static>) -> StillThere {
    let heard = Instant::now();
    StillThere::when(move || !client.is_closed() && heard.elapsed() < HEARD_FOR)
}

/// Goodbyes may be said twice, so that one whose outcome is unknown is tried again, too.
async fn submit_until_done(writer: &Writer, tasks: &Tasks, goodbye: &Command) {
    for _ in 0..LEAVE_TRIES {
        if writer.submit(goodbye.clone()).await.is_ok() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LEAVE_RETRY) => {}
            () = tasks.ending() => return,
        }
    }
}

/// The user's devices that are online, and those that only seemed to be.
#[derive(Default)]
struct Twins {
    online: Vec<DeviceId>,
    let_go: Vec<ConnectionId>,
}

/// See the module's comment.
pub struct DeviceService {
    store: Arc<dyn Store>,
    writer: Writer,
    hub: Hub,
    boot: BootId,
    resume_window: Duration,
    tasks: Tasks,
    unsettled: Arc<Unsettled>,
}

/// Connections that the store may have, although their clients were sent away.
#[derive(Default)]
struct Unsettled(Mutex<HashSet<(UserId, ConnectionId)>>);

impl Unsettled {
    fn of(&self, user: UserId) -> Vec<ConnectionId> {
        self.lock().iter().filter(|(whose, _)| *whose == user).map(|(_, connection)| *connection).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(UserId, ConnectionId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceService {
    /// A service for this run of this node.
    pub fn new(
        store: Arc<dyn Store>,
        writer: Writer,
        hub: Hub,
        boot: BootId,
        resume_window: Duration,
        tasks: Tasks,
    ) -> Self {
        Self { store, writer, hub, boot, resume_window, tasks, unsettled: Arc::default() }
    }

    /// Gives a connecting device its identity, durably.
    ///
    /// # Errors
    /// `unauthorized`, `device_revoked`; `too_many_connections`; `draining` when `client` is gone; the
    /// store's failures.
    pub async fn connect(
        &self,
        identity: &Identity,
        claimed: Option<DeviceId>,
        info: DeviceInfo,
        connection: ConnectionId,
        client: Arc<impl Recipient + 'static>,
    ) -> Outcome<Connected> {
        let mut twins = match claimed {
            Some(_) => Twins::default(),
            None => self.look_for_twins(identity.user, &info).await?,
        };
        // A twin whose place it might have taken is alive after all. The store is to know no device that
        // never connects.
        if claimed.is_none() && self.hub.is_full(identity.user) {
            return Err(too_many_sockets());
        }
        twins.let_go.extend(self.unsettled.of(identity.user));
        let now = Clock::now();
        let mut claim = ConnectDevice {
            user: identity.user,
            login: identity.login,
            issued_at: identity.issued_at,
            claimed,
            info,
            online: twins.online,
            let_go: twins.let_go,
            live_boots: vec![self.boot],
            dead_before: self.dead_before(now),
            resumable_since: now.plus_ms(-(self.resume_window.as_millis() as i64)),
            connection,
            boot: self.boot,
            at: now,
            still_there: heard_just_now(client.clone()),
        };
        loop {
            let outcome = self.writer.connect_device(claim.clone()).await;
            if matches!(outcome, Err(StoreError::Unavailable { unknown: true })) {
                self.take_back(identity.user, connection);
            }
            match outcome? {
                Ok(connected) => return Ok(connected),
                Err(ConnectRefusal::Unauthorized) => {
                    return Err(Failure::new(Code::Unauthorized, "This login has ended."));
                }
                Err(ConnectRefusal::DeviceRevoked) => {
                    return Err(Failure::new(Code::DeviceRevoked, "This device was removed by its user."));
                }
                Err(ConnectRefusal::Gone) => {
                    must_answer(&*client).await?;
                    claim.still_there = heard_just_now(client.clone());
                }
            }
        }
    }

    /// From when on the silence of another run means its death. Alone, there is
    /// no other run that could be alive.
    fn dead_before(&self, now: Timestamp) -> Timestamp {
        let silence = if self.hub.is_clustered() { NODE_SILENCE_MAX.as_millis() as i64 } else { -1 };
        now.plus_ms(-silence)
    }

    /// Whoever comes back without naming itself may be a device that only seems
    /// connected: those with the same info are asked, here and on other nodes,
    /// and let go if they do not answer.
    async fn look_for_twins(&self, user: UserId, info: &DeviceInfo) -> Outcome<Twins> {
        let members = self.hub.members(user);
        let (same, others): (Vec<_>, Vec<_>) =
            members.iter().partition(|member| member.fingerprint == info.fingerprint);
        let mut twins = Twins::default();
        twins.online.extend(others.iter().map(|member| member.device));
        let asked = same.into_iter().map(|member| async move { (member, member.recipient.probe().await) });
        for (member, alive) in join_all(asked).await {
            if alive {
                twins.online.push(member.device);
            } else {
                self.let_go(user, member).await;
            }
        }
        let here: Vec<_> = members.iter().map(|member| member.device).collect();
        self.look_elsewhere(user, info, &here, &mut twins).await?;
        Ok(twins)
    }

    async fn look_elsewhere(
        &self,
        user: UserId,
        info: &DeviceInfo,
        here: &[DeviceId],
        twins: &mut Twins,
    ) -> Outcome<()> {
        let own = self.hub.node_life();
        let mut rows = self.hub.roster(user).await.rows;
        rows.retain(|(device, row)| row.node != own && !here.contains(device));
        if rows.is_empty() {
            return Ok(());
        }
        let devices = self.store.devices(user).await?;
        let is_twin = |id: DeviceId| {
            devices.iter().any(|device| device.id == id && device.fingerprint == info.fingerprint)
        };
        let asked = rows.iter().map(|(device, row)| async move {
            let stays = !is_twin(*device) || self.hub.answers_elsewhere(user, *device, row).await;
            (*device, row.connection, stays)
        });
        for (device, connection, stays) in join_all(asked).await {
            if stays { twins.online.push(device) } else { twins.let_go.push(connection) }
        }
        Ok(())
    }

    async fn let_go(&self, user: UserId, member: &Member) {
        member.recipient.end(Ending::ComeBack);
        let now = Clock::now();
        let (device, connection) = (member.device, member.connection);
        self.hub.leave(Departure { user, device, connection, gone: Gone::PingTimeout, at: now });
        let leave = LeaveDevice { user, device, connection, at: now };
        // If the store cannot take it now, it cannot take the connect either.
        if let Err(error) = self.writer.leave_device(leave).await {
            tracing::debug!(%error, "a goodbye was not noted");
        }
    }

    /// Notes that a connection ended, and tells the others in time.
    pub fn leave(&self, user: UserId, device: DeviceId, connection: ConnectionId, gone: Gone) {
        let now = Clock::now();
        self.hub.leave(Departure { user, device, connection, gone, at: now });
        let (writer, tasks) = (self.writer.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let leave = LeaveDevice { user, device, connection, at: now };
            submit_until_done(&writer, &tasks, &Command::LeaveDevice(leave)).await;
        });
    }

    /// A connect may have happened, and its client is sent away: a row left open
    /// would keep it from being the same device when it comes again.
    fn take_back(&self, user: UserId, connection: ConnectionId) {
        self.unsettled.lock().insert((user, connection));
        let (writer, tasks, unsettled) = (self.writer.clone(), self.tasks.clone(), self.unsettled.clone());
        let leave = Command::LeaveConnection(LeaveConnection { user, connection, at: Clock::now() });
        self.tasks.spawn(async move {
            submit_until_done(&writer, &tasks, &leave).await;
            unsettled.lock().remove(&(user, connection));
        });
    }

    /// Changes the name or the metadata of a device and tells the others; the
    /// device as clients see it.
    ///
    /// # Errors
    /// `invalid_field`, `unknown_device`; the store's failures.
    pub async fn update(&self, user: UserId, device: &str, patch: Patch) -> Outcome<String> {
        let id = DeviceId::parse(device).ok_or_else(unknown_device)?;
        let update = UpdateDevice { user, device: id, name: patch.name, metadata: patch.metadata };
        let (writer, store, hub) = (self.writer.clone(), self.store.clone(), self.hub.clone());
        let updated = async move {
            if !writer.update_device(update).await? {
                return Err(unknown_device());
            }
            let devices = store.devices(user).await?;
            // Revoked in this very moment.
            let device = devices.into_iter().find(|device| device.id == id).ok_or_else(unknown_device)?;
            hub.device_updated(user, id, &info_of(&device.description));
            Ok(device)
        };
        let device = self.tasks.finish(updated).await?;
        let since = self.online(user).await.since(id);
        Ok(wire::json(&listed(device, since, Clock::now())))
    }

    /// Revokes a device: its sockets end for good, and with them the login of
    /// its last connection unless another device is online with it. The others
    /// are told.
    ///
    /// # Errors
    /// `unknown_device`, also for a device of somebody else's; the store's
    /// failures.
    pub async fn revoke(&self, user: UserId, device: &str) -> Outcome<()> {
        let device = DeviceId::parse(device).ok_or_else(unknown_device)?;
        let at = Clock::now();
        let online = self.online(user).await.devices();
        let revoke = RevokeDevice {
            user,
            device,
            online,
            beating_since: at.plus_ms(-(NODE_SILENCE_MAX.as_millis() as i64)),
            at,
        };
        let (writer, hub) = (self.writer.clone(), self.hub.clone());
        let revoked = async move {
            let revoked = writer.revoke(Command::RevokeDevice(revoke)).await?.ok_or_else(unknown_device)?;
            for revoked in &revoked {
                hub.kick(user, revoked, at);
            }
            hub.device_removed(user, device);
            Ok(())
        };
        self.tasks.finish(revoked).await
    }

    /// A connection goes on under the login of another token of its user.
    ///
    /// # Errors
    /// The store's failures; then nothing has changed.
    pub async fn move_to_login(
        &self,
        identity: &Identity,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Outcome<()> {
        let (user, login) = (identity.user, identity.login);
        let members = self.hub.members(user);
        let is_here = |member: &&Arc<Member>| member.connection == connection && member.login == login;
        if members.iter().find(is_here).is_none() {
            self.writer.submit(Command::MoveDevice(MoveDevice { user, device, connection, login })).await?;
        }
        self.hub.move_to_login(user, connection, login, identity.issued_at);
        Ok(())
    }

    /// The user's devices as a JSON array.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn list(&self, user: UserId) -> Outcome<String> {
        let devices = self.store.devices(user).await?;
        let online = self.online(user).await;
        let now = Clock::now();
        let listed: Vec<_> = devices
            .into_iter()
            .map(|device| {
                let since = online.since(device.id);
                listed(device, since, now)
            })
            .collect();
        Ok(wire::json(&listed))
    }

    async fn online(&self, user: UserId) -> Online {
        Online { here: self.hub.members(user), elsewhere: self.hub.roster(user).await }
    }
}

/// Who is connected, on this node and, as far as can be told, on others.
struct Online {
    here: Vec<Arc<Member>>,
    elsewhere: Roster,
}

impl Online {
    /// When the device's present connection began.
    fn since(&self, device: DeviceId) -> Option<Timestamp> {
        let here = self.here.iter().find(|member| member.device == device).map(|member| member.connected_at);
        here.or_else(|| {
            let row = self.elsewhere.rows.iter().find(|(id, _)| *id == device);
            row.map(|(_, row)| Timestamp(row.since_ms))
        })
    }

    fn devices(&self) -> Vec<DeviceId> {
        let here = self.here.iter().map(|member| member.device);
        here.chain(self.elsewhere.rows.iter().map(|(device, _)| *device)).collect()
    }
}

/// `online_since`: when its present connection began.
fn listed(device: Device, online_since: Option<Timestamp>, now: Timestamp) -> Listed {
    let Description { name, kind, metadata } = device.description;
    let metadata = RawValue::from_string((*metadata).into());
    Listed {
        id: device.id,
        name,
        kind,
        online: online_since.is_some(),
        connected_at: online_since.or(device.connected_at),
        last_seen: if online_since.is_some() { now } else { device.last_seen },
        created_at: device.created_at,
        metadata: metadata.unwrap_or_else(|_| RawValue::NULL.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_kept_as_metadata() {
        let info =
            parse_info(Some(r#"{"name":"My Device","type":"desktop","viewport":"1920x1080"}"#)).unwrap();
        assert_eq!((info.name.as_str(), info.kind.as_str()), ("My Device", "desktop"));
        assert_eq!(&*info.metadata, r#"{"viewport":"1920x1080"}"#);
    }

    #[test]
    fn without_info_the_name_is_empty_and_the_type_unknown() {
        let info = parse_info(None).unwrap();
        assert_eq!((info.name.as_str(), info.kind.as_str(), &*info.json), ("", "unknown", "{}"));
    }

    #[test]
    fn the_order_of_fields_does_not_matter_to_who_it_is() {
        let same = [r#"{"a":{"x":1,"y":2},"b":1}"#, r#"{"b":1, "a":{"y":2,"x":1}}"#];
        let [one, other] = same.map(|text| parse_info(Some(text)).unwrap().fingerprint);
        assert_eq!(one, other);
        assert_ne!(one, parse_info(Some(r#"{"b":1}"#)).unwrap().fingerprint);
        let same = [r#"{"a":1e400,"b":"\ud83d"}"#, r#"{"b":"\ud83d", "a":1e400}"#];
        let [one, other] = same.map(|text| parse_info(Some(text)).unwrap().fingerprint);
        assert_eq!(one, other);
        assert_ne!(one, parse_info(Some(r#"{"a":1e400}"#)).unwrap().fingerprint);
    }

    /// Of a node of another version it is the same, or stock clients become others in a rolling deploy.
    #[test]
    fn who_it_is_does_not_change_from_version_to_version() {
        let info = parse_info(Some(r#"{"name":"My Device","type":"desktop","n":[1e2,"\u0041"]}"#)).unwrap();
        assert_eq!(info.fingerprint, 0x4cf969f9c0439616);
    }

    #[test]
    fn a_patch_is_a_name_an_object_or_both() {
        let patch = |value: Value| Patch::of(&merge::fields(&value.to_string()).unwrap());
        let both = patch(json!({"name": "Desk", "metadata": {"n": 12345678901234567_u64}})).unwrap();
        assert_eq!(
            (both.name.as_deref(), both.metadata.as_deref()),
            (Some("Desk"), Some(r#"{"n":12345678901234567}"#))
        );
        let big = "x".repeat(INFO_BYTES_MAX + 1);
        for bad in [
            json!({}),
            json!({"other": 1}),
            json!({"name": null}),
            json!({"name": 3}),
            json!({"metadata": []}),
            json!({"name": big}),
            json!({"metadata": {"x": big}}),
        ] {
            assert_eq!(patch(bad).unwrap_err().code, Code::InvalidField);
        }
    }

    #[test]
    fn metadata_never_passes_for_name_or_type() {
        let metadata = r#"{"name":"other","size":2}"#.into();
        let device = Description { name: "Desk".into(), kind: "desktop".into(), metadata };
        assert_eq!(&*info_of(&device), r#"{"name":"Desk","type":"desktop","size":2}"#);
    }

    #[test]
    fn what_is_no_object_or_too_big_is_refused() {
        let big = format!("{{\"name\":\"{}\"}}", "x".repeat(4096));
        for bad in ["", "nope", "[]", "null", "\"x\"", "{", &big] {
            assert_eq!(parse_info(Some(bad)).unwrap_err().code, Code::InvalidDeviceInfo, "{bad:.20}");
        }
    }
}
