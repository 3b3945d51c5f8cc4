//! What handlers take from a request: who asks, from where, and the body.

use std::net::IpAddr;
use std::sync::{Arc, Once};

use axum::body::Bytes;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use super::error::Refused;
use super::{Services, Settings};
use crate::auth::{AuthService, Identity};
use crate::failure::{Code, Failure, Outcome};
use crate::merge::{self, Field, Text};
use crate::net::network::Network;
use crate::net::{BODY_DEADLINE, Peer};

/// The user behind a good token.
pub struct User(pub Identity);

impl<S> FromRequestParts<S> for User
where
    Arc<AuthService>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let token = bearer_token(&parts.headers)?;
        let auth = Arc::<AuthService>::from_ref(state);
        Ok(Self(auth.authenticate(token).await?))
    }
}

/// The token of the one Authorization header (RFC 6750, 2.1).
fn bearer_token(headers: &HeaderMap) -> Outcome<&str> {
    let unauthorized = || Failure::new(Code::Unauthorized, "Send one header: Authorization: Bearer <token>.");
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(unauthorized()) };
    let value = value.to_str().map_err(|_| unauthorized())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(unauthorized)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(unauthorized()) }
}

/// The address a request came from, as far as trusted proxies tell.
pub struct ClientAddress(pub IpAddr);

impl FromRequestParts<Services> for ClientAddress {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, Refused> {
        let peer = parts.extensions.get::<Peer>().ok_or_else(Failure::internal)?;
        if parts.headers.contains_key(FORWARDED_FOR) {
            warn_of_stranger(peer.address, &services.settings.trusted_proxies);
        }
        Ok(Self(client_address(peer.address, &parts.headers, &services.settings.trusted_proxies)))
    }
}

/// Who stands between a request and its client says so here.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Says once that a proxy is not believed: all its users then look like one address, and share its limits. It may also
/// be a client that makes the header up, so once is enough.
fn warn_of_stranger(peer: IpAddr, trusted: &[Network]) {
    static WARNED: Once = Once::new();
    if !is_trusted(peer, trusted) {
        WARNED.call_once(|| {
            tracing::warn!(
                %peer,
                "a request came with X-Forwarded-For from an address that is not in TRUSTED_PROXIES: if that is your \
                 proxy, all its users share one address's limit of logins until TRUSTED_PROXIES names it"
            );
        });
    }
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}

/// Walks X-Forwarded-For from its end while it names trusted proxies: what
/// stands before the first stranger is hearsay.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let values: Vec<_> =
        headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut address = peer;
    for hop in values.iter().flat_map(|value| value.split(',')).rev() {
        if !is_trusted(address, trusted) {
            break;
        }
        let Ok(next) = hop.trim().parse() else { break };
        address = next;
    }
    address
}

/// The one parameter of a path. What is no UTF-8 becomes a text that names
/// nothing, so that it is refused like any other bad name.
pub struct PathText(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(text.map_or_else(|_| "\0".to_owned(), |Path(text)| text)))
    }
}

/// A JSON object, its fields by name. Those that nobody asks for may be any JSON.
pub struct Fields(Vec<Field>);

impl Fields {
    /// A string that must be there, every character of it.
    ///
    /// # Errors
    /// `invalid_field`.
    pub fn string(&self, name: &str) -> Outcome<String> {
        let value = self.get(name).ok_or_else(|| Failure::field(name, format!("{name} is missing.")))?;
        match merge::text(value) {
            Some(Text { text, is_whole: true }) => Ok(text),
            Some(_) => Err(Failure::field(name, format!("{name} has half of a surrogate pair."))),
            None => Err(Failure::field(name, format!("{name} must be a string."))),
        }
    }

    /// A field as JSON, `null` included.
    pub fn get(&self, name: &str) -> Option<&str> {
        merge::value(&self.0, name)
    }

    /// All of them.
    pub fn all(&self) -> &[Field] {
        &self.0
    }

    /// A whole number from 0 that must be there, also one written as `3.0` (to
    /// JSON Schema, too, that is an integer).
    ///
    /// # Errors
    /// `invalid_field`.
    pub fn number(&self, name: &str) -> Outcome<u64> {
        let value = self.get(name).and_then(merge::whole);
        value.ok_or_else(|| Failure::field(name, format!("{name} must be a whole number from 0.")))
    }
}

impl FromRequest<Services> for Fields {
    type Rejection = Refused;

    async fn from_request(request: Request, services: &Services) -> Result<Self, Refused> {
        let body = json_bytes(request, &services.settings).await?;
        let text = std::str::from_utf8(&body).map_err(|_| not_json())?;
        let fields = merge::fields(text);
        let not_an_object = || Failure::new(Code::InvalidJson, "The body must be a JSON object.");
        Ok(Self(fields.ok_or_else(not_an_object)?))
    }
}

/// Any JSON value, its text untouched.
pub struct JsonValue(pub Box<RawValue>);

impl FromRequest<Services> for JsonValue {
    type Rejection = Refused;

    async fn from_request(request: Request, services: &Services) -> Result<Self, Refused> {
        let body = json_bytes(request, &services.settings).await?;
        serde_json::from_slice(&body).map(Self).map_err(|_| not_json().into())
    }
}

fn not_json() -> Failure {
    Failure::new(Code::InvalidJson, "The body is not JSON.")
}

/// The body of a request that says it is JSON, in bounds of size and time.
async fn json_bytes(request: Request, settings: &Settings) -> Outcome<Bytes> {
    check_media_type(request.headers())?;
    let body = read_body(request, settings.body_bytes);
    let in_time = tokio::time::timeout(BODY_DEADLINE, body).await;
    in_time.unwrap_or_else(|_| Err(Failure::new(Code::RequestTimeout, "The body took too long to arrive.")))
}

fn check_media_type(headers: &HeaderMap) -> Outcome<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    let is_json = media_type.eq_ignore_ascii_case("application/json")
        || media_type.eq_ignore_ascii_case("application/merge-patch+json");
    let encoding = text(header::CONTENT_ENCODING);
    let is_plain = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    if is_json && is_plain {
        Ok(())
    } else {
        Err(Failure::new(Code::UnsupportedMediaType, "Send application/json without compression."))
    }
}

async fn read_body(request: Request, bytes_max: usize) -> Outcome<Bytes> {
    let mut body = request.into_body();
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Failure::new(Code::InvalidJson, "The body ended early."));
        };
        let Ok(data) = frame.into_data() else { continue };
        if kept.len() + data.len() > bytes_max {
            let too_large = Failure::new(Code::TooLarge, "The body is too large.");
            return Err(too_large.with("limit", "LIMIT_FRAME_BYTES"));
        }
        kept.extend_from_slice(&data);
    }
    Ok(kept.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_say_where_a_request_came_from() {
        let trusted: Vec<Network> = vec!["10.0.0.0/8".parse().unwrap()];
        let address = |peer: &str, forwarded: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
        };
        assert_eq!(address("1.2.3.4", "9.9.9.9"), "1.2.3.4");
        assert_eq!(address("10.0.0.1", "9.9.9.9"), "9.9.9.9");
        assert_eq!(address("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2"), "9.9.9.9");
        assert_eq!(address("10.0.0.1", "nonsense"), "10.0.0.1");
    }
}
