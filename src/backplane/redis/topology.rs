//! Notices when a Redis Cluster moves slots: channels that moved lose their subscribers without a word.
//!
//! Redis does tell a subscriber, but fred drops that push. So the slot map is read every few seconds,
//! and when it changed everything is subscribed again where it belongs now.

use std::sync::Arc;

use fred::prelude::*;
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use super::subscriptions::Subscriptions;
use crate::backplane::Timing;

/// Slot ranges and who serves them, sorted.
type SlotMap = Vec<(i64, i64, String, i64)>;

pub(super) async fn watch(
    clients: Clients,
    subscriptions: Arc<Subscriptions>,
    timing: Timing,
    stop: CancellationToken,
) {
    let mut known: Option<SlotMap> = None;
    let mut ticks = tokio::time::interval(2 * timing.probe_every);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(now) = slot_map(&clients.commands).await else { continue };
        if known.as_ref().is_some_and(|before| *before != now) {
            tracing::info!("Redis Cluster moved slots; subscribing again");
            for client in [&clients.commands, &clients.publisher, &clients.subscriber] {
                let _ = tokio::time::timeout(timing.command_within, client.sync_cluster()).await;
            }
            subscriptions.subscribe_all_again();
        }
        known = Some(now);
    }
}

async fn slot_map(client: &Client) -> Option<SlotMap> {
    let slots: Value = client.cluster_slots().await.ok()?;
    let Value::Array(ranges) = slots else { return None };
    let mut map: SlotMap = ranges.into_iter().filter_map(range).collect();
    map.sort();
    Some(map)
}

/// `[start, end, [host, port, id, ..], replicas..]`
fn range(range: Value) -> Option<(i64, i64, String, i64)> {
    let Value::Array(parts) = range else { return None };
    let [start, end, Value::Array(primary), ..] = parts.as_slice() else { return None };
    let host = primary.first()?.as_string().unwrap_or_default();
    Some((start.as_i64()?, end.as_i64()?, host, primary.get(1)?.as_i64()?))
}
