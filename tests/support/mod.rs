//! What the integration tests drive the server with: real processes, the stock client, real Redis and PostgreSQL.
//!
//! Everything here is black-box. A test starts what it needs, whatever it started ends with it, every wait is
//! bounded by `within`, and no port is fixed. The parts, from the server outwards: `Node` and `Cluster` (the
//! binary), `Rest` and `Account` (REST), `Device` (socket.io-client in a Node.js process), `RawSocket`, `Polling`
//! and `RawTcp` (bytes by hand), `RedisServer`, `Postgres` and `ChaosProxy` (what surrounds the server).
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its own share of the support code, which nobody else sees"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::large_futures,
    reason = "a test that cannot go on fails, says so, and has no drain to wait for"
)]

mod account;
mod canary;
mod chaos;
mod chaos_frames;
mod chaos_resp;
mod clock;
mod cluster;
mod collector;
mod database;
mod device;
mod disk_image;
mod driver;
mod haproxy;
mod inbox;
mod litestream;
mod long;
mod node;
mod polling;
mod port;
mod postgres;
mod process;
mod random;
mod raw_socket;
mod raw_tcp;
mod redis;
mod rest;
mod small_disk;
mod within;

pub use account::{Account, JWT_SECRET, legacy_token, sign_hs256};
pub use canary::Canary;
pub use chaos::ChaosProxy;
pub use clock::FakeClock;
pub use cluster::Cluster;
pub use collector::{CollectedSpan, Collector};
pub use database::{age, connection, integrity};
pub use device::{Device, DeviceOptions, SENTINEL_KEY};
pub use disk_image::DiskImage;
pub use driver::installed_driver;
pub use haproxy::HaProxy;
pub use inbox::Received;
pub use litestream::{Copy, Litestream, S3Server};
pub use long::{is_long, short_or_long};
pub use node::{Env, Node, listening_address, run_to_exit};
pub use polling::Polling;
pub use port::free_port;
pub use postgres::Postgres;
pub use process::{Exit, Process};
pub use random::Random;
pub use raw_socket::RawSocket;
pub use raw_tcp::{RawTcp, client_frame};
pub use redis::RedisServer;
pub use rest::{Reply, Rest};
pub use small_disk::SmallDisk;
pub use within::{eventually, within, within_secs};
