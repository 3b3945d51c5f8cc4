//! A real PostgreSQL of its own, in a temporary folder, under a user that is not root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::port::free_port;
use super::{Process, within_secs};

/// How often a start tries another port when somebody was quicker.
const PORT_ATTEMPTS: u32 = 20;

/// Whom PostgreSQL runs as when the tests run as root, the first that exists.
const USERS: [&str; 2] = ["postgres", "nobody"];

pub struct Postgres {
    process: Process,
    port: u16,
    folder: TempDir,
}

/// One server for the tests of this process that run at the same time; it ends with the last of them.
static SHARED: Mutex<Weak<Postgres>> = Mutex::const_new(Weak::new());

fn crc(folder: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    hasher.finish()
}

impl Postgres {
    /// The server that tests share.
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&server);
        server
    }

    /// A database of the shared server that goes by the name of a folder, made if need be, and its URL.
    pub async fn database_of(folder: &Path) -> (Arc<Self>, String) {
        let server = Self::shared().await;
        let name: String = folder
            .display()
            .to_string()
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' })
            .collect();
        // Upper and lower case differ in temporary folders' names; this tells them apart.
        let name = format!("f{}{:x}", name, crc(folder));
        if server.query(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")).trim() == "0" {
            server.query(&format!("CREATE DATABASE {name}"));
        }
        let url = server.url().replace("/postgres", &format!("/{name}"));
        (server, url)
    }

    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some((user, group)) = other_user() {
            chown(folder.path(), Some(user), Some(group)).expect("root may give folders away");
        }
        init(&folder);
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            if let Ok(process) = serve(port, &folder).await {
                return Self { process, port, folder };
            }
        }
        panic!("PostgreSQL found no port");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`, for a proxy in front of it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        self.url_at(&self.address())
    }

    /// The same database through a proxy.
    pub fn url_at(&self, address: &str) -> String {
        format!("postgres://tandem@{address}/postgres")
    }

    /// Freezes the postmaster only; its sessions go on.
    pub fn stop(&self) {
        self.process.freeze();
    }

    pub fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// An immediate shutdown, as a crash: sessions end, nothing is flushed, recovery follows.
    pub async fn crash(&mut self) {
        self.process.signal(Signal::QUIT);
        within_secs(30, self.process.exit()).await;
    }

    /// Starts it again on the same port and data (after `crash`, or crashing it first).
    pub async fn restart(&mut self) {
        self.process.signal(Signal::QUIT);
        within_secs(30, self.process.exit()).await;
        for _ in 1..PORT_ATTEMPTS {
            if let Ok(process) = serve(self.port, &self.folder).await {
                self.process = process;
                return;
            }
        }
        panic!("PostgreSQL did not come back on port {}", self.port);
    }

    /// A copy of the data folder as it is now, under a name of its own in the server's folder.
    pub fn copy_data(&self, name: &str) {
        let output = as_other_user(Command::new(program("pg_basebackup")))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "tandem"])
            .args(["--wal-method=fetch", "--checkpoint=fast", "--no-sync", "-D"])
            .arg(self.folder.path().join(name))
            .current_dir(self.folder.path())
            .output()
            .expect("pg_basebackup is installed");
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Crashes it and starts it again on the same port with a copy that was made before.
    pub async fn put_back(&mut self, name: &str) {
        self.crash().await;
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data).expect("it is stopped");
        std::fs::rename(self.folder.path().join(name), &data).expect("a copy of that name");
        self.restart().await;
    }

    /// The same, the copy as a standby that takes over for it and missed what came since.
    pub async fn fail_over(&mut self, name: &str) {
        std::fs::write(self.folder.path().join(name).join("standby.signal"), "")
            .expect("a copy of that name");
        self.put_back(name).await;
        self.query("SELECT pg_promote()");
    }

    /// From now on commits happen, and are answered when a standby of this name has them, too; without a name at
    /// once.
    pub async fn waits_for_standby(&self, name: &str) {
        self.query(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
        self.query("SELECT pg_reload_conf()");
        // Each connection is a new session, which sees what the server has read by then.
        within_secs(10, async {
            while self.query("SHOW synchronous_standby_names") != name {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// What `psql` prints for a query: rows by line, columns by `|`.
    pub fn query(&self, sql: &str) -> String {
        let output = Command::new(program("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql])
            .output()
            .expect("psql is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT lets the postmaster end its sessions; the process's own drop then waits and makes sure.
        self.process.signal(Signal::QUIT);
        self.process.wait_ended();
    }
}

fn init(folder: &TempDir) {
    let output = as_other_user(Command::new(program("initdb")))
        .args(["--username=tandem", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(folder.path().join("data"))
        .current_dir(folder.path())
        .output()
        .expect("initdb is installed");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

async fn serve(port: u16, folder: &TempDir) -> Result<Process, String> {
    let mut command = as_other_user(Command::new(program("postgres")));
    command.arg("-D").arg(folder.path().join("data")).arg("-k").arg(folder.path());
    command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]);
    command.current_dir(folder.path());
    let process = Process::spawn("postgres", &mut command);
    let accepts = |line: &str| line.contains("ready to accept").then_some(());
    within_secs(30, process.line(accepts)).await?;
    Ok(process)
}

fn as_other_user(mut command: Command) -> Command {
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

/// The user and group to run as, or none when the tests are not root's.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("a list of users");
    let entry = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(USERS.iter().find_map(|name| entry(name)).expect("a user who is not root"))
}

/// Debian keeps the server's programs off the PATH.
fn program(name: &str) -> PathBuf {
    let debian = PathBuf::from("/usr/lib/postgresql/15/bin").join(name);
    if debian.exists() { debian } else { PathBuf::from(name) }
}
