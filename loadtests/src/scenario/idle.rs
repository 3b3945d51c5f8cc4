//! What connected devices cost that do nothing: memory a socket, and processor time for their pings.

use std::time::Duration;

use anyhow::ensure;

use crate::client::swarm::Swarm;
use crate::measure::result::Sample;
use crate::measure::watch::Watched;
use crate::progress::Progress;

use super::gather::gather;
use super::plan::Plan;
use super::rest;

/// After the last connection: announcements are delivered, freed memory is given back.
const SETTLE: Duration = Duration::from_secs(3);

pub fn run(
    plan: &Plan,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    ensure!(!watched.nodes.is_empty(), "idle reads the server's memory: its process must be known (--pid)");
    let before = watched.memory()?;
    gather(swarm, plan.at_a_time, progress)?;
    let mut lost = rest(swarm, SETTLE, progress)?;
    let start = watched.read()?;
    lost += rest(swarm, plan.measured, progress)?;
    let spent = start.until(&watched.read()?);
    let after = watched.memory()?;

    let sockets = plan.sockets() as f64;
    let grown = |after: u64, before: u64| (after as f64 - before as f64) / sockets;
    sample.set("sockets", sockets);
    sample.set("sockets_lost", lost as f64);
    sample.set("rss_kib_before", before.rss_kib as f64);
    sample.set("rss_kib", after.rss_kib as f64);
    sample.set("pss_kib", after.pss_kib as f64);
    sample.set("rss_kib_per_socket", grown(after.rss_kib, before.rss_kib));
    sample.set("pss_kib_per_socket", grown(after.pss_kib, before.pss_kib));
    sample.set("idle_core_percent", 100.0 * spent.nodes.as_secs_f64() / spent.elapsed.as_secs_f64());
    sample.set_cores(&spent);
    Ok(sample)
}
