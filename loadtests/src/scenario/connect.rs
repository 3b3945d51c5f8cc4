//! How fast devices connect, a fixed number at a time, device records durable where the server has any.

use crate::client::swarm::Swarm;
use crate::measure::result::Sample;
use crate::measure::watch::Watched;
use crate::progress::Progress;

use super::gather::gather;
use super::plan::Plan;

pub fn run(
    plan: &Plan,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    let before = watched.read()?;
    let gathered = gather(swarm, plan.at_a_time, progress)?;
    let spent = before.until(&watched.read()?);
    let connected = gathered.latencies.count() as f64;
    sample.set("sockets", plan.sockets() as f64);
    sample.set("connects_per_second", connected / gathered.elapsed.as_secs_f64());
    sample.set("connect_failures", gathered.failures as f64);
    if !watched.nodes.is_empty() {
        sample.set("cpu_us_per_connect", (spent.nodes + spent.redis).as_secs_f64() * 1e6 / connected);
    }
    sample.set_latencies("connect", &gathered.latencies);
    sample.set_cores(&spent);
    Ok(sample)
}
