//! Connects devices, a fixed number at a time: each that is restored lets the next one begin.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::client::swarm::{Swarm, What};
use crate::measure::latency::Latencies;
use crate::progress::Progress;

/// For all devices together; a server that needs longer than this for a device does not work.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_PER_DEVICE: Duration = Duration::from_millis(20);

pub struct Gathered {
    /// From each device's dial to its `session-restored`.
    pub latencies: Latencies,
    pub elapsed: Duration,
    /// Attempts that failed and were made again.
    pub failures: usize,
}

/// Connects every device of the swarm.
///
/// # Errors
/// When the time is over, or more attempts fail than there are devices; with the reasons.
pub fn gather(swarm: &mut Swarm, at_a_time: usize, progress: &mut Progress) -> anyhow::Result<Gathered> {
    let count = swarm.devices.len();
    let began = Instant::now();
    let deadline = began + PATIENCE + PATIENCE_PER_DEVICE * u32::try_from(count).unwrap_or(u32::MAX);
    let mut waiting: VecDeque<usize> = (0..count).collect();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut gathered = Gathered { latencies: Latencies::new(), elapsed: Duration::ZERO, failures: 0 };
    let (mut under_way, mut live) = (0, 0);
    while live < count {
        while under_way < at_a_time
            && let Some(device) = waiting.pop_front()
        {
            swarm.open(device)?;
            under_way += 1;
        }
        swarm.turn(deadline)?;
        for happening in std::mem::take(&mut swarm.happened) {
            match happening.what {
                What::Restored => {
                    gathered.latencies.record(happening.at - swarm.devices[happening.device].began);
                    live += 1;
                    under_way -= 1;
                }
                What::Closed { was_live, why } => {
                    gathered.failures += 1;
                    *reasons.entry(why).or_default() += 1;
                    waiting.push_back(happening.device);
                    if was_live { live -= 1 } else { under_way -= 1 }
                }
                _ => {}
            }
        }
        if gathered.failures > count || Instant::now() > deadline {
            bail!("only {live} of {count} devices connected in {:?}; failures: {reasons:?}", began.elapsed());
        }
        progress.show(|| format!("{live} of {count} devices connected"));
    }
    gathered.elapsed = began.elapsed();
    Ok(gathered)
}
