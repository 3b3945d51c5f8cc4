//! What this node sends to one device, in order.
//!
//! While the device has confirmed everything before, a message is handed over
//! and waited for. One that is not confirmed in time is kept in the store, and
//! so is everything behind it, until the device has it all.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::oneshot;

use super::slot::Handed;
use super::{DirectMessage, Mailbox, Receipt, unknown_device};
use crate::backplane::Delivery;
use crate::failure::{Code, Failure, Outcome};
use crate::model::{DeviceId, MessageId, UserId};
use crate::store::{PostMessage, Posted};

/// Messages that may wait for their turn; more are refused.
const WAITING_MAX: usize = 2_048;

/// Messages that are kept at a go.
const KEPT_AT_A_GO: usize = 256;

/// A lane that was not used for so long is forgotten.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

/// A message that has its turn in a lane.
pub struct Posting {
    message: Arc<PostMessage>,
    /// It is kept if its device has not confirmed it by then.
    deadline: Instant,
    answer: Option<oneshot::Sender<Outcome<Receipt>>>,
}

impl Posting {
    /// A message that is kept unless it is confirmed by `deadline`.
    pub fn new(message: Arc<PostMessage>, deadline: Instant) -> Self {
        Self { message, deadline, answer: None }
    }

    fn direct(&self) -> DirectMessage {
        DirectMessage {
            id: self.message.id.clone(),
            source: self.message.source,
            target: self.message.target,
            sent_at: self.message.sent_at,
            json: self.message.json.clone(),
        }
    }

    fn settle(self, outcome: Outcome<Receipt>) {
        // A sender that is gone needs no answer.
        drop(self.answer.map(|answer| answer.send(outcome)));
    }
}

/// See the module's comment.
pub struct Lane {
    user: UserId,
    target: DeviceId,
    state: Mutex<State>,
}

struct State {
    waiting: VecDeque<Posting>,
    working: bool,
    /// The device exists, and what is kept for it is known.
    checked: bool,
    /// Something may be kept for the device.
    blocked: bool,
    /// Messages of this lane that are kept and of which nothing was heard since.
    kept: HashSet<MessageId>,
    /// The device confirmed the last message from another node.
    warm: bool,
    used_at: Instant,
}

