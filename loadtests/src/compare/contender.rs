//! Who is measured, where each is found, and how each is told what it needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    Tandem,
    /// With PostgreSQL instead of SQLite.
    TandemPostgres,
    /// The bare relay.
    Floor,
    /// The replaced Node.js server, in a cluster with the classic Redis adapter.
    NodeSeed,
    /// The same with the sharded adapter.
    NodeSeedSharded,
    /// The same with acks that wait for the disk.
    NodeSeedFull,
}

/// Where the contenders are and their data goes.
pub struct Places {
    tandem: PathBuf,
    floor: PathBuf,
    node_seed: PathBuf,
    pub data: PathBuf,
}

/// What one node of a contender needs to know.
pub struct NodeSettings<'a> {
    pub port: u16,
    /// Shared by the nodes of a cluster.
    pub folder: &'a Path,
    pub redis_port: Option<u16>,
    /// Where a store of its own is needed.
    pub postgres: Option<&'a str>,
}

/// Long enough for every server's check; the same on all nodes.
const SECRET: &str = "only-for-load-tests-on-loopback-000000000000000000";
/// The cheapest there is: registering is not what is measured.
const BCRYPT_COST: &str = "4";

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tandem => "tandem",
            Self::TandemPostgres => "tandem-postgres",
            Self::Floor => "floor",
            Self::NodeSeed => "node-seed",
            Self::NodeSeedSharded => "node-seed-sharded",
            Self::NodeSeedFull => "node-seed-full",
        }
    }

    pub fn ready_path(self) -> &'static str {
        match self {
            Self::Tandem | Self::TandemPostgres => "/api/health/ready",
            _ => "/api/health",
        }
    }
}

impl Places {
    /// # Errors
    /// Only when this program cannot say where it is itself.
    pub fn find(tandem: Option<PathBuf>, peers: PathBuf, data: Option<PathBuf>) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find this program's own folder")?;
        let beside = |name: &str| own.with_file_name(name);
        let tandem = tandem
            .or_else(|| Some(beside("tandem")).filter(|path| path.exists()))
            .unwrap_or_else(|| PathBuf::from("../target/release/tandem"));
        // Nodes are started in a folder of their own, so every path must hold from anywhere.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Ok(Self {
            tandem: absolute(tandem),
            floor: beside("tandem-floor"),
            node_seed: absolute(peers.join("node-seed")),
            data: absolute(data.unwrap_or_else(std::env::temp_dir)),
        })
    }

    /// Why a contender cannot be started.
    pub fn missing(&self, contender: Contender) -> Option<String> {
        let (needed, remedy) = match contender {
            Contender::Tandem | Contender::TandemPostgres => (self.tandem.clone(), "cargo build --release"),
            Contender::Floor => (self.floor.clone(), "cargo build --release -p loadtests"),
            Contender::NodeSeed | Contender::NodeSeedSharded | Contender::NodeSeedFull => {
                (self.node_seed.join("node_modules"), "npm ci there")
            }
        };
        (!needed.exists()).then(|| format!("{} does not exist ({remedy})", needed.display()))
    }

    /// The command that starts one node.
    pub fn command(&self, contender: Contender, node: &NodeSettings<'_>) -> Command {
        let redis_url = node.redis_port.map(|port| format!("redis://127.0.0.1:{port}"));
        let mut command = match contender {
            Contender::Tandem | Contender::TandemPostgres => {
                let sqlite = format!("sqlite://{}", node.folder.join("tandem.db").display());
                let mut command = Command::new(&self.tandem);
                command
                    .env("DATABASE_URL", node.postgres.map_or(sqlite, str::to_owned))
                    .env("LIMIT_EVENTS_PER_SECOND", "0")
                    .env("LIMIT_LOGINS_PER_EMAIL", "0")
                    .env("LIMIT_AUTH_PER_ADDRESS", "0")
                    .env("LIMIT_SOCKETS_PER_USER", "1000")
                    .env("LOG", "warn");
                command
            }
            Contender::Floor => Command::new(&self.floor),
            Contender::NodeSeed | Contender::NodeSeedSharded | Contender::NodeSeedFull => {
                let synchronous = if contender == Contender::NodeSeedFull { "FULL" } else { "NORMAL" };
                let adapter = if contender == Contender::NodeSeedSharded { "sharded" } else { "classic" };
                let mut command = Command::new("node");
                command
                    .arg(self.node_seed.join("server.js"))
                    .env("DATABASE", node.folder.join("node-seed.db"))
                    .env("NODE_ENV", "production")
                    .env("SYNCHRONOUS", synchronous)
                    .env("ADAPTER", adapter);
                command
            }
        };
        command
            .env("PORT", node.port.to_string())
            .env("HOST", "127.0.0.1")
            .env("JWT_SECRET", SECRET)
            .env("BCRYPT_COST", BCRYPT_COST)
            .env_remove("REDIS_URL")
            .env_remove("REDIS_PORT")
            .current_dir(node.folder);
        match (contender, redis_url, node.redis_port) {
            (Contender::Floor, _, Some(port)) => command.env("REDIS_PORT", port.to_string()),
            (_, Some(url), _) => command.env("REDIS_URL", url),
            _ => &mut command,
        };
        command
    }
}
