//! The marker beside the database: how far clients have seen its past.
//!
//! A database that is put back from a backup counts from where the backup was
//! made, and would give numbers out again that clients know with other content.
//! So a small file beside it keeps the epoch and the highest commit, written
//! after each COMMIT and before its acks. A database below its marker, or one
//! with data and no marker, is not what clients saw and gets a new epoch. Several
//! processes share the file: it is raised under a lock. It is synced once a
//! second: what a power cut takes from it only makes it too low.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Epoch;

/// How often what was written is synced.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Others hold the lock for microseconds; who holds it longer is stopped, and
/// the next commit raises the marker.
const LOCK_TRIES: u32 = 50;

/// See the module's comment.
pub struct Marker {
    file: File,
    synced_at: Mutex<Instant>,
}

/// A moment in a database's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which past.
    pub epoch: Epoch,
    /// Row number of the last change; it only grows.
    pub commits: u64,
}

/// What to do with a mark of another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// It is put aside: ours is the new one.
    Replace,
    /// It stays: who wrote it knows better.
    Keep,
}

impl Marker {
    /// The one of the database at `path`, made if need be.
    ///
    /// # Errors
    /// When no file can be made beside it.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = path.with_extension("epoch");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, synced_at: Mutex::new(Instant::now()) })
    }

    /// What it says; nothing when it is new or damaged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> io::Result<Option<Mark>> {
        let mut text = [0; 128];
        let length = self.file.read_at(&mut text, 0)?;
        Ok(parse(&text[..length]))
    }

    /// Raises it to `mark`.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn raise(&self, mark: &Mark, other: Other) -> io::Result<()> {
        for _ in 0..LOCK_TRIES {
            if self.file.try_lock().is_ok() {
                let raised = self.raise_locked(mark, other);
                self.file.unlock()?;
                raised?;
                return self.sync_now_and_then();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(io::Error::other("its lock is held"))
    }

    fn raise_locked(&self, mark: &Mark, other: Other) -> io::Result<()> {
        let is_wanted = match self.read()? {
            Some(present) if present.epoch == mark.epoch => present.commits < mark.commits,
            Some(_) => other == Other::Replace,
            None => true,
        };
        if is_wanted {
            // In place and always as long, so that it needs no space on a full disk.
            self.file.write_all_at(format!("{} {:020}\n", mark.epoch.0, mark.commits).as_bytes(), 0)?;
        }
        Ok(())
    }

    /// Nobody waits for the disk.
    fn sync_now_and_then(&self) -> io::Result<()> {
        let mut synced_at = self.synced_at.lock().unwrap_or_else(PoisonError::into_inner);
        if synced_at.elapsed() >= SYNC_EVERY {
            *synced_at = Instant::now();
            let file = self.file.try_clone()?;
            tokio::task::spawn_blocking(move || file.sync_data());
        }
        Ok(())
    }
}

fn parse(text: &[u8]) -> Option<Mark> {
    let text = std::str::from_utf8(text).ok()?.lines().next()?;
    let (epoch, commits) = text.split_once(' ')?;
    Some(Mark { epoch: Epoch(epoch.into()), commits: commits.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: &str, commits: u64) -> Mark {
        Mark { epoch: Epoch(epoch.into()), commits }
    }

    #[tokio::test]
    async fn it_only_rises_whoever_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tandem.db");
        let (one, other) = (Marker::of(&path).unwrap(), Marker::of(&path).unwrap());
        assert_eq!(one.read().unwrap(), None);

        one.raise(&mark("first", 5), Other::Keep).await.unwrap();
        other.raise(&mark("first", 7), Other::Keep).await.unwrap();
        one.raise(&mark("first", 6), Other::Keep).await.unwrap();
        assert_eq!(one.read().unwrap(), Some(mark("first", 7)));

        other.raise(&mark("second", 3), Other::Keep).await.unwrap();
        assert_eq!(one.read().unwrap(), Some(mark("first", 7)), "a late writer changes nothing");
        other.raise(&mark("second", 3), Other::Replace).await.unwrap();
        assert_eq!(one.read().unwrap(), Some(mark("second", 3)));
    }

    #[test]
    fn a_damaged_one_says_nothing() {
        for text in ["", "epoch", "epoch x\n", "\0\0\0\0"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