impl Lane {
    /// A lane to one device.
    pub fn new(user: UserId, target: DeviceId) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            working: false,
            checked: false,
            blocked: false,
            kept: HashSet::new(),
            warm: false,
            used_at: Instant::now(),
        };
        Self { user, target, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may be forgotten.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        !state.working && state.used_at.elapsed() > IDLE_MAX
    }

    /// A kept message is kept no longer.
    pub fn settled(&self, id: &MessageId) {
        let mut state = self.lock();
        if state.kept.remove(id) && state.kept.is_empty() {
            state.blocked = false;
        }
    }

    /// Gives a message its turn, before this returns.
    pub fn send(
        self: &Arc<Self>,
        mailbox: &Mailbox,
        mut posting: Posting,
    ) -> BoxFuture<'static, Outcome<Receipt>> {
        let mut state = self.lock();
        state.used_at = Instant::now();
        if state.is_open() && posting.message.content_hash.is_none() {
            // The device is here and nothing is before it: no task, no wait.
            if let Some(Handed::Delivered) = mailbox.hand_over_here(self.user, &posting.direct()) {
                mailbox.0.metrics.messages_delivered.increment(1);
                return std::future::ready(Ok(Receipt { delivered: true, duplicate: false })).boxed();
            }
        }
        if state.waiting.len() >= WAITING_MAX {
            let busy = Failure::new(Code::StoreBusy, "Too many messages are waiting; try again.");
            return std::future::ready(Err(busy.with("retryAfterMs", 250))).boxed();
        }
        let (answer, answered) = oneshot::channel();
        posting.answer = Some(answer);
        state.waiting.push_back(posting);
        if !std::mem::replace(&mut state.working, true) {
            let (lane, mailbox) = (self.clone(), mailbox.clone());
            mailbox.0.tasks.clone().spawn(async move { lane.work(&mailbox).await });
        }
        drop(state);
        async move {
            let gone = || Failure::new(Code::Draining, "This node is going away.");
            answered.await.unwrap_or_else(|_| Err(gone()))
        }
        .boxed()
    }

    async fn work(&self, mailbox: &Mailbox) {
        loop {
            let Some(next) = self.next() else { return };
            match self.check(mailbox).await {
                Ok(true) => {}
                Ok(false) => {
                    next.settle(Err(unknown_device()));
                    continue;
                }
                // Without the store only a device that is here can get it.
                Err(failure) => {
                    match mailbox.hand_over_here(self.user, &next.direct()) {
                        Some(Handed::Delivered) => {
                            next.settle(Ok(Receipt { delivered: true, duplicate: false }))
                        }
                        _ => next.settle(Err(failure)),
                    }
                    continue;
                }
            }
            if next.message.content_hash.is_none()
                && !self.lock().blocked
                && self.hand_over(mailbox, &next).await
            {
                mailbox.0.metrics.messages_delivered.increment(1);
                next.settle(Ok(Receipt { delivered: true, duplicate: false }));
                continue;
            }
            self.keep(mailbox, next).await;
        }
    }

    fn next(&self) -> Option<Posting> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        state.working = next.is_some();
        state.used_at = Instant::now();
        next
    }

    /// Whether the device is the user's; learns once what is kept for it.
    async fn check(&self, mailbox: &Mailbox) -> Outcome<bool> {
        if self.lock().checked {
            return Ok(true);
        }
        let Some(waiting) = mailbox.0.store.mailbox_size(self.user, self.target).await? else {
            return Ok(false);
        };
        let mut state = self.lock();
        state.checked = true;
        state.blocked |= waiting > 0;
        Ok(true)
    }

    /// Hands a message to its device, wherever that is; whether it has it.
    async fn hand_over(&self, mailbox: &Mailbox, posting: &Posting) -> bool {
        let direct = posting.direct();
        let confirmed = mailbox.await_word(&direct);
        let handed = mailbox.hand_over_here(self.user, &direct);
        match handed {
            Some(Handed::Delivered) => {
                mailbox.forget_word(&direct);
                return true;
            }
            Some(Handed::Behind) => {
                mailbox.forget_word(&direct);
                return false;
            }
            Some(Handed::Unacknowledged) => {}
            Some(Handed::NotHere) | None => {
                let warm = self.lock().warm;
                if !mailbox.0.hub.publish_message(self.user, &direct.outgoing(), warm).await {
                    mailbox.forget_word(&direct);
                    return false;
                }
            }
        }
        let word = tokio::time::timeout_at(posting.deadline.into(), confirmed).await;
        mailbox.forget_word(&direct);
        let has_it = matches!(word, Ok(Ok(Delivery::Confirmed)));
        self.lock().warm = has_it;
        has_it
    }

    /// Keeps a message and everything that waits behind it.
    async fn keep(&self, mailbox: &Mailbox, first: Posting) {
        let mut postings = vec![first];
        {
            let mut state = self.lock();
            let more = state.waiting.len().min(KEPT_AT_A_GO - 1);
            postings.extend(state.waiting.drain(..more));
            // Whoever hears that one is delivered may hear it before the commit is known here.
            state.blocked = true;
            let ids: Vec<_> = postings.iter().map(|posting| posting.message.id.clone()).collect();
            state.kept.extend(ids);
        }
        let words: Vec<_> = postings.iter().map(|posting| mailbox.await_word(&posting.direct())).collect();
        let kept = postings.iter().map(|posting| mailbox.0.writer.post_message(posting.message.clone()));
        let outcomes = join_all(kept).await;
        mailbox.notify(self.user, self.target);
        let is_online = mailbox.0.hub.may_be_online(self.user, self.target).await;
        for ((posting, outcome), word) in postings.into_iter().zip(outcomes).zip(words) {
            self.settle(mailbox, posting, outcome, word, is_online);
        }
    }

    fn settle(
        &self,
        mailbox: &Mailbox,
        posting: Posting,
        outcome: Result<Result<Posted, crate::store::PostRefusal>, crate::store::StoreError>,
        word: oneshot::Receiver<Delivery>,
        is_online: bool,
    ) {
        let posted = match outcome {
            Ok(Ok(posted)) => posted,
            Ok(Err(refusal)) => {
                self.settled(&posting.message.id);
                mailbox.forget_word(&posting.direct());
                return posting.settle(Err(refusal.into()));
            }
            Err(error) => {
                self.settled(&posting.message.id);
                mailbox.forget_word(&posting.direct());
                return posting.settle(Err(error.into()));
            }
        };
        if posted.ahead == 0 {
            // What was kept before is gone, whether or not we heard of it.
            let mut state = self.lock();
            state.kept.retain(|id| *id == posting.message.id);
        }
        if let Some(still_waits) = posted.duplicate {
            self.settled(&posting.message.id);
            mailbox.forget_word(&posting.direct());
            return posting.settle(Ok(Receipt { delivered: !still_waits, duplicate: true }));
        }
        mailbox.0.metrics.messages_queued.increment(1);
        if !is_online {
            mailbox.forget_word(&posting.direct());
            return posting.settle(Ok(Receipt { delivered: false, duplicate: false }));
        }
        // It is safe; whether the device has it already is a matter of moments.
        let mailbox = mailbox.clone();
        mailbox.0.tasks.clone().spawn(async move {
            let word = tokio::time::timeout_at(posting.deadline.into(), word).await;
            mailbox.forget_word(&posting.direct());
            let delivered = matches!(word, Ok(Ok(Delivery::Delivered | Delivery::Confirmed)));
            posting.settle(Ok(Receipt { delivered, duplicate: false }));
        });
    }
}

impl State {
    /// Nothing is before the next message.
    fn is_open(&self) -> bool {
        self.checked && !self.blocked && !self.working && self.waiting.is_empty()
    }
}

impl Mailbox {
    /// Hands a message to its device if that is connected to this node.
    fn hand_over_here(&self, user: UserId, direct: &DirectMessage) -> Option<Handed> {
        let slot = self.slot(direct.target).filter(|slot| slot.user == user)?;
        Some(slot.hand_over(self, direct, false))
    }

    /// Registers for word of a message, before anybody can have any.
    fn await_word(&self, direct: &DirectMessage) -> oneshot::Receiver<Delivery> {
        let (sender, receiver) = oneshot::channel();
        self.0.unconfirmed.insert((direct.target, direct.id.clone()), sender);
        receiver
    }

    fn forget_word(&self, direct: &DirectMessage) {
        self.0.unconfirmed.remove(&(direct.target, direct.id.clone()));
    }

    /// Something is kept for a device: its node looks at once.
    fn notify(&self, user: UserId, target: DeviceId) {
        match self.slot(target).filter(|slot| slot.user == user && slot.is_attached()) {
            Some(slot) => self.look(&slot),
            None => self.0.hub.publish_mail(user),
        }
    }
}
