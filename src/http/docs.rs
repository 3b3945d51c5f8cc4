//! What the server says of itself: REST in `openapi.json`, with a page to read it and to try each call, and the
//! Socket.IO events in `asyncapi.json`, with a page to read it. All of it is in the binary; nothing comes from elsewhere.

use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::error::no_route;

const OPENAPI: &str = include_str!("docs/openapi.json");

const ASYNCAPI: &str = include_str!("docs/asyncapi.json");

/// The pages' own scripts and style, and calls to this server; nothing else.
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

/// `GET /docs`: the REST calls.
pub async fn calls() -> Response {
    page(include_str!("docs/page.html"))
}

/// `GET /docs/events`: the Socket.IO events.
pub async fn events() -> Response {
    page(include_str!("docs/events.html"))
}

fn page(html: &'static str) -> Response {
    let mut response = text("text/html; charset=utf-8", html);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    response
}

/// `GET /docs/{file}`: what the pages are made of.
pub async fn file(Path(name): Path<String>) -> Response {
    let script = |body: &'static str| text("text/javascript; charset=utf-8", body);
    match name.as_str() {
        "page.css" => text("text/css; charset=utf-8", include_str!("docs/page.css")),
        "page.js" => script(include_str!("docs/page.js")),
        "events.js" => script(include_str!("docs/events.js")),
        "element.js" => script(include_str!("docs/element.js")),
        _ => no_route().await.into_response(),
    }
}

fn text(kind: &'static str, body: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body.into()).into_response()
}
