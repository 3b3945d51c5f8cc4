//! The user's devices.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;

use super::error::{Answer, json_body};
use super::extract::{Fields, PathText, User};
use crate::devices::{DeviceService, Patch};

/// `GET /api/devices`
pub async fn list(State(devices): State<Arc<DeviceService>>, User(identity): User) -> Answer {
    let list = devices.list(identity.user).await?;
    Ok(json_body(StatusCode::OK, format!("{{\"devices\":{list}}}")))
}

/// `PATCH /api/devices/{id}`
pub async fn update(
    State(devices): State<Arc<DeviceService>>,
    User(identity): User,
    PathText(id): PathText,
    fields: Fields,
) -> Answer {
    let device = devices.update(identity.user, &id, Patch::of(fields.all())?).await?;
    Ok(json_body(StatusCode::OK, device))
}

/// `DELETE /api/devices/{id}`
pub async fn revoke(
    State(devices): State<Arc<DeviceService>>,
    User(identity): User,
    PathText(id): PathText,
) -> Answer {
    devices.revoke(identity.user, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
