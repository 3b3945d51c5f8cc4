//! `device-message` and `device-message-ack`: decoded, handed to the mailbox,
//! answered when it is known what became of it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::session::{Session, Who};
use super::{events, fields};
use crate::failure::{Code, Failure, Outcome};
use crate::mailbox::{Post, Receipts, TTL_SECONDS_MAX, Target};
use crate::model::{DeviceId, MessageId};
use crate::store::Fate;
use crate::wire::{self, AckId};

/// The event's name.
const NAME: &str = "device-message";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessagePayload<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    target_device_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    message: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "fields::present")]
    ttl_seconds: Option<&'a RawValue>,
}

/// Sends a message. Waiting for word of it holds up no other event of the
/// sender: the answer comes when it is known.
///
/// # Errors
/// `invalid_field`, `too_large`, `unknown_device`; the store's failures.
pub async fn send(
    session: &Arc<Session>,
    who: Who,
    id: Option<AckId>,
    payload: Option<&RawValue>,
) -> Outcome<()> {
    let event: MessagePayload<'_> = fields::object(payload)?;
    let message = fields::required(event.message, "message")?.get();
    if message.len() > session.services.settings.message_bytes {
        return Err(
            Failure::new(Code::TooLarge, "The message is too large.").with("limit", "LIMIT_MESSAGE_BYTES")
        );
    }
    fields::bounded_depth(message)?;
    let post = Post {
        user: who.user,
        source: who.device,
        connection: who.connection,
        target: target(event.target_device_id)?,
        json: message.into(),
        id: event.message_id.filter(|id| id.get() != "null").map(message_id).transpose()?,
        ttl: ttl(event.ttl_seconds)?,
    };
    let mut became = session.services.mailbox.post(post).await?;
    if let Some(receipts) = (&mut became).now_or_never() {
        session.answer(id, Some(NAME), answer(receipts));
        return Ok(());
    }
    let owed = session.owe_answer();
    session.services.tasks.spawn(async move {
        let outcome = answer(became.await);
        owed.session().answer(id, Some(NAME), outcome);
    });
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AckPayload<'a> {
    #[serde(borrow, default, deserialize_with = "fields::present")]
    message_id: Option<&'a RawValue>,
}

/// Takes a client's word that it has a message.
///
/// # Errors
/// `invalid_field`; the store's failures.
pub async fn acknowledge(session: &Session, who: Who, payload: Option<&RawValue>) -> Outcome<String> {
    let event: AckPayload<'_> = fields::object(payload)?;
    let id = message_id(fields::required(event.message_id, "messageId")?)?;
    session.services.mailbox.acknowledge(who.user, who.device, id).await?;
    Ok("{\"ok\":true}".to_owned())
}

/// One id, several, or `"*"`; what is no id names nobody.
fn target(value: Option<&RawValue>) -> Outcome<Target> {
    const FIELD: &str = "targetDeviceId";
    let value = fields::required(value, FIELD)?;
    if value.get().starts_with('[') {
        let named: Vec<String> =
            fields::optional(Some(value), FIELD, "a device id, a list of them, or \"*\"")?
                .unwrap_or_default();
        let known = events::targets(value, FIELD)?;
        if known.is_empty() && named.is_empty() {
            return Err(Failure::field(FIELD, "targetDeviceId names no device."));
        }
        // What is no id is nobody's: the same as an id that does not exist.
        let nobody = named.len() - known.len();
        return Ok(Target::Many(known.into_iter().chain((0..nobody).map(|_| DeviceId::fresh())).collect()));
    }
    match fields::string(Some(value), FIELD)?.as_str() {
        "*" => Ok(Target::Others),
        id => Ok(Target::One(DeviceId::parse(id).unwrap_or_else(DeviceId::fresh))),
    }
}

fn message_id(value: &RawValue) -> Outcome<MessageId> {
    let expected = "a string of 1 to 64 characters";
    let text: Option<String> = fields::optional(Some(value), "messageId", expected)?;
    text.and_then(|text| MessageId::parse(&text))
        .ok_or_else(|| Failure::field("messageId", format!("messageId must be {expected}.")))
}

fn ttl(value: Option<&RawValue>) -> Outcome<Duration> {
    let expected = "a whole number from 1 to 604800";
    let seconds = fields::whole(value, "ttlSeconds", expected)?;
    match seconds.unwrap_or(TTL_SECONDS_MAX) {
        seconds @ 1..=TTL_SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        _ => Err(Failure::field("ttlSeconds", format!("ttlSeconds must be {expected}."))),
    }
}

/// The ack. With several targets it holds each, and fails only when all do.
fn answer(receipts: Receipts) -> Outcome<String> {
    let Receipts { id, targets, several } = receipts;
    let mut each = Vec::new();
    let (mut overall, mut duplicate, mut failure) = (Fate::Delivered, false, None);
    let mut taken = targets.is_empty();
    for (device, outcome) in targets {
        match outcome {
            Ok(receipt) => {
                taken = true;
                overall = least(overall, receipt.fate);
                duplicate |= receipt.duplicate;
                each.push(format!("{{\"deviceId\":\"{device}\",\"status\":\"{}\"}}", status(receipt.fate)));
            }
            Err(refusal) => {
                overall = least(overall, Fate::Waits);
                each.push(format!(
                    "{{\"deviceId\":\"{device}\",\"status\":\"refused\",\"error\":{}}}",
                    wire::json(&refusal)
                ));
                failure.get_or_insert(refusal);
            }
        }
    }
    if let Some(failure) = failure.filter(|_| !taken) {
        return Err(failure);
    }
    let mut body =
        format!("{{\"ok\":true,\"messageId\":{},\"status\":\"{}\"", wire::json(&id), status(overall));
    if several {
        body.push_str(&format!(",\"targets\":[{}]", each.join(",")));
    }
    if duplicate {
        body.push_str(",\"duplicate\":true");
    }
    body.push('}');
    Ok(body)
}

fn status(fate: Fate) -> &'static str {
    match fate {
        Fate::Delivered => "delivered",
        Fate::Waits => "queued",
        Fate::Expired => "expired",
    }
}

/// Of several it says what is still open, else what did not arrive.
fn least(one: Fate, other: Fate) -> Fate {
    match (one, other) {
        (Fate::Waits, _) | (_, Fate::Waits) => Fate::Waits,
        (Fate::Expired, _) | (_, Fate::Expired) => Fate::Expired,
        (Fate::Delivered, Fate::Delivered) => Fate::Delivered,
    }
}
