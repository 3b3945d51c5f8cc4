//! What presence asks of Redis, one command or script a call, so that each call is one step there.
//!
//! A trait because there are two of them: Redis, and the simulated one that `./check unit` runs
//! thousands of orders of events on (`src/simulation`). What the steps make together is decided by
//! the callers, who are the same for both.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use fred::prelude::*;
use uuid::Uuid;

use crate::backplane::Unavailable;
use crate::backplane::envelope::{Codec, Envelope, Kind, PresenceChange, PresenceEvent};
use crate::backplane::presence::{NODE_LOST, NodeLife, Row};
use crate::backplane::redis::channel_of;
use crate::backplane::redis::clients::Clients;
use crate::backplane::redis::scripts::{BEAT, BURY, CLAIM, PLACE, REMOVE};
use crate::model::{ConnectionId, DeviceId, UserId};

const NODES: &str = "tandem:nodes";

/// What a heartbeat found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backplane::redis) enum Beat {
    /// The life was known.
    Known,
    /// It is written anew: its rows may be gone too.
    New,
    /// Another node took it for dead; it may not go on.
    Claimed,
}

/// Which row wants to stand where.
#[derive(Clone)]
pub(in crate::backplane::redis) struct Placing {
    pub user: UserId,
    pub device: DeviceId,
    pub row: Row,
    /// It stood before: one with the same fence that came meanwhile stays.
    pub restores: bool,
}

/// What became of a [`Placing`]; both name what stood there, a row of the same connection too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::backplane::redis) enum Stood {
    Placed(Option<Row>),
    Refused(Row),
}

#[async_trait]
pub(in crate::backplane::redis) trait Table: Send + Sync {
    async fn beat(&self, life: &NodeLife, ttl: Duration) -> Result<Beat, Unavailable>;

    async fn place(&self, placing: Placing) -> Result<Stood, Unavailable>;

    /// True if that connection's row stood and is gone.
    async fn remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable>;

    async fn rows(&self, user: UserId) -> Result<Vec<(DeviceId, Row)>, Unavailable>;

    /// Lists a life among those whose heartbeat is looked for.
    async fn list(&self, life: &NodeLife) -> Result<(), Unavailable>;

    async fn unlist(&self, life: &NodeLife) -> Result<(), Unavailable>;

    async fn lives(&self) -> Result<Vec<NodeLife>, Unavailable>;

    async fn is_alive(&self, life: &NodeLife) -> Result<bool, Unavailable>;

    /// Notes that these users may have rows of a life, so that they are found if it dies.
    async fn note_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable>;

    async fn drop_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable>;

    /// Some of the noted users.
    async fn noted_users(&self, life: &NodeLife, max: u16) -> Result<Vec<UserId>, Unavailable>;

    /// Forgets the heartbeat and the noted users of a life.
    async fn forget(&self, life: &NodeLife) -> Result<(), Unavailable>;

    /// Becomes the one who claims a dead node's rows, or goes on being it.
    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable>;

    /// Removes and announces a user's rows of a dead node in one step; how many.
    async fn bury(&self, dead: &NodeLife, user: UserId) -> Result<usize, Unavailable>;

    async fn end_claim(&self, dead: &NodeLife) -> Result<(), Unavailable>;

    /// No answer came although the link is up: this connection alone may be dead.
    async fn reconnect_if_stuck(&self);
}

/// Who claims whose rows, for how long, and how long the mark stays that the dead node finds.
pub(in crate::backplane::redis) struct Claim {
    pub dead: NodeLife,
    pub by: NodeLife,
    pub claim_for: Duration,
    pub mark_for: Duration,
}

/// The keys of real Redis: `tandem:presence:{user}` rows by device; `tandem:nodes` all lives; and of
/// each life `tandem:life:{life}:alive`, `:users` (who has rows of it, written before the row),
/// `:claimed`, `:claimer`.
pub(in crate::backplane::redis) struct RedisTable {
    client: Client,
    sharded: bool,
    /// The envelope that `bury.lua` completes.
    announcement: String,
}

impl RedisTable {
    pub(in crate::backplane::redis) fn new(clients: &Clients) -> Self {
        let (client, sharded) = (clients.commands.clone(), clients.sharded);
        Self { client, sharded, announcement: announcement() }
    }
}

#[async_trait]
impl Table for RedisTable {
    async fn beat(&self, life: &NodeLife, ttl: Duration) -> Result<Beat, Unavailable> {
        let keys = vec![alive_key(life), claimed_key(life)];
        let known = BEAT.call::<i64>(&self.client, keys, vec![ms(ttl)]).await?;
        Ok(match known {
            ..0 => Beat::Claimed,
            0 => Beat::New,
            1.. => Beat::Known,
        })
    }

