//! A clock of one process that a test sets while it runs, with libfaketime; time that only passes (timers, time-outs) is
//! left alone, as when an operator or NTP sets the real one.

use std::fs;
use std::path::PathBuf;

use super::Env;

pub struct FakeClock {
    /// Read anew at every question.
    file: PathBuf,
}

impl FakeClock {
    /// A clock that is right, kept in `folder`.
    pub fn new(folder: &std::path::Path) -> Self {
        let clock = Self { file: folder.join("clock") };
        clock.is_off_by_hours(0);
        clock
    }

    /// What a process needs in its environment to live by it.
    pub fn env(&self, env: Env) -> Env {
        env.set("LD_PRELOAD", library().display())
            .set("FAKETIME_TIMESTAMP_FILE", self.file.display())
            .set("FAKETIME_NO_CACHE", "1")
            .set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets it to so many hours from the right time.
    pub fn is_off_by_hours(&self, hours: i32) {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{hours:+}h\n")).expect("the test's own folder");
        fs::rename(&next, &self.file).expect("the test's own folder");
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
