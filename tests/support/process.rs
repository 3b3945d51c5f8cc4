//! One child process: its output by line, its end, its signals. Dropping it kills it, and only it, and waits.
//!
//! The end is noticed without polling: when a child ends its outputs close.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

/// Lines of output kept for failure messages; a test that looks for a line looks as they come.
const LINES_KEPT: usize = 4_000;

pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Output>,
}

/// How a child ended: its code, or none when a signal ended it, and all that it wrote (of the last 4,000 lines).
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub output: String,
}

#[derive(Default)]
struct Output {
    lines: Mutex<VecDeque<String>>,
    news: watch::Sender<News>,
}

#[derive(Default, Clone, Copy)]
struct News {
    lines: u64,
    pipes_closed: u8,
}

impl News {
    fn ended(self) -> bool {
        self.pipes_closed == 2
    }
}

impl Process {
    /// Starts `command` with both outputs captured and nothing to read.
    pub fn spawn(name: impl Into<String>, command: &mut Command) -> Self {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let output = Arc::new(Output::default());
        output.clone().follow(child.stdout.take().expect("piped above"));
        output.clone().follow(child.stderr.take().expect("piped above"));
        Self { name, child, status: None, output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it was waited for, so that its id may be somebody else's by now.
    pub fn is_reaped(&self) -> bool {
        self.status.is_some()
    }

    /// The first line so far or to come for which `find` has an answer; `Err` with the output if the child ends
    /// before.
    pub async fn line<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Result<T, String> {
        let mut news = self.output.news.subscribe();
        loop {
            let ended = news.borrow_and_update().ended();
            if let Some(found) = self.output.lines.lock().unwrap().iter().find_map(|line| find(line)) {
                return Ok(found);
            }
            if ended || news.changed().await.is_err() {
                return Err(format!("{} ended; its output:\n{}", self.name, self.tail(40)));
            }
        }
    }

    /// The last `count` lines that it wrote.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.output.lines.lock().unwrap();
        let skipped = lines.len().saturating_sub(count);
        lines.iter().skip(skipped).cloned().collect::<Vec<_>>().join("\n")
    }

    /// Sends a signal, unless the child has been waited for (its id may be somebody else's by then).
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// Stops it in its tracks until SIGCONT. Each of its threads goes on until it has heard of it, so they are waited
    /// for.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.id());
        let asked = Instant::now();
        while self.status.is_none() && !all_stopped(Path::new(&threads)) {
            assert!(asked.elapsed() < Duration::from_secs(10), "{} does not stop", self.name);
            thread::yield_now();
        }
    }

    /// Waits until it has ended by itself; the caller bounds the wait.
    pub async fn exit(&mut self) -> Exit {
        let mut news = self.output.news.subscribe();
        while !news.borrow_and_update().ended() {
            news.changed().await.expect("the sender is ours");
        }
        let status = self.reap();
        Exit { code: status.code(), output: self.tail(LINES_KEPT) }
    }

    /// Ends it at once, as `kill -9` does, and waits for it.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It may have ended already; the wait below tells.
            drop(self.child.kill());
            self.reap();
        }
    }

    /// Blocks until it has ended: from a destructor that sent a signal.
    pub fn wait_ended(&mut self) {
        if self.status.is_none() {
            self.reap();
        }
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("our own child can be waited for");
        *self.status.insert(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- the last lines of {}:\n{}", self.name, self.tail(40));
        }
    }
}

impl Output {
    /// Collects lines on a thread of its own, so that a child never blocks on a full pipe, whatever the test's
    /// runtime does.
    fn follow(self: Arc<Self>, pipe: impl Read + Send + 'static) {
        thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                self.add(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
            self.news.send_modify(|news| news.pipes_closed += 1);
        });
    }

    fn add(&self, line: String) {
        let mut lines = self.lines.lock().unwrap();
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
        drop(lines);
        self.news.send_modify(|news| news.lines += 1);
    }
}

/// Whether every thread in this folder of /proc is stopped; one that ends meanwhile is.
fn all_stopped(threads: &Path) -> bool {
    let threads = std::fs::read_dir(threads).into_iter().flatten().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok()).all(|stat| {
        // "id (any name) state ..."
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 'Z', 'X']))
    })
}
