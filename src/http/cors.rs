//! Which pages may talk to us.
//!
//! Any origin by default: nothing ambient authenticates here, tokens travel in
//! the payload or a header and there are no cookies. A list narrows it for REST
//! and Socket.IO alike, but never keeps out the server's own pages.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Whether the page that sent a request is welcome: one of no origin on the list
/// still is when it came from this server itself, as the console does. A request
/// without an Origin is not from a page.
///
/// DNS rebinding makes a foreign page pass for our own: its name leads here, and
/// stands in Origin and Host alike. It gains nothing that the list kept from it.
/// The GETs of such a page carry no Origin and always came through; tokens are
/// not sent by the browser itself, and those that the console keeps belong to
/// its origin's name, which is another. What is left is to knock, as any program
/// on that network can.
pub fn is_welcome(allowed: &[String], headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    allowed.is_empty()
        || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
        || is_own(origin, host)
}

/// Whether `origin` is where the request went. Which scheme that was is not known
/// behind a proxy, so host and port decide; either may leave the default port out.
fn is_own(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare =
        |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    !authority.is_empty() && bare(authority) == bare(host)
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
        // A star would leave out Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::ETAG, header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
        .max_age(std::time::Duration::from_secs(3_600))
}
