//! The event table: what each client event does.
//!
//! Events of one socket are handled in the order of their arrival. Session
//! writes that follow each other share a commit; any other event waits until
//! the writes before it are committed, so a device reads its own writes and the
//! others see what it did in the order it did it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::field::display;
use tracing::{Instrument, Span};

use super::fields::{self, Named};
use super::messages;
use super::session::{Session, Who};
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Class, Item};
use crate::merge::{self, OnConflict};
use crate::model::{Clock, DeviceId, Epoch, Seq, SessionKey, Version};
use crate::store::{Selection, SessionWrite, WriteChange};
use crate::sync::{OP_ID_CHARS_MAX, Pending, ack_body};
use crate::telemetry::traces;
use crate::wire::{self, AckId};

/// Writes of one socket that may wait for their commit at a time.
const PENDING_MAX: usize = 256;

/// Devices that one event may name.
const TARGETS_MAX: usize = 200;

/// Bytes of a realtime event's type, quotes included.
const TYPE_BYTES_MAX: usize = 1_024;

/// Bytes of a coalesce key.
const COALESCE_BYTES_MAX: usize = 128;

/// Handles an event that needs nobody to wait. False: it needs a worker.
pub fn handle_at_once(session: &Session, id: Option<AckId>, json: &str) -> bool {
    let Some(who) = session.who() else { return true };
    let event = match fields::named(json) {
        Ok(event) => event,
        Err(failure) => {
            session.answer(id, None, Err(failure));
            return true;
        }
    };
    let outcome = match event.name.as_str() {
        "realtime-event" => realtime(session, who, event.payload),
        "session-update" | "session-delete" | "session-get" | "device-message" | "device-message-ack"
        | "auth-refresh" => {
            return false;
        }
        _ => Err(Failure::new(Code::UnknownEvent, "There is no such event.")),
    };
    session.answer(id, Some(&event.name), outcome);
    true
}

/// A write that waits for its commit, and the answer it owes.
struct Owed {
    id: Option<AckId>,
    name: &'static str,
    key: SessionKey,
    pending: Pending,
    span: Span,
}

/// The span of an event, from its arrival to its answer.
fn span_of(name: &str, who: Who) -> Span {
    let span = traces::begin(name, || None);
    if !span.is_disabled() {
        span.record("user.id", display(who.user));
        span.record("device.id", display(who.device));
    }
    span
}

/// Handles `json` and whatever follows it, until the inbox is empty.
pub async fn work(session: &Arc<Session>, id: Option<AckId>, json: Box<str>) {
    let mut owed = VecDeque::new();
    let mut next = Some((id, json));
    loop {
        if let Some((id, json)) = next.take() {
            session.has_room_for_answer().await;
            one(session, id, &json, &mut owed).await;
        }
        if session.inbox.has_room() {
            session.transport.resume();
        }
        let full = owed.len() >= PENDING_MAX;
        next = if full { None } else { session.inbox.peek_next().map(|event| (event.id, event.json)) };
        if next.is_some() {
            continue;
        }
        if let Some(write) = owed.pop_front() {
            settle(session, write).await;
            continue;
        }
        // Nothing is owed: give the turn back, unless one arrived meanwhile.
        next = session.inbox.next().map(|event| (event.id, event.json));
        if next.is_none() {
            return;
        }
    }
}

async fn one(session: &Arc<Session>, id: Option<AckId>, json: &str, owed: &mut VecDeque<Owed>) {
    let Some(who) = session.who() else { return };
    let event = match fields::named(json) {
        Ok(event) => event,
        Err(failure) => return session.answer(id, None, Err(failure)),
    };
    let write = match event.name.as_str() {
        "session-update" => Some(("session-update", update(who, event.payload))),
        "session-delete" => Some(("session-delete", delete(who, event.payload))),
        _ => None,
    };
    let Some((name, write)) = write else {
        while let Some(write) = owed.pop_front() {
            settle(session, write).await;
        }
        if event.name == "device-message" {
            let span = span_of("device-message", who);
            if let Err(failure) = messages::send(session, who, id, event.payload).instrument(span).await {
                session.answer(id, Some(&event.name), Err(failure));
            }
            return;
        }
        let outcome = other(session, who, &event).await;
        return session.answer(id, Some(&event.name), outcome);
    };
    let submitted = write.and_then(|write| {
        let key = write.key.clone();
        let span = span_of(name, who);
        let pending = span.in_scope(|| session.services.sync.submit(write, Some(who.connection)))?;
        Ok(Owed { id, name, key, pending, span })
    });
    match submitted {
        Ok(write) => owed.push_back(write),
        Err(failure) => session.answer(id, Some(name), Err(failure)),
    }
}

