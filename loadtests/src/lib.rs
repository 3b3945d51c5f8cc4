//! What Tandem costs: an open-loop load generator that speaks the public protocol only.
//!
//! In reading order: `wire` (bytes), `client` (devices), `scenario` (what they do), `launch` (servers as processes), `measure` (what it cost),
//! `compare` (beside whom), `logins` (under many of them), `report` (how it looks); `chaos` (while everything breaks),
//! `check` (whether promises held); `instructions` (whether a hot path grew).

pub mod chaos;
pub mod check;
pub mod client;
pub mod compare;
pub mod instructions;
pub mod launch;
pub mod logins;
pub mod measure;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod table;
pub mod wire;
