//! `tandem-load run`: a scenario against servers that run already, once for each rate and number of sockets asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::target::Target;
use crate::measure::process;
use crate::measure::result::RunResult;
use crate::measure::watch::{Watched, WatchedRedis};
use crate::progress::Progress;
use crate::scenario::plan::{Placement, Plan, Scenario};
use crate::scenario::{self, Server};
use crate::{report, table};

#[derive(clap::Args)]
pub struct Args {
    pub scenario: Scenario,
    /// A node's address, such as http://127.0.0.1:3001; once for each node.
    #[arg(long = "url", required = true)]
    urls: Vec<String>,
    /// Events a second; several, separated by commas, are run one after another.
    #[arg(long, value_delimiter = ',')]
    rate: Vec<u32>,
    /// Sockets in all; several, separated by commas, are run one after another.
    #[arg(long, value_delimiter = ',')]
    sockets: Vec<usize>,
    /// Devices of each user.
    #[arg(long)]
    devices: Option<usize>,
    /// Where the devices of one user connect, on several nodes.
    #[arg(long, default_value = "spread")]
    placement: Placement,
    #[command(flatten)]
    amount: Amount,
    /// A server's process, where the one that listens on its port is not all of it; repeatable.
    #[arg(long = "pid")]
    pids: Vec<u32>,
    /// The Redis that the nodes use, as 127.0.0.1:6379: its traffic and processor time are read.
    #[arg(long)]
    redis: Option<SocketAddr>,
    /// What to call the server in the result.
    #[arg(long, default_value = "server")]
    name: String,
    #[command(flatten)]
    output: Output,
}

/// How much, for `run` and `compare` alike.
#[derive(clap::Args)]
pub struct Amount {
    /// Measured seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Seconds of the same load before them.
    #[arg(long)]
    warmup: Option<u64>,
    /// Filling of each event, in bytes.
    #[arg(long)]
    payload: Option<usize>,
    /// State of each user before the first device connects, in bytes.
    #[arg(long)]
    state: Option<usize>,
    /// Connections under way at once.
    #[arg(long)]
    at_a_time: Option<usize>,
    /// How many devices a storm cuts off.
    #[arg(long)]
    cut: Option<usize>,
}

impl Amount {
    pub fn apply(&self, plan: &mut Plan) {
        plan.measured = self.seconds.map_or(plan.measured, Duration::from_secs);
        plan.warmup = self.warmup.map_or(plan.warmup, Duration::from_secs);
        plan.payload_bytes = self.payload.unwrap_or(plan.payload_bytes);
        plan.state_bytes = self.state.unwrap_or(plan.state_bytes);
        plan.at_a_time = self.at_a_time.unwrap_or(plan.at_a_time);
        plan.cut = self.cut.unwrap_or(plan.cut);
    }
}

/// Where the result goes, beside the terminal.
#[derive(clap::Args)]
pub struct Output {
    /// Write the result here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the report here.
    #[arg(long)]
    html: Option<PathBuf>,
}

impl Output {
    pub fn write(&self, result: &RunResult) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            result.save(path)?;
        }
        if let Some(path) = &self.html {
            report::write(result, path)?;
        }
        Ok(())
    }
}

pub fn execute(args: &Args, stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let target = Target::parse(&args.urls)?;
    let server = Server { watched: watched(args, &target)?, target };
    let plans = plans(args);
    plans.iter().try_for_each(Plan::check)?;
    let mut result = RunResult::begin();
    let mut progress = Progress::new();
    for plan in &plans {
        progress.head(format!("{} {} sockets", plan.scenario.name(), plan.sockets()));
        let mut sample = scenario::run(plan, &server, stop, &mut progress)?;
        sample.contender.clone_from(&args.name);
        progress.clear();
        result.samples.push(sample);
    }
    table::print(&result.samples);
    args.output.write(&result)
}

/// One for each number of sockets and rate.
fn plans(args: &Args) -> Vec<Plan> {
    let mut usual = Plan { placement: args.placement, ..Plan::usual(args.scenario) };
    if let Some(devices) = args.devices {
        let sockets = usual.sockets();
        usual.devices_per_user = devices.max(1);
        usual = usual.with_sockets(sockets);
    }
    let sockets = if args.sockets.is_empty() { vec![usual.sockets()] } else { args.sockets.clone() };
    let rates = if args.rate.is_empty() { vec![usual.events_per_second] } else { args.rate.clone() };
    let of_sockets = |sockets: &usize| {
        let sized = usual.clone().with_sockets(*sockets);
        rates.iter().map(move |rate| Plan { events_per_second: *rate, ..sized.clone() }).collect::<Vec<_>>()
    };
    let mut plans: Vec<Plan> = sockets.iter().flat_map(of_sockets).collect();
    plans.iter_mut().for_each(|plan| args.amount.apply(plan));
    plans
}

/// The server's processes: as named, or those that listen on its ports.
fn watched(args: &Args, target: &Target) -> anyhow::Result<Watched> {
    let mut nodes = args.pids.clone();
    if nodes.is_empty() {
        nodes = target.nodes.iter().filter_map(|address| process::listening_on(address.port())).collect();
        nodes.dedup();
    }
    let redis = args.redis.map(|address| {
        ensure!(address.ip().is_loopback(), "{address}: not loopback");
        let pid =
            process::listening_on(address.port()).with_context(|| format!("nobody listens on {address}"))?;
        Ok(WatchedRedis { pid, address })
    });
    Ok(Watched { nodes, redis: redis.transpose()? })
}
