//! What the seam between nodes promises, asked of every backplane: in memory, real Redis, a Redis Cluster of six,
//! Sentinel, TLS.
//!
//! `promises` is one suite for all of them, `faults` what happens when Redis or the way to it misbehaves. Servers are
//! real processes on free ports that end with their test.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on fails, says so, and has no drain to wait for"
)]

mod faults;
mod promises;
mod support;
mod tls;
