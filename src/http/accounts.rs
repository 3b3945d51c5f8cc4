//! Register and log in.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::error::{Answer, json_body};
use super::extract::{ClientAddress, Fields};
use crate::auth::{AuthService, Session};

/// `POST /api/auth/register`
pub async fn register(
    State(auth): State<Arc<AuthService>>,
    ClientAddress(address): ClientAddress,
    fields: Fields,
) -> Answer {
    auth.admit(address)?;
    let session = auth.register(fields.string("email")?, fields.string("password")?).await?;
    Ok(json_body(StatusCode::CREATED, body(&session)))
}

/// `POST /api/auth/login`
pub async fn login(
    State(auth): State<Arc<AuthService>>,
    ClientAddress(address): ClientAddress,
    fields: Fields,
) -> Answer {
    auth.admit(address)?;
    let session = auth.login(fields.string("email")?, fields.string("password")?).await?;
    Ok(json_body(StatusCode::OK, body(&session)))
}

fn body(session: &Session) -> String {
    json!({
        "token": session.token,
        "expiresAt": session.expires_at,
        "user": {"id": session.user, "email": session.email, "createdAt": session.created_at},
    })
    .to_string()
}
