//! What the server says of itself: REST in `openapi.json`, with a page to read it and to try
//! each call, the Socket.IO events in `asyncapi.json`. All of it is in the binary; nothing comes from elsewhere.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

const OPENAPI: &str = include_str!("docs/openapi.json");

const ASYNCAPI: &str = include_str!("docs/asyncapi.json");

/// The page's own script and style, and calls to this server; nothing else.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /api/openapi.json`
pub async fn openapi() -> Response {
    text("application/json", OPENAPI.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1))
}

/// `GET /api/asyncapi.json`
pub async fn asyncapi() -> Response {
    text("application/json", ASYNCAPI.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1))
}

/// `GET /docs`
pub async fn page() -> Response {
    let mut response = text("text/html; charset=utf-8", include_str!("docs/page.html"));
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    response
}

/// `GET /docs/page.css`
pub async fn style() -> Response {
    text("text/css; charset=utf-8", include_str!("docs/page.css"))
}

/// `GET /docs/page.js`
pub async fn script() -> Response {
    text("text/javascript; charset=utf-8", include_str!("docs/page.js"))
}

fn text(kind: &'static str, body: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body.into()).into_response()
}
