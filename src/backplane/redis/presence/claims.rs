//! Claims of the dead: one other node removes a dead node's rows and announces each, once.
//!
//! Who claims is decided where the heartbeat lives, in one script: either the node beats again, or
//! it is marked as claimed and must go on under a new name. Each user's rows are removed and
//! announced in one script, so a claimer that dies is followed by the next without a word twice.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Presence;
use super::table::Claim;
use crate::backplane::Unavailable;
use crate::backplane::observed::count_many;
use crate::backplane::presence::NodeLife;

/// Users whose rows are removed before the claim is renewed.
const CHUNK: u16 = 64;
/// A claimer that stopped for this long is followed by another.
const CLAIM_FOR: Duration = Duration::from_secs(5);
/// How long a node may sleep and still learn that its devices were announced as gone.
const MARK_FOR: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn watch(presence: &Presence) {
    let mut missing: HashMap<NodeLife, Instant> = HashMap::new();
    let mut ticks = interval(presence.timing.heartbeat_ttl / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // After an outage everyone's heartbeat is old: each gets the time to beat again.
        let settled = presence.timing.heartbeat_ttl;
        if presence.link.up_for().is_none_or(|up| up < settled) || !*presence.registered.borrow() {
            missing.clear();
            presence.observed.nodes.store(0, Relaxed);
            continue;
        }
        if let Err(error) = look(presence, &mut missing).await {
            tracing::debug!(%error, "looking for dead nodes failed");
        }
    }
}

async fn look(presence: &Presence, missing: &mut HashMap<NodeLife, Instant>) -> Result<(), Unavailable> {
    let own = presence.life();
    let mut lives = presence.table.lives().await?;
    lives.retain(|life| *life != own);
    let alive = join_all(lives.iter().map(|life| presence.table.is_alive(life))).await;
    let others = alive.iter().filter(|alive| matches!(alive, Ok(true))).count();
    presence.observed.nodes.store(1 + others as u64, Relaxed);
    missing.retain(|life, _| lives.contains(life));
    for (life, alive) in lives.into_iter().zip(alive) {
        if alive? {
            missing.remove(&life);
            continue;
        }
        let since = *missing.entry(life.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= presence.timing.claim_after && bury(presence, &life).await? {
            missing.remove(&life);
        }
    }
    Ok(())
}

/// True once nothing of it is left; false if another is at it or it lives after all.
async fn bury(presence: &Presence, dead: &NodeLife) -> Result<bool, Unavailable> {
    let table = &presence.table;
    loop {
        let claim =
            Claim { dead: dead.clone(), by: presence.life(), claim_for: CLAIM_FOR, mark_for: MARK_FOR };
        if !table.claim(&claim).await? {
            return Ok(false);
        }
        let users = table.noted_users(dead, CHUNK).await?;
        if users.is_empty() {
            break;
        }
        for removed in join_all(users.iter().map(|user| table.bury(dead, *user))).await {
            count_many(&presence.observed.claimed_rows, removed?);
        }
        table.drop_users(dead, &users).await?;
    }
    table.unlist(dead).await?;
    table.end_claim(dead).await?;
    tracing::info!(node = %dead, "removed a dead node's devices");
    Ok(true)
}
