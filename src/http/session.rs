//! The user's session: all of it, or one key with ETag and preconditions
//! (RFC 9110, section 13).

use std::sync::Arc;

use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{Answer, Refused, json_body};
use super::extract::{Fields, JsonValue, PathText, User};
use crate::failure::{Code, Failure, Outcome};
use crate::merge::OnConflict;
use crate::model::{Change, Clock, Epoch, Seq, SessionKey, Timestamp, UserId, Version};
use crate::store::{Selection, SessionWrite, WriteChange, Written};
use crate::sync::{SyncEngine, ack_body};
use crate::wire::json;

/// How often a write that must match "whatever is there" is tried again when
/// somebody else was quicker.
const MATCH_TRIES: usize = 5;

/// What of the session to read.
#[derive(Deserialize)]
pub struct Asked {
    since: Option<String>,
    keys: Option<String>,
}

/// [`Asked`] from the query, refused in our own shape.
pub struct AskedOf(Asked);

impl<S: Send + Sync> FromRequestParts<S> for AskedOf {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refused> {
        let asked = Query::try_from_uri(&parts.uri);
        asked
            .map(|Query(asked)| Self(asked))
            .map_err(|_| Failure::field("query", "The query has since and keys, each once.").into())
    }
}

impl Asked {
    fn selection(&self) -> Outcome<Selection> {
        let keys = self.keys.as_ref().map(|keys| keys.split(',').map(parse_key).collect::<Outcome<Vec<_>>>());
        let since = self.since.as_ref().map(|since| {
            let (epoch, seq) = since.rsplit_once(':')?;
            Some((Epoch(epoch.into()), Seq(seq.parse().ok()?)))
        });
        if since == Some(None) {
            return Err(Failure::field("since", "since must be epoch:seq."));
        }
        Ok(Selection { keys: keys.transpose()?, since: since.flatten() })
    }
}

/// `GET /api/session`
pub async fn read(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    AskedOf(asked): AskedOf,
) -> Answer {
    let restore = sync.restore(identity.user, &asked.selection()?).await?;
    let body = format!("{{{},\"mode\":\"{}\"}}", restore.fields, restore.mode());
    Ok(json_body(StatusCode::OK, body))
}

/// `GET /api/session/{key}`
pub async fn entry(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
    headers: HeaderMap,
) -> Answer {
    let entry = sync.entry(identity.user, &known_key(&key)?).await?;
    let tag = etag(entry.version);
    if is_known(&headers, entry.version) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let state = entry.state.as_deref().unwrap_or("null").to_owned();
    Ok(tagged(json_body(StatusCode::OK, state), entry.version))
}

/// Whether `If-None-Match` names what is there, by weak comparison (RFC 9110,
/// 13.1.2). A comma within a tag cuts it in two that are none of ours.
fn is_known(headers: &HeaderMap, version: Version) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    let tag = format!("\"{version}\"");
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// `PUT /api/session/{key}`
pub async fn put(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
    headers: HeaderMap,
    JsonValue(state): JsonValue,
) -> Answer {
    write(&sync, identity.user, &key, &headers, WriteChange::State(state.get().into())).await
}

/// `PATCH /api/session/{key}`
pub async fn patch(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
    headers: HeaderMap,
    JsonValue(patch): JsonValue,
) -> Answer {
    write(&sync, identity.user, &key, &headers, WriteChange::Patch(patch.get().into())).await
}

/// `DELETE /api/session/{key}`
pub async fn delete(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
    headers: HeaderMap,
) -> Answer {
    write(&sync, identity.user, &key, &headers, WriteChange::Delete).await
}

/// `POST /api/session/{key}/restore`
pub async fn restore(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
    headers: HeaderMap,
    fields: Fields,
) -> Answer {
    let version = Version(fields.number("version")?);
    write(&sync, identity.user, &key, &headers, WriteChange::Restore(version)).await
}

/// `GET /api/session/{key}/history`
pub async fn history(
    State(sync): State<Arc<SyncEngine>>,
    User(identity): User,
    PathText(key): PathText,
) -> Answer {
    let versions = sync.history(identity.user, &known_key(&key)?).await?;
    let listed: Vec<_> = versions.iter().map(Listed::of).collect();
    let body = format!("{{\"sessionKey\":{},\"versions\":{}}}", json(&key), json(&listed));
    Ok(json_body(StatusCode::OK, body))
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    version: Version,
    seq: Seq,
    device_id: Option<String>,
    updated_at: Timestamp,
    deleted: bool,
    state: Option<Box<RawValue>>,
}

impl Listed {
    fn of(change: &Change) -> Self {
        Self {
            version: change.version,
            seq: change.seq,
            device_id: change.device.map(|device| device.to_string()),
            updated_at: change.at,
            deleted: change.state.is_none(),
            state: change.state.as_ref().and_then(|state| RawValue::from_string((**state).into()).ok()),
        }
    }
}

