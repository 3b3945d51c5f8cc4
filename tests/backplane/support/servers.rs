//! Redis in its forms, each ended with its test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::until;

/// A folder that goes with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tandem-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Below 45,000, because a cluster node's second port is 10,000 higher by default.
pub fn free_port() -> u16 {
    loop {
        let port = rand_port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok()
        {
            return port;
        }
    }
}

fn rand_port() -> u16 {
    let bits = uuid::Uuid::new_v4().as_u128();
    20_000 + u16::try_from(bits % 12_000).unwrap()
}

pub struct RedisServer {
    child: Child,
    pub port: u16,
    folder: Folder,
    args: Vec<String>,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_on(free_port(), args).await
    }

    pub async fn start_on(port: u16, args: &[&str]) -> Self {
        let folder = Folder::new();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(port, &folder.0, &args);
        let server = Self { child, port, folder, args };
        server.answering().await;
        server
    }

    async fn answering(&self) {
        // Something that speaks: with a password set, "NOAUTH" is an answer too.
        let port = self.port;
        until(|| async move { std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn cli(&self, args: &[&str]) -> String {
        cli(self.port, args)
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn restart(&mut self) {
        self.child = spawn(self.port, &self.folder.0, &self.args);
        self.answering().await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, folder: &Path, args: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

pub fn cli(port: u16, args: &[&str]) -> String {
    let out = Command::new("redis-cli").args(["-p", &port.to_string()]).args(args).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Three masters, three replicas.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            let port = free_port();
            let args = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--repl-diskless-sync-delay",
                "0",
            ];
            nodes.push(RedisServer::start_on(port, &args).await);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes };
        let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
        until(|| {
            let ready =
                ports.iter().all(|port| cli(*port, &["cluster", "info"]).contains("cluster_state:ok"));
            let replicas = cli(ports[0], &["cluster", "nodes"]).matches("slave").count();
            async move { ready && replicas == 3 }
        })
        .await;
        cluster
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}", self.nodes[0].port, self.nodes[1].port)
    }

    /// The same command to every master.
    pub fn cli_all(&self, args: &[&str]) {
        for node in &self.nodes {
            node.cli(args);
        }
    }

    /// The server that serves the channel's slot.
    pub fn owner_of(&self, channel: &str) -> usize {
        let slot: u32 = self.nodes[0].cli(&["cluster", "keyslot", channel]).parse().unwrap();
        let slots = self.nodes[0].cli(&["cluster", "nodes"]);
        let line = slots
            .lines()
            .find(|line| line.contains("master") && !line.contains("fail") && serves(line, slot))
            .unwrap_or_else(|| panic!("nobody serves {slot}: {slots}"));
        let address = line.split_whitespace().nth(1).unwrap();
        let port: u16 = address.split(['@']).next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        self.nodes.iter().position(|node| node.port == port).unwrap()
    }

    pub fn id_of(&self, node: usize) -> String {
        self.nodes[node].cli(&["cluster", "myid"])
    }
}

fn serves(line: &str, slot: u32) -> bool {
    line.split_whitespace().skip(8).filter(|range| !range.starts_with('[')).any(|range| {
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        (start.parse().unwrap()..=end.parse().unwrap()).contains(&slot)
    })
}

/// A master, a replica and three sentinels.
pub struct Sentinels {
    pub master: RedisServer,
    pub replica: RedisServer,
    sentinels: Vec<(Child, Folder, u16)>,
}

impl Sentinels {
    pub async fn start() -> Self {
        let master = RedisServer::start().await;
        let replicaof = format!("127.0.0.1 {}", master.port);
        let replica =
            RedisServer::start_with(&["--replicaof", &replicaof, "--repl-diskless-sync-delay", "0"]).await;
        until(|| {
            let online = master.cli(&["info", "replication"]).contains("state=online");
            async move { online }
        })
        .await;
        let sentinels = (0..3).map(|_| sentinel(master.port)).collect::<Vec<_>>();
        let watching = Self { master, replica, sentinels };
        for (_, _, port) in &watching.sentinels {
            until(|| {
                let others = cli(*port, &["sentinel", "sentinels", "main"]).matches("runid").count();
                let replicas = cli(*port, &["sentinel", "replicas", "main"]).matches("runid").count();
                async move { others == 2 && replicas == 1 }
            })
            .await;
        }
        watching
    }

    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.sentinels.iter().map(|(_, _, port)| *port).collect();
        format!(
            "redis-sentinel://127.0.0.1:{}?node=127.0.0.1:{}&node=127.0.0.1:{}&sentinelServiceName=main",
            ports[0], ports[1], ports[2]
        )
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (child, _, _) in &mut self.sentinels {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn sentinel(master: u16) -> (Child, Folder, u16) {
    let (folder, port) = (Folder::new(), free_port());
    let config = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    );
    let path = folder.0.join("sentinel.conf");
    std::fs::write(&path, config).unwrap();
    let child = Command::new("redis-server")
        .arg(&path)
        .arg("--sentinel")
        .current_dir(&folder.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, folder, port)
}

/// A certificate for 127.0.0.1, made with openssl.
pub struct TlsFiles {
    folder: PathBuf,
    _own: Option<Folder>,
}

impl TlsFiles {
    pub fn make() -> Self {
        let folder = Folder::new();
        let ok = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"])
            .args([
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .current_dir(&folder.0)
            .output()
            .unwrap();
        assert!(ok.status.success(), "{}", String::from_utf8_lossy(&ok.stderr));
        Self { folder: folder.0.clone(), _own: Some(folder) }
    }

    /// Those that the process was started with.
    pub fn from_environment() -> Self {
        let folder = std::env::var_os("TANDEM_TLS_FOLDER").expect("set by who started us");
        Self { folder: folder.into(), _own: None }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }
}
