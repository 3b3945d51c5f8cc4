//! The most durable session updates a second: doubles the rate until the server no longer keeps the bound on ack
//! latency, then halves the interval between the last rate that held and the first that did not. A rate fails
//! only if it fails twice: the machine has other things to do as well.

use std::time::Duration;

use anyhow::ensure;

use crate::client::swarm::Swarm;
use crate::measure::result::{Sample, Tried};
use crate::measure::watch::Watched;
use crate::progress::Progress;

use super::gather::gather;
use super::open_loop::{Offer, Outcome, drive};
use super::plan::Plan;
use super::rest;
use super::traffic::Traffic;

const FIRST_RATE: u32 = 500;
/// Past what two cores and one generator can do; ends the search on a machine where nothing fails.
const RATE_MAX: u32 = 50_000;
/// Good to a thirty-second of the rate.
const HALVINGS: u32 = 4;
/// Between two rates, so that one does not pay for the other's backlog.
const REST: Duration = Duration::from_secs(1);

pub fn run(
    plan: &Plan,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    gather(swarm, plan.at_a_time, progress)?;
    sample.set("sockets", plan.sockets() as f64);
    let mut search = Search::from(FIRST_RATE);
    let mut best: Option<(Offer, Outcome)> = None;
    while let Some(events_per_second) = search.next_rate() {
        let offer = Offer {
            traffic: Traffic::Updates,
            events_per_second,
            warmup: plan.warmup.min(Duration::from_secs(1)),
            measured: plan.measured.min(Duration::from_secs(5)),
            payload_bytes: plan.payload_bytes,
            behind_max: Some(2 * plan.p99_max),
        };
        let outcome = drive(offer, swarm, watched, progress)?;
        let held = holds(&outcome, plan.p99_max);
        sample.tried.push(Tried {
            events_per_second,
            ack_p50_us: outcome.ack.us_at(0.5),
            ack_p99_us: outcome.ack.us_at(0.99),
            held,
        });
        search.tell(held);
        ensure!(outcome.sockets_lost == 0, "{} sockets lost at {events_per_second}/s", outcome.sockets_lost);
        if held && best.as_ref().is_none_or(|(held, _)| held.events_per_second < events_per_second) {
            best = Some((offer, outcome));
        }
        rest(swarm, REST, progress)?;
    }
    sample.set("max_per_second", best.as_ref().map_or(0.0, |(offer, _)| f64::from(offer.events_per_second)));
    if let Some((offer, outcome)) = best {
        outcome.write_into(&mut sample, offer, !watched.nodes.is_empty());
    }
    Ok(sample)
}

fn holds(outcome: &Outcome, p99_max: Duration) -> bool {
    let p99 = Duration::from_micros(outcome.ack.us_at(0.99));
    !outcome.gave_up && outcome.acks_lost == 0 && outcome.refused == 0 && p99 <= p99_max
}

/// Doubling, then halving.
struct Search {
    rate: u32,
    held: u32,
    failed: Option<u32>,
    failed_once: bool,
    halvings: u32,
}

impl Search {
    fn from(rate: u32) -> Self {
        Self { rate, held: 0, failed: None, failed_once: false, halvings: 0 }
    }

    /// The rate to try, `None` when it is known well enough.
    fn next_rate(&self) -> Option<u32> {
        (self.halvings <= HALVINGS && self.rate > self.held && self.rate <= RATE_MAX).then_some(self.rate)
    }

    fn tell(&mut self, held: bool) {
        if !held && !self.failed_once {
            self.failed_once = true;
            return;
        }
        self.failed_once = false;
        if held {
            self.held = self.rate;
        } else {
            self.failed = Some(self.rate);
        }
        self.rate = match self.failed {
            None => self.rate * 2,
            Some(failed) => {
                self.halvings += 1;
                self.held.midpoint(failed)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(capacity: u32) -> (u32, usize) {
        let mut search = Search::from(FIRST_RATE);
        let mut steps = 0;
        while let Some(rate) = search.next_rate() {
            search.tell(rate <= capacity);
            steps += 1;
        }
        (search.held, steps)
    }

    #[test]
    fn the_search_comes_close_in_few_steps() {
        for capacity in [600, 5_300, 17_001] {
            let (held, steps) = found(capacity);
            assert!(
                held <= capacity && f64::from(held) > 0.93 * f64::from(capacity),
                "{held} for {capacity}"
            );
            assert!(steps < 20);
        }
    }

    #[test]
    fn one_disturbance_is_forgiven() {
        let mut search = Search::from(FIRST_RATE);
        search.tell(false);
        assert_eq!(search.next_rate(), Some(FIRST_RATE));
        search.tell(true);
        assert_eq!(search.next_rate(), Some(2 * FIRST_RATE));
    }

    #[test]
    fn a_search_always_ends() {
        assert_eq!(found(0).0, 0);
        assert!(found(u32::MAX).0 <= RATE_MAX);
    }
}
