//! Where a run takes place: the nodes, Redis, the load balancer and, for PostgreSQL, its server, on free ports in a
//! temporary folder, each of which can be killed, frozen and brought back. All of it ends when dropped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::StoreKind;
use crate::client::http::Connection;

pub const NODES: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(40);
const ASK_EVERY: Duration = Duration::from_millis(20);
const SECRET: &str = "a secret of a run that nobody else will ever use";
/// Whom PostgreSQL runs as where we are root.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// One server and how to start it again.
pub struct Server {
    command: Command,
    child: Option<Child>,
    pub address: SocketAddr,
    log: PathBuf,
    frozen: bool,
}

impl Server {
    fn start(mut command: Command, port: u16, log: PathBuf) -> anyhow::Result<Self> {
        command.stdin(Stdio::null());
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut server = Self { command, child: None, address, log, frozen: false };
        server.launch()?;
        Ok(server)
    }

    /// Starts it, if it does not run.
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

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// `kill -9`.
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

    fn last_words(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        format!("--- {}\n{}\n", self.log.display(), all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Place {
    pub nodes: Vec<Server>,
    pub redis: Server,
    pub balancer: Server,
    pub postgres: Option<Server>,
    folder: TempDir,
}

impl Place {
    pub fn start(store: StoreKind, tandem: &Path) -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("tandem-chaos-").tempdir().context("cannot make a folder")?;
        let at = folder.path().to_owned();
        let redis = start_redis(&at)?;
        let (database, postgres) = match store {
            StoreKind::Sqlite => (format!("sqlite://{}", at.join("tandem.db").display()), None),
            StoreKind::Postgres => {
                let (url, server) = start_postgres(&at)?;
                (url, Some(server))
            }
        };
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let port = free_port()?;
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
            let mut node = Server::start(command, port, at.join(format!("node-{number}.log")))?;
            wait_until(&mut node, is_ready)?;
            nodes.push(node);
        }
        let balancer = start_balancer(&at, &nodes)?;
        Ok(Self { nodes, redis, balancer, postgres, folder })
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
            wait_until(node, is_ready)?;
        }
        wait_until(&mut self.balancer, is_ready)
    }

    /// The ends of the logs.
    pub fn last_words(&self) -> String {
        let servers = self.nodes.iter().chain([&self.redis, &self.balancer]).chain(self.postgres.as_ref());
        servers.map(|server| server.last_words(12)).collect()
    }
}

fn start_redis(folder: &Path) -> anyhow::Result<Server> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .current_dir(folder);
    let mut server = Server::start(command, port, folder.join("redis.log"))?;
    wait_until(&mut server, |address| TcpStream::connect_timeout(&address, ASK_EVERY).is_ok())?;
    Ok(server)
}

/// HAProxy as it is shipped.
fn start_balancer(folder: &Path, nodes: &[Server]) -> anyhow::Result<Server> {
    let port = free_port()?;
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
    let mut server = Server::start(command, port, folder.join("haproxy.log"))?;
    wait_until(&mut server, is_ready)?;
    Ok(server)
}

fn start_postgres(folder: &Path) -> anyhow::Result<(String, Server)> {
    let (port, data) = (free_port()?, folder.join("postgres"));
    std::fs::create_dir(&data)?;
    let other = other_user()?;
    if let Some((user, group)) = other {
        chown(folder, Some(user), Some(group)).context("cannot give the folder to PostgreSQL's user")?;
        chown(&data, Some(user), Some(group))?;
    }
    let as_other = |mut command: Command| {
        if let Some((user, group)) = other {
            command.uid(user).gid(group);
        }
        command.current_dir(folder);
        command
    };
    let made = as_other(Command::new(postgres_program("initdb")))
        .args(["--username=tandem", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&data)
        .output()
        .context("cannot run initdb")?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut command = as_other(Command::new(postgres_program("postgres")));
    command.arg("-D").arg(&data).arg("-k").arg(folder).args(["-p", &port.to_string()]);
    command.args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]);
    let log = folder.join("postgres.log");
    let mut server = Server::start(command, port, log.clone())?;
    wait_until(&mut server, |_| {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"))
    })?;
    Ok((format!("postgres://tandem@127.0.0.1:{port}/postgres"), server))
}

/// The user and group to run PostgreSQL as; none where we are nobody special ourselves.
fn other_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let entry = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    USERS.iter().find_map(|name| entry(name)).map(Some).context("PostgreSQL needs a user that is not root")
}

/// Debian keeps the server's programs off the PATH.
fn postgres_program(name: &str) -> PathBuf {
    let found = std::fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let found = found.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.unwrap_or_else(|| PathBuf::from(name))
}

fn wait_until(server: &mut Server, is_up: impl Fn(SocketAddr) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    while !is_up(server.address) {
        if !server.is_running() || Instant::now() > deadline {
            bail!("not up after {READY_WITHIN:?}, or ended:\n{}", server.last_words(20));
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}

fn is_ready(address: SocketAddr) -> bool {
    Connection::open(address)
        .and_then(|mut connection| connection.get("/api/health/ready"))
        .is_ok_and(|answer| answer.status == 200)
}

/// A port nobody listens on now, below the range of outgoing connections, which might take it.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..200 {
        let mut random = [0; 2];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let port = 20_000 + u16::from_le_bytes(random) % 12_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
