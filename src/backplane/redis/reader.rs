//! Reads what arrives on the subscribed channels and hands it to the hub's queue.
//!
//! It never waits, so fred's own stream stays short; what is lost all the same is told as `Missed`.
//! The user comes from the channel's name. Whatever else is on a channel is counted and forgotten.

use std::sync::Arc;

use fred::prelude::*;
use fred::types::Message;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::link::Link;
use crate::backplane::envelope::{Codec, ENVELOPE_BYTES_MAX, Unreadable};
use crate::backplane::inbound::InboundSender;
use crate::backplane::observed::{Observed, count, count_many};
use crate::model::UserId;

/// The task that reads what arrives.
pub(super) struct Reader {
    pub codec: Arc<Codec>,
    pub inbound: InboundSender,
    pub link: Arc<Link>,
    pub observed: Arc<Observed>,
    pub probe_channel: String,
}

impl Reader {
    pub(super) fn run(self, client: Client, stop: CancellationToken) -> impl Future<Output = ()> {
        let messages = client.message_rx();
        async move { stop.run_until_cancelled(self.read(client, messages)).await.unwrap_or_default() }
    }

    async fn read(self, client: Client, mut messages: broadcast::Receiver<Message>) {
        loop {
            match messages.recv().await {
                Ok(message) => self.take(message),
                Err(RecvError::Lagged(lost)) => {
                    count_many(&self.observed.overflowed, usize::try_from(lost).unwrap_or(usize::MAX));
                    self.inbound.missed_all();
                }
                // fred closes its streams when a client is started again.
                Err(RecvError::Closed) => {
                    messages = client.message_rx();
                    self.inbound.missed_all();
                }
            }
        }
    }

    fn take(&self, message: Message) {
        let channel = &*message.channel;
        let body = match message.value {
            Value::Bytes(body) => body,
            Value::String(body) => body.into_inner(),
            _ => return count(&self.observed.decode_errors),
        };
        if channel == self.probe_channel {
            return self.probe(&body);
        }
        let Some(user) = user_of(channel) else { return count(&self.observed.decode_errors) };
        if body.len() > ENVELOPE_BYTES_MAX {
            return count(&self.observed.decode_errors);
        }
        match self.codec.decode(&body) {
            Ok(envelope) => self.inbound.offer(user, envelope),
            Err(Unreadable::Own) => {}
            Err(Unreadable::Unknown) => count(&self.observed.unknown),
            Err(Unreadable::Garbage) => count(&self.observed.decode_errors),
        }
    }

    fn probe(&self, body: &[u8]) {
        let stamp = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
        match stamp {
            Some(stamp) => self.observed.probe_heard(self.link.heard(stamp)),
            None => count(&self.observed.decode_errors),
        }
    }
}

fn user_of(channel: &str) -> Option<UserId> {
    let id = channel.strip_prefix("tandem:{")?.strip_suffix('}')?;
    Uuid::try_parse(id).ok().map(UserId)
}
