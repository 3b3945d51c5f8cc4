//! Several nodes with one Redis and one database, as three containers on one host would be.

use tempfile::TempDir;

use super::{Account, ChaosProxy, Device, Env, Node, RedisServer, Rest};

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub redis: RedisServer,
    /// The way of each node to Redis, where the cluster was started with such ways.
    pub links: Vec<ChaosProxy>,
    folder: TempDir,
    env: Env,
    has_links: bool,
}

impl Cluster {
    /// `count` nodes that share a SQLite file and a Redis.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, &Env::new()).await
    }

    /// The same; what `env` says of `DATABASE_URL` or `REDIS_URL` goes before.
    pub async fn start_with(count: usize, env: &Env) -> Self {
        Self::build(count, env, false).await
    }

    /// The same, each node with a proxy of its own between it and Redis.
    pub async fn start_with_links(count: usize, env: &Env) -> Self {
        Self::build(count, env, true).await
    }

    async fn build(count: usize, env: &Env, has_links: bool) -> Self {
        let redis = RedisServer::start().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let env = env.clone().or_set("REDIS_URL", redis.url());
        let (nodes, links) = (Vec::new(), Vec::new());
        let mut cluster = Self { nodes, redis, links, folder, env, has_links };
        for _ in 0..count {
            cluster.add_node().await;
        }
        cluster
    }

    /// One more node.
    pub async fn add_node(&mut self) {
        self.add_node_with(|env| env).await;
    }

    /// One more node, started with what `change` makes of the others' environment.
    pub async fn add_node_with(&mut self, change: impl FnOnce(Env) -> Env) {
        let mut env = change(self.env.clone()).or_set("NODE_ID", format!("node-{}", self.nodes.len()));
        if self.has_links {
            let link = ChaosProxy::start_before_redis(&self.redis.address()).await;
            env = env.set("REDIS_URL", format!("redis://{}", link.address()));
            self.links.push(link);
        }
        self.nodes.push(Node::start_in(self.folder.path(), &env).await);
    }

    pub async fn register(&self, name: &str) -> Account {
        self.nodes[0].register(name).await
    }

    /// A device of `account` on node `node`.
    pub async fn connect(&self, node: usize, account: &Account) -> Device {
        Device::connect(&self.nodes[node], account).await
    }

    /// The same with a name of its own, so that nobody else is taken for it.
    pub async fn named(&self, node: usize, account: &Account, name: &str) -> Device {
        Device::named(&self.nodes[node], account, name).await
    }

    /// REST of node `node` in the name of `account`.
    pub fn rest_of(&self, node: usize, account: &Account) -> Rest {
        self.nodes[node].rest_of(account)
    }

    /// What each node says of how it is: `ok`, `degraded`, ...
    pub async fn statuses(&self) -> Vec<String> {
        let mut statuses = Vec::new();
        for node in &self.nodes {
            let health = node.rest().get("/api/health").await.body;
            statuses.push(health["status"].as_str().unwrap_or_default().to_owned());
        }
        statuses
    }

    /// Waits until every node says `status` of itself, for ten seconds at most.
    pub async fn all_say(&self, status: &str) {
        super::eventually(format!("every node says {status}"), || async {
            let statuses = self.statuses().await;
            statuses.iter().all(|said| said == status).then_some(())
        })
        .await;
    }
}
