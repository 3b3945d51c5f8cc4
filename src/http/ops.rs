//! What operators and load balancers ask: health, metrics; and the guard that
//! every request passes.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::{Instrument, Span};

use super::Services;
use super::error::{Answer, Refused, json_body, no_route};
use crate::failure::{Code, Failure};
use crate::net::Peer;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, Context};
use crate::telemetry::{exemplars, process};

/// Headers by which a request shows that it came through a proxy.
const FORWARDING: [&str; 4] = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];

/// `GET /api/health`
pub async fn health(State(services): State<Services>) -> Response {
    let health = services.health.report();
    let status = if services.tasks.is_draining() {
        "draining"
    } else if health.store_is_lost {
        "unavailable"
    } else if health.is_degraded {
        "degraded"
    } else {
        "ok"
    };
    let code = match status {
        "ok" | "degraded" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "node": health.node,
        "uptimeSeconds": health.uptime_seconds,
        "checks": {"store": health.store, "backplane": health.backplane},
    });
    json_body(code, body.to_string())
}

/// `GET /api/health/live`: the process answers.
pub async fn live() -> Response {
    json_body(StatusCode::OK, r#"{"status":"ok"}"#.to_owned())
}

/// `GET /api/health/ready`: started, not draining, the store not long away.
pub async fn ready(State(services): State<Services>) -> Response {
    if services.tasks.is_draining() {
        json_body(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"draining"}"#.to_owned())
    } else if services.health.report().store_is_lost {
        json_body(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"unavailable"}"#.to_owned())
    } else {
        json_body(StatusCode::OK, r#"{"status":"ok"}"#.to_owned())
    }
}

/// `GET /metrics` on the metrics port.
pub async fn metrics(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    process::measure(&metrics);
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let (kind, text) = if accept.is_some_and(exemplars::is_accepted) {
        (exemplars::CONTENT_TYPE, metrics.render_open_metrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", metrics.render())
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::VARY, "accept")];
    (headers, text).into_response()
}

/// `GET /metrics` on the main port: for this host only.
pub async fn local_metrics(State(services): State<Services>, request: Request) -> Answer {
    let is_local = request.extensions().get::<Peer>().is_some_and(|peer| peer.address.is_loopback());
    let is_forwarded = FORWARDING.iter().any(|name| request.headers().contains_key(*name));
    if is_local && !is_forwarded {
        Ok(metrics(State(services.metrics), request.into_parts().0.headers).await)
    } else {
        Err(no_route().await)
    }
}

/// Refuses what is over the connection cap; stamps a request id and headers
/// that every answer should carry.
pub async fn guard(State(_services): State<Services>, request: Request, next: Next) -> Response {
    let over_cap = request.extensions().get::<Peer>().is_some_and(|peer| peer.over_cap);
    let is_probe = request.uri().path().starts_with("/api/health");
    let request_id = request_id(&request);
    let span = tracing::debug_span!("http", http.method = %request.method(), request.id = request_id);
    let traced = trace_of(&request, &request_id);
    let mut response = if over_cap && !is_probe {
        let failure = Failure::new(Code::TooManyConnections, "This node has too many connections.");
        let mut response = Refused(failure).into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    } else {
        next.run(request).instrument(span).instrument(traced.clone()).await
    };
    traced.record("outcome", response.status().as_u16());
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    for (name, value) in SAFE_HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The trace of a request, which a caller may have begun. Probes and scrapes are not worth one.
fn trace_of(request: &Request, request_id: &str) -> Span {
    let Some(route) = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) else {
        return Span::none();
    };
    if route.starts_with("/api/health") || route == "/metrics" {
        return Span::none();
    }
    let parent = || Context::parse(request.headers().get("traceparent")?.to_str().ok()?);
    let span = traces::begin(&format!("{} {route}", request.method()), parent);
    span.record("request.id", request_id);
    span
}

/// What every answer says unless it says otherwise: it is data, for whoever asked.
const SAFE_HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Characters of a request id that a caller may choose.
const REQUEST_ID_CHARS_MAX: usize = 64;

/// The caller's own id for the request, if it is a plain word, or a new one.
fn request_id(request: &Request) -> String {
    let is_plain = |id: &&str| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).filter(is_plain);
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}
