//! The console: the page at `/` and what it is made of, built from `console/` and
//! kept in the binary, so that the server needs no files and its build no Node.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use include_dir::{Dir, File, include_dir};
use sha2::{Digest, Sha256};

use super::error::no_route;

static BUILT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/console/dist");

/// Its own files, and connections to this server; nothing else, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The names of these files say what is in them: they never change.
const FOREVER: &str = "public, max-age=31536000, immutable";

/// `GET /`
pub async fn page(headers: HeaderMap) -> Response {
    let Some(page) = BUILT.get_file("index.html") else { return no_route().await.into_response() };
    let tag = tag(page);
    let is_known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        answer(page, "index.html", &headers)
    };
    let about = response.headers_mut();
    about.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    about.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        about.insert(header::ETAG, tag);
    }
    response
}

/// `GET /assets/{name}`
pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let path = format!("assets/{name}");
    match BUILT.get_file(&path).filter(|_| !path.ends_with(".gz")) {
        Some(file) => {
            let mut response = answer(file, &path, &headers);
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(FOREVER));
            response
        }
        None => no_route().await.into_response(),
    }
}

fn answer(file: &'static File<'static>, path: &str, headers: &HeaderMap) -> Response {
    let accepts_gzip = headers.get(header::ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok());
    let accepts_gzip = accepts_gzip.is_some_and(|accepted| {
        accepted
            .split(',')
            .any(|coding| matches!(coding.trim(), "gzip") || coding.trim().starts_with("gzip;q=1"))
    });
    let smaller = BUILT.get_file(format!("{path}.gz")).filter(|_| accepts_gzip);
    let mut response = smaller.unwrap_or(file).contents().into_response();
    let about = response.headers_mut();
    about.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind_of(path)));
    about.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if smaller.is_some() {
        about.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn kind_of(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

fn tag(file: &File<'_>) -> String {
    let digest = Sha256::digest(file.contents());
    digest.iter().take(8).fold("\"".to_owned(), |text, byte| text + &format!("{byte:02x}")) + "\""
}
