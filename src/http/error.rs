//! From a failure to a response.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::failure::{Code, Failure};
use crate::wire::json;

/// A failure on its way out over HTTP.
pub struct Refused(pub Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

/// What handlers return.
pub type Answer = Result<Response, Refused>;

/// The status that fits a code.
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidJson
        | Code::InvalidField
        | Code::InvalidKey
        | Code::InvalidOperation
        | Code::UnknownEvent
        | Code::InvalidEmail
        | Code::WeakPassword
        | Code::PasswordTooLong
        | Code::InvalidDeviceInfo => StatusCode::BAD_REQUEST,
        Code::Unauthorized
        | Code::InvalidToken
        | Code::InvalidCredentials
        | Code::TokenExpired
        | Code::DeviceRevoked
        | Code::Replaced => StatusCode::UNAUTHORIZED,
        Code::RegistrationClosed | Code::OriginNotAllowed => StatusCode::FORBIDDEN,
        Code::UnknownDevice | Code::UnknownKey | Code::NotFound => StatusCode::NOT_FOUND,
        Code::EmailTaken | Code::OpIdReused | Code::MessageIdReused => StatusCode::CONFLICT,
        Code::Conflict => StatusCode::PRECONDITION_FAILED,
        Code::TooLarge | Code::TooDeep | Code::QuotaExceeded | Code::MailboxFull => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::StoreUnavailable
        | Code::StoreBusy
        | Code::StoreFull
        | Code::Draining
        | Code::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(failure) = self;
        let body = format!("{{\"error\":{}}}", json(&failure));
        let mut response = (status(failure.code), as_json(), body).into_response();
        let headers = response.headers_mut();
        if matches!(failure.code, Code::Unauthorized | Code::TokenExpired) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after_seconds(&failure) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let (Code::Conflict, Some(version)) = (failure.code, failure.detail("version")) {
            headers.extend(HeaderValue::try_from(format!("\"{version}\"")).map(|tag| (header::ETAG, tag)));
        }
        response
    }
}

/// Whole seconds, rounded up, where waiting helps.
fn retry_after_seconds(failure: &Failure) -> Option<u64> {
    let named = failure.detail("retryAfterMs").and_then(serde_json::Value::as_u64);
    let default = match failure.code {
        Code::StoreUnavailable | Code::StoreBusy | Code::StoreFull | Code::TooManyConnections => Some(1_000),
        Code::Draining => Some(2_000),
        _ => None,
    };
    named.or(default).map(|ms| ms.div_ceil(1_000))
}

/// The content type of everything but metrics and pages.
pub fn as_json() -> [(header::HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
}

/// A body that is JSON already.
pub fn json_body(status: StatusCode, body: String) -> Response {
    (status, as_json(), body).into_response()
}

/// No such route.
pub async fn no_route() -> Refused {
    Refused(Failure::new(Code::NotFound, "There is nothing at this address."))
}

/// The route has other methods.
pub async fn no_method() -> Response {
    let failure = Failure::new(Code::NotFound, "This address does not take that method.");
    let mut response = Refused(failure).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
