//! Where a run takes place: the nodes, Redis, the load balancer and, for PostgreSQL, its server, on free ports in a
//! temporary folder, each of which can be killed, frozen and brought back. All of it ends when dropped.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use super::StoreKind;
use super::clock::Clock;
use crate::launch::{self, Process, postgres};

pub const NODES: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(40);
const SECRET: &str = "a secret of a run that nobody else will ever use";

pub struct Place {
    pub nodes: Vec<Process>,
    pub redis: Process,
    pub balancer: Process,
    pub postgres: Option<Process>,
    /// The last node's; of no use to the others. Dropped after the nodes.
    pub clock: Clock,
    folder: TempDir,
}

impl Place {
    pub fn start(store: StoreKind, tandem: &Path) -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("tandem-chaos-").tempdir().context("cannot make a folder")?;
        let at = folder.path().to_owned();
        let redis = launch::start_redis(&at, READY_WITHIN)?;
        let (database, postgres) = match store {
            StoreKind::Sqlite => (format!("sqlite://{}", at.join("tandem.db").display()), None),
            StoreKind::Postgres => {
                let (url, server) = postgres::start(&at, READY_WITHIN)?;
                (url, Some(server))
            }
        };
        let clock = Clock::new(&at)?;
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let port = launch::free_port()?;
            let mut command = Command::new(tandem);
            command.current_dir(&at).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
            for (name, value) in [
                ("HOST", "127.0.0.1"),
                ("PORT", &port.to_string()),
                ("NODE_ID", &format!("node-{number}")),
                ("DATABASE_URL", &database),
                ("REDIS_URL", &format!("redis://{}", redis.address)),
                ("JWT_SECRET", SECRET),
                ("TRUSTED_PROXIES", "127.0.0.1"),
                ("BCRYPT_COST", "4"),
                ("LOG_FORMAT", "text"),
                ("LOG", "warn"),
                ("LIMIT_AUTH_PER_ADDRESS", "0"),
                ("PING_INTERVAL_SECONDS", "2"),
                ("PING_TIMEOUT_SECONDS", "2"),
                ("DISCONNECT_GRACE_SECONDS", "0.5"),
                ("DRAIN_LAG_SECONDS", "0.5"),
                ("DRAIN_SECONDS", "1"),
            ] {
                command.env(name, value);
            }
            if number == NODES {
                command.envs(clock.env());
            }
            let mut node = Process::start(command, port, at.join(format!("node-{number}.log")))?;
            node.wait_until(READY_WITHIN, is_ready)?;
            nodes.push(node);
        }
        let balancer = start_balancer(&at, &nodes)?;
        Ok(Self { nodes, redis, balancer, postgres, clock, folder })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("http://{}", self.balancer.address)
    }

    /// Brings back whatever is down or frozen and waits until every node is ready.
    pub fn all_ready(&mut self) -> anyhow::Result<()> {
        for server in
            [Some(&mut self.redis), self.postgres.as_mut(), Some(&mut self.balancer)].into_iter().flatten()
        {
            server.thaw();
            server.launch()?;
        }
        for node in &mut self.nodes {
            node.thaw();
            node.launch()?;
            node.wait_until(READY_WITHIN, is_ready)?;
        }
        self.balancer.wait_until(READY_WITHIN, is_ready)
    }

    /// The ends of the logs.
    pub fn last_words(&self) -> String {
        let servers = self.nodes.iter().chain([&self.redis, &self.balancer]).chain(self.postgres.as_ref());
        servers.map(|server| server.last_words(12)).collect()
    }
}

/// HAProxy as it is shipped.
fn start_balancer(folder: &Path, nodes: &[Process]) -> anyhow::Result<Process> {
    let port = launch::free_port()?;
    let config = folder.join("haproxy.cfg");
    std::fs::write(&config, include_str!("../../../deploy/haproxy.cfg"))?;
    let program = ["/usr/sbin/haproxy", "haproxy"]
        .into_iter()
        .find(|path| !path.starts_with('/') || Path::new(path).exists());
    let mut command = Command::new(program.unwrap_or("haproxy"));
    command.arg("-db").arg("-f").arg(&config).env("TANDEM_BIND", format!("127.0.0.1:{port}"));
    for (number, node) in nodes.iter().enumerate() {
        command.env(format!("NODE_{}", number + 1), node.address.to_string());
    }
    let mut server = Process::start(command, port, folder.join("haproxy.log"))?;
    server.wait_until(READY_WITHIN, is_ready)?;
    Ok(server)
}

fn is_ready(address: SocketAddr) -> bool {
    launch::is_ready(address, "/api/health/ready")
}
