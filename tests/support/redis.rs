//! A real redis-server with nothing on disk, which a test may stop, freeze, kill and bring back.

use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::port::free_port;
use super::{Process, within};

/// How often a start tries another port when somebody was quicker.
const PORT_ATTEMPTS: u32 = 20;

pub struct RedisServer {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            if let Ok(process) = serve(port, &folder).await {
                return Self { process, port, folder };
            }
        }
        panic!("redis-server found no port");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`, for a proxy in front of it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Freezes it: connections stay open and nothing is answered.
    pub fn stop(&self) {
        self.process.freeze();
    }

    pub fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, empty, on the same port.
    pub async fn restart(&mut self) {
        self.process.kill();
        for _ in 1..PORT_ATTEMPTS {
            if let Ok(process) = serve(self.port, &self.folder).await {
                self.process = process;
                return;
            }
        }
        panic!("redis-server did not come back on port {}", self.port);
    }

    /// What `redis-cli` prints for a command.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli is installed");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

async fn serve(port: u16, folder: &TempDir) -> Result<Process, String> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(folder.path());
    let process = Process::spawn("redis-server", &mut command);
    within(process.line(|line| line.contains("Ready to accept connections").then_some(()))).await?;
    Ok(process)
}
