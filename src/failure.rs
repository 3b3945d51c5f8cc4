//! The one shape of an error, for REST, acks and the `error` event alike.
//!
//! `code` is a stable word that clients branch on; `message` is one English
//! sentence for people and may change. `docs/PROTOCOL.md` lists every code.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $retryable:literal;)+) => {
        /// Every code a client can meet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// All of them, for the test that compares them with the documents.
            pub const ALL: &[Code] = &[$(Code::$name,)+];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $word,)+ }
            }

            /// Whether the same request may succeed later, unchanged.
            pub fn retryable(self) -> bool {
                match self { $(Code::$name => $retryable,)+ }
            }
        }
    };
}

codes! {
    /// Not JSON, or not where JSON must be.
    InvalidJson = "invalid_json", false;
    /// A field is missing or wrong; `field` names it.
    InvalidField = "invalid_field", false;
    /// A session key breaks its rule.
    InvalidKey = "invalid_key", false;
    /// A patch or ops list that cannot be applied.
    InvalidOperation = "invalid_operation", false;
    /// No such event.
    UnknownEvent = "unknown_event", false;
    /// Not an e-mail address.
    InvalidEmail = "invalid_email", false;
    /// Under 8 characters, or too easily guessed.
    WeakPassword = "weak_password", false;
    /// Over 72 bytes, where bcrypt would cut it without a word.
    PasswordTooLong = "password_too_long", false;
    /// Not an object of at most 4 KiB.
    InvalidDeviceInfo = "invalid_device_info", false;
    /// No valid token.
    Unauthorized = "unauthorized", false;
    /// A refresh token that is not, or no longer, good.
    InvalidToken = "invalid_token", false;
    /// Wrong e-mail or password.
    InvalidCredentials = "invalid_credentials", false;
    /// The access token has ended.
    TokenExpired = "token_expired", false;
    /// The device was removed by its user.
    DeviceRevoked = "device_revoked", false;
    /// A newer connection of the same device took over.
    Replaced = "replaced", false;
    /// Accounts are made elsewhere.
    RegistrationClosed = "registration_closed", false;
    /// The page's origin is not on the list.
    OriginNotAllowed = "origin_not_allowed", false;
    /// No such device of this user.
    UnknownDevice = "unknown_device", false;
    /// No such session key.
    UnknownKey = "unknown_key", false;
    /// No such route or record.
    NotFound = "not_found", false;
    /// The address has an account.
    EmailTaken = "email_taken", false;
    /// An opId seen before, with other content.
    OpIdReused = "op_id_reused", false;
    /// A messageId seen before, with other content.
    MessageIdReused = "message_id_reused", false;
    /// The key has moved on from the version the write was based on.
    Conflict = "conflict", false;
    /// Bigger than `limit` allows.
    TooLarge = "too_large", false;
    /// Nested deeper than allowed.
    TooDeep = "too_deep", false;
    /// The user's share is used up; `limit` says of what.
    QuotaExceeded = "quota_exceeded", false;
    /// The device's mailbox is full.
    MailboxFull = "mailbox_full", false;
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", false;
    /// The request took too long to arrive.
    RequestTimeout = "request_timeout", true;
    /// Too many requests; wait `retryAfterMs`.
    RateLimited = "rate_limited", true;
    /// The store cannot be reached; `unknown` says the write may have happened.
    StoreUnavailable = "store_unavailable", true;
    /// The store is overloaded.
    StoreBusy = "store_busy", true;
    /// The store's disk is full.
    StoreFull = "store_full", true;
    /// This node is going away.
    Draining = "draining", true;
    /// The node or the user has too many connections.
    TooManyConnections = "too_many_connections", true;
    /// A defect of ours.
    Internal = "internal", true;
}

/// An error as a client sees it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What clients branch on.
    pub code: Code,
    /// For people.
    pub message: Cow<'static, str>,
    details: Option<Box<Map<String, Value>>>,
    raw_state: Option<Box<RawValue>>,
}

/// What most of this crate's fallible functions return.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with no details.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), details: None, raw_state: None }
    }

    /// `invalid_field`, naming the field.
    pub fn field(field: &str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidField, message).with("field", field)
    }

    /// `rate_limited` with the wait in milliseconds.
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        Self::new(Code::RateLimited, "Too many requests; wait and try again.")
            .with("retryAfterMs", retry_after_ms.max(1))
    }

    /// `internal`: a defect of ours. The cause belongs in the log, not here.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "Something went wrong on our side.")
    }

    /// The same with one detail more.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.get_or_insert_default().insert(name.to_owned(), value.into());
        self
    }

    /// The same with the current state of a session key, its text untouched.
    pub fn with_state(mut self, state: Box<RawValue>) -> Self {
        self.raw_state = Some(state);
        self
    }

    /// One of the details.
    pub fn detail(&self, name: &str) -> Option<&Value> {
        self.details.as_ref()?.get(name)
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", self.code.as_str())?;
        map.serialize_entry("message", &self.message)?;
        map.serialize_entry("retryable", &self.code.retryable())?;
        for (name, value) in self.details.iter().flat_map(|details| details.iter()) {
            map.serialize_entry(name, value)?;
        }
        if let Some(state) = &self.raw_state {
            map.serialize_entry("state", state)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_code_message_retryable_and_details() {
        let failure = Failure::field("email", "It must be a string.");
        assert_eq!(
            serde_json::to_string(&failure).unwrap(),
            r#"{"code":"invalid_field","message":"It must be a string.","retryable":false,"field":"email"}"#
        );
    }

    #[test]
    fn a_conflict_carries_the_state_digit_for_digit() {
        let state = RawValue::from_string("{\"n\":12345678901234567890}".to_owned()).unwrap();
        let failure = Failure::new(Code::Conflict, "It moved on.").with("version", 3).with_state(state);
        assert!(serde_json::to_string(&failure).unwrap().ends_with(r#""state":{"n":12345678901234567890}}"#));
    }

    #[test]
    fn the_document_lists_every_code() {
        let document = include_str!("../docs/PROTOCOL.md");
        for code in Code::ALL {
            assert!(document.contains(&format!("`{}`", code.as_str())), "{}", code.as_str());
        }
    }
}
