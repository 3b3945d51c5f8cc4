//! REST: routes, layers and what they share.
//!
//! A handler names what it needs, decodes, calls one service and encodes. Every
//! error has the one shape of `failure`, under `error`.

mod accounts;
mod console;
pub mod cors;
mod devices;
mod docs;
mod error;
mod extract;
mod ops;
mod session;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::routing::{delete, get, patch, post};

use crate::auth::AuthService;
use crate::devices::DeviceService;
use crate::drain::Tasks;
use crate::health::Health;
use crate::net::network::Network;
use crate::sync::SyncEngine;
use crate::telemetry::metrics::Metrics;

/// What handlers work with.
#[derive(Clone, FromRef)]
pub struct Services {
    /// Accounts and tokens.
    pub auth: Arc<AuthService>,
    /// Devices.
    pub devices: Arc<DeviceService>,
    /// Session state.
    pub sync: Arc<SyncEngine>,
    /// How the node is.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the node is going.
    pub tasks: Tasks,
    /// Bounds.
    pub settings: Arc<Settings>,
}

/// Bounds of REST.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is a row of the settings table")]
pub struct Settings {
    pub body_bytes: usize,
    pub trusted_proxies: Vec<Network>,
    pub console: bool,
}

/// All routes of `PORT` but Socket.IO's.
pub fn routes(services: Services) -> Router {
    let console = if services.settings.console {
        Router::new().route("/", get(console::page)).route("/assets/{name}", get(console::asset))
    } else {
        Router::new()
    };
    console
        .route("/api/auth/register", post(accounts::register))
        .route("/api/auth/login", post(accounts::login))
        .route("/api/auth/refresh", post(accounts::refresh))
        .route("/api/auth/logout", post(accounts::logout))
        .route("/api/auth/logout-all", post(accounts::logout_all))
        .route("/api/auth/password", post(accounts::change_password))
        .route("/api/account", delete(accounts::remove))
        .route("/api/devices", get(devices::list))
        .route("/api/devices/{id}", patch(devices::update).delete(devices::revoke))
        .route("/api/session", get(session::read))
        .route(
            "/api/session/{key}",
            get(session::entry).put(session::put).patch(session::patch).delete(session::delete),
        )
        .route("/api/session/{key}/history", get(session::history))
        .route("/api/session/{key}/restore", post(session::restore))
        .route("/api/health", get(ops::health))
        .route("/api/health/live", get(ops::live))
        .route("/api/health/ready", get(ops::ready))
        .route("/metrics", get(ops::local_metrics))
        .route("/api/openapi.json", get(docs::openapi))
        .route("/api/asyncapi.json", get(docs::asyncapi))
        .route("/docs", get(docs::calls))
        .route("/docs/events", get(docs::events))
        .route("/docs/{file}", get(docs::file))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(axum::middleware::from_fn_with_state(services.clone(), ops::guard))
        .with_state(services)
}

/// A failure as a response.
pub fn refused(failure: crate::failure::Failure) -> axum::response::Response {
    axum::response::IntoResponse::into_response(error::Refused(failure))
}

/// The routes of `METRICS_PORT`.
pub fn metrics_routes(services: Services) -> Router {
    Router::new()
        .route("/metrics", get(ops::metrics))
        .route("/api/health/live", get(ops::live))
        .route("/api/health/ready", get(ops::ready))
        .fallback(error::no_route)
        .with_state(services)
}
