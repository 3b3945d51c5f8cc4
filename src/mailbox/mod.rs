//! Messages from device to device, also to one that is offline.
//!
//! A message goes straight to its device where that can be confirmed within
//! [`CONFIRM_WITHIN`]; else it is kept in the store and reaches the device as
//! soon as it is there. Order is kept from one sender to one device: while
//! anything for a device is unconfirmed or kept, what comes later waits behind
//! it. [`lane`] is the sending node's side, [`slot`] that of the node which holds
//! the device.

mod lane;
mod slot;
mod upkeep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::backplane::{Delivery, Message};
use crate::drain::Tasks;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::{Hub, Mail, Outgoing};
use crate::model::{Clock, ConnectionId, DeviceId, JsonText, MessageId, Timestamp, UserId};
use crate::store::{Fate, PostMessage, PostRefusal, Store, TakeMessages, Writer};
use crate::telemetry::metrics::Metrics;
use crate::wire::{self, Frame};

use lane::{Lane, Posting};
use slot::Slot;
pub use upkeep::look_after;

/// How long a device has to get a message before the message is kept.
const CONFIRM_WITHIN: Duration = Duration::from_secs(1);

/// How long a message waits that does not say so itself, and the longest it may.
pub const TTL_SECONDS_MAX: u64 = 7 * 86_400;

/// A message on its way to one device.
#[derive(Clone, Debug)]
pub struct DirectMessage {
    /// Its id.
    pub id: MessageId,
    /// Who sent it.
    pub source: DeviceId,
    /// For whom it is.
    pub target: DeviceId,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What the sender wrote, untouched.
    pub json: JsonText,
}

impl DirectMessage {
    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            id: &self.id,
            source: self.source,
            target: self.target,
            sent_at: self.sent_at,
            json: &self.json,
        }
    }

    fn event(&self, queued: bool) -> Frame {
        let (id, source, sent_at) = (wire::json(&self.id), self.source, self.sent_at);
        wire::event(
            "device-message",
            &format!(
                "{{\"message\":{},\"sourceDeviceId\":\"{source}\",\"messageId\":{id},\"sentAt\":\"{sent_at}\",\
                 \"queued\":{queued}}}",
                self.json
            ),
        )
    }
}

/// For whom a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One device.
    One(DeviceId),
    /// These.
    Many(Vec<DeviceId>),
    /// All others of the user's.
    Others,
}

/// A message as its sender gives it.
#[derive(Clone, Debug)]
pub struct Post {
    /// Whose devices.
    pub user: UserId,
    /// The sender.
    pub source: DeviceId,
    /// Its connection.
    pub connection: ConnectionId,
    /// For whom.
    pub target: Target,
    /// What: one valid JSON value.
    pub json: JsonText,
    /// The sender's own id for it, under which it is taken once.
    pub id: Option<MessageId>,
    /// How long it may wait.
    pub ttl: Duration,
}

/// What became of a message for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whether the device has it.
    pub fate: Fate,
    /// It was taken before under the same id.
    pub duplicate: bool,
}

impl Receipt {
    const DELIVERED: Self = Self { fate: Fate::Delivered, duplicate: false };
}

/// What became of a message.
pub struct Receipts {
    /// Its id.
    pub id: MessageId,
    /// Each device it is for.
    pub targets: Vec<(DeviceId, Outcome<Receipt>)>,
    /// It was for several.
    pub several: bool,
}

/// See the module's comment.
#[derive(Clone)]
pub struct Mailbox(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    writer: Writer,
    hub: Hub,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    lanes: DashMap<(UserId, DeviceId), Arc<Lane>>,
    slots: DashMap<DeviceId, Arc<Slot>>,
    /// Messages that wait for word from their device's node.
    unconfirmed: DashMap<(DeviceId, MessageId), (Word, oneshot::Sender<Delivery>)>,
}

/// What word a message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// That the device has it.
    Direct,
    /// That the store keeps it no longer: until then its sender is not done with it.
    Kept,
}

/// What a mailbox stands on.
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub writer: Writer,
    pub hub: Hub,
    pub tasks: Tasks,
    pub metrics: Arc<Metrics>,
}

impl Mailbox {
    /// A mailbox of this node. `mail` is what the hub hears of messages.
    pub fn start(parts: Parts, mail: mpsc::Receiver<Mail>) -> Self {
        let Parts { store, writer, hub, tasks, metrics } = parts;
        let mailbox = Self(Arc::new(Inner {
            store,
            writer,
            hub,
            tasks: tasks.clone(),
            metrics,
            lanes: DashMap::new(),
            slots: DashMap::new(),
            unconfirmed: DashMap::new(),
        }));
        tasks.spawn(listen(mailbox.clone(), mail));
        tasks.spawn(look_after(mailbox.clone()));
        mailbox
    }

