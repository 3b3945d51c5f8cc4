//! Watches the processes of one server: a reading at each end of a measured time, the difference between them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::machine;
use super::process::{self, Memory};
use super::redis::{self, Counters};

/// What belongs to the server.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// One process a node.
    pub nodes: Vec<u32>,
    pub redis: Option<WatchedRedis>,
}

#[derive(Clone, Copy, Debug)]
pub struct WatchedRedis {
    pub pid: u32,
    pub address: SocketAddr,
}

/// All counters at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    nodes: Duration,
    redis: Duration,
    generator: Duration,
    machine: Duration,
    traffic: Counters,
}

/// What was spent between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    pub elapsed: Duration,
    pub nodes: Duration,
    pub redis: Duration,
    pub generator: Duration,
    /// By everything else on the machine; when it is large the figures say little.
    pub others: Duration,
    pub redis_input_bytes: u64,
    pub redis_output_bytes: u64,
    pub redis_commands: u64,
}

impl Watched {
    pub fn read(&self) -> anyhow::Result<Reading> {
        let nodes = self.nodes.iter().map(|pid| process::cpu_time(*pid)).sum::<anyhow::Result<Duration>>()?;
        let (redis, traffic) = match self.redis {
            Some(redis) => (process::cpu_time(redis.pid)?, redis::counters(redis.address)?),
            None => Default::default(),
        };
        Ok(Reading {
            at: Instant::now(),
            nodes,
            redis,
            generator: process::cpu_time(std::process::id())?,
            machine: machine::busy_time(),
            traffic,
        })
    }

    /// Memory of the nodes, without Redis.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        self.nodes.iter().try_fold(Memory::default(), |sum, pid| {
            let memory = process::memory(*pid)?;
            Ok(Memory { rss_kib: sum.rss_kib + memory.rss_kib, pss_kib: sum.pss_kib + memory.pss_kib })
        })
    }
}

impl Reading {
    pub fn until(&self, later: &Self) -> Spent {
        let (nodes, redis) = (later.nodes - self.nodes, later.redis - self.redis);
        let generator = later.generator - self.generator;
        Spent {
            elapsed: later.at - self.at,
            nodes,
            redis,
            generator,
            others: (later.machine - self.machine).saturating_sub(nodes + redis + generator),
            redis_input_bytes: later.traffic.input_bytes - self.traffic.input_bytes,
            redis_output_bytes: later.traffic.output_bytes - self.traffic.output_bytes,
            redis_commands: later.traffic.commands - self.traffic.commands,
        }
    }
}
