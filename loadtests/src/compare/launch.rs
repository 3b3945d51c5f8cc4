//! Starts a contender's nodes, and a Redis between them, on free ports in a temporary folder; ends and
//! removes all of it when dropped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::contender::{Contender, NodeSettings, Places};
use crate::client::http::Connection;
use crate::client::target::Target;
use crate::measure::redis;
use crate::measure::watch::{Watched, WatchedRedis};
use crate::scenario::Server;

const READY_WITHIN: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A contender that runs. The processes end before their folder goes.
pub struct Running {
    nodes: Vec<Process>,
    redis: Option<Process>,
    _folder: TempDir,
}

struct Process {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

/// How many nodes, and whether Redis is between them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub nodes: usize,
    pub clustered: bool,
}

/// Starts the nodes, one after another (the first makes the database), and waits until all are ready.
pub fn start(contender: Contender, layout: Layout, places: &Places) -> anyhow::Result<Running> {
    let folder = tempfile::Builder::new()
        .prefix("tandem-load-")
        .tempdir_in(&places.data)
        .context("cannot make a data folder")?;
    let mut running = Running { nodes: Vec::new(), redis: None, _folder: folder };
    let folder = running._folder.path().to_owned();
    if layout.clustered {
        running.redis = Some(start_redis(&folder)?);
    }
    let redis_port = running.redis.as_ref().map(|redis| redis.address.port());
    for nth in 1..=layout.nodes {
        let port = free_port()?;
        let settings = NodeSettings { port, folder: &folder, redis_port };
        let log = folder.join(format!("{}-{nth}.log", contender.name()));
        let mut process = Process::start(places.command(contender, &settings), port, log)?;
        process.wait_until(|address| is_ready(address, contender.ready_path()))?;
        running.nodes.push(process);
    }
    Ok(running)
}

impl Running {
    pub fn server(&self) -> anyhow::Result<Server> {
        let urls: Vec<String> = self.nodes.iter().map(|node| format!("http://{}", node.address)).collect();
        let nodes = self.nodes.iter().map(|node| node.child.id()).collect();
        let redis =
            self.redis.as_ref().map(|redis| WatchedRedis { pid: redis.child.id(), address: redis.address });
        Ok(Server { target: Target::parse(&urls)?, watched: Watched { nodes, redis } })
    }

    /// The end of every node's log.
    pub fn last_words(&self) -> String {
        self.nodes.iter().map(Process::last_words).collect()
    }
}

fn start_redis(folder: &Path) -> anyhow::Result<Process> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no"])
        .current_dir(folder);
    let mut process = Process::start(command, port, folder.join("redis.log"))?;
    process.wait_until(|address| redis::counters(address).is_ok())?;
    Ok(process)
}

impl Process {
    fn start(mut command: Command, port: u16, log: PathBuf) -> anyhow::Result<Self> {
        let output = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), log })
    }

    fn wait_until(&mut self, is_ready: impl Fn(SocketAddr) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !is_ready(self.address) {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended at start with {status}:\n{}", self.last_words());
            }
            if Instant::now() > deadline {
                bail!("not ready after {READY_WITHIN:?}:\n{}", self.last_words());
            }
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed, not asked: its data goes with it. Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(address: SocketAddr, path: &str) -> bool {
    Connection::open(address)
        .and_then(|mut connection| connection.get(path))
        .is_ok_and(|answer| answer.status == 200)
}

/// A port nobody listens on now. Another process may take it before the node does; the start then fails aloud.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
