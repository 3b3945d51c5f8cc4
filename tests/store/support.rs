//! The parts of the integration tests' support that these tests use.
#![allow(dead_code, unused_imports, reason = "these tests use their own share of it")]
#![allow(clippy::cast_possible_wrap, reason = "test data is small")]

#[path = "../support/chaos.rs"]
mod chaos;
#[path = "../support/chaos_frames.rs"]
mod chaos_frames;
#[path = "../support/chaos_resp.rs"]
pub mod chaos_resp;
#[path = "../support/port.rs"]
mod port;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/within.rs"]
mod within;

pub use chaos::ChaosProxy;
pub use postgres::Postgres;
pub use process::Process;
pub use within::{within, within_secs};