/// Answers a write after its commit.
async fn settle(session: &Session, write: Owed) {
    let outcome = session.services.sync.settle(write.pending).await;
    session.has_room_for_answer().await;
    write.span.record("outcome", outcome.as_ref().map_or_else(|failure| failure.code.as_str(), |_| "ok"));
    session.answer(write.id, Some(write.name), outcome.map(|written| ack_body(&write.key, &written)));
}

async fn other(session: &Session, who: Who, event: &Named<'_>) -> Outcome<String> {
    let payload = event.payload;
    // Spans have these names only: those that clients make up are without bound.
    match event.name.as_str() {
        "realtime-event" => realtime(session, who, payload),
        "session-get" => get(session, who, payload).instrument(span_of("session-get", who)).await,
        "device-message-ack" => {
            messages::acknowledge(session, who, payload).instrument(span_of("device-message-ack", who)).await
        }
        "auth-refresh" => refresh(session, who, payload).instrument(span_of("auth-refresh", who)).await,
        _ => Err(Failure::new(Code::UnknownEvent, "There is no such event.")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdatePayload<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    session_key: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    state: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    patch: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    ops: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    base_version: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    on_conflict: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    op_id: Option<&'a RawValue>,
}

fn update(who: Who, payload: Option<&RawValue>) -> Outcome<SessionWrite> {
    let payload: UpdatePayload<'_> = fields::object(payload)?;
    let change = match (payload.state, payload.patch, payload.ops) {
        (Some(state), None, None) => WriteChange::State(state.get().into()),
        (None, Some(patch), None) => WriteChange::Patch(patch.get().into()),
        (None, None, Some(ops)) => WriteChange::Ops(ops.get().into()),
        (None, None, None) => return Err(Failure::field("state", "state is missing.")),
        _ => return Err(Failure::field("state", "Give exactly one of state, patch and ops.")),
    };
    write(who, &payload, change)
}

fn delete(who: Who, payload: Option<&RawValue>) -> Outcome<SessionWrite> {
    write(who, &fields::object(payload)?, WriteChange::Delete)
}

fn write(who: Who, payload: &UpdatePayload<'_>, change: WriteChange) -> Outcome<SessionWrite> {
    let base_version = fields::whole(payload.base_version, "baseVersion", "a whole number from 0")?;
    let on_conflict: Option<OnConflict> =
        fields::optional(payload.on_conflict, "onConflict", "reject, overwrite or merge")?;
    Ok(SessionWrite {
        user: who.user,
        device: Some(who.device),
        key: session_key(payload.session_key)?,
        change,
        base_version: base_version.map(Version),
        on_conflict: on_conflict.unwrap_or_default(),
        op_id: op_id(payload.op_id)?,
        at: Clock::now(),
    })
}

fn session_key(value: Option<&RawValue>) -> Outcome<SessionKey> {
    let value = fields::required(value, "sessionKey")?;
    let text = merge::text(value.get())
        .ok_or_else(|| Failure::field("sessionKey", "sessionKey must be a string."))?;
    // With half of a surrogate pair it is no UTF-8.
    Some(text).filter(|text| text.is_whole).and_then(|text| SessionKey::parse(&text.text)).ok_or_else(|| {
        let rule = "A session key has 1 to 128 bytes of UTF-8 and no control characters.";
        Failure::new(Code::InvalidKey, rule).with("field", "sessionKey")
    })
}

fn op_id(value: Option<&RawValue>) -> Outcome<Option<Arc<str>>> {
    let expected = "a string of 1 to 64 characters";
    let text: Option<String> = fields::optional(value, "opId", expected)?;
    match text {
        Some(text) if text.is_empty() || text.chars().count() > OP_ID_CHARS_MAX || text.contains('\0') => {
            Err(Failure::field("opId", format!("opId must be {expected}.")))
        }
        text => Ok(text.map(Into::into)),
    }
}

#[derive(Deserialize)]
struct RefreshPayload<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    token: Option<&'a RawValue>,
}

/// Puts another token of the same user in force. A token that is refused leaves
/// the old one as it was.
async fn refresh(session: &Session, who: Who, payload: Option<&RawValue>) -> Outcome<String> {
    let payload: RefreshPayload<'_> = fields::object(payload)?;
    let services = &session.services;
    let identity = services.auth.authenticate(&fields::string(payload.token, "token")?).await?;
    if identity.user != who.user {
        return Err(Failure::new(Code::Unauthorized, "There is no valid token."));
    }
    services.devices.move_to_login(&identity, who.device, who.connection).await?;
    session.renew(who, identity.expires_at);
    Ok(format!("{{\"ok\":true,\"expiresAt\":\"{}\"}}", identity.expires_at))
}

#[derive(Deserialize)]
struct GetPayload<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    keys: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    since: Option<&'a RawValue>,
}

