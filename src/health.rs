//! How this node is: what its store and backplane answered lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::backplane::Backplane;
use crate::drain::Tasks;
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// How often the store is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A store that has not answered for so long makes the node unready.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// An answer that takes longer is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// See the module's comment.
pub struct Health {
    node: String,
    started: Instant,
    backplane: Option<Arc<dyn Backplane>>,
    store_ok: AtomicBool,
    /// Milliseconds after `started` when the store last answered.
    store_seen_ms: AtomicU64,
}

/// One look at it.
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Report {
    pub node: String,
    pub uptime_seconds: u64,
    pub store: &'static str,
    pub backplane: &'static str,
    pub is_degraded: bool,
    pub store_is_lost: bool,
}

impl Health {
    /// The health of the node named `node`, whose store has just been opened.
    /// `backplane`: nothing for a node that is alone.
    pub fn new(node: String, backplane: Option<Arc<dyn Backplane>>) -> Self {
        let store_ok = AtomicBool::new(true);
        Self { node, started: Instant::now(), backplane, store_ok, store_seen_ms: AtomicU64::new(0) }
    }

    /// Asks the store regularly until the process ends.
    pub async fn watch(self: Arc<Self>, store: Arc<dyn Store>, tasks: Tasks, metrics: Arc<Metrics>) {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = tasks.ending() => return,
            }
            let answer = tokio::time::timeout(ANSWER_WITHIN, store.ping()).await;
            let ok = matches!(answer, Ok(Ok(())));
            if ok {
                self.store_seen_ms.store(self.elapsed_ms(), Ordering::Relaxed);
            }
            if self.store_ok.swap(ok, Ordering::Relaxed) != ok {
                tracing::warn!(ok, "the store changed its state");
            }
            metrics.store_up.set(if ok { 1.0 } else { 0.0 });
            let backplane_up = self.backplane.as_ref().is_none_or(|backplane| backplane.is_up());
            metrics.backplane_up.set(if backplane_up { 1.0 } else { 0.0 });
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How it is now.
    pub fn report(&self) -> Report {
        let store_ok = self.store_ok.load(Ordering::Relaxed);
        let away_ms = self.elapsed_ms().saturating_sub(self.store_seen_ms.load(Ordering::Relaxed));
        let backplane = match &self.backplane {
            None => "none",
            Some(backplane) if backplane.is_up() => "ok",
            Some(_) => "unavailable",
        };
        Report {
            node: self.node.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            store: if store_ok { "ok" } else { "unavailable" },
            backplane,
            is_degraded: !store_ok || backplane == "unavailable",
            store_is_lost: !store_ok && u128::from(away_ms) >= LOST_AFTER.as_millis(),
        }
    }
}
