//! As many of the runtime's workers awake as there is work for.
//!
//! A worker of tokio that finds two tasks ready at once wakes another one. With little to do that one
//! comes too late, finds nothing and goes back to sleep: with two workers a fifth of what an event cost
//! in a cluster of three nodes went there (perf: `futex` from `notify_parked_local`). So the others
//! are kept in a task that blocks until those awake have enough to do, which is some hundredths of a second
//! late at most.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Handle, RuntimeMetrics};

/// How often the governor looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Processor time of the process, in cores, for each worker awake: more, and one more is let go.
const BUSY: f64 = 0.5;
/// Looks in a row that find a worker at the same turn: it is busy, or a task blocks it. One look alone
/// only says that the machine had no processor for it.
const LOOKS_AT_ONE_TURN: u32 = 3;
/// A worker is held only after so long a time without use for it.
const CALM: Duration = Duration::from_millis(300);

/// Starts the thread that holds workers of `runtime` back and lets them go, for as long as the process
/// lives. With one worker there is nothing to hold.
///
/// # Errors
/// When the system gives no thread.
pub fn keep_few_awake(runtime: &Handle) -> std::io::Result<()> {
    let workers = runtime.metrics().num_workers();
    if workers > 1 {
        let governor = Governor::new(runtime.clone(), workers);
        std::thread::Builder::new().name("tandem-workers".to_owned()).spawn(move || governor.run())?;
    }
    Ok(())
}

struct Governor {
    runtime: Handle,
    workers: usize,
    gate: Arc<Gate>,
    /// Tasks that were sent to hold a worker and not let go since.
    held: usize,
    needed_at: Instant,
    /// Of each worker: looks in a row that found it awake at the same turn.
    at_one_turn: Vec<u32>,
}

/// Where held workers wait.
#[derive(Default)]
struct Gate {
    state: Mutex<Holds>,
    changed: Condvar,
}

#[derive(Default)]
struct Holds {
    /// Workers that block here.
    waiting: usize,
    /// How many of them may go.
    released: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Holds> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until let go.
    fn hold(&self) {
        let mut holds = self.lock();
        holds.waiting += 1;
        while holds.released == 0 {
            holds = self.changed.wait(holds).unwrap_or_else(PoisonError::into_inner);
        }
        holds.released -= 1;
        holds.waiting -= 1;
    }

    /// Lets go those that wait and those that are still on the way here.
    fn release(&self, count: usize) {
        self.lock().released += count;
        for _ in 0..count {
            self.changed.notify_one();
        }
    }
}

impl Governor {
    fn new(runtime: Handle, workers: usize) -> Self {
        let at_one_turn = vec![0; workers];
        Self { runtime, workers, gate: Arc::default(), held: 0, needed_at: Instant::now(), at_one_turn }
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which is no worker")]
    fn run(mut self) {
        let mut before = Seen::now(&self.runtime.metrics());
        loop {
            std::thread::sleep(LOOK_EVERY);
            self.look(&mut before);
        }
    }

    fn look(&mut self, before: &mut Seen) {
        let seen = Seen::now(&self.runtime.metrics());
        for (looks, (before, now)) in self.at_one_turn.iter_mut().zip(before.turns.iter().zip(&seen.turns)) {
            // Odd while it sleeps.
            *looks = if before == now && now % 2 == 0 { *looks + 1 } else { 0 };
        }
        let needed = needed(before.cores_until(&seen), &self.at_one_turn, self.held);
        self.follow(needed);
        *before = seen;
    }

    /// Lets workers go at once and holds them again one by one.
    fn follow(&mut self, needed: usize) {
        let awake = self.workers - self.held;
        if needed > awake {
            let more = needed.min(self.workers) - awake;
            self.gate.release(more);
            self.held -= more;
        }
        if needed >= awake {
            self.needed_at = Instant::now();
        } else if self.needed_at.elapsed() > CALM && self.gate.lock().waiting == self.held {
            self.hold_one();
        }
    }

    fn hold_one(&mut self) {
        self.held += 1;
        let gate = self.gate.clone();
        self.runtime.spawn(async move { gate.hold() });
        // The one that takes the task may be the one that waited for sockets and timers: this wakes
        // another, which goes on with it.
        self.runtime.spawn(async {});
    }
}

/// What the process and its workers had done by an instant.
struct Seen {
    at: Instant,
    processor_time: Duration,
    /// Of each worker: how often it went to sleep or woke up. Odd while it sleeps.
    turns: Vec<u64>,
}

impl Seen {
    fn now(metrics: &RuntimeMetrics) -> Self {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            at: Instant::now(),
            processor_time: Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32),
            turns: (0..metrics.num_workers())
                .map(|worker| metrics.worker_park_unpark_count(worker))
                .collect(),
        }
    }

    /// Processor time between here and `later`, in cores.
    fn cores_until(&self, later: &Self) -> f64 {
        let used = later.processor_time.saturating_sub(self.processor_time);
        used.as_secs_f64() / (later.at - self.at).as_secs_f64()
    }
}

/// How many workers there is work for.
fn needed(cores: f64, at_one_turn: &[u32], held: usize) -> usize {
    let by_load = 1 + (cores / BUSY) as usize;
    let restless = at_one_turn.iter().filter(|looks| **looks >= LOOKS_AT_ONE_TURN).count();
    by_load.max(1 + restless.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_and_workers_that_never_sleep_ask_for_more() {
        let start = Instant::now();
        let seen = |at, millis| Seen { at, processor_time: Duration::from_millis(millis), turns: Vec::new() };
        let cores = seen(start, 5).cores_until(&seen(start + Duration::from_millis(10), 11));
        assert!((cores - 0.6).abs() < 0.01, "{cores}");

        assert_eq!(needed(0.1, &[0, 0, 90, 90], 2), 1, "two are held");
        assert_eq!(needed(0.1, &[2, 0, 90, 90], 2), 1, "one had no processor for a moment");
        assert_eq!(needed(0.1, &[3, 0, 90, 90], 2), 2, "one blocks");
        assert_eq!(needed(0.6, &[0, 0, 90, 90], 2), 2);
        assert_eq!(needed(2.4, &[0, 0, 90, 90], 2), 5);
    }

    /// Everything but one worker is held; sockets and timers are served all the same.
    #[test]
    fn one_worker_serves_while_the_others_are_held_and_they_come_when_it_is_blocked() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let mut governor = Governor::new(runtime.handle().clone(), 3);
        while governor.held < 2 || governor.gate.lock().waiting < 2 {
            governor.needed_at = Instant::now().checked_sub(2 * CALM).unwrap();
            governor.follow(1);
        }
        runtime.block_on(async {
            let echo = runtime.spawn(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let dialled = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
                let (dialled, accepted) = tokio::join!(dialled, listener.accept());
                tokio::time::sleep(Duration::from_millis(2)).await;
                dialled.is_ok() && accepted.is_ok()
            });
            assert!(echo.await.unwrap());
        });

        // Two tasks that block until both run: one worker alone would never get to the second.
        let both = Arc::new(std::sync::Barrier::new(2));
        let tasks = [both.clone(), both].map(|both| runtime.spawn(async move { both.wait().is_leader() }));
        let mut before = Seen::now(&runtime.metrics());
        while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
            governor.look(&mut before);
        }
        governor.gate.release(governor.held);
    }
}
