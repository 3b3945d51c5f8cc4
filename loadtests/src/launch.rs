//! One server process of a run: how it is started, watched, killed, frozen and brought back. It ends when dropped.

pub mod postgres;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::http::Connection;
use crate::measure::redis;

const ASK_EVERY: Duration = Duration::from_millis(20);
/// Lines of its log that say why a process did not come up.
const LAST_LINES: usize = 20;
/// Ports are below the range of outgoing connections, which might take one before the server does.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: usize = 200;

pub struct Process {
    command: Command,
    child: Option<Child>,
    pub address: SocketAddr,
    log: PathBuf,
    frozen: bool,
}

impl Process {
    /// Starts `command`, which listens on `port` of this host and whose output goes to `log`.
    pub fn start(mut command: Command, port: u16, log: PathBuf) -> anyhow::Result<Self> {
        command.stdin(Stdio::null());
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut process = Self { command, child: None, address, log, frozen: false };
        process.launch()?;
        Ok(process)
    }

    /// Starts it again, if it does not run.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let output = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(output.try_clone()?).stderr(output);
        let program = self.command.get_program().display().to_string();
        self.child = Some(self.command.spawn().with_context(|| format!("cannot start {program}"))?);
        self.frozen = false;
        Ok(())
    }

    /// Waits until `is_up` says so.
    ///
    /// # Errors
    /// When it ends instead, or is not up in time, with the end of its log.
    pub fn wait_until(&mut self, within: Duration, is_up: impl Fn(SocketAddr) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !is_up(self.address) {
            if !self.is_running() {
                bail!("ended instead of coming up:\n{}", self.last_words(LAST_LINES));
            }
            if Instant::now() > deadline {
                bail!("not ready after {within:?}:\n{}", self.last_words(LAST_LINES));
            }
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its id; 0 while it is down.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.frozen = false;
    }

    pub fn signal(&mut self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())) {
            // It fails only when it has ended already.
            let _ = kill_process(pid, signal);
        }
    }

    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
        self.frozen = true;
    }

    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            self.signal(Signal::CONT);
        }
    }

    /// The last lines of its log, under its name.
    pub fn last_words(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        format!("--- {}\n{}\n", self.log.display(), all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed, not asked: its data goes with it.
        self.kill();
    }
}

/// A Redis that keeps nothing, with its log in `folder`.
pub fn start_redis(folder: &Path, within: Duration) -> anyhow::Result<Process> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no"])
        .current_dir(folder);
    let mut process = Process::start(command, port, folder.join("redis.log"))?;
    process.wait_until(within, |address| redis::counters(address).is_ok())?;
    Ok(process)
}

/// Whether `path` answers 200.
pub fn is_ready(address: SocketAddr, path: &str) -> bool {
    Connection::open(address)
        .and_then(|mut connection| connection.get(path))
        .is_ok_and(|answer| answer.status == 200)
}

/// A port nobody listens on now. Another process may take it before the server does; the start then fails aloud.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORT_TRIES {
        let mut random = [0; 2];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let port = PORTS.start + u16::from_le_bytes(random) % (PORTS.end - PORTS.start);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
