//! Group commit: one task a node takes what queued up while the last commit
//! ran, and pays one fsync for all of it.
//!
//! Users are served in turn, so that one who writes a thousand changes does not
//! hold up the others. An idle writer waits for nobody: a single write commits
//! at once; where many users write it waits a moment for more (`company.rs`).
//! Every caller is answered within [`ANSWER_WITHIN`]; a command whose
//! caller has given up before its turn is never applied.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};

use super::company::{self, Company};
use super::replica::Replica;
use super::{
    Command, ConnectDevice, ConnectRefusal, Connected, LeaveDevice, NewAccount, NewLogin, PostMessage,
    PostRefusal, Posted, Reply, RotateRefresh, Rotation, SessionWrite, Store, StoreError, StoreResult,
    TakeMessages, TakenMessage, UpdateDevice, WriteRefusal, Written,
};
use crate::drain::Tasks;
use crate::model::{Change, ConnectionId, Revoked, UserId};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, Context};

/// A caller waits no longer than this.
const ANSWER_WITHIN: Duration = Duration::from_millis(2_800);

/// Commands in one transaction.
const BATCH_COMMANDS_MAX: usize = 512;

/// Bytes of states in one transaction, unless a single command has more.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Commands that may wait; more are refused with `store_busy`.
const QUEUE_COMMANDS_MAX: usize = 16_384;

/// Bytes that may wait.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Changes that were committed together, and when.
pub struct Committed {
    /// In the order of their commit.
    pub changes: Vec<CommittedChange>,
    /// The moment after the commit.
    pub at: Instant,
}

/// One of them.
pub struct CommittedChange {
    /// What was committed.
    pub change: Arc<Change>,
    /// The connection that its ack tells of it.
    pub acked_to: Option<ConnectionId>,
    /// Its place in a trace.
    pub trace: Option<Context>,
}

/// The way to the store for everything that writes.
#[derive(Clone)]
pub struct Writer {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

/// What of a command's life its caller and the writer must agree on.
const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const ABANDONED: u8 = 2;

struct Waiting {
    command: Command,
    state: Arc<AtomicU8>,
    answer: oneshot::Sender<StoreResult<Reply>>,
    /// The connection that the answer goes to.
    asker: Option<ConnectionId>,
    trace: Option<Context>,
}

#[derive(Default)]
struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Notify,
}

impl Queue {
    /// Changes the lanes, and says before anybody else can change them how many commands are in them now.
    fn with_lanes<T>(&self, metrics: &Metrics, change: impl FnOnce(&mut Lanes) -> T) -> T {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut lanes);
        metrics.commit_queue.set(lanes.commands as f64);
        changed
    }
}

/// A lane a user, and whose turn it is.
#[derive(Default)]
struct Lanes {
    by_user: HashMap<UserId, VecDeque<Waiting>>,
    turns: VecDeque<UserId>,
    commands: usize,
    bytes: usize,
    company: Company,
    /// Since when the first command waits; nothing where a batch is due at once.
    waiting_since: Option<tokio::time::Instant>,
}

/// What the writer does next.
enum Next {
    /// Nothing, while nobody writes.
    Rest,
    /// Wait for company, until then.
    Wait(tokio::time::Instant),
    Commit(Vec<Waiting>),
}

impl Lanes {
    fn next(&mut self) -> Next {
        if let Some(since) = self.waiting_since
            && let Some(until) = self.company.expected(self.commands, since, tokio::time::Instant::now())
        {
            return Next::Wait(until);
        }
        self.waiting_since = None;
        let batch = self.take();
        if batch.is_empty() { Next::Rest } else { Next::Commit(batch) }
    }

    fn push(&mut self, waiting: Waiting) -> bool {
        let bytes = waiting.command.bytes();
        if self.commands >= QUEUE_COMMANDS_MAX || self.bytes + bytes > QUEUE_BYTES_MAX {
            return false;
        }
        let (user, now) = (waiting.command.queue(), tokio::time::Instant::now());
        self.company.note(user, now);
        if self.commands == 0 {
            self.waiting_since = Some(now);
        }
        self.commands += 1;
        self.bytes += bytes;
        let lane = self.by_user.entry(user).or_default();
        if lane.is_empty() {
            self.turns.push_back(user);
        }
        lane.push_back(waiting);
        true
    }

