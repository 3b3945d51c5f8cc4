//! Every metric of a node, resolved once, so that the hot path only counts.
//!
//! The doc comment's text is the help text that Prometheus shows. Labels come
//! from closed sets, never from ids. `docs/METRICS.md` lists the same names; a
//! test compares the two.

use std::time::Duration;

use super::exemplars::Exemplars;
use super::traces::Context;
use crate::backplane::Observed;
use crate::failure::Code;
use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds from commit to socket, and through the backplane.
const DELIVERY_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Seconds in the store.
const STORE_BUCKETS: &[f64] =
    &[0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Sizes of things that come in batches.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// A counter for each code that a client can meet.
pub struct ByCode(Vec<Counter>);

impl ByCode {
    fn of(mut registered: impl FnMut(&'static str) -> Counter) -> Self {
        let counters = Code::ALL.iter().map(|code| {
            let counter = registered(code.as_str());
            counter.increment(0);
            counter
        });
        Self(counters.collect())
    }

    /// Counts one more.
    pub fn count(&self, code: Code) {
        // In the order of their declaration, which is that of `Code::ALL`.
        self.0[code as usize].increment(1);
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ident = $name:literal $(, $label:ident = $value:expr)*; $help:literal)+) => {
        /// The metrics of one node.
        pub struct Metrics {
            handle: PrometheusHandle,
            exemplars: Exemplars,
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Metrics {
            /// Every metric's name and help, for the test against the documents.
            pub const NAMES: &[(&str, &str)] = &[$(($name, $help),)+];

            /// A fresh set, all at zero.
            pub fn new() -> Self {
                let recorder = builder().build_recorder();
                let handle = recorder.handle();
                metrics::with_local_recorder(&recorder, || {
                    $(metrics!(@describe $kind $name $help);)+
                    Self {
                        handle,
                        exemplars: Exemplars::default(),
                        $($field: metrics!(@register $kind $name $(, $label = $value)*),)+
                    }
                })
            }
        }
    };
    (@describe Counter $name:literal $help:literal) => { metrics::describe_counter!($name, Unit::Count, $help) };
    (@describe ByCode $name:literal $help:literal) => { metrics!(@describe Counter $name $help) };
    (@describe Gauge $name:literal $help:literal) => { metrics::describe_gauge!($name, Unit::Count, $help) };
    (@describe Histogram $name:literal $help:literal) => { metrics::describe_histogram!($name, $help) };
    (@register Counter $name:literal $(, $label:ident = $value:expr)*) => {
        { let counter = metrics::counter!($name $(, stringify!($label) => $value)*); counter.increment(0); counter }
    };
    (@register ByCode $name:literal) => { ByCode::of(|code| metrics::counter!($name, "code" => code)) };
    (@register Gauge $name:literal $(, $label:ident = $value:expr)*) => {
        { let gauge = metrics::gauge!($name $(, stringify!($label) => $value)*); gauge.set(0.0); gauge }
    };
    (@register Histogram $name:literal $(, $label:ident = $value:expr)*) => {
        metrics::histogram!($name $(, stringify!($label) => $value)*)
    };
}

metrics! {
    tcp_connections: Gauge = "tandem_tcp_connections"; "Open TCP connections."
    connections_limit: Gauge = "tandem_tcp_connections_limit"; "LIMIT_CONNECTIONS: more are answered 503."
    refused_connections: Counter = "tandem_tcp_connections_over_cap_total"; "TCP connections beyond LIMIT_CONNECTIONS."
    sockets: Gauge = "tandem_sockets"; "Connected devices."
    users: Gauge = "tandem_users"; "Users with a device on this node."
    connects_websocket: Counter = "tandem_connects_total", transport = "websocket"; "Devices that connected, by transport."
    connects_polling: Counter = "tandem_connects_total", transport = "polling"; "Devices that connected, by transport."
    disconnects_client: Counter = "tandem_disconnects_total", reason = "client"; "Devices that went away, by reason."
    disconnects_transport: Counter = "tandem_disconnects_total", reason = "transport"; "Devices that went away, by reason."
    disconnects_heartbeat: Counter = "tandem_disconnects_total", reason = "heartbeat"; "Devices that went away, by reason."
    disconnects_slow_consumer: Counter = "tandem_disconnects_total", reason = "slow_consumer"; "Devices that went away, by reason."
    disconnects_flood: Counter = "tandem_disconnects_total", reason = "flood"; "Devices that went away, by reason."
    disconnects_server: Counter = "tandem_disconnects_total", reason = "server"; "Devices that went away, by reason."
    refused_handshakes: Counter = "tandem_refused_connects_total"; "Connects that were refused."
    restores_full: Counter = "tandem_restores_total", mode = "full"; "Restores sent, by mode."
    restores_delta: Counter = "tandem_restores_total", mode = "delta"; "Restores sent, by mode."
    cache_hits: Counter = "tandem_session_cache_total", outcome = "hit"; "Big restores looked for in Redis, by outcome."
    cache_misses: Counter = "tandem_session_cache_total", outcome = "miss"; "Big restores looked for in Redis, by outcome."
    restore_seconds: Histogram = "tandem_restore_seconds"; "Seconds from a device's CONNECT to its session-restored."
    events_in: Counter = "tandem_events_received_total"; "Events received from devices."
    events_refused: ByCode = "tandem_events_refused_total"; "Events answered with an error, by its code."
    events_rate_limited: Counter = "tandem_events_rate_limited_total"; "Events refused because a device or user sent too many."
    events_out: Counter = "tandem_events_sent_total"; "Events and answers handed to sockets."
    outbox_coalesced: Counter = "tandem_outbox_coalesced_total"; "Waiting events replaced by a newer one for a device that fell behind."
    inbox_full: Counter = "tandem_inbox_full_total"; "Events refused because a socket's inbox was full."
    delivery_seconds: Histogram = "tandem_delivery_seconds"; "Seconds from a change's commit to its hand-over to the node's sockets."
    seq_holes: Counter = "tandem_seq_holes_total"; "Changes that arrived before one that precedes them."
    seq_repairs: Counter = "tandem_seq_repairs_total"; "Catch-ups read from the store to close a hole."
    asks: Counter = "tandem_store_asks_total"; "Regular asks of the store what moved."
    asked_users: Counter = "tandem_store_asked_users_total"; "Users whose session had moved, over all asks."
    backplane_up: Gauge = "tandem_backplane_up"; "1 while the other nodes can be reached, or there are none."
    backplane_nodes: Gauge = "tandem_backplane_nodes"; "Nodes alive that this one sees in its Redis, itself included; 0 without Redis and until 6 s after it was reached."
    backplane_rtt: Histogram = "tandem_backplane_probe_seconds"; "Seconds of a probe's round trip through Redis."
    backplane_published: Counter = "tandem_backplane_published_total"; "Envelopes that Redis took over."
    backplane_dropped: Counter = "tandem_backplane_dropped_total"; "Envelopes given up: the link was down, the queue full."
    backplane_received: Counter = "tandem_backplane_received_total"; "Envelopes received from other nodes."
    backplane_overflowed: Counter = "tandem_backplane_overflowed_total"; "Envelopes lost to a full queue; their users were read from the store."
    backplane_decode_errors: Counter = "tandem_backplane_decode_errors_total"; "Messages on a channel that are none of ours."
    backplane_unknown: Counter = "tandem_backplane_unknown_total"; "Envelopes of a kind or version this node does not know."
    backplane_resubscribed: Counter = "tandem_backplane_resubscribed_total"; "Channels subscribed again after a reconnect."
    backplane_connects: Counter = "tandem_backplane_connects_total"; "Connections made to Redis for subscriptions."
    presence_claimed: Counter = "tandem_presence_claimed_total"; "Devices of dead nodes that this node announced as gone."
    commit_seconds: Histogram = "tandem_store_commit_seconds"; "Seconds a batch spent in the store's commit."
    commit_batch: Histogram = "tandem_store_commit_batch_size"; "Writes in one commit."
    commit_queue: Gauge = "tandem_store_queue"; "Writes that wait for the next commit."
    commit_failures: Counter = "tandem_store_commit_failures_total"; "Commits that failed."
    replica_age: Gauge = "tandem_replica_age_seconds"; "Seconds since Litestream last saw that its copy holds everything, or since the start while it never has; 0 without LITESTREAM_SOCKET."
    replica_sync_seconds: Histogram = "tandem_replica_sync_seconds"; "Seconds that a batch waited for Litestream's copy, with DURABILITY=replicated."
    replica_sync_failures: Counter = "tandem_replica_sync_failures_total"; "Copies that Litestream did not make in time, with DURABILITY=replicated."
    store_up: Gauge = "tandem_store_up"; "1 while the store answers."
    writes_applied: Counter = "tandem_session_writes_total", outcome = "applied"; "Session writes, by outcome."
    writes_merged: Counter = "tandem_session_writes_total", outcome = "merged"; "Session writes, by outcome."
    writes_duplicate: Counter = "tandem_session_writes_total", outcome = "duplicate"; "Session writes, by outcome."
    writes_conflict: Counter = "tandem_session_writes_total", outcome = "conflict"; "Session writes, by outcome."
    writes_refused: Counter = "tandem_session_writes_total", outcome = "refused"; "Session writes, by outcome."
    messages_delivered: Counter = "tandem_messages_total", outcome = "delivered"; "Device messages, by what became of them."
    messages_queued: Counter = "tandem_messages_total", outcome = "queued"; "Device messages, by what became of them."
    messages_delivered_late: Counter = "tandem_messages_total", outcome = "delivered_later"; "Device messages, by what became of them."
    messages_expired: Counter = "tandem_messages_total", outcome = "expired"; "Device messages, by what became of them."
    mailbox_messages: Gauge = "tandem_mailbox_messages"; "Device messages that wait in the store, over all nodes."
    mailbox_oldest_seconds: Gauge = "tandem_mailbox_oldest_seconds"; "Age of the oldest device message that waits."
    logins_ok: Counter = "tandem_logins_total", outcome = "ok"; "Logins, by outcome."
    logins_failed: Counter = "tandem_logins_total", outcome = "failed"; "Logins, by outcome."
    logins_throttled: Counter = "tandem_logins_total", outcome = "throttled"; "Logins, by outcome."
    refreshes: Counter = "tandem_token_refreshes_total", outcome = "ok"; "Refresh tokens presented, by outcome."
    refreshes_refused: Counter = "tandem_token_refreshes_total", outcome = "refused"; "Refresh tokens presented, by outcome."
    refresh_reuses: Counter = "tandem_token_refreshes_total", outcome = "reused"; "Refresh tokens presented, by outcome."
    process_memory: Gauge = "process_resident_memory_bytes"; "Resident memory of the process."
    process_cpu: Counter = "process_cpu_seconds_total"; "Processor time of the process, in whole seconds."
    process_files: Gauge = "process_open_fds"; "Open files of the process."
    process_files_max: Gauge = "process_max_fds"; "Files that the process may open."
    build_info: Gauge = "tandem_build_info", version = env!("CARGO_PKG_VERSION"); "1, with the version as a label."
}

fn builder() -> PrometheusBuilder {
    let suffix = |text: &str| Matcher::Suffix(text.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(suffix("delivery_seconds"), DELIVERY_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(suffix("restore_seconds"), DELIVERY_BUCKETS))
        .and_then(|b| b.set_buckets_for_metric(suffix("probe_seconds"), DELIVERY_BUCKETS))
        .and_then(|b| b.set_buckets_for_metric(suffix("commit_seconds"), STORE_BUCKETS))
        .and_then(|b| b.set_buckets_for_metric(suffix("sync_seconds"), STORE_BUCKETS))
        .and_then(|b| b.set_buckets_for_metric(suffix("batch_size"), COUNT_BUCKETS))
        .expect("the bucket lists are not empty")
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Copies what the backplane has counted so far.
    pub fn take_from_backplane(&self, observed: &Observed) {
        use std::sync::atomic::Ordering::Relaxed;
        self.backplane_published.absolute(observed.published.load(Relaxed));
        self.backplane_dropped.absolute(observed.dropped.load(Relaxed));
        self.backplane_received.absolute(observed.received.load(Relaxed));
        self.backplane_overflowed.absolute(observed.overflowed.load(Relaxed));
        self.backplane_decode_errors.absolute(observed.decode_errors.load(Relaxed));
        self.backplane_unknown.absolute(observed.unknown.load(Relaxed));
        self.backplane_resubscribed.absolute(observed.resubscribed.load(Relaxed));
        self.backplane_connects.absolute(observed.connects.load(Relaxed));
        self.backplane_nodes.set(observed.nodes.load(Relaxed) as f64);
        self.presence_claimed.absolute(observed.claimed_rows.load(Relaxed));
    }

    /// Counts a commit, and keeps the trace of one that belongs to one.
    pub fn committed(&self, took: Duration, trace: Option<Context>) {
        self.commit_seconds.record(took);
        if let Some(trace) = trace {
            self.exemplars.note("tandem_store_commit_seconds", STORE_BUCKETS, took.as_secs_f64(), trace);
        }
    }

    /// Counts a delivery of committed changes, and keeps the trace of one that belongs to one.
    pub fn delivered(&self, took: Duration, trace: Option<Context>) {
        self.delivery_seconds.record(took);
        if let Some(trace) = trace {
            self.exemplars.note("tandem_delivery_seconds", DELIVERY_BUCKETS, took.as_secs_f64(), trace);
        }
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// The same as OpenMetrics, with exemplars.
    pub fn render_open_metrics(&self) -> String {
        self.exemplars.open_metrics(&self.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_metric_and_no_other() {
        let document = include_str!("../../docs/METRICS.md");
        let listed: Vec<_> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|name| name.starts_with("tandem_") || name.starts_with("process_"))
            .collect();
        let mut known: Vec<_> = Metrics::NAMES.iter().map(|(name, _)| *name).collect();
        known.dedup();
        assert_eq!(listed, known);
    }

    #[test]
    fn every_code_has_a_series_of_its_own_from_the_start() {
        let metrics = Metrics::new();
        for (times, code) in Code::ALL.iter().enumerate() {
            (0..times).for_each(|_| metrics.events_refused.count(*code));
        }
        let text = metrics.render();
        for (times, code) in Code::ALL.iter().enumerate() {
            let line = format!("tandem_events_refused_total{{code=\"{}\"}} {times}", code.as_str());
            assert!(text.lines().any(|shown| shown == line), "{line}");
        }
    }

    #[test]
    fn every_metric_is_there_from_the_start() {
        let text = Metrics::new().render();
        for (name, _) in
            Metrics::NAMES.iter().filter(|(name, _)| !name.ends_with("seconds") && !name.ends_with("size"))
        {
            assert!(text.contains(name), "{name}");
        }
    }
}
