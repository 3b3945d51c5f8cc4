//! A node under callgrind, and what it has executed since it was last asked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::launch::{self, Process};

/// Under callgrind everything takes fifty times as long.
const READY_WITHIN: Duration = Duration::from_secs(120);
const LAST_LINES: usize = 20;
const HOST: &str = "127.0.0.1";

pub struct Counted {
    pub node: Process,
    folder: PathBuf,
    dumps: u32,
}

impl Counted {
    /// One node with one worker, on SQLite in `folder`.
    pub fn start(tandem: &Path, folder: &Path) -> anyhow::Result<Self> {
        let port = launch::free_port()?;
        let mut command = Command::new("valgrind");
        command
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", folder.join("counts").display()))
            .arg(tandem)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TOKIO_WORKER_THREADS", "1")
            .current_dir(folder);
        for (name, value) in [
            ("HOST", HOST),
            ("PORT", &*port.to_string()),
            ("DATABASE_URL", &format!("sqlite://{}", folder.join("tandem.db").display())),
            ("BCRYPT_COST", "4"),
            ("LOG", "warn"),
            ("LIMIT_EVENTS_PER_SECOND", "0"),
            ("LIMIT_AUTH_PER_ADDRESS", "0"),
            // Heartbeats would be counted as somebody's event.
            ("PING_INTERVAL_SECONDS", "300"),
        ] {
            command.env(name, value);
        }
        let mut node = Process::start(command, port, folder.join("node.log"))?;
        node.wait_until(READY_WITHIN, |address| launch::is_ready(address, "/api/health/ready"))?;
        Ok(Self { node, folder: folder.to_owned(), dumps: 0 })
    }

    /// Instructions since the last call, or the start.
    pub fn take(&mut self) -> anyhow::Result<u64> {
        let asked = Command::new("callgrind_control")
            .args(["--dump", &self.node.id().to_string()])
            // The two find each other by a name that is made of these.
            .env("HOST", HOST)
            .env_remove("LOGNAME")
            .env_remove("TMPDIR")
            .output()
            .context("cannot run callgrind_control")?;
        ensure!(asked.status.success(), "callgrind_control: {}", String::from_utf8_lossy(&asked.stderr));
        self.dumps += 1;
        let dump = self.folder.join(format!("counts.{}", self.dumps));
        let text = std::fs::read_to_string(&dump)
            .with_context(|| format!("no counts: {}", self.node.last_words(LAST_LINES)))?;
        let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).context("counts without a total")
    }
}