    /// Puts what a batch held back in front of its lane, in the order it was
    /// taken; `held` is in that order. Whoever gave up meanwhile is left out.
    fn put_back(&mut self, held: Vec<Waiting>) {
        for waiting in held.into_iter().rev() {
            if waiting.answer.is_closed() {
                continue;
            }
            waiting.state.store(WAITING, Ordering::Release);
            let user = waiting.command.queue();
            self.commands += 1;
            self.bytes += waiting.command.bytes();
            let lane = self.by_user.entry(user).or_default();
            if lane.is_empty() {
                self.turns.push_back(user);
            }
            lane.push_front(waiting);
        }
    }

    /// The next batch: one command of each user in turn, until it is full.
    fn take(&mut self) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while batch.len() < BATCH_COMMANDS_MAX {
            let Some(user) = self.turns.pop_front() else { break };
            let Some(lane) = self.by_user.get_mut(&user) else { continue };
            let Some(next) = lane.front() else { continue };
            let bytes = next.command.bytes();
            if !batch.is_empty() && batch_bytes + bytes > BATCH_BYTES_MAX {
                self.turns.push_front(user);
                break;
            }
            let waiting = lane.pop_front().expect("the lane has a front");
            if lane.is_empty() {
                self.by_user.remove(&user);
            } else {
                self.turns.push_back(user);
            }
            self.commands -= 1;
            self.bytes -= bytes;
            let ours = waiting.state.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire);
            if ours.is_ok() {
                batch_bytes += bytes;
                batch.push(waiting);
            }
        }
        batch
    }
}

impl Writer {
    /// Starts the writer task of `store`. Committed changes go to `committed`,
    /// in order; when it is full the next commit waits. Acks wait for `replica`,
    /// if it says so.
    pub fn start(
        store: Arc<dyn Store>,
        replica: Option<Arc<Replica>>,
        committed: mpsc::Sender<Committed>,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let replica = replica.filter(|replica| replica.acks_wait());
        let writing = Writing { store, replica, committed, metrics: metrics.clone() };
        let writing = writing.run(queue.clone(), tasks.clone());
        tasks.spawn(writing);
        Self { queue, metrics }
    }

    /// Changes one session key.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, applied.
    pub async fn write(&self, write: Arc<SessionWrite>) -> StoreResult<Result<Written, WriteRefusal>> {
        match self.submit(Command::Write(write)).await? {
            Reply::Written(outcome) => Ok(outcome),
            other => unreachable!("a write is answered by {other:?}"),
        }
    }

    /// Makes an account; false when its e-mail is taken.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, made.
    pub async fn create_account(&self, account: NewAccount) -> StoreResult<bool> {
        match self.submit(Command::CreateAccount(account)).await? {
            Reply::AccountCreated(created) => Ok(created),
            other => unreachable!("a new account is answered by {other:?}"),
        }
    }

    /// Keeps a login.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, kept.
    pub async fn open_login(&self, login: NewLogin) -> StoreResult<()> {
        self.submit(Command::OpenLogin(login)).await.map(drop)
    }

    /// Puts a refresh token's successor in its place.
    ///
    /// # Errors
    /// [`StoreError`] when that was not, or perhaps, done.
    pub async fn rotate(&self, rotate: RotateRefresh) -> StoreResult<Rotation> {
        match self.submit(Command::RotateRefresh(rotate)).await? {
            Reply::Rotated(rotation) => Ok(rotation),
            other => unreachable!("a rotation is answered by {other:?}"),
        }
    }

    /// Ends something for good: one of the commands answered by
    /// [`Reply::Revoked`].
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, ended.
    pub async fn revoke(&self, command: Command) -> StoreResult<Option<Vec<Revoked>>> {
        match self.submit(command).await? {
            Reply::Revoked(revoked) => Ok(revoked),
            other => unreachable!("what ends something is answered by {other:?}"),
        }
    }

    /// Keeps a message.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, kept.
    pub async fn post_message(&self, post: Arc<PostMessage>) -> StoreResult<Result<Posted, PostRefusal>> {
        match self.submit(Command::PostMessage(post)).await? {
            Reply::Posted(outcome) => Ok(outcome),
            other => unreachable!("a message is answered by {other:?}"),
        }
    }

    /// Takes messages away; those that were there.
    ///
    /// # Errors
    /// [`StoreError`] when they were not, or perhaps, taken away.
    pub async fn take_messages(&self, take: TakeMessages) -> StoreResult<Vec<TakenMessage>> {
        match self.submit(Command::TakeMessages(take)).await? {
            Reply::Taken(taken) => Ok(taken),
            other => unreachable!("messages that go are answered by {other:?}"),
        }
    }

