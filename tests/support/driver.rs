//! The Node.js process that holds the stock socket.io-client, shared by all devices of a test process.
//!
//! It is spoken to with JSON lines (driver/driver.js says how), from plain threads, because it outlives the
//! runtime of any one test. It ends when its standard input closes: with this process, however that ends.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::inbox::{Inbox, Received};

pub struct Driver {
    input: Mutex<ChildStdin>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    inboxes: Mutex<HashMap<u64, Arc<Inbox>>>,
    next_id: AtomicU64,
}

impl Driver {
    /// The driver of this test process, started (and on a fresh machine installed) at first use.
    pub fn get() -> &'static Self {
        static DRIVER: OnceLock<&'static Driver> = OnceLock::new();
        DRIVER.get_or_init(Self::start)
    }

    #[expect(clippy::zombie_processes, reason = "it ends with this process, not before")]
    fn start() -> &'static Self {
        let folder = installed_driver();
        let mut child = Command::new("node")
            .arg("driver.js")
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node.js 20 or newer is on the PATH");
        let driver: &'static Self = Box::leak(Box::new(Self {
            input: Mutex::new(child.stdin.take().expect("piped above")),
            waiting: Mutex::default(),
            inboxes: Mutex::default(),
            next_id: AtomicU64::new(1),
        }));
        let output = child.stdout.take().expect("piped above");
        thread::spawn(move || driver.read(output));
        driver
    }

    /// A new socket's number and the inbox its news go to.
    pub fn open(&self) -> (u64, Arc<Inbox>) {
        let (socket, inbox) = (self.next_id(), Arc::new(Inbox::default()));
        self.inboxes.lock().unwrap().insert(socket, inbox.clone());
        (socket, inbox)
    }

    /// Sends a command and waits for its answer, which the driver bounds.
    pub async fn call(&self, socket: u64, op: &str, details: Value) -> Value {
        let id = self.next_id();
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, answer);
        self.send(id, socket, op, details);
        answered.await.expect("the driver lives as long as the tests")
    }

    /// Ends a socket without waiting: from a destructor.
    pub fn drop_socket(&self, socket: u64) {
        self.inboxes.lock().unwrap().remove(&socket);
        // A driver that is gone has no sockets either; its end fails the test that needs it, not a destructor.
        drop(self.try_send(self.next_id(), socket, "drop", json!({})));
    }

    fn send(&self, id: u64, socket: u64, op: &str, details: Value) {
        self.try_send(id, socket, op, details).expect("the driver reads its input");
    }

    fn try_send(&self, id: u64, socket: u64, op: &str, mut details: Value) -> std::io::Result<()> {
        details["id"] = json!(id);
        details["op"] = json!(op);
        details["socket"] = json!(socket);
        let mut input = self.input.lock().unwrap();
        writeln!(input, "{details}")
    }

    fn read(&self, output: ChildStdout) {
        for line in BufReader::new(output).lines() {
            let mut line: Value =
                serde_json::from_str(&line.expect("UTF-8")).expect("the driver writes JSON lines");
            if let Some(id) = line["re"].as_u64() {
                // Nobody waits any more when a test gave up or dropped its device.
                if let Some(waiting) = self.waiting.lock().unwrap().remove(&id) {
                    drop(waiting.send(line));
                }
            } else if let Some(inbox) = self.inbox(&line["socket"]) {
                let args = match line["args"].take() {
                    Value::Array(args) => args,
                    _ => Vec::new(),
                };
                inbox.push(Received { name: line["name"].as_str().unwrap_or_default().to_owned(), args });
            }
        }
    }

    fn inbox(&self, socket: &Value) -> Option<Arc<Inbox>> {
        self.inboxes.lock().unwrap().get(&socket.as_u64()?).cloned()
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// The driver's folder, with its packages installed exactly as locked.
pub fn installed_driver() -> PathBuf {
    installed("tests/support/driver")
}

/// A folder with npm packages, installed exactly as locked. Test processes that come at once wait for the first.
pub fn installed(folder: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let lock = File::create(std::env::temp_dir().join("tandem-test-driver.lock")).expect("a lock file");
    lock.lock().expect("the lock comes free when its owner is done");
    // npm writes this file last.
    if !folder.join("node_modules/.package-lock.json").exists() {
        let install = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&folder)
            .output()
            .expect("npm is on the PATH");
        assert!(install.status.success(), "npm ci: {}", String::from_utf8_lossy(&install.stderr));
    }
    folder
}
