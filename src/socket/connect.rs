//! From CONNECT to `session-restored`.
//!
//! Token, device info, caps; the device's identity, durably; the hub, which
//! holds back from then on; one snapshot; the restore; then what was held back;
//! then the events that the client sent meanwhile. What is refused for good is
//! told by `connect_error`, after which stock clients stay away; what passes by
//! itself closes the transport, so that they come back.

use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::session::{Session, Who};
use super::{events, fields};
use crate::devices;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Arrival, Ending, Gone, Member, NotJoined, Recipient};
use crate::model::{Clock, ConnectionId, DeviceId, DeviceInfo, UserId};
use crate::store::Selection;
use crate::sync::restore::Restore;
use crate::wire;

/// Snapshots that a connect reads at most. The second is new enough, unless the
/// store has gone back to another past, of which the hub is yet to learn.
const RESTORES_MAX: usize = 3;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Auth<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    token: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    device_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    device_info: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    since: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    keys: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    message_acks: Option<&'a RawValue>,
}

/// Makes a device of the session, or refuses it.
pub async fn connect(session: &Arc<Session>, auth: &str) {
    let started = Instant::now();
    match admit(session, auth).await {
        Ok(()) => session.services.metrics.restore_seconds.record(started.elapsed()),
        Err(failure) => {
            session.services.metrics.refused_handshakes.increment(1);
            tracing::debug!(code = failure.code.as_str(), "connect refused");
            if !failure.code.retryable() {
                session.transport.send_or_close(&wire::connect_refused(&failure));
                session.refused();
            } else {
                session.transport.close();
            }
        }
    }
}

async fn admit(session: &Arc<Session>, auth: &str) -> Outcome<()> {
    let services = &session.services;
    let unauthorized = || Failure::new(Code::Unauthorized, "CONNECT needs an object with a token.");
    // A list would be read as the object's fields in their order.
    let auth = Some(auth).filter(|auth| auth.starts_with('{')).ok_or_else(unauthorized)?;
    let auth: Auth<'_> = fields::read(auth).map_err(|_| unauthorized())?;
    let token = fields::string(auth.token, "token").map_err(|_| unauthorized())?;
    let identity = services.auth.identify(&token).await?;
    let info = device_info(session, auth.device_info)?;
    // A position that cannot be read is none: the restore is full.
    let keys = events::selection(auth.keys, None).unwrap_or_default().keys;
    let since = events::selection(None, auth.since).unwrap_or_default().since;
    let selection = Selection { keys, since };
    if services.tasks.refuses_sockets() {
        return Err(Failure::new(Code::Draining, "This node is going away."));
    }
    let claimed = auth.device_id.and_then(|id| serde_json::from_str::<String>(id.get()).ok());
    let claimed = claimed.map(|id| DeviceId::parse(&id).unwrap_or_else(DeviceId::fresh));
    if !has_room(session, identity.user, claimed, &info) {
        return Err(devices::too_many_sockets());
    }

    let _visit = services.hub.visit(identity.user).await;
    // Last, since a node may stand still while it waits, too.
    if services.standstill.was_lately() {
        devices::must_answer(&**session).await?;
    }
    let connection = ConnectionId::fresh();
    let connected =
        services.devices.connect(&identity, claimed, info.clone(), connection, session.clone()).await;
    let connected = connected.inspect_err(|failure| services.auth.refused(&identity, failure))?;
    // They are gone, whatever becomes of the newcomer.
    for dropped in &connected.dropped {
        services.hub.device_removed(identity.user, *dropped);
    }
    let described = devices::info_of(&connected.description);
    let who = Who {
        user: identity.user,
        device: connected.device,
        connection,
        login: identity.login,
        expires_at: identity.expires_at,
    };
    let member = Member {
        device: who.device,
        connection,
        fence: connected.fence,
        login: who.login,
        token_issued_at: identity.issued_at,
        fingerprint: info.fingerprint,
        info: described.clone(),
        connected_at: Clock::now(),
        keys: selection.keys.clone().map(|keys| keys.into_iter().collect()),
        recipient: session.clone(),
    };
    let joined = match services.hub.join(who.user, member) {
        Ok(joined) => joined,
        Err(NotJoined::TooManySockets) => {
            // The store has it as connected already.
            services.devices.leave(who.user, who.device, connection, Gone::ServerClose);
            return Err(devices::too_many_sockets());
        }
        Err(NotJoined::Overtaken) => {
            session.end(Ending::Replaced);
            return Ok(());
        }
    };
    if !session.become_device(who) {
        return Ok(());
    }
    let message_acks = auth.message_acks.is_some_and(|acks| acks.get() == "true");
    services.mailbox.arriving(who.user, who.device, who.connection, message_acks);
    restore(session, who, &selection).await?;
    count_transport(session);
    services.hub.arrived(Arrival {
        user: who.user,
        device: who.device,
        connection,
        fence: connected.fence,
        info: described,
        described_anew: connected.described_anew,
        at: Clock::now(),
        still_known: joined.still_known,
    });
    tracing::info!(user.id = %who.user, device.id = %who.device, connection.id = %who.connection, "device connected");
    Ok(())
}