    /// Changes what is kept of a device; false when there is no such device.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, changed.
    pub async fn update_device(&self, update: UpdateDevice) -> StoreResult<bool> {
        match self.submit(Command::UpdateDevice(update)).await? {
            Reply::Updated(updated) => Ok(updated),
            other => unreachable!("a device's update is answered by {other:?}"),
        }
    }

    /// Gives a connecting device its identity.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, given.
    pub async fn connect_device(
        &self,
        connect: ConnectDevice,
    ) -> StoreResult<Result<Connected, ConnectRefusal>> {
        match self.submit(Command::ConnectDevice(connect)).await? {
            Reply::Connected(outcome) => Ok(outcome),
            other => unreachable!("a connect is answered by {other:?}"),
        }
    }

    /// Notes that a device's connection ended.
    ///
    /// # Errors
    /// [`StoreError`] when it was not, or perhaps, noted.
    pub async fn leave_device(&self, leave: LeaveDevice) -> StoreResult<()> {
        self.submit(Command::LeaveDevice(leave)).await.map(drop)
    }

    /// Puts a command into its user's lane and waits for what became of it.
    ///
    /// The command is in the lane before this returns its future's first
    /// `Pending`, so commands submitted one after the other stay in order.
    ///
    /// # Errors
    /// `Busy` when too much waits; `Unavailable` when no answer came in time.
    pub async fn submit(&self, command: Command) -> StoreResult<Reply> {
        self.enqueue(command, None)?.answered().await
    }

    /// The first half of [`Writer::submit`]: in the lane, not yet answered. `asker`: the connection that the answer
    /// will be told.
    ///
    /// # Errors
    /// `Busy` when too much waits.
    pub fn enqueue(&self, command: Command, asker: Option<ConnectionId>) -> StoreResult<Submitted> {
        let (answer, answered) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(WAITING));
        let waiting = Waiting { command, state: state.clone(), answer, asker, trace: Context::current() };
        let push = |lanes: &mut Lanes| (lanes.push(waiting), lanes.commands);
        let (kept, depth) = self.queue.with_lanes(&self.metrics, push);
        if !kept {
            return Err(StoreError::Busy);
        }
        // In between the writer is at work, or waits for company.
        if depth == 1 || depth == company::ENOUGH {
            self.queue.arrived.notify_one();
        }
        Ok(Submitted { state, answered, deadline: tokio::time::Instant::now() + ANSWER_WITHIN })
    }
}

/// A command that waits for its answer.
pub struct Submitted {
    state: Arc<AtomicU8>,
    answered: oneshot::Receiver<StoreResult<Reply>>,
    deadline: tokio::time::Instant,
}

impl Submitted {
    /// What became of the command.
    ///
    /// # Errors
    /// `Unavailable` when no answer came in time; `unknown` tells whether the
    /// command may have been applied all the same.
    pub async fn answered(mut self) -> StoreResult<Reply> {
        match tokio::time::timeout_at(self.deadline, &mut self.answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_writer_gone)) => Err(StoreError::Unavailable { unknown: false }),
            Err(_too_late) => {
                // An answer that the writer could still give counts: it takes it for heard.
                self.answered.close();
                if let Ok(reply) = self.answered.try_recv() {
                    return reply;
                }
                let ours =
                    self.state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
                Err(StoreError::Unavailable { unknown: ours.is_err() })
            }
        }
    }
}

/// What the writer task works with.
struct Writing {
    store: Arc<dyn Store>,
    /// The copy that acks wait for.
    replica: Option<Arc<Replica>>,
    committed: mpsc::Sender<Committed>,
    metrics: Arc<Metrics>,
}

type Answer = oneshot::Sender<StoreResult<Reply>>;

/// A caller of a batch, and what it waits for.
struct Caller {
    state: Arc<AtomicU8>,
    answer: Answer,
    asker: Option<ConnectionId>,
    trace: Option<Context>,
}

impl Writing {
    async fn run(self, queue: Arc<Queue>, tasks: Tasks) {
        loop {
            let batch = match queue.with_lanes(&self.metrics, Lanes::next) {
                Next::Commit(batch) => self.admit(batch).await,
                Next::Wait(until) => {
                    drop(tokio::time::timeout_at(until, queue.arrived.notified()).await);
                    continue;
                }
                Next::Rest => tokio::select! {
                    () = queue.arrived.notified() => continue,
                    // Whatever is still in the lanes has been taken by now.
                    () = tasks.ending() => return,
                },
            };
            if !batch.is_empty() {
                let held = self.commit(batch).await;
                queue.with_lanes(&self.metrics, |lanes| lanes.put_back(held));
            }
        }
    }

