//! Claims of the dead: one other node removes a dead node's rows and announces each, once.
//!
//! Who claims is decided where the heartbeat lives, in one script: either the node beats again, or
//! it is marked as claimed and must go on under a new name. Each user's rows are removed and
//! announced in one script, so a claimer that dies is followed by the next without a word twice.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fred::prelude::*;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::{NODES, Presence, alive_key, claimed_key, claimer_key, rows_key, users_key};
use crate::backplane::envelope::{Codec, Envelope, Kind, PresenceChange, PresenceEvent};
use crate::backplane::observed::count_many;
use crate::backplane::presence::{NODE_LOST, NodeLife};
use crate::backplane::redis::channel_of;
use crate::backplane::redis::scripts::{BURY, CLAIM};
use crate::model::{ConnectionId, DeviceId, UserId};

/// Users whose rows are removed before the claim is renewed.
const CHUNK: u16 = 64;
/// A claimer that stopped for this long is followed by another.
const CLAIM_FOR: Duration = Duration::from_secs(5);
/// How long a node may sleep and still learn that its devices were announced as gone.
const MARK_FOR: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn watch(presence: &Presence) {
    let mut missing: HashMap<String, Instant> = HashMap::new();
    let mut ticks = interval(presence.timing.heartbeat_ttl / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // After an outage everyone's heartbeat is old: each gets the time to beat again.
        let settled = presence.timing.heartbeat_ttl;
        if presence.link.up_for().is_none_or(|up| up < settled) || !*presence.registered.borrow() {
            missing.clear();
            continue;
        }
        if let Err(error) = look(presence, &mut missing).await {
            tracing::debug!(%error, "looking for dead nodes failed");
        }
    }
}

async fn look(presence: &Presence, missing: &mut HashMap<String, Instant>) -> Result<(), Error> {
    let own = presence.life();
    let mut lives: Vec<String> = presence.client.smembers(NODES).await?;
    lives.retain(|life| **life != *own);
    let alive = lives.iter().map(|life| presence.client.exists::<u8, _>(alive_key(&life.as_str().into())));
    let alive = join_all(alive).await;
    missing.retain(|life, _| lives.contains(life));
    for (life, alive) in lives.into_iter().zip(alive) {
        if alive? == 1 {
            missing.remove(&life);
            continue;
        }
        let since = *missing.entry(life.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= presence.timing.claim_after && bury(presence, &life.as_str().into()).await? {
            missing.remove(&life);
        }
    }
    Ok(())
}

/// True once nothing of it is left; false if another is at it or it lives after all.
async fn bury(presence: &Presence, dead: &NodeLife) -> Result<bool, Error> {
    let told = announcement();
    loop {
        if !claim(presence, dead).await? {
            return Ok(false);
        }
        let users: Vec<String> = presence.client.srandmember(users_key(dead), Some(CHUNK.into())).await?;
        if users.is_empty() {
            break;
        }
        let ids = users.iter().filter_map(|user| UserId::parse(user));
        for removed in join_all(ids.map(|user| bury_user(presence, dead, user, &told))).await {
            count_many(&presence.observed.claimed_rows, removed?);
        }
        presence.client.srem::<(), _, _>(users_key(dead), users).await?;
    }
    presence.client.srem::<(), _, _>(NODES, &**dead).await?;
    presence.client.del::<(), _>(claimer_key(dead)).await?;
    tracing::info!(node = %dead, "removed a dead node's devices");
    Ok(true)
}

async fn claim(presence: &Presence, dead: &NodeLife) -> Result<bool, Error> {
    let ms = |duration: Duration| Value::from(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
    let keys = vec![alive_key(dead), claimed_key(dead), claimer_key(dead)];
    let args = vec![Value::from(&*presence.life()), ms(CLAIM_FOR), ms(MARK_FOR)];
    Ok(CLAIM.call::<i64>(&presence.client, keys, args).await? == 1)
}

async fn bury_user(presence: &Presence, dead: &NodeLife, user: UserId, told: &str) -> Result<usize, Error> {
    let publish = if presence.sharded { "SPUBLISH" } else { "PUBLISH" };
    let args: Vec<Value> = vec![(&**dead).into(), channel_of(user).into(), publish.into(), told.into()];
    BURY.call(&presence.client, vec![rows_key(user)], args).await
}

/// The envelope that the script completes. It names no node, so that the claimer hears it too, by
/// the same way as the others.
fn announcement() -> String {
    const AT: i64 = i64::MIN;
    let (device, connection) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let event = PresenceEvent {
        event: PresenceChange::Disconnected,
        device: DeviceId(device),
        connection: Some(ConnectionId(connection)),
        at_ms: AT,
        reason: Some(NODE_LOST.into()),
    };
    let envelope = Envelope::new(Kind::Presence(event), None);
    let bytes = envelope.encode(&Codec::new("claim")).expect("far below the largest size");
    String::from_utf8_lossy(&bytes)
        .replace(&device.to_string(), "@D")
        .replace(&connection.to_string(), "@C")
        .replace(&AT.to_string(), "\"@T\"")
}
