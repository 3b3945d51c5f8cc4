//! What crosses nodes of device messages; what it means is the mailbox's to say.

use super::Hub;
use crate::backplane::{Delivery, Head, HeadsMoved, Kind, Message, MessageStatus};
use crate::model::{DeviceId, JsonText, MessageId, Timestamp, UserId};

/// A message that goes to another node.
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Outgoing<'a> {
    pub id: &'a MessageId,
    pub source: DeviceId,
    pub target: DeviceId,
    pub sent_at: Timestamp,
    pub json: &'a str,
}

/// What is heard of device messages.
#[derive(Debug)]
pub enum Mail {
    /// One that was sent on another node.
    Message {
        /// Whose.
        user: UserId,
        /// Its head.
        message: Message,
        /// What was sent.
        json: JsonText,
    },
    /// What became of one.
    Status {
        /// Whose.
        user: UserId,
        /// Which, and what.
        status: MessageStatus,
    },
    /// Some are kept for a device; without one, for any of the user's.
    Kept {
        /// Whose.
        user: UserId,
        /// For which.
        device: Option<DeviceId>,
    },
}

impl Hub {
    /// Sends a message to the node that holds its device; false when it is known
    /// that none does. `warm`: the device was there a moment ago.
    pub async fn publish_message(&self, user: UserId, message: &Outgoing<'_>, warm: bool) -> bool {
        if !self.is_clustered() || !self.0.backplane.is_up() {
            return false;
        }
        if !warm && !self.may_be_elsewhere(user, message.target).await {
            return false;
        }
        let body = Message {
            id: message.id.as_str().to_owned(),
            source: message.source,
            target: message.target,
            sent_at_ms: message.sent_at.0,
        };
        self.publish(user, Kind::Message(body), Some(message.json.to_owned()));
        true
    }

    /// Tells the node that waits, or the sender's, what became of a message.
    pub fn publish_message_status(
        &self,
        user: UserId,
        sender: DeviceId,
        device: DeviceId,
        id: &MessageId,
        status: Delivery,
    ) {
        if self.is_clustered() {
            let status = MessageStatus { id: id.as_str().to_owned(), device, sender, status };
            self.publish(user, Kind::MessageStatus(status), None);
        }
    }

    /// Tells the other nodes that a message is kept for a device of the user's.
    pub fn publish_mail(&self, user: UserId, device: DeviceId) {
        if self.is_clustered() {
            let moved = HeadsMoved { what: Head::Mailbox, device: Some(device) };
            self.publish(user, Kind::HeadsMoved(moved), None);
        }
    }

    /// Passes on what was heard of messages; what is too much comes again with
    /// the regular ask or with the sender's patience.
    pub(super) fn pass_on(&self, mail: Mail) {
        if self.0.mail.try_send(mail).is_err() {
            tracing::debug!("too much is heard of messages at once");
        }
    }
}
