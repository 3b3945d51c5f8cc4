//! Register, log in, refresh, log out; change the password, remove the account.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use super::error::{Answer, json_body};
use super::extract::{ClientAddress, Fields, User};
use crate::auth::{AuthService, Session};
use crate::devices;
use crate::failure::Outcome;

/// `POST /api/auth/register`
pub async fn register(
    State(auth): State<Arc<AuthService>>,
    ClientAddress(address): ClientAddress,
    fields: Fields,
) -> Answer {
    auth.admit(address).await?;
    check_device_info(fields.get("deviceInfo"))?;
    let session = auth.register(&fields.string("email")?, &fields.string("password")?).await?;
    Ok(json_body(StatusCode::CREATED, body(&session)))
}

/// Clients of the replaced server send it along; a device is made when it
/// connects.
fn check_device_info(info: Option<&str>) -> Outcome<()> {
    match info {
        None | Some("null") => Ok(()),
        Some(info) => devices::read_info(info).map(drop),
    }
}

/// `POST /api/auth/login`
pub async fn login(
    State(auth): State<Arc<AuthService>>,
    ClientAddress(address): ClientAddress,
    fields: Fields,
) -> Answer {
    auth.admit(address).await?;
    let session = auth.login(&fields.string("email")?, &fields.string("password")?).await?;
    Ok(json_body(StatusCode::OK, body(&session)))
}

fn body(session: &Session) -> String {
    json!({
        "token": session.token,
        "refreshToken": session.refresh_token,
        "expiresAt": session.expires_at,
        "user": {"id": session.user, "email": session.email, "createdAt": session.created_at},
    })
    .to_string()
}

/// `POST /api/auth/refresh`
pub async fn refresh(
    State(auth): State<Arc<AuthService>>,
    ClientAddress(address): ClientAddress,
    fields: Fields,
) -> Answer {
    auth.admit(address).await?;
    let refreshed = auth.refresh(&fields.string("refreshToken")?).await?;
    let body = json!({
        "token": refreshed.token,
        "refreshToken": refreshed.refresh_token,
        "expiresAt": refreshed.expires_at,
    });
    Ok(json_body(StatusCode::OK, body.to_string()))
}

/// `POST /api/auth/logout`
pub async fn logout(State(auth): State<Arc<AuthService>>, User(identity): User) -> Answer {
    auth.logout(&identity).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/auth/logout-all`
pub async fn logout_all(State(auth): State<Arc<AuthService>>, User(identity): User) -> Answer {
    auth.logout_all(identity.user).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/auth/password`
pub async fn change_password(
    State(auth): State<Arc<AuthService>>,
    User(identity): User,
    fields: Fields,
) -> Answer {
    auth.change_password(&identity, &fields.string("current")?, &fields.string("new")?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /api/account`
pub async fn remove(State(auth): State<Arc<AuthService>>, User(identity): User, fields: Fields) -> Answer {
    auth.remove_account(&identity, &fields.string("password")?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
