//! What this node sends to one device, in order.
//!
//! While the device has confirmed everything before, a message is handed over
//! and waited for. One that is not confirmed in time is kept in the store, and
//! so is everything behind it, until the device has it all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::oneshot;

use super::slot::Handed;
use super::{DirectMessage, Mailbox, Receipt, Word, unknown_device};
use crate::backplane::Delivery;
use crate::failure::{Code, Failure, Outcome};
use crate::model::{ConnectionId, DeviceId, MessageId, UserId};
use crate::store::{Fate, PostMessage, PostRefusal, Posted, StoreError};

/// Messages that may wait for their turn; more are refused.
const WAITING_MAX: usize = 2_048;

/// Bytes of them, unless a single one has more.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Messages that are kept at a go.
const KEPT_AT_A_GO: usize = 256;

/// A lane that was not used for so long is forgotten.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

/// A message that has its turn in a lane.
pub struct Posting {
    message: Arc<PostMessage>,
    /// The connection that sent it.
    connection: ConnectionId,
    /// It is kept if its device has not confirmed it by then.
    deadline: Instant,
    answer: Option<oneshot::Sender<Outcome<Receipt>>>,
}

impl Posting {
    /// A message that is kept unless it is confirmed by `deadline`.
    pub fn new(message: Arc<PostMessage>, connection: ConnectionId, deadline: Instant) -> Self {
        Self { message, connection, deadline, answer: None }
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
    waiting_bytes: usize,
    working: bool,
    /// The device exists, and whether something is kept for it was asked for
    /// these connections of its senders. A sender that comes from another node may
    /// have messages there that this lane knows nothing of.
    checked: HashMap<DeviceId, ConnectionId>,
    /// Something may be kept for the device.
    blocked: bool,
    /// Messages of this lane that are kept, or may be, and of which nothing was heard
    /// since, in their order.
    kept: VecDeque<MessageId>,
    /// The device confirmed the last message from another node.
    warm: bool,
    used_at: Instant,
}

impl Lane {
    /// A lane to one device.
    pub fn new(user: UserId, target: DeviceId) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            working: false,
            checked: HashMap::new(),
            blocked: false,
            kept: VecDeque::new(),
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
        let Some(place) = state.kept.iter().position(|kept| kept == id) else { return };
        state.kept.remove(place);
        state.blocked &= !state.kept.is_empty();
    }

    /// When this one was kept, nothing was before it: what was kept before is gone,
    /// whether or not that was heard.
    fn first_of_all(&self, id: &MessageId) {
        let mut state = self.lock();
        if let Some(place) = state.kept.iter().position(|kept| kept == id) {
            state.kept.drain(..place);
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
        if state.is_open_to(&posting) && posting.message.content_hash.is_none() {
            // The device is here and nothing is before it: no task, no wait.
            if let Some(Handed::Delivered) = mailbox.hand_over_here(self.user, &posting.direct()) {
                mailbox.0.metrics.messages_delivered.increment(1);
                return std::future::ready(Ok(Receipt::DELIVERED)).boxed();
            }
        }
        let bytes = posting.message.json.len();
        let is_full = state.waiting.len() >= WAITING_MAX || state.waiting_bytes + bytes > WAITING_BYTES_MAX;
        if is_full && !state.waiting.is_empty() {
            let busy = Failure::new(Code::StoreBusy, "Too many messages are waiting; try again.");
            return std::future::ready(Err(busy.with("retryAfterMs", 250))).boxed();
        }
        let (answer, answered) = oneshot::channel();
        posting.answer = Some(answer);
        state.waiting_bytes += bytes;
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
        while let Some(next) = self.next() {
            match self.check(mailbox, &next).await {
                Ok(true) => {}
                Ok(false) => {
                    next.settle(Err(unknown_device()));
                    continue;
                }
                Err(failure) => {
                    self.hand_over_or_fail(mailbox, next, failure).await;
                    continue;
                }
            }
            let may_go = next.message.content_hash.is_none() && !self.lock().blocked;
            if may_go && self.hand_over(mailbox, &next).await == Way::Confirmed {
                mailbox.0.metrics.messages_delivered.increment(1);
                next.settle(Ok(Receipt::DELIVERED));
            } else {
                self.keep(mailbox, next).await;
            }
        }
    }

    /// Without the store a message can only go straight to its device, and none
    /// that is to be taken once.
    async fn hand_over_or_fail(&self, mailbox: &Mailbox, posting: Posting, failure: Failure) {
        if posting.message.content_hash.is_some() {
            return posting.settle(Err(failure));
        }
        match self.hand_over(mailbox, &posting).await {
            Way::Confirmed => {
                mailbox.0.metrics.messages_delivered.increment(1);
                posting.settle(Ok(Receipt::DELIVERED));
            }
            Way::Unheard => posting.settle(Err(failure.with("unknown", true))),
            Way::NotGone => posting.settle(Err(failure)),
        }
    }

    fn next(&self) -> Option<Posting> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if let Some(posting) = &next {
            state.waiting_bytes -= posting.message.json.len();
        }
        state.working = next.is_some();
        state.used_at = Instant::now();
        next
    }

