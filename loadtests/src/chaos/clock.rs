//! The clock of one node, set while it runs by libfaketime; time that only passes is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right, kept in `folder`.
    ///
    /// # Errors
    /// When libfaketime is not installed.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        // Debian keeps it in a folder of the machine's kind.
        let kinds = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let mut libraries = kinds.map(|kind| kind.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.exists());
        let library = library.context("libfaketime is needed to set a node's clock (Debian: faketime)")?;
        let clock = Self { library, file: folder.join("clock") };
        clock.is_off_by_hours(0)?;
        Ok(clock)
    }

    /// What a process needs in its environment to live by it.
    pub fn env(&self) -> [(&'static str, &std::ffi::OsStr); 4] {
        [
            ("LD_PRELOAD", self.library.as_os_str()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.as_os_str()),
            ("FAKETIME_CACHE_DURATION", "1".as_ref()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
        ]
    }

    /// Sets it to so many hours from the right time; the node sees it within a second.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn is_off_by_hours(&self, hours: i8) -> anyhow::Result<()> {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{hours:+}h\n"))?;
        fs::rename(&next, &self.file).context("cannot set a clock")
    }
}

impl Drop for Clock {
    /// Takes away what libfaketime leaves in memory of processes that were killed.
    fn drop(&mut self) {
        for file in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix("faketime_shm_").or(name.strip_prefix("sem.faketime_sem_"));
            if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
                // Another run may be quicker.
                let _ = fs::remove_file(file.path());
            }
        }
    }
}
