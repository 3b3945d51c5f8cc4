//! One node: a real process of the `tandem` binary on a port of its own choosing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{Account, Exit, JWT_SECRET, Postgres, Process, Rest, eventually, within};

/// How often a restart tries to get its old port back.
const PORT_ATTEMPTS: u32 = 20;

/// What a node is started with: the tests' defaults, and what a test changes of them.
#[derive(Debug, Clone)]
pub struct Env {
    vars: BTreeMap<String, String>,
    args: Vec<String>,
}

impl Default for Env {
    fn default() -> Self {
        let defaults = [
            ("PORT", "0"),
            ("HOST", "127.0.0.1"),
            ("BCRYPT_COST", "4"),
            ("JWT_SECRET", JWT_SECRET),
            ("LIMIT_EVENTS_PER_SECOND", "0"),
            ("LIMIT_LOGINS_PER_EMAIL", "0"),
            ("LIMIT_AUTH_PER_ADDRESS", "0"),
            ("LOG_FORMAT", "json"),
        ];
        let vars = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { vars, args: Vec::new() }
    }
}

impl Env {
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing but what the program itself assumes.
    pub fn bare() -> Self {
        Self { vars: BTreeMap::new(), args: Vec::new() }
    }

    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.vars.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets it unless the test already has.
    pub fn or_set(mut self, name: &str, value: impl ToString) -> Self {
        self.vars.entry(name.to_owned()).or_insert_with(|| value.to_string());
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.vars.remove(name);
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The program and its arguments in one line, for somebody else to start.
    pub fn program(&self) -> String {
        let program = binary().into_string().expect("a path in UTF-8");
        std::iter::once(program).chain(self.args.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    /// What it is started with.
    pub fn vars(&self) -> impl Iterator<Item = (&String, &String)> {
        self.vars.iter()
    }

    /// The command in `folder`, with this environment and nothing of the test's own (a developer's `.env` or
    /// `REDIS_URL` must not reach it).
    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(binary());
        command.args(&self.args).current_dir(folder).env_clear();
        for name in ["PATH", "HOME", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(&self.vars);
        command
    }
}

/// `TANDEM_BIN`, to try another build, or the binary that cargo built beside the test.
fn binary() -> OsString {
    std::env::var_os("TANDEM_BIN")
        .or_else(|| option_env!("CARGO_BIN_EXE_tandem").map(OsString::from))
        .expect("TANDEM_BIN names the binary where cargo does not")
}

pub struct Node {
    process: Process,
    address: String,
    env: Env,
    folder: PathBuf,
    _own_folder: Option<TempDir>,
    _server: Option<Arc<Postgres>>,
}

impl Node {
    /// Starts a node with a database of its own and waits until it is ready.
    pub async fn start(env: &Env) -> Self {
        let own = tempfile::tempdir().expect("a temporary folder");
        let folder = own.path().to_owned();
        Self { _own_folder: Some(own), ..Self::start_in(&folder, env).await }
    }

    /// Starts a node whose database is in `folder`, which several may share and which outlives it; with
    /// `TANDEM_TEST_STORE=postgres` it is a PostgreSQL database that goes by that folder's name.
    pub async fn start_in(folder: &Path, env: &Env) -> Self {
        let mut env = env.clone();
        let mut server = None;
        if !env.vars.contains_key("DATABASE_URL") {
            let database = match std::env::var("TANDEM_TEST_STORE").as_deref() {
                Ok("postgres") => {
                    let (shared, url) = Postgres::database_of(folder).await;
                    server = Some(shared);
                    url
                }
                _ => format!("sqlite://{}", folder.join("tandem.db").display()),
            };
            env.vars.insert("DATABASE_URL".to_owned(), database);
        }
        let (process, address) = listening(folder, &env).await.unwrap_or_else(|error| panic!("{error}"));
        let node =
            Self { process, address, env, folder: folder.to_owned(), _own_folder: None, _server: server };
        node.ready().await;
        node
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its database lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The URL of its database.
    pub fn database(&self) -> &str {
        &self.env.vars["DATABASE_URL"]
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub fn rest(&self) -> Rest {
        Rest::new(self.url())
    }

    /// REST in the name of `account`.
    pub fn rest_of(&self, account: &Account) -> Rest {
        self.rest().with_token(&account.token)
    }

    pub async fn register(&self, name: &str) -> Account {
        Account::register(&self.rest(), name).await
    }

    /// One number of its `/metrics`, by its name with labels, as it stands there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.rest().get("/metrics").await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().expect("a metric is a number")
    }

    /// Memory of its process in KiB: what is resident now, and the most that ever was.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id())).expect("it runs");
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB"));
            value
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.tail(4_000)
    }

    /// The first line of its log, so far or to come, for which `find` has an answer.
    pub async fn log_line<T>(&self, find: impl FnMut(&str) -> Option<T>) -> T {
        within(self.process.line(find)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_9(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop, as an orchestrator does.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Stops it in its tracks, and lets it go on: connections stay, nothing is answered.
    pub fn stop(&self) {
        self.process.freeze();
    }

    pub fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Its end, which the caller bounds.
    pub async fn wait_exit(&mut self) -> Exit {
        self.process.exit().await
    }

    /// Starts it again on the same port and data; whatever still ran is killed first.
    pub async fn restart(&mut self) {
        let env = self.env.clone();
        self.restart_with(&env).await;
    }

    /// The same with other settings (`PORT` and, unless given, `DATABASE_URL` stay).
    pub async fn restart_with(&mut self, env: &Env) {
        self.process.kill();
        let port = self.address.rsplit(':').next().expect("an address has a port").to_owned();
        let mut env = env.clone().set("PORT", port);
        if let Some(database) = self.env.vars.get("DATABASE_URL") {
            env.vars.entry("DATABASE_URL".to_owned()).or_insert(database.clone());
        }
        for attempt in 1.. {
            match listening(&self.folder, &env).await {
                Ok((process, address)) => {
                    (self.process, self.address, self.env) = (process, address, env);
                    break;
                }
                // An outgoing connection of another test may hold the port for a moment.
                Err(error) if attempt == PORT_ATTEMPTS => panic!("{error}"),
                Err(_) => {}
            }
        }
        self.ready().await;
    }

    /// A node that speaks TLS is ready when it listens; `Rest` does not speak it.
    async fn ready(&self) {
        if self.env.vars.contains_key("TLS_CERT") {
            return;
        }
        let rest = self.rest();
        eventually("the node is ready", || async {
            let request = rest.request(reqwest::Method::GET, "/api/health/ready");
            (Rest::try_status(request).await == Some(200)).then_some(())
        })
        .await;
    }
}

/// Runs the binary until it ends by itself, as for configuration mistakes and subcommands.
pub async fn run_to_exit(env: &Env) -> Exit {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut process = Process::spawn("tandem", &mut env.command(folder.path()));
    within(process.exit()).await
}

/// Spawns the binary and reads the bound address from its start-up line.
async fn listening(folder: &Path, env: &Env) -> Result<(Process, String), String> {
    let process = Process::spawn("tandem", &mut env.command(folder));
    let address = within(process.line(listening_address)).await?;
    Ok((process, address))
}

/// The address in `{"message": "listening", "address": "127.0.0.1:4711"}`, its fields at the top or in `fields`.
pub fn listening_address(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| line.get(name).or_else(|| line.get("fields")?.get(name)).and_then(Value::as_str);
    (field("message") == Some("listening")).then(|| field("address").map(str::to_owned)).flatten()
}