    async fn place(&self, placing: Placing) -> Result<Stood, Unavailable> {
        let row = serde_json::to_string(&placing.row).expect("a plain struct of strings and numbers");
        let args: Vec<Value> = vec![
            placing.device.to_string().into(),
            row.into(),
            placing.row.connection.to_string().into(),
            placing.row.fence.to_string().into(),
            placing.row.epoch.as_ref().map_or("", |epoch| &epoch.0).into(),
            if placing.restores { "restore" } else { "" }.into(),
        ];
        let keys = vec![rows_key(placing.user)];
        let (stands, other) = PLACE.call::<(i64, String)>(&self.client, keys, args).await?;
        let other = serde_json::from_str::<Row>(&other).ok();
        Ok(match (stands, other) {
            (0, Some(by)) => Stood::Refused(by),
            (_, other) => Stood::Placed(other),
        })
    }

    async fn remove(
        &self,
        user: UserId,
        device: DeviceId,
        connection: ConnectionId,
    ) -> Result<bool, Unavailable> {
        let args: Vec<Value> = vec![device.to_string().into(), connection.to_string().into()];
        Ok(REMOVE.call::<i64>(&self.client, vec![rows_key(user)], args).await? == 1)
    }

    async fn rows(&self, user: UserId) -> Result<Vec<(DeviceId, Row)>, Unavailable> {
        let rows = self.client.hgetall::<HashMap<String, String>, _>(rows_key(user)).await?;
        Ok(rows.into_iter().filter_map(|(device, row)| read_row(&device, &row)).collect())
    }

    async fn list(&self, life: &NodeLife) -> Result<(), Unavailable> {
        Ok(self.client.sadd(NODES, &**life).await?)
    }

    async fn unlist(&self, life: &NodeLife) -> Result<(), Unavailable> {
        Ok(self.client.srem(NODES, &**life).await?)
    }

    async fn lives(&self) -> Result<Vec<NodeLife>, Unavailable> {
        let lives: Vec<String> = self.client.smembers(NODES).await?;
        Ok(lives.into_iter().map(NodeLife::from).collect())
    }

    async fn is_alive(&self, life: &NodeLife) -> Result<bool, Unavailable> {
        Ok(self.client.exists::<u8, _>(alive_key(life)).await? == 1)
    }

    async fn note_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable> {
        Ok(self.client.sadd(users_key(life), texts(users)).await?)
    }

    async fn drop_users(&self, life: &NodeLife, users: &[UserId]) -> Result<(), Unavailable> {
        Ok(self.client.srem(users_key(life), texts(users)).await?)
    }

    async fn noted_users(&self, life: &NodeLife, max: u16) -> Result<Vec<UserId>, Unavailable> {
        let users: Vec<String> = self.client.srandmember(users_key(life), Some(max.into())).await?;
        Ok(users.iter().filter_map(|user| UserId::parse(user)).collect())
    }

    async fn forget(&self, life: &NodeLife) -> Result<(), Unavailable> {
        // Two keys of one hash tag.
        Ok(self.client.del(vec![alive_key(life), users_key(life)]).await?)
    }

    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable> {
        let dead = &claim.dead;
        let keys = vec![alive_key(dead), claimed_key(dead), claimer_key(dead)];
        let args = vec![Value::from(&*claim.by), ms(claim.claim_for), ms(claim.mark_for)];
        Ok(CLAIM.call::<i64>(&self.client, keys, args).await? == 1)
    }

    async fn bury(&self, dead: &NodeLife, user: UserId) -> Result<usize, Unavailable> {
        let publish = if self.sharded { "SPUBLISH" } else { "PUBLISH" };
        let told = self.announcement.as_str();
        let args: Vec<Value> = vec![(&**dead).into(), channel_of(user).into(), publish.into(), told.into()];
        Ok(BURY.call(&self.client, vec![rows_key(user)], args).await?)
    }

    async fn end_claim(&self, dead: &NodeLife) -> Result<(), Unavailable> {
        Ok(self.client.del(claimer_key(dead)).await?)
    }

    /// fred, whose clock every new command starts again, would not notice before others take the
    /// node for dead.
    async fn reconnect_if_stuck(&self) {
        if self.client.is_connected() {
            let forced = self.client.force_reconnection();
            let _ = tokio::time::timeout(Duration::from_millis(10), forced).await;
        }
    }
}

/// It names no node, so that the claimer hears it too, by the same way as the others.
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

fn ms(duration: Duration) -> Value {
    Value::from(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn texts(users: &[UserId]) -> Vec<String> {
    users.iter().map(UserId::to_string).collect()
}

fn read_row(device: &str, row: &str) -> Option<(DeviceId, Row)> {
    Some((DeviceId::parse(device)?, serde_json::from_str(row).ok()?))
}

fn rows_key(user: UserId) -> String {
    format!("tandem:presence:{{{user}}}")
}

fn alive_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:alive")
}

fn users_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:users")
}

fn claimed_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:claimed")
}

fn claimer_key(life: &NodeLife) -> String {
    format!("tandem:life:{{{life}}}:claimer")
}
