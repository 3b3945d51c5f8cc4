//! Several nodes with one Redis and one database, as three containers on one host would be.

use tempfile::TempDir;

use super::{Account, Device, Env, Node, RedisServer};

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub redis: RedisServer,
    folder: TempDir,
    env: Env,
}

impl Cluster {
    /// `count` nodes that share a SQLite file and a Redis.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, &Env::new()).await
    }

    /// The same; what `env` says of `DATABASE_URL` or `REDIS_URL` goes before.
    pub async fn start_with(count: usize, env: &Env) -> Self {
        let redis = RedisServer::start().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let env = env.clone().or_set("REDIS_URL", redis.url());
        let mut cluster = Self { nodes: Vec::new(), redis, folder, env };
        for _ in 0..count {
            cluster.add_node().await;
        }
        cluster
    }

    /// One more node.
    pub async fn add_node(&mut self) {
        self.nodes.push(Node::start_in(self.folder.path(), &self.env).await);
    }

    pub async fn register(&self, name: &str) -> Account {
        self.nodes[0].register(name).await
    }

    /// A device of `account` on node `node`.
    pub async fn connect(&self, node: usize, account: &Account) -> Device {
        Device::connect(&self.nodes[node], account).await
    }
}
