//! A real HAProxy with the shipped deploy/haproxy.cfg in front of three nodes.

use std::path::Path;
use std::process::Command;

use super::port::free_port;
use super::{Node, Process, Rest, eventually};

pub struct HaProxy {
    process: Process,
    port: u16,
}

impl HaProxy {
    /// Starts it before exactly three nodes and waits until it passes requests on.
    pub async fn start(nodes: &[Node]) -> Self {
        assert_eq!(nodes.len(), 3, "the shipped file names three");
        let port = free_port();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy.cfg");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(config);
        command.env("TANDEM_BIND", format!("127.0.0.1:{port}"));
        for (number, node) in nodes.iter().enumerate() {
            command.env(format!("NODE_{}", number + 1), node.address());
        }
        let process = Process::spawn("haproxy", &mut command);
        let proxy = Self { process, port };
        let rest = proxy.rest();
        eventually("HAProxy passes requests on", || async {
            let request = rest.request(reqwest::Method::GET, "/api/health/live");
            (Rest::try_status(request).await == Some(200)).then_some(())
        })
        .await;
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn rest(&self) -> Rest {
        Rest::new(self.url())
    }

    /// The last lines that it wrote.
    pub fn log(&self) -> String {
        self.process.tail(100)
    }
}
