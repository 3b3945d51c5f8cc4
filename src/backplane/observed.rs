//! What the backplane counts. The owner of the metrics reads these atomics when it is scraped.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counters of one node's backplane, and a hook for the probe's round trip.
#[derive(Default)]
pub struct Observed {
    /// Envelopes that the other side took over (Redis answered, or a node in this process got them).
    pub published: AtomicU64,
    /// Publishes given up: queue full, link down, too large, or refused.
    pub dropped: AtomicU64,
    /// Envelopes handed to the hub.
    pub received: AtomicU64,
    /// Envelopes that a full inbound queue or fred's own stream lost; the hub got `Missed`.
    pub overflowed: AtomicU64,
    /// Garbage on a channel.
    pub decode_errors: AtomicU64,
    /// Envelopes of a kind or version that this node does not know.
    pub unknown: AtomicU64,
    /// Channels subscribed again after a reconnect.
    pub resubscribed: AtomicU64,
    /// New connections of the subscriber, the first one included.
    pub connects: AtomicU64,
    /// Rows of dead nodes that this node removed and announced.
    pub claimed_rows: AtomicU64,
    /// Nodes that are alive in Redis, this one included; 0 without a link that has
    /// stood for a heartbeat's life. No counter.
    pub nodes: AtomicU64,
    /// Called with each probe's round trip through Redis (a histogram in the server).
    probe_rtt: Option<Box<dyn Fn(Duration) + Send + Sync>>,
}

impl Observed {
    pub fn with_probe_rtt(hook: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self { probe_rtt: Some(Box::new(hook)), ..Self::default() }
    }

    pub(super) fn probe_heard(&self, rtt: Duration) {
        if let Some(hook) = &self.probe_rtt {
            hook(rtt);
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed")
            .field("published", &self.published.load(Relaxed))
            .field("dropped", &self.dropped.load(Relaxed))
            .field("received", &self.received.load(Relaxed))
            .field("overflowed", &self.overflowed.load(Relaxed))
            .field("decode_errors", &self.decode_errors.load(Relaxed))
            .field("unknown", &self.unknown.load(Relaxed))
            .field("resubscribed", &self.resubscribed.load(Relaxed))
            .field("connects", &self.connects.load(Relaxed))
            .field("claimed_rows", &self.claimed_rows.load(Relaxed))
            .field("nodes", &self.nodes.load(Relaxed))
            .finish()
    }
}

/// One more of something.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(super) fn count_many(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}