    /// Takes a message on its way. Messages of one caller keep their order: each
    /// has its turn before this returns. What became of it is known later.
    ///
    /// # Errors
    /// `unknown_device` when one of several is not the user's; the store's
    /// failures where it has to be asked which there are.
    pub async fn post(&self, post: Post) -> Outcome<BoxFuture<'static, Receipts>> {
        let several = !matches!(post.target, Target::One(_));
        let targets = self.targets(&post).await?;
        let id = post.id.clone().unwrap_or_else(MessageId::fresh);
        let content_hash = post.id.is_some().then(|| content_hash(&post));
        let now = Clock::now();
        let expires_at = now.plus_ms(post.ttl.as_millis() as i64);
        let deadline = Instant::now() + CONFIRM_WITHIN;
        let outcomes: Vec<_> = targets
            .iter()
            .map(|target| {
                let message = PostMessage {
                    user: post.user,
                    target: *target,
                    source: post.source,
                    id: id.clone(),
                    json: post.json.clone(),
                    sent_at: now,
                    expires_at,
                    content_hash,
                    at: now,
                };
                let posting = Posting::new(Arc::new(message), post.connection, deadline);
                self.lane(post.user, *target).send(self, posting)
            })
            .collect();
        Ok(async move {
            let outcomes = join_all(outcomes).await;
            Receipts { id, targets: targets.into_iter().zip(outcomes).collect(), several }
        }
        .boxed())
    }

    /// The devices that a message is for, each once.
    async fn targets(&self, post: &Post) -> Outcome<Vec<DeviceId>> {
        let named = match &post.target {
            Target::One(device) => return Ok(vec![*device]),
            Target::Many(devices) => Some(devices),
            Target::Others => None,
        };
        let own = self.0.store.devices(post.user).await?;
        let Some(named) = named else {
            return Ok(own.iter().map(|device| device.id).filter(|id| *id != post.source).collect());
        };
        if named.iter().any(|device| own.iter().all(|own| own.id != *device)) {
            return Err(unknown_device());
        }
        let mut once = Vec::new();
        named.iter().for_each(|device| {
            if !once.contains(device) {
                once.push(*device);
            }
        });
        Ok(once)
    }

    fn lane(&self, user: UserId, target: DeviceId) -> Arc<Lane> {
        let made = || Arc::new(Lane::new(user, target));
        Arc::clone(self.0.lanes.entry((user, target)).or_insert_with(made).value())
    }

    /// A device is being restored on this node: from now on messages reach it
    /// here, those that wait for it first. `acks`: its client acknowledges each.
    pub fn arriving(&self, user: UserId, device: DeviceId, connection: ConnectionId, acks: bool) {
        let made = || Arc::new(Slot::new(user, device));
        let slot = Arc::clone(self.0.slots.entry(device).or_insert_with(made).value());
        // Of two that come at once, the room knows which one stands.
        let stands = || self.0.hub.members(user).iter().any(|member| member.connection == connection);
        if slot.attach(connection, acks, stands) {
            self.look(&slot);
        }
    }

    /// The connection is gone.
    pub fn left(&self, device: DeviceId, connection: ConnectionId) {
        if let Some(slot) = self.slot(device) {
            slot.detach(connection);
        }
    }

    /// The device's client has a message.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn acknowledge(&self, user: UserId, device: DeviceId, id: MessageId) -> Outcome<()> {
        let Some(slot) = self.slot(device) else { return Ok(()) };
        match slot.acknowledge(&id) {
            slot::Acknowledged::Live { source, elsewhere } => {
                self.confirm(user, source, device, id, elsewhere);
                Ok(())
            }
            // It may wait here since the device was on another node.
            slot::Acknowledged::Kept | slot::Acknowledged::Unknown => {
                self.take(user, device, vec![id], Delivery::Delivered).await.map_err(Failure::from)
            }
            slot::Acknowledged::Again => Ok(()),
        }
    }

    /// How many messages wait for a device.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn waiting(&self, user: UserId, device: DeviceId) -> Outcome<u64> {
        Ok(self.0.store.mailbox_size(user, device).await?.unwrap_or(0))
    }

    fn slot(&self, device: DeviceId) -> Option<Arc<Slot>> {
        self.0.slots.get(&device).map(|slot| Arc::clone(slot.value()))
    }

    /// A message has reached its device: says so to the node that waits.
    fn confirm(&self, user: UserId, source: DeviceId, device: DeviceId, id: MessageId, elsewhere: bool) {
        if elsewhere {
            self.0.hub.publish_message_status(user, source, device, &id, Delivery::Confirmed);
        } else {
            self.confirmed(device, id, Delivery::Confirmed);
        }
    }

    /// Passes on what was heard of a message that went straight to its device. One
    /// that is kept by now waits until its copy is taken away.
    fn confirmed(&self, device: DeviceId, id: MessageId, status: Delivery) {
        let waits = self.0.unconfirmed.remove_if(&(device, id), |_, (word, _)| *word == Word::Direct);
        if let Some((_, (_, waiting))) = waits
            && waiting.send(status).is_err()
        {
            tracing::debug!("a message was confirmed too late; it is kept as well");
        }
    }

    /// Takes messages out of the store and tells their senders why.
    async fn take(
        &self,
        user: UserId,
        device: DeviceId,
        ids: Vec<MessageId>,
        status: Delivery,
    ) -> Result<(), crate::store::StoreError> {
        let take = TakeMessages { user, device, ids, expired: status == Delivery::Expired };
        for taken in self.0.writer.take_messages(take).await? {
            match status {
                Delivery::Expired => self.0.metrics.messages_expired.increment(1),
                _ => self.0.metrics.messages_delivered_late.increment(1),
            }
            self.tell_sender(user, taken.source, device, &taken.id, status);
            self.0.hub.publish_message_status(user, taken.source, device, &taken.id, status);
        }
        Ok(())
    }

    /// Tells the sender, if it is here, what became of a message that was kept.
    fn tell_sender(
        &self,
        user: UserId,
        sender: DeviceId,
        device: DeviceId,
        id: &MessageId,
        status: Delivery,
    ) {
        if let Some(lane) = self.0.lanes.get(&(user, device)) {
            lane.settled(id);
        }
        // A sender that has no answer yet hears it with that.
        if let Some((_, (_, waiting))) = self.0.unconfirmed.remove(&(device, id.clone()))
            && waiting.send(status).is_ok()
        {
            return;
        }
        let word = if status == Delivery::Expired { "expired" } else { "delivered" };
        let body =
            format!("{{\"messageId\":{},\"deviceId\":\"{device}\",\"status\":\"{word}\"}}", wire::json(id));
        self.0.hub.tell_device(user, sender, wire::event("device-message-status", &body));
    }
}

