//! Starts a contender's nodes, and a Redis between them, on free ports in a temporary folder; ends and
//! removes all of it when dropped.

use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use super::contender::{Contender, NodeSettings, Places};
use crate::client::target::Target;
use crate::launch::{self, Process, postgres};
use crate::measure::watch::{Watched, WatchedRedis};
use crate::scenario::Server;

const READY_WITHIN: Duration = Duration::from_secs(20);
/// Lines of each node's log that are shown when a run fails.
const LAST_LINES: usize = 15;

/// A contender that runs. The processes end before their folder goes.
pub struct Running {
    nodes: Vec<Process>,
    redis: Option<Process>,
    _postgres: Option<Process>,
    _folder: TempDir,
}

/// How many nodes, and whether Redis is between them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub nodes: usize,
    pub clustered: bool,
}

/// Starts the nodes, one after another (the first makes the database), and waits until all are ready.
pub fn start(contender: Contender, layout: Layout, places: &Places) -> anyhow::Result<Running> {
    let folder = tempfile::Builder::new()
        .prefix("tandem-load-")
        .tempdir_in(&places.data)
        .context("cannot make a data folder")?;
    let mut running = Running { nodes: Vec::new(), redis: None, _postgres: None, _folder: folder };
    let folder = running._folder.path().to_owned();
    if layout.clustered {
        running.redis = Some(launch::start_redis(&folder, READY_WITHIN)?);
    }
    let redis_port = running.redis.as_ref().map(|redis| redis.address.port());
    let mut postgres = None;
    if contender == Contender::TandemPostgres {
        let (url, server) = postgres::start(&folder, READY_WITHIN)?;
        postgres = Some(url);
        running._postgres = Some(server);
    }
    for nth in 1..=layout.nodes {
        let port = launch::free_port()?;
        let settings = NodeSettings { port, folder: &folder, redis_port, postgres: postgres.as_deref() };
        let log = folder.join(format!("{}-{nth}.log", contender.name()));
        let mut process = Process::start(places.command(contender, &settings), port, log)?;
        process.wait_until(READY_WITHIN, |address| launch::is_ready(address, contender.ready_path()))?;
        running.nodes.push(process);
    }
    Ok(running)
}

impl Running {
    pub fn server(&self) -> anyhow::Result<Server> {
        let urls: Vec<String> = self.nodes.iter().map(|node| format!("http://{}", node.address)).collect();
        let nodes = self.nodes.iter().map(|node| node.id()).collect();
        let redis = self.redis.as_ref().map(|redis| WatchedRedis { pid: redis.id(), address: redis.address });
        Ok(Server { target: Target::parse(&urls)?, watched: Watched { nodes, redis } })
    }

    /// The end of every node's log.
    pub fn last_words(&self) -> String {
        self.nodes.iter().map(|node| node.last_words(LAST_LINES)).collect()
    }
}
