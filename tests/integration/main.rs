//! What one node promises, and several together (`cluster`), asked of the real binary by the stock client and by hand-made frames.
//!
//! One file a subject. docs/PROTOCOL.md is the specification; a test's name is the sentence it proves.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::large_futures,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on fails, says so, and has no drain to wait for"
)]

#[path = "../support/mod.rs"]
mod support;

mod abandoned;
mod accounts;
mod answers;
mod bad_connects;
mod bad_events;
mod bad_frames;
mod bad_handshakes;
mod bad_paths;
mod bad_requests;
mod catch_up;
mod cluster;
mod compare_and_set;
mod conflicts;
mod connecting;
mod convergence;
mod copy;
mod crash;
mod deadlines;
mod described;
mod device_management;
mod epoch;
mod examples;
mod external;
mod floods;
mod health;
mod hung_up;
mod identity;
mod isolation;
mod json_untouched;
mod latency;
mod lifecycle;
mod limits;
mod litestream;
mod logins;
mod mailbox;
mod mailbox_faults;
mod messages;
mod model;
mod one_key;
mod operator;
mod polling;
mod positions;
mod power_cut;
mod presence;
mod read_only_root;
mod realtime;
mod records;
mod replica;
mod retries;
mod revocation;
mod schema;
mod secrets;
mod sessions;
mod slow_consumer;
mod store_faults;
mod test_parts;
mod tls;
mod tokens;
mod writers;