    /// Whether the device is the user's; learns, once for each connection of a
    /// sender, whether something is kept for it.
    async fn check(&self, mailbox: &Mailbox, posting: &Posting) -> Outcome<bool> {
        if self.lock().is_checked_for(posting) {
            return Ok(true);
        }
        let Some(waiting) = mailbox.0.store.mailbox_size(self.user, self.target).await? else {
            return Ok(false);
        };
        let mut state = self.lock();
        state.checked.insert(posting.message.source, posting.connection);
        state.blocked |= waiting > 0;
        Ok(true)
    }

    /// Hands a message to its device, wherever that is, and waits for word of it.
    async fn hand_over(&self, mailbox: &Mailbox, posting: &Posting) -> Way {
        let direct = posting.direct();
        let confirmed = mailbox.await_word(&direct, Word::Direct);
        let handed = mailbox.hand_over_here(self.user, &direct);
        match handed {
            Some(Handed::Delivered) => {
                mailbox.forget_word(&direct);
                return Way::Confirmed;
            }
            Some(Handed::Behind) => {
                mailbox.forget_word(&direct);
                return Way::NotGone;
            }
            Some(Handed::Unacknowledged) => {}
            Some(Handed::NotHere) | None => {
                let warm = self.lock().warm;
                if !mailbox.0.hub.publish_message(self.user, &direct.outgoing(), warm).await {
                    mailbox.forget_word(&direct);
                    return Way::NotGone;
                }
            }
        }
        let word = tokio::time::timeout_at(posting.deadline.into(), confirmed).await;
        mailbox.forget_word(&direct);
        let has_it = matches!(word, Ok(Ok(Delivery::Confirmed)));
        self.lock().warm = has_it;
        if has_it { Way::Confirmed } else { Way::Unheard }
    }

    /// Keeps a message and everything that waits behind it.
    async fn keep(&self, mailbox: &Mailbox, first: Posting) {
        let deadline = first.deadline;
        let mut postings = vec![first];
        {
            let mut state = self.lock();
            let more = state.waiting.len().min(KEPT_AT_A_GO - 1);
            postings.extend(state.waiting.drain(..more));
            let taken: usize = postings[1..].iter().map(|posting| posting.message.json.len()).sum();
            state.waiting_bytes -= taken;
            // Whoever hears that one is delivered may hear it before the commit is known here.
            state.blocked = true;
            state.kept.extend(postings.iter().map(|posting| posting.message.id.clone()));
        }
        let words: Vec<_> =
            postings.iter().map(|posting| mailbox.await_word(&posting.direct(), Word::Kept)).collect();
        let keeping = async {
            let posts = postings.iter().map(|posting| mailbox.0.writer.post_message(posting.message.clone()));
            let outcomes = join_all(posts).await;
            mailbox.notify(self.user, self.target);
            outcomes
        };
        // Nobody waits for word of them beyond the deadline, so not for who is online either.
        let looking =
            tokio::time::timeout_at(deadline.into(), mailbox.0.hub.may_be_online(self.user, self.target));
        let (outcomes, is_online) = tokio::join!(keeping, looking);
        let is_online = is_online.unwrap_or(false);
        for ((posting, outcome), word) in postings.into_iter().zip(outcomes).zip(words) {
            self.settle(mailbox, posting, outcome, word, is_online);
        }
    }

