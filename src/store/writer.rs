//! Group commit: one task a node takes what queued up while the last commit
//! ran, and pays one fsync for all of it.
//!
//! Users are served in turn, so that one who writes a thousand changes does not
//! hold up the others. An idle writer waits for nobody: a single write commits
//! at once. Every caller is answered within [`ANSWER_WITHIN`]; a command whose
//! caller has given up before its turn is never applied.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Command, ConnectDevice, ConnectRefusal, Connected, LeaveDevice, NewAccount, NewLogin, Reply,
    SessionWrite, Store, StoreError, StoreResult, WriteRefusal, Written,
};
use crate::drain::Tasks;
use crate::model::{Change, UserId};
use crate::telemetry::metrics::Metrics;

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
    pub changes: Vec<Arc<Change>>,
    /// The moment after the commit.
    pub at: Instant,
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
}

#[derive(Default)]
struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Notify,
}

/// A lane a user, and whose turn it is.
#[derive(Default)]
struct Lanes {
    by_user: HashMap<UserId, VecDeque<Waiting>>,
    turns: VecDeque<UserId>,
    commands: usize,
    bytes: usize,
}

impl Lanes {
    fn push(&mut self, waiting: Waiting) -> bool {
        let bytes = waiting.command.bytes();
        if self.commands >= QUEUE_COMMANDS_MAX || self.bytes + bytes > QUEUE_BYTES_MAX {
            return false;
        }
        self.commands += 1;
        self.bytes += bytes;
        let user = waiting.command.queue();
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
    /// in order; when it is full the next commit waits.
    pub fn start(
        store: Arc<dyn Store>,
        committed: mpsc::Sender<Committed>,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let writing = run(store, queue.clone(), committed, tasks.clone(), metrics.clone());
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
        self.enqueue(command)?.answered().await
    }

    /// The first half of [`Writer::submit`]: in the lane, not yet answered.
    ///
    /// # Errors
    /// `Busy` when too much waits.
    pub fn enqueue(&self, command: Command) -> StoreResult<Submitted> {
        let (answer, answered) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(WAITING));
        let waiting = Waiting { command, state: state.clone(), answer };
        let (kept, depth) = {
            let mut lanes = self.queue.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            (lanes.push(waiting), lanes.commands)
        };
        if !kept {
            return Err(StoreError::Busy);
        }
        self.metrics.commit_queue.set(depth as f64);
        self.queue.arrived.notify_one();
        Ok(Submitted { state, answered, deadline: Instant::now() + ANSWER_WITHIN })
    }
}

/// A command that waits for its answer.
pub struct Submitted {
    state: Arc<AtomicU8>,
    answered: oneshot::Receiver<StoreResult<Reply>>,
    deadline: Instant,
}

impl Submitted {
    /// What became of the command.
    ///
    /// # Errors
    /// `Unavailable` when no answer came in time; `unknown` tells whether the
    /// command may have been applied all the same.
    pub async fn answered(self) -> StoreResult<Reply> {
        match tokio::time::timeout_at(self.deadline.into(), self.answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_writer_gone)) => Err(StoreError::Unavailable { unknown: false }),
            Err(_too_late) => {
                let ours =
                    self.state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
                Err(StoreError::Unavailable { unknown: ours.is_err() })
            }
        }
    }
}

async fn run(
    store: Arc<dyn Store>,
    queue: Arc<Queue>,
    committed: mpsc::Sender<Committed>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
) {
    loop {
        let batch = queue.lanes.lock().unwrap_or_else(PoisonError::into_inner).take();
        if batch.is_empty() {
            tokio::select! {
                () = queue.arrived.notified() => continue,
                // Whatever is still in the lanes has been taken by now.
                () = tasks.ending() => return,
            }
        }
        let held = commit(&*store, batch, &committed, &metrics).await;
        queue.lanes.lock().unwrap_or_else(PoisonError::into_inner).put_back(held);
    }
}

/// Commits `batch` and answers its callers; returns what the store held back.
async fn commit(
    store: &dyn Store,
    batch: Vec<Waiting>,
    committed: &mpsc::Sender<Committed>,
    metrics: &Metrics,
) -> Vec<Waiting> {
    let mut held = Vec::new();
    let (commands, callers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.command, (waiting.state, waiting.answer))).unzip();
    let started = Instant::now();
    let result = store.commit(&commands).await;
    metrics.commit_seconds.record(started.elapsed());
    metrics.commit_batch.record(commands.len() as f64);
    match result {
        Ok(replies) => {
            metrics.store_up.set(1.0);
            let changes: Vec<_> = replies.iter().filter_map(change_of).collect();
            for ((command, (state, answer)), reply) in commands.into_iter().zip(callers).zip(replies) {
                match reply {
                    Reply::Held => held.push(Waiting { command, state, answer }),
                    // A caller that gave up meanwhile was told `unknown`.
                    reply => drop(answer.send(Ok(reply))),
                }
            }
            if !changes.is_empty() {
                let batch = Committed { changes, at: Instant::now() };
                // The receiver outlives the writer; at the very end nobody listens.
                drop(committed.send(batch).await);
            }
        }
        Err(error) => {
            metrics.commit_failures.increment(1);
            metrics.store_up.set(0.0);
            tracing::warn!(%error, commands = commands.len(), "commit failed");
            for (_, answer) in callers {
                drop(answer.send(Err(error.clone())));
            }
        }
    }
    held
}

fn change_of(reply: &Reply) -> Option<Arc<Change>> {
    match reply {
        Reply::Written(Ok(written)) => written.change.clone(),
        _ => None,
    }
}
