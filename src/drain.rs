//! Every task of the process, and the order in which they end.
//!
//! A stopping node first stops being ready and goes on serving, since load
//! balancers lag; then it refuses new sockets, closes the open ones spread over
//! the drain window, flushes its writer and ends. One deadline bounds it all.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How far a stopping node has come.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    draining: Arc<AtomicBool>,
    refusing: Arc<AtomicBool>,
    listening: CancellationToken,
    running: CancellationToken,
}

impl Tasks {
    /// Starts a task that the drain waits for.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(task))
    }

    /// Runs to its end what must not stop halfway, a commit and what follows from it, also when whoever waits for it is
    /// dropped: so is a handler whose client hangs up. The drain waits for it.
    pub async fn finish<F>(&self, work: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.spawn(work.in_current_span()).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only the end of the runtime cancels it, and ends the caller, too.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// From now on the node is not ready, but serves as before.
    pub fn begin_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the node is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on new sockets are refused.
    pub fn refuse_sockets(&self) {
        self.refusing.store(true, Ordering::Release);
    }

    /// Whether new sockets are refused.
    pub fn refuses_sockets(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// Ends the accept loop.
    pub fn close_listeners(&self) {
        self.listening.cancel();
    }

    /// Resolves when the accept loop should end.
    pub async fn stop_listening(&self) {
        self.listening.cancelled().await;
    }

    /// Ends every task that waits on [`Tasks::ending`].
    pub fn end(&self) {
        self.running.cancel();
        self.tracker.close();
    }

    /// The tracker itself and a token that ends with the tasks, for parts that
    /// spawn by themselves.
    pub fn parts(&self) -> (TaskTracker, CancellationToken) {
        (self.tracker.clone(), self.running.clone())
    }

    /// Resolves when tasks should end.
    pub async fn ending(&self) {
        self.running.cancelled().await;
    }

    /// Waits until every task has ended.
    pub async fn ended(&self) {
        self.tracker.wait().await;
    }
}
