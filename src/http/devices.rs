//! The user's devices.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use super::error::{Answer, json_body};
use super::extract::User;
use crate::devices::DeviceService;

/// `GET /api/devices`
pub async fn list(State(devices): State<Arc<DeviceService>>, User(identity): User) -> Answer {
    let list = devices.list(identity.user).await?;
    Ok(json_body(StatusCode::OK, format!("{{\"devices\":{list}}}")))
}
