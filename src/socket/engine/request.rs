//! What a request to the engine asks for, what is refused before the engine sees
//! it, and the small copy that the engine gets.
//!
//! Slices of the original would keep hyper's 16 KiB read buffer alive as long as
//! the session.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use sha1::{Digest, Sha1};

use super::PATH;
use crate::failure::Failure;
use crate::net::{BODY_DEADLINE, RequestBody};
use crate::wire;

/// What a WebSocket handshake's key is hashed with (RFC 6455, 1.3).
const HANDSHAKE_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a request's query asks for.
pub(super) struct Asked {
    /// The parts of the query that the engine reads, as they came.
    engine_query: String,
    pub sid: Option<String>,
    pub is_websocket: bool,
    pub device_info: Option<String>,
    /// Revision 4 of the Engine.IO protocol.
    pub is_revision_4: bool,
}

impl Asked {
    pub fn of<B>(request: &Request<B>) -> Option<Self> {
        let query = request.uri().query().unwrap_or_default();
        let engine_query = query
            .split('&')
            .filter(|pair| ["EIO=", "transport=", "sid="].iter().any(|name| pair.starts_with(name)))
            .collect::<Vec<_>>()
            .join("&");
        let value = |name: &str| {
            form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        Some(Self {
            sid: value("sid"),
            is_websocket: value("transport").as_deref() == Some("websocket"),
            device_info: value("deviceInfo"),
            is_revision_4: value("EIO").as_deref() == Some("4"),
            engine_query,
        })
    }
}

/// Whether a request is an upgrade as RFC 6455, 4.2.1 wants it. The engine
/// answers 101 to less.
pub(super) fn is_good_upgrade<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let has_token = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name);
        values
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let is = |name: header::HeaderName, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let key_bytes = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).ok());
    request.method() == Method::GET
        && has_token(header::UPGRADE, "websocket")
        && has_token(header::CONNECTION, "upgrade")
        && is(header::SEC_WEBSOCKET_VERSION, "13")
        && key_bytes.is_some_and(|key| key.len() == 16)
}

/// A small copy of a request, its body read in bounds.
pub(super) async fn slim(
    request: Request<RequestBody>,
    asked: &Asked,
    body_bytes_max: usize,
) -> Result<Request<Full<Bytes>>, Response<Full<Bytes>>> {
    let mut builder =
        Request::builder().method(request.method().clone()).uri(format!("{PATH}?{}", asked.engine_query));
    if let Some(headers) = builder.headers_mut() {
        copy_header(request.headers(), headers, header::CONTENT_TYPE);
    }
    let body = match *request.method() {
        Method::POST => {
            let body = Limited::new(request.into_body(), body_bytes_max).collect();
            match tokio::time::timeout(BODY_DEADLINE, body).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(_)) => return Err(plain(StatusCode::PAYLOAD_TOO_LARGE)),
                Err(_) => return Err(plain(StatusCode::REQUEST_TIMEOUT)),
            }
        }
        _ => Bytes::new(),
    };
    builder.body(Full::new(body)).map_err(|_| bad_request(BadRequest::Malformed))
}

fn copy_header(from: &HeaderMap, to: &mut HeaderMap, name: header::HeaderName) {
    let copy = from.get(&name).and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
    if let Some(value) = copy {
        to.insert(name, value);
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// What Engine.IO servers refuse, by their own codes.
#[derive(Clone, Copy)]
pub(super) enum BadRequest {
    UnknownSession,
    Malformed,
    UnsupportedRevision,
}

/// The shape in which Engine.IO servers answer what they cannot serve.
pub(super) fn bad_request(why: BadRequest) -> Response<Full<Bytes>> {
    let (code, message) = match why {
        BadRequest::UnknownSession => (1, "Session ID unknown"),
        BadRequest::Malformed => (3, "Bad request"),
        BadRequest::UnsupportedRevision => (5, "Unsupported protocol version"),
    };
    json(StatusCode::BAD_REQUEST, format!("{{\"code\":{code},\"message\":\"{message}\"}}"))
}

/// The answer that turns a connection into a WebSocket (RFC 6455, 4.2.2).
pub(super) fn switching_protocols(headers: &HeaderMap) -> Response<Full<Bytes>> {
    let mut hash = Sha1::new();
    hash.update(headers.get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], HeaderValue::as_bytes));
    hash.update(HANDSHAKE_GUID);
    let accept = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash.finalize());
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(
        header::SEC_WEBSOCKET_ACCEPT,
        HeaderValue::try_from(accept).expect("base64 is a header's value"),
    );
    response
}

pub(super) fn unavailable(failure: &Failure) -> Response<Full<Bytes>> {
    let body = format!("{{\"error\":{}}}", wire::json(failure));
    let mut response = json(StatusCode::SERVICE_UNAVAILABLE, body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
