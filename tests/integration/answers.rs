//! What an answer has to look like: the error shape in an ack, and times.

use serde_json::Value;

/// Fails unless `ack` refuses with this code in the one error shape; the error comes back.
#[track_caller]
pub fn refused<'a>(ack: &'a Value, code: &str) -> &'a Value {
    assert_eq!(ack["ok"], false, "{ack}");
    is_error(&ack["error"], code);
    &ack["error"]
}

/// Fails unless `ack` accepts.
#[track_caller]
pub fn accepted(ack: &Value) {
    assert_eq!(ack["ok"], true, "{ack}");
}

/// Fails unless this is `{code, message, retryable, ...}` with this code.
#[track_caller]
pub fn is_error(error: &Value, code: &str) {
    assert_eq!(error["code"], code, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(error["retryable"].is_boolean(), "{error}");
}

/// Fails unless `value` is RFC 3339 in UTC with milliseconds, such as `2026-11-23T01:02:03.004Z`.
#[track_caller]
pub fn is_time(value: &Value) {
    let shape = |text: &str| -> String {
        text.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect()
    };
    assert_eq!(value.as_str().map(shape).as_deref(), Some("0000-00-00T00:00:00.000Z"), "{value}");
}

/// Fails unless `value` is a UUID in its usual form.
#[track_caller]
pub fn is_id(value: &Value) {
    let parsed = value.as_str().and_then(|text| uuid::Uuid::try_parse(text).ok());
    assert!(parsed.is_some_and(|id| value == &id.hyphenated().to_string()), "{value}");
}
