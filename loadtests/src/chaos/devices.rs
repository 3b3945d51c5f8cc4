//! The stock clients, in a Node.js process of their own: what they say while they run, and what they are told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

const READY_WITHIN: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(180);

/// A second of the run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Sample {
    pub second: f64,
    pub acks: u64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub online: u64,
}

/// How it ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Settled {
    pub converged: bool,
    pub ms: u64,
    #[serde(default)]
    pub differs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Sample(Sample),
    Settled(Settled),
    Ready {
        #[serde(rename = "ready")]
        _ready: u64,
    },
    Trouble {
        trouble: String,
        #[serde(default)]
        fatal: bool,
    },
}

pub struct Devices {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    samples: Vec<Sample>,
    troubles: Vec<String>,
}

impl Devices {
    pub fn start(
        clients: &Path,
        url: &str,
        seconds: f64,
        seed: u64,
        (users, devices): (u32, u32),
        history: &Path,
    ) -> anyhow::Result<Self> {
        ensure!(
            clients.join("node_modules/socket.io-client").exists(),
            "the stock client is missing: npm ci --prefix {}",
            clients.display()
        );
        let mut child = Command::new("node")
            .arg(clients.join("devices.js"))
            .args([url, &seconds.to_string(), &seed.to_string(), &users.to_string(), &devices.to_string()])
            .arg(history)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start node")?;
        let input = child.stdin.take().context("the devices have no input")?;
        let output = child.stdout.take().context("the devices have no output")?;
        let (say, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, lines, samples: Vec::new(), troubles: Vec::new() })
    }

    /// Waits until every device is connected.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        while !matches!(self.next(READY_WITHIN)?, Line::Ready { .. }) {}
        Ok(())
    }

    /// Takes what was said meanwhile.
    pub fn look(&mut self) -> anyhow::Result<()> {
        while let Ok(line) = self.lines.try_recv() {
            self.take(&line)?;
        }
        Ok(())
    }

    /// Breaks every client's connection at once.
    pub fn storm(&mut self) -> anyhow::Result<()> {
        Ok(writeln!(self.input, "storm")?)
    }

    /// Ends the writing and waits until all is quiet, or for long enough.
    pub fn settle(&mut self) -> anyhow::Result<Settled> {
        writeln!(self.input, "settle")?;
        loop {
            if let Line::Settled(settled) = self.next(SETTLED_WITHIN)? {
                return Ok(settled);
            }
        }
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    pub fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// Acknowledged in the last second, and online.
    pub fn latest(&self) -> (u64, u64) {
        self.samples.last().map_or((0, 0), |sample| (sample.acks, sample.online))
    }

    /// The median over the seconds in which there was something.
    pub fn median(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.samples.iter().filter_map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn next(&mut self, within: Duration) -> anyhow::Result<Line> {
        match self.lines.recv_timeout(within) {
            Ok(line) => self.take(&line),
            Err(RecvTimeoutError::Timeout) => bail!("the devices say nothing for {within:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the devices ended: {}", self.troubles.join("; ")),
        }
    }

    fn take(&mut self, line: &str) -> anyhow::Result<Line> {
        let line: Line = serde_json::from_str(line).with_context(|| format!("the devices said {line}"))?;
        match &line {
            Line::Sample(sample) => self.samples.push(*sample),
            Line::Trouble { trouble, fatal } => {
                self.troubles.push(trouble.clone());
                ensure!(!fatal, "the devices gave up: {trouble}");
            }
            _ => {}
        }
        Ok(line)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