/// Whether one more socket of this user may come. One that takes the place of an
/// older socket of its device always may.
fn has_room(session: &Session, user: UserId, claimed: Option<DeviceId>, info: &DeviceInfo) -> bool {
    let hub = &session.services.hub;
    let replaces = hub.members(user).iter().any(|member| match claimed {
        Some(claimed) => member.device == claimed,
        None => member.fingerprint == info.fingerprint,
    });
    replaces || !hub.is_full(user)
}

fn device_info(session: &Session, in_auth: Option<&RawValue>) -> Outcome<DeviceInfo> {
    let in_query = session.take_device_info().filter(|info| !info.is_empty());
    match in_auth.filter(|info| info.get() != "null") {
        Some(info) => devices::read_info(info.get()),
        None => devices::parse_info(in_query.as_deref()),
    }
}

/// Sends the snapshot, then lets go what the hub held back, then opens the
/// inbox.
async fn restore(session: &Arc<Session>, who: Who, selection: &Selection) -> Outcome<()> {
    let services = &session.services;
    let (mut restore, devices, queued) = tokio::try_join!(
        services.sync.restore(who.user, selection),
        services.devices.list(who.user),
        services.mailbox.waiting(who.user, who.device)
    )?;
    if session.is_closed() {
        return Ok(());
    }
    let mode = if restore.delta { &services.metrics.restores_delta } else { &services.metrics.restores_full };
    mode.increment(1);
    // The answer to CONNECT comes first; nothing else is on its way yet.
    session.transport.send_or_close(&wire::connected(who.connection));
    for _ in 0..RESTORES_MAX {
        let body = restored_body(&restore, who, &devices, queued);
        let restored = wire::event("session-restored", &body);
        if services.hub.restored(who.user, who.connection, restored, restore.seq) {
            session.open_inbox();
            return Ok(());
        }
        // Another of the user's devices came in at the same time, with a newer snapshot.
        restore = services.sync.restore(who.user, selection).await?;
    }
    Err(Failure::new(Code::StoreBusy, "What the store has is older than what others were told."))
}

fn restored_body(restore: &Restore, who: Who, devices: &str, queued: u64) -> String {
    format!(
        "{{{},\"deviceId\":\"{}\",\"mode\":\"{}\",\"devices\":{devices},\"queuedMessages\":{queued},\"tokenExpiresAt\":\"{}\"}}",
        restore.fields,
        who.device,
        restore.mode(),
        who.expires_at,
    )
}

fn count_transport(session: &Session) {
    let metrics = &session.services.metrics;
    if session.transport.is_websocket() {
        metrics.connects_websocket.increment(1);
    } else {
        metrics.connects_polling.increment(1);
    }
}
