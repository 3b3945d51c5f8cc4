//! Turns among the processes that write one database.
//!
//! SQLite lets whoever asks at the right moment have its lock, and the others
//! sleep up to 100 ms between their attempts: a process that commits without a
//! pause starves them for seconds. So processes queue up first, at two file locks:
//! who waits for the second holds the first, and whoever has just had its turn
//! finds it taken and comes next. A courtesy only; the lock that counts is
//! SQLite's, and nobody waits long for a process that is stopped in its turn.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Several commits of each of several processes; beyond it somebody hangs.
const WAIT: Duration = Duration::from_millis(500);

/// See the module's comment.
pub struct Turns {
    locks: Arc<Locks>,
}

struct Locks {
    next: File,
    current: File,
    /// A thread of this process waits. Locks belong to the open file, so a second
    /// one would not wait at all.
    waiting: AtomicBool,
}

/// It is this process's turn until this is dropped.
pub struct Turn(Arc<Locks>);

impl Turns {
    /// For the database at `path`.
    ///
    /// # Errors
    /// When no file can be made beside it.
    pub fn of(path: &Path) -> io::Result<Self> {
        let next = File::create(path.with_extension("next"))?;
        let current = File::create(path.with_extension("turn"))?;
        Ok(Self { locks: Arc::new(Locks { next, current, waiting: AtomicBool::new(false) }) })
    }

    /// Waits for a turn; nothing when that takes too long. One caller at a time.
    pub async fn take(&self) -> Option<Turn> {
        if self.locks.waiting.swap(true, Ordering::AcqRel) {
            return None;
        }
        let locks = self.locks.clone();
        if locks.take_now() {
            locks.waiting.store(false, Ordering::Release);
            return Some(Turn(locks));
        }
        // If nobody waits for it any more when it comes, the turn is dropped and passes on.
        let taking = tokio::task::spawn_blocking(move || locks.take());
        tokio::time::timeout(WAIT, taking).await.ok()?.ok()?
    }
}

impl Locks {
    fn take_now(&self) -> bool {
        if self.next.try_lock().is_err() {
            return false;
        }
        let taken = self.current.try_lock().is_ok();
        taken & self.next.unlock().is_ok()
    }

    fn take(self: Arc<Self>) -> Option<Turn> {
        let taken = self.next.lock().and_then(|()| self.current.lock()).and_then(|()| self.next.unlock());
        self.waiting.store(false, Ordering::Release);
        taken.ok().map(|()| Turn(self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Err(error) = self.0.current.unlock() {
            tracing::debug!(%error, "a turn could not be passed on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn processes_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tandem.db");
        let (one, other) = (Turns::of(&path).unwrap(), Turns::of(&path).unwrap());

        let first = one.take().await.unwrap();
        let (second, third) = tokio::join!(other.take(), async {
            // Whoever has just had its turn does not get the next one before who waits.
            tokio::task::yield_now().await;
            while one.locks.next.try_lock().is_ok() {
                one.locks.next.unlock().unwrap();
                tokio::task::yield_now().await;
            }
            drop(first);
            one.locks.take_now()
        });

        assert!(second.is_some() && !third);
        drop(second);
        assert!(one.take().await.is_some());
    }

    #[tokio::test]
    async fn nobody_waits_long_for_a_process_that_hangs_in_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tandem.db");
        let (hanging, other) = (Turns::of(&path).unwrap(), Turns::of(&path).unwrap());
        let held = hanging.take().await.unwrap();

        assert!(other.take().await.is_none());
        let asked = std::time::Instant::now();
        assert!(other.take().await.is_none(), "and from then on not at all");
        assert!(asked.elapsed() < WAIT);

        drop(held);
        while other.take().await.is_none() {
            tokio::task::yield_now().await;
        }
    }
}