async fn get(session: &Session, who: Who, payload: Option<&RawValue>) -> Outcome<String> {
    // JavaScript's `undefined` arrives as null.
    let selection = match payload.filter(|payload| payload.get() != "null") {
        None => Selection::default(),
        Some(payload) => {
            let payload: GetPayload<'_> = fields::object(Some(payload))?;
            selection(payload.keys, payload.since)?
        }
    };
    let restore = session.services.sync.restore(who.user, &selection).await?;
    Ok(format!("{{\"ok\":true,{},\"mode\":\"{}\"}}", restore.fields, restore.mode()))
}

/// What of the session a client wants: `keys` and `since: {epoch, seq}`.
///
/// # Errors
/// `invalid_field`, `invalid_key`.
pub fn selection(keys: Option<&RawValue>, since: Option<&RawValue>) -> Outcome<Selection> {
    #[derive(Deserialize)]
    struct Since {
        epoch: String,
        seq: Box<RawValue>,
    }
    let keys: Option<Vec<String>> = fields::optional(keys, "keys", "a list of session keys")?;
    let keys =
        keys.map(|keys| keys.iter().map(|key| parsed_key(key)).collect::<Outcome<Vec<_>>>()).transpose()?;
    let expected = "an object of epoch and seq";
    if since.is_some_and(|since| !["{", "null"].iter().any(|start| since.get().starts_with(start))) {
        return Err(Failure::field("since", format!("since must be {expected}.")));
    }
    let since: Option<Since> = fields::optional(since, "since", expected)?;
    let position = |since: Since| Some((Epoch(since.epoch.into()), Seq(merge::whole(since.seq.get())?)));
    let since = since.map(|since| {
        position(since).ok_or_else(|| Failure::field("since", format!("since must be {expected}.")))
    });
    Ok(Selection { keys, since: since.transpose()? })
}

fn parsed_key(key: &str) -> Outcome<SessionKey> {
    SessionKey::parse(key)
        .ok_or_else(|| Failure::new(Code::InvalidKey, "A key is invalid.").with("field", "keys"))
}

#[derive(Deserialize)]
struct RealtimePayload<'a> {
    #[serde(borrow, rename = "type", default, deserialize_with = "fields::present")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    to: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    coalesce: Option<&'a RawValue>,
}

/// Relays to the user's other devices; type and payload pass untouched.
fn realtime(session: &Session, who: Who, payload: Option<&RawValue>) -> Outcome<String> {
    let _span = span_of("realtime-event", who).entered();
    let event: RealtimePayload<'_> = fields::object(payload)?;
    let kind = fields::required(event.kind, "type")?;
    if !kind.get().starts_with('"') || kind.get().len() > TYPE_BYTES_MAX {
        return Err(Failure::field("type", "type must be a string of at most 1 KiB."));
    }
    let payload = event.payload.map_or("null", RawValue::get);
    if payload.len() > session.services.settings.realtime_bytes {
        return Err(
            Failure::new(Code::TooLarge, "The payload is too large.").with("limit", "LIMIT_REALTIME_BYTES")
        );
    }
    fields::bounded_depth(payload)?;
    let to = event.to.filter(|to| to.get() != "null").map(|to| targets(to, "to")).transpose()?;
    let coalesce: Option<String> = fields::optional(event.coalesce, "coalesce", "a string")?;
    let class = match coalesce {
        None => Class::Plain,
        Some(key) if key.len() > COALESCE_BYTES_MAX => {
            return Err(Failure::field("coalesce", "coalesce has at most 128 bytes."));
        }
        Some(key) => Class::Coalesce(format!("{}:{key}", who.device).into()),
    };
    let body = wire::realtime_body(kind.get(), payload, who.device);
    let item = Item { frame: wire::event("realtime-event", &body), class };
    session.services.hub.realtime(who.user, who.device, to.as_deref(), &item);
    Ok("{\"ok\":true}".to_owned())
}

/// Device ids in a list; what is no id names nobody.
pub(super) fn targets(value: &RawValue, name: &str) -> Outcome<Vec<DeviceId>> {
    let ids: Vec<String> = fields::optional(Some(value), name, "a list of device ids")?.unwrap_or_default();
    if ids.len() > TARGETS_MAX {
        return Err(Failure::field(name, format!("{name} names at most {TARGETS_MAX} devices.")));
    }
    Ok(ids.iter().filter_map(|id| DeviceId::parse(id)).collect())
}
