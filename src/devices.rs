//! A user's devices: who connects as which, who is online, who was there.
//!
//! A device keeps its identity when it names itself by `deviceId`, and, so that
//! stock clients keep theirs over a blip, when it comes back within the resume
//! window with the same deviceInfo as one that is offline. A device whose
//! transport only seems alive is asked first: `Recipient::probe`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::auth::Identity;
use crate::drain::Tasks;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Departure, Ending, Gone, Hub, Member};
use crate::model::{BootId, Clock, ConnectionId, Device, DeviceId, DeviceInfo, Timestamp, UserId};
use crate::store::{ConnectDevice, ConnectRefusal, Connected, LeaveDevice, Store, Writer};

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
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|_| invalid())?;
    let word = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut metadata = fields.clone();
    metadata.retain(|name, _| !["name", "type"].contains(&name.as_str()));
    Ok(DeviceInfo {
        name: word("name").unwrap_or_default(),
        kind: word("type").filter(|kind| !kind.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        json: text.trim().into(),
        metadata: Value::Object(metadata).to_string().into(),
        fingerprint: fingerprint(&Value::Object(fields)),
    })
}

/// The same for objects that differ only in the order of their fields.
fn fingerprint(value: &Value) -> u64 {
    let digest = Sha256::digest(sorted(value).to_string());
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
        Self { store, writer, hub, boot, resume_window, tasks }
    }

    /// Gives a connecting device its identity, durably.
    ///
    /// # Errors
    /// `unauthorized`, `device_revoked`; the store's failures.
    pub async fn connect(
        &self,
        identity: &Identity,
        claimed: Option<DeviceId>,
        info: DeviceInfo,
        connection: ConnectionId,
    ) -> Outcome<Connected> {
        let twins = match claimed {
            Some(_) => Twins::default(),
            None => self.look_for_twins(identity.user, &info).await?,
        };
        let now = Clock::now();
        let connected = self
            .writer
            .connect_device(ConnectDevice {
                user: identity.user,
                login: identity.login,
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
            })
            .await?;
        connected.map_err(|refusal| match refusal {
            ConnectRefusal::Unauthorized => Failure::new(Code::Unauthorized, "This login has ended."),
            ConnectRefusal::DeviceRevoked => {
                Failure::new(Code::DeviceRevoked, "This device was removed by its user.")
            }
        })
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
            members.iter().partition(|member| member.info.fingerprint == info.fingerprint);
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
            for _ in 0..LEAVE_TRIES {
                if writer.leave_device(leave.clone()).await.is_ok() {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(LEAVE_RETRY) => {}
                    () = tasks.ending() => return,
                }
            }
        });
    }

    /// The user's devices as a JSON array.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn list(&self, user: UserId) -> Outcome<String> {
        let devices = self.store.devices(user).await?;
        let members = self.hub.members(user);
        let roster = self.hub.roster(user).await;
        let online = |device: DeviceId| {
            let here =
                members.iter().find(|member| member.device == device).map(|member| member.connected_at);
            here.or_else(|| {
                let row = roster.rows.iter().find(|(id, _)| *id == device);
                row.map(|(_, row)| Timestamp(row.since_ms))
            })
        };
        let now = Clock::now();
        let listed: Vec<_> = devices
            .into_iter()
            .map(|device| {
                let since = online(device.id);
                listed(device, since, now)
            })
            .collect();
        Ok(crate::wire::json(&listed))
    }
}

/// `online_since`: when its present connection began.
fn listed(device: Device, online_since: Option<Timestamp>, now: Timestamp) -> Listed {
    let metadata = RawValue::from_string((*device.metadata).into());
    Listed {
        id: device.id,
        name: device.name,
        kind: device.kind,
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
    }

    #[test]
    fn what_is_no_object_or_too_big_is_refused() {
        let big = format!("{{\"name\":\"{}\"}}", "x".repeat(4096));
        for bad in ["", "nope", "[]", "null", "\"x\"", "{", &big] {
            assert_eq!(parse_info(Some(bad)).unwrap_err().code, Code::InvalidDeviceInfo, "{bad:.20}");
        }
    }
}
