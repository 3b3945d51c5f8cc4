//! A clock of one process that a test sets while it runs, with libfaketime; time that only passes (timers, time-outs) is
//! left alone, as when an operator or NTP sets the real one.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Env;

/// To be dropped after the process that lives by it.
pub struct FakeClock {
    folder: TempDir,
}

impl FakeClock {
    /// A clock that is right.
    pub fn new() -> Self {
        let clock = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        clock.is_off_by_hours(0);
        clock
    }

    /// What a process needs in its environment to live by it.
    pub fn env(&self, env: Env) -> Env {
        env.set("LD_PRELOAD", library().display())
            .set("FAKETIME_TIMESTAMP_FILE", self.file().display())
            .set("FAKETIME_NO_CACHE", "1")
            .set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets it to so many hours from the right time.
    pub fn is_off_by_hours(&self, hours: i32) {
        let next = self.folder.path().join("next");
        fs::write(&next, format!("{hours:+}h\n")).expect("the test's own folder");
        fs::rename(&next, self.file()).expect("the test's own folder");
    }

    /// Read anew at every question.
    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }
}

impl Drop for FakeClock {
    /// Takes away what libfaketime leaves in memory of processes that were killed.
    fn drop(&mut self) {
        let files = fs::read_dir("/dev/shm").into_iter().flatten().filter_map(Result::ok);
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix("faketime_shm_").or(name.strip_prefix("sem.faketime_sem_"));
            if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
                // Another test's clock may be quicker.
                drop(fs::remove_file(file.path()));
            }
        }
    }
}

/// Debian keeps it in a folder of the machine's kind.
fn library() -> PathBuf {
    let kinds = fs::read_dir("/usr/lib").expect("/usr/lib").filter_map(Result::ok);
    kinds
        .map(|kind| kind.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is installed (./check does)")
}
