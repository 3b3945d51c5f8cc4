//! A reconnect storm: many devices lose their connection at one instant and come back as stock clients do, after
//! 1 s give or take half of it, then after twice that, up to 5 s.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::client::swarm::{Swarm, What};
use crate::measure::latency::Latencies;
use crate::measure::result::Sample;
use crate::measure::watch::Watched;
use crate::progress::Progress;

use super::gather::gather;
use super::plan::Plan;
use super::rest;
use super::schedule::turn_order;

/// socket.io-client's defaults: `reconnectionDelay`, `reconnectionDelayMax`, `randomizationFactor`.
const DELAY: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(5);
const JITTER: f64 = 0.5;
const SETTLE: Duration = Duration::from_secs(2);
/// Twice what RELIABILITY.md allows for the largest storm.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run(
    plan: &Plan,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    gather(swarm, plan.at_a_time, progress)?;
    rest(swarm, SETTLE, progress)?;
    swarm.happened.clear();
    let before = watched.read()?;
    let cut_at = Instant::now();
    let mut due: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut attempts = vec![0u32; swarm.devices.len()];
    let victim = turn_order(swarm.devices.len() as u64);
    for nth in 0..plan.cut as u64 {
        let device = victim(nth) as usize;
        swarm.cut(device);
        due.push(Reverse((cut_at + delay(device, 0), device)));
    }
    let mut back = Latencies::new();
    let mut failures = 0u64;
    let deadline = cut_at + PATIENCE;
    while back.count() < plan.cut as u64 && Instant::now() < deadline {
        while let Some(&Reverse((at, device))) = due.peek()
            && at <= Instant::now()
        {
            due.pop();
            swarm.open(device)?;
        }
        swarm.turn(due.peek().map_or(deadline, |Reverse((at, _))| *at))?;
        for happening in std::mem::take(&mut swarm.happened) {
            match happening.what {
                What::Restored => back.record(happening.at - cut_at),
                What::Closed { .. } => {
                    failures += 1;
                    attempts[happening.device] += 1;
                    let wait = delay(happening.device, attempts[happening.device]);
                    due.push(Reverse((happening.at + wait, happening.device)));
                }
                _ => {}
            }
        }
        progress.show(|| {
            format!(
                "{} of {} devices back after {:.1} s",
                back.count(),
                plan.cut,
                cut_at.elapsed().as_secs_f64()
            )
        });
    }
    let spent = before.until(&watched.read()?);
    sample.set("sockets", plan.sockets() as f64);
    sample.set("sockets_lost", (plan.cut as u64).saturating_sub(back.count()) as f64);
    sample.set("connect_failures", failures as f64);
    if !watched.nodes.is_empty() {
        let connected = back.count().max(1) as f64;
        sample.set("cpu_us_per_connect", (spent.nodes + spent.redis).as_secs_f64() * 1e6 / connected);
    }
    sample.set_latencies("back", &back);
    sample.set_cores(&spent);
    Ok(sample)
}

/// What a stock client waits before its `attempt`th attempt (from 0), jitter fixed by the device, so that two
/// contenders meet the same storm.
fn delay(device: usize, attempt: u32) -> Duration {
    // Weyl's sequence: even over [0, 1) for neighbouring numbers.
    let even = (device as f64 * 0.618_033_988 + f64::from(attempt) * 0.414_213_562).fract();
    DELAY.saturating_mul(1 << attempt.min(8)).min(DELAY_MAX).mul_f64(1.0 + JITTER * (2.0 * even - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_those_of_stock_clients() {
        for device in 0..1_000 {
            assert!((500..=1_500).contains(&delay(device, 0).as_millis()));
            assert!((2_500..=7_500).contains(&delay(device, 60).as_millis()));
        }
        let mean: f64 = (0..1_000).map(|device| delay(device, 0).as_secs_f64()).sum::<f64>() / 1_000.0;
        assert!((0.98..1.02).contains(&mean));
    }
}
