//! Socket.IO: from packets to events and back.
//!
//! Only `engine` knows how packets travel (see ARCHITECTURE.md for which part of
//! that is engineioxide's). A [`session::Session`] is one Engine.IO
//! session; `connect` turns its CONNECT into a device, `inbox` keeps its events
//! in order, `events` handles them, `outbox` bounds what waits for it.

mod connect;
pub mod engine;
mod events;
pub mod expiry;
pub(crate) mod fields;
mod inbox;
mod messages;
mod outbox;
pub(crate) mod packet;
mod session;
mod share;
pub mod standstill;

use std::sync::Arc;
use std::time::Duration;

use self::standstill::Standstill;
use crate::auth::AuthService;
use crate::devices::DeviceService;
use crate::drain::Tasks;
use crate::hub::Hub;
use crate::mailbox::Mailbox;
use crate::sync::SyncEngine;
use crate::telemetry::metrics::Metrics;

/// What event handlers work with.
pub struct Services {
    /// Whose token is it.
    pub auth: Arc<AuthService>,
    /// Who connects as which.
    pub devices: Arc<DeviceService>,
    /// Session state.
    pub sync: Arc<SyncEngine>,
    /// Messages from device to device.
    pub mailbox: Mailbox,
    /// The other devices.
    pub hub: Hub,
    /// Where tasks live.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Each user's share of events.
    pub shares: Shares,
    /// Whether this node stood still lately.
    pub standstill: Standstill,
    /// When whose token ends.
    pub expiry: expiry::Expiry,
    /// Bounds and times.
    pub settings: Settings,
}

/// Bounds and times of sockets.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is a row of the settings table")]
pub struct Settings {
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub frame_bytes: usize,
    pub realtime_bytes: usize,
    pub message_bytes: usize,
}

pub use share::Shares;
