//! Which pages may talk to us.
//!
//! Any origin by default: nothing ambient authenticates here, tokens travel in
//! the payload or a header and there are no cookies. A list narrows it for REST
//! and Socket.IO alike.

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

/// Whether a request's Origin is welcome. A request without one is not from a
/// page.
pub fn is_allowed(allowed: &[String], origin: Option<&HeaderValue>) -> bool {
    let Some(origin) = origin else { return true };
    let wanted = origin.to_str().unwrap_or_default();
    allowed.is_empty() || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(wanted))
}

/// The layer that answers preflights and labels answers (Fetch standard, 3.2).
pub fn layer(allowed: &[String]) -> CorsLayer {
    let origins = if allowed.is_empty() {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(allowed.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(Any)
        .expose_headers([header::ETAG, header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
        .max_age(std::time::Duration::from_secs(3_600))
}