    fn settle(
        &self,
        mailbox: &Mailbox,
        posting: Posting,
        outcome: Result<Result<Posted, PostRefusal>, StoreError>,
        mut word: oneshot::Receiver<Delivery>,
        is_online: bool,
    ) {
        let may_be_kept = matches!(outcome, Err(StoreError::Unavailable { unknown: true }));
        let posted = outcome.map_err(Failure::from).and_then(|outcome| outcome.map_err(Failure::from));
        let posted = match posted {
            Ok(Posted { duplicate: None, ahead }) => ahead,
            Ok(Posted { duplicate: Some(fate), .. }) => {
                self.settled(&posting.message.id);
                mailbox.forget_word(&posting.direct());
                return posting.settle(Ok(Receipt { fate, duplicate: true }));
            }
            Err(failure) => {
                // One that may be kept is not overtaken: what comes next is kept too, and whether anything was
                // before it tells what became of this one.
                if !may_be_kept {
                    self.settled(&posting.message.id);
                }
                mailbox.forget_word(&posting.direct());
                return posting.settle(Err(failure));
            }
        };
        if posted == 0 {
            self.first_of_all(&posting.message.id);
        }
        mailbox.0.metrics.messages_queued.increment(1);
        if !is_online {
            let fate = mailbox.last_word(&posting.direct(), &mut word);
            return posting.settle(Ok(Receipt { fate, duplicate: false }));
        }
        // It is safe; whether the device has it already is a matter of moments.
        let mailbox = mailbox.clone();
        mailbox.0.tasks.clone().spawn(async move {
            let heard = tokio::time::timeout_at(posting.deadline.into(), &mut word).await;
            let fate = match heard {
                Ok(delivery) => fate_of(delivery.ok()),
                Err(_too_late) => mailbox.last_word(&posting.direct(), &mut word),
            };
            posting.settle(Ok(Receipt { fate, duplicate: false }));
        });
    }
}

/// What came of handing a message over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The device has it.
    Confirmed,
    /// It is on its way, and nothing was heard of it in time.
    Unheard,
    /// It did not leave.
    NotGone,
}

/// What a kept message has become, by the word of it.
fn fate_of(word: Option<Delivery>) -> Fate {
    match word {
        Some(Delivery::Delivered) => Fate::Delivered,
        Some(Delivery::Expired) => Fate::Expired,
        _ => Fate::Waits,
    }
}

impl State {
    /// Nothing is before this message.
    fn is_open_to(&self, posting: &Posting) -> bool {
        self.is_checked_for(posting) && !self.blocked && !self.working && self.waiting.is_empty()
    }

    fn is_checked_for(&self, posting: &Posting) -> bool {
        self.checked.get(&posting.message.source) == Some(&posting.connection)
    }
}

impl Mailbox {
    /// Hands a message to its device if that is connected to this node.
    fn hand_over_here(&self, user: UserId, direct: &DirectMessage) -> Option<Handed> {
        let slot = self.slot(direct.target).filter(|slot| slot.user == user)?;
        Some(slot.hand_over(self, direct, false))
    }

    /// Registers for word of a message, before anybody can have any.
    fn await_word(&self, direct: &DirectMessage, word: Word) -> oneshot::Receiver<Delivery> {
        let (sender, receiver) = oneshot::channel();
        self.0.unconfirmed.insert((direct.target, direct.id.clone()), (word, sender));
        receiver
    }

    fn forget_word(&self, direct: &DirectMessage) {
        self.0.unconfirmed.remove(&(direct.target, direct.id.clone()));
    }

    /// Waits no longer for word of a kept message: what was heard until now. What
    /// comes later is told to its sender.
    fn last_word(&self, direct: &DirectMessage, word: &mut oneshot::Receiver<Delivery>) -> Fate {
        word.close();
        let fate = fate_of(word.try_recv().ok());
        self.forget_word(direct);
        fate
    }

    /// Something is kept for a device: its node looks at once.
    fn notify(&self, user: UserId, target: DeviceId) {
        match self.slot(target).filter(|slot| slot.user == user && slot.is_attached()) {
            Some(slot) => self.look(&slot),
            None => self.0.hub.publish_mail(user, target),
        }
    }
}