/// Takes what the other nodes and the regular ask say of messages.
async fn listen(mailbox: Mailbox, mut mail: mpsc::Receiver<Mail>) {
    loop {
        let next = tokio::select! {
            Some(next) = mail.recv() => next,
            () = mailbox.0.tasks.ending() => return,
            else => return,
        };
        match next {
            Mail::Message { user, message, json } => mailbox.take_from_elsewhere(user, &message, json),
            Mail::Status { user, status } => {
                let Some(id) = MessageId::parse(&status.id) else { continue };
                mailbox.heard(user, status.sender, status.device, id, status.status);
            }
            Mail::Kept { user, device } => mailbox.kept(user, device),
        }
    }
}

impl Mailbox {
    /// A message that was sent on another node.
    fn take_from_elsewhere(&self, user: UserId, message: &Message, json: JsonText) {
        let Some(id) = MessageId::parse(&message.id) else { return };
        let Some(slot) = self.slot(message.target).filter(|slot| slot.user == user) else { return };
        let sent_at = Timestamp(message.sent_at_ms);
        let (source, target) = (message.source, message.target);
        let direct = DirectMessage { id: id.clone(), source, target, sent_at, json };
        match slot.hand_over(self, &direct, true) {
            slot::Handed::Delivered => {
                self.0.hub.publish_message_status(user, source, target, &id, Delivery::Confirmed);
            }
            slot::Handed::Behind => {
                self.0.hub.publish_message_status(user, source, target, &id, Delivery::Behind);
            }
            slot::Handed::Unacknowledged | slot::Handed::NotHere => {}
        }
    }

    fn heard(&self, user: UserId, sender: DeviceId, device: DeviceId, id: MessageId, status: Delivery) {
        match status {
            Delivery::Confirmed | Delivery::Behind => self.confirmed(device, id, status),
            Delivery::Delivered | Delivery::Expired => self.tell_sender(user, sender, device, &id, status),
        }
    }

    /// Something is kept for a device, or for any of a user's.
    fn kept(&self, user: UserId, device: Option<DeviceId>) {
        let here = self.0.hub.members(user);
        let wanted = here.iter().map(|member| member.device);
        for device in wanted.filter(|here| device.is_none_or(|device| device == *here)) {
            if let Some(slot) = self.slot(device) {
                self.look(&slot);
            }
        }
    }
}

/// What makes two messages under one id the same: the id's sender, its targets
/// and its content.
fn content_hash(post: &Post) -> [u8; 32] {
    let mut hash = Sha256::new();
    match &post.target {
        Target::Others => hash.update([0]),
        Target::One(device) => hash.update(device.0),
        Target::Many(devices) => devices.iter().for_each(|device| hash.update(device.0)),
    }
    hash.update(post.json.as_bytes());
    hash.finalize().into()
}

fn unknown_device() -> Failure {
    Failure::new(Code::UnknownDevice, "There is no such device.").with("field", "targetDeviceId")
}

impl From<PostRefusal> for Failure {
    fn from(refusal: PostRefusal) -> Self {
        match refusal {
            PostRefusal::UnknownDevice => unknown_device(),
            PostRefusal::Full(limit) => {
                Failure::new(Code::MailboxFull, "Too much waits for this device already.")
                    .with("limit", limit)
            }
            PostRefusal::IdReused => {
                Failure::new(Code::MessageIdReused, "This messageId was used for another message.")
                    .with("field", "messageId")
            }
        }
    }
}