    /// What may be committed: without a copy to be had, only what needs none.
    async fn admit(&self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let Some(replica) = &self.replica else { return batch };
        if !batch.iter().any(|waiting| waiting.command.is_kept()) || replica.is_up().await {
            return batch;
        }
        let (refused, admitted): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|waiting| waiting.command.is_kept());
        let answers = refused.into_iter().map(|waiting| waiting.answer);
        refuse(answers, &StoreError::Unavailable { unknown: false });
        admitted
    }

    /// Commits `batch` and answers its callers; returns what the store held back.
    async fn commit(&self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let (commands, callers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Waiting { command, state, answer, asker, trace }| {
                (command, Caller { state, answer, asker, trace })
            })
            .unzip();
        let steps = steps(callers.iter().filter_map(|caller| caller.trace), commands.len());
        let started = Instant::now();
        let result = self.store.commit(&commands).await;
        drop(steps);
        let trace = callers.iter().find_map(|caller| caller.trace);
        self.metrics.committed(started.elapsed(), trace);
        self.metrics.commit_batch.record(commands.len() as f64);
        match result {
            Ok(replies) => {
                self.metrics.store_up.set(1.0);
                let (mut held, mut answered) = (Vec::new(), Vec::new());
                for ((command, caller), reply) in commands.into_iter().zip(callers).zip(replies) {
                    match reply {
                        Reply::Held => {
                            let Caller { state, answer, asker, trace } = caller;
                            held.push(Waiting { command, state, answer, asker, trace });
                        }
                        reply => answered.push((caller, reply, command.is_kept())),
                    }
                }
                self.answer(answered).await;
                held
            }
            Err(error) => {
                self.metrics.commit_failures.increment(1);
                self.metrics.store_up.set(0.0);
                tracing::warn!(%error, commands = commands.len(), "commit failed");
                refuse(callers.into_iter().map(|caller| caller.answer), &error);
                Vec::new()
            }
        }
    }

    /// Acks what is committed, and copied where that is asked for, and tells the
    /// hub. It hears of what is committed whether it is copied or not. `answered`:
    /// with whether what was asked for is kept.
    async fn answer(&self, answered: Vec<(Caller, Reply, bool)>) {
        let mut committed = Committed { changes: Vec::new(), at: Instant::now() };
        let mut awaits_copy = Vec::new();
        for (caller, reply, is_kept) in answered {
            let change = change_of(&reply);
            let acked_to = if is_kept && self.replica.is_some() {
                awaits_copy.push((caller.answer, reply));
                caller.asker
            } else {
                // Who has given up was told that it may not have happened, and hears of it like the others.
                let is_heard = send(caller.answer, Ok(reply));
                caller.asker.filter(|_| is_heard)
            };
            if let Some(change) = change {
                committed.changes.push(CommittedChange { change, acked_to, trace: caller.trace });
            }
        }
        if !committed.changes.is_empty() {
            // The receiver outlives the writer; at the very end nobody listens.
            drop(self.committed.send(committed).await);
        }
        let Some(replica) = self.replica.as_ref().filter(|_| !awaits_copy.is_empty()) else { return };
        match replica.copied().await {
            Ok(()) => {
                for (answer, reply) in awaits_copy {
                    send(answer, Ok(reply));
                }
            }
            Err(_) => {
                let answers = awaits_copy.into_iter().map(|(answer, _)| answer);
                refuse(answers, &StoreError::Unavailable { unknown: true });
            }
        }
    }
}

/// A step in each of the traces that a commit belongs to; they end as they are dropped.
fn steps(traces: impl Iterator<Item = Context>, batch: usize) -> Vec<tracing::Span> {
    let step = |trace| {
        let step = traces::step("store.commit", traces::Role::Internal, Some(trace));
        step.record("batch.size", batch);
        step
    };
    traces.map(step).collect()
}

/// False when the caller gave up meanwhile, and was told `unknown`.
fn send(answer: Answer, reply: StoreResult<Reply>) -> bool {
    answer.send(reply).is_ok()
}

fn refuse(answers: impl IntoIterator<Item = Answer>, error: &StoreError) {
    for answer in answers {
        send(answer, Err(error.clone()));
    }
}

fn change_of(reply: &Reply) -> Option<Arc<Change>> {
    match reply {
        Reply::Written(Ok(written)) => written.change.clone(),
        _ => None,
    }
}