/// What a request demands of the version that is there.
#[derive(Debug, PartialEq, Eq)]
enum Precondition {
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: *`
    Present,
    /// `If-Match: "1", "2"`
    OneOf(Vec<Version>),
}

impl Precondition {
    fn of(headers: &HeaderMap) -> Outcome<Self> {
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
        match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
            (None, None) => Ok(Self::None),
            (None, Some("*")) => Ok(Self::Absent),
            (Some("*"), None) => Ok(Self::Present),
            (Some(tags), None) => {
                let versions: Option<Vec<_>> = tags.split(',').map(|tag| version_of(tag.trim())).collect();
                let versions =
                    versions.ok_or_else(|| Failure::field("If-Match", "It must list ETags or be *."))?;
                Ok(Self::OneOf(versions))
            }
            _ => Err(Failure::field("If-None-Match", "It must be *, and stand alone.")),
        }
    }
}

/// A version that no key will ever have.
const NO_VERSION: Version = Version(i64::MAX as u64);

/// The version behind an entity tag; a weak one never matches (RFC 9110, 13.1.1).
fn version_of(tag: &str) -> Option<Version> {
    if tag.starts_with("W/") {
        return Some(NO_VERSION);
    }
    let inner = tag.strip_prefix('"')?.strip_suffix('"')?;
    Some(inner.parse().map_or(NO_VERSION, Version))
}

async fn write(
    sync: &SyncEngine,
    user: UserId,
    key: &str,
    headers: &HeaderMap,
    change: WriteChange,
) -> Answer {
    let key = match change {
        WriteChange::Delete | WriteChange::Restore(_) => known_key(key)?,
        _ => parse_key(key)?,
    };
    let written = guarded(sync, user, &key, &Precondition::of(headers)?, &change).await?;
    Ok(tagged(json_body(StatusCode::OK, ack_body(&key, &written)), written.version))
}

/// Writes under the precondition. "Present" and "one of" are decided on a
/// version read before and settled by compare-and-set.
async fn guarded(
    sync: &SyncEngine,
    user: UserId,
    key: &SessionKey,
    precondition: &Precondition,
    change: &WriteChange,
) -> Result<Written, Refused> {
    let attempt = |base_version| {
        sync.write(SessionWrite {
            user,
            device: None,
            key: key.clone(),
            change: change.clone(),
            base_version,
            on_conflict: OnConflict::Reject,
            op_id: None,
            at: Clock::now(),
        })
    };
    match precondition {
        Precondition::None => Ok(attempt(None).await?),
        Precondition::Absent => Ok(attempt(Some(Version(0))).await?),
        Precondition::OneOf(versions) if versions.len() == 1 => Ok(attempt(Some(versions[0])).await?),
        Precondition::Present | Precondition::OneOf(_) => {
            for _ in 0..MATCH_TRIES {
                let current = sync.entry(user, key).await.map(|entry| entry.version);
                let base = match (precondition, current) {
                    (Precondition::OneOf(versions), Ok(version)) if !versions.contains(&version) => {
                        versions[0]
                    }
                    (_, Ok(version)) => version,
                    (_, Err(failure)) if failure.code == Code::UnknownKey => Version(u64::MAX >> 1),
                    (_, Err(failure)) => return Err(failure.into()),
                };
                match attempt(Some(base)).await {
                    Err(failure) if failure.code == Code::Conflict && current_moved(&failure, base) => {}
                    outcome => return Ok(outcome?),
                }
            }
            Err(Failure::new(Code::StoreBusy, "The key changes too quickly; try again.").into())
        }
    }
}

/// Whether a conflict only says that somebody was quicker since we looked.
fn current_moved(failure: &Failure, base: Version) -> bool {
    failure.detail("version").and_then(serde_json::Value::as_u64).is_some_and(|version| version > base.0)
        && failure.detail("deleted").is_none()
}

fn etag(version: Version) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits in quotes are a header value")
}

fn tagged(mut response: Response, version: Version) -> Response {
    response.headers_mut().insert(header::ETAG, etag(version));
    response
}

fn parse_key(key: &str) -> Outcome<SessionKey> {
    let rule = "A session key has 1 to 128 bytes of UTF-8 and no control characters.";
    SessionKey::parse(key).ok_or_else(|| Failure::new(Code::InvalidKey, rule).with("field", "key"))
}

/// A key to look up: one that cannot exist does not.
fn known_key(key: &str) -> Outcome<SessionKey> {
    SessionKey::parse(key).ok_or_else(|| Failure::new(Code::UnknownKey, "There is no such key."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(header::HeaderName, &'static str)]) -> Outcome<Precondition> {
        let pairs = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        Precondition::of(&pairs.collect())
    }

    #[test]
    fn preconditions_are_tags_or_a_star() {
        assert_eq!(of(&[]).unwrap(), Precondition::None);
        assert_eq!(of(&[(header::IF_NONE_MATCH, "*")]).unwrap(), Precondition::Absent);
        assert_eq!(of(&[(header::IF_MATCH, "*")]).unwrap(), Precondition::Present);
        let two = Precondition::OneOf(vec![Version(3), Version(4)]);
        assert_eq!(of(&[(header::IF_MATCH, "\"3\", \"4\"")]).unwrap(), two);
        assert!(of(&[(header::IF_MATCH, "3")]).is_err());
        let never = Precondition::OneOf(vec![NO_VERSION]);
        assert_eq!(of(&[(header::IF_MATCH, "W/\"3\"")]).unwrap(), never);
        assert!(of(&[(header::IF_NONE_MATCH, "\"3\"")]).is_err());
    }
}
