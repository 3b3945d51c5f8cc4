//! Every device writes, waits for its ack, and writes again: how many acknowledged writes a second so many writers
//! get. A closed loop on purpose: the rate is the answer, not the question.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::client::swarm::{Happening, Swarm, What};
use crate::measure::latency::Latencies;
use crate::measure::result::Sample;
use crate::measure::watch::Watched;
use crate::progress::Progress;

use super::gather::gather;
use super::plan::Plan;
use super::traffic::Traffic;

/// How long the answers to the last writes may take.
const DRAIN_MAX: Duration = Duration::from_secs(10);

pub fn run(
    plan: &Plan,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    gather(swarm, plan.at_a_time, progress)?;
    let writers = swarm.devices.len();
    let mut loops = Loops::new(writers, plan.payload_bytes);
    for device in 0..writers {
        loops.write(swarm, device);
    }
    loops.go_on(swarm, plan.warmup, progress)?;
    loops.acks = Latencies::new();
    let start = watched.read()?;
    let began = Instant::now();
    loops.go_on(swarm, plan.measured, progress)?;
    let elapsed = began.elapsed();
    let spent = start.until(&watched.read()?);
    let acks = std::mem::take(&mut loops.acks);
    loops.drain(swarm)?;

    sample.set("sockets", writers as f64);
    sample.set("achieved_per_second", acks.count() as f64 / elapsed.as_secs_f64());
    sample.set("refused", loops.refused as f64);
    sample.set("acks_lost", loops.waiting.iter().flatten().count() as f64);
    sample.set_latencies("ack", &acks);
    sample.set_costs(&spent, acks.count(), !watched.nodes.is_empty());
    Ok(sample)
}

struct Loops {
    /// Of each device the write that is under way, and since when.
    waiting: Vec<Option<(u64, Instant)>>,
    acks: Latencies,
    refused: u64,
    filling: String,
    packet: Vec<u8>,
}

impl Loops {
    fn new(writers: usize, payload_bytes: usize) -> Self {
        Self {
            waiting: vec![None; writers],
            acks: Latencies::new(),
            refused: 0,
            filling: "f".repeat(payload_bytes),
            packet: Vec::new(),
        }
    }

    fn write(&mut self, swarm: &mut Swarm, device: usize) {
        let number = swarm.take_numbers(1);
        Traffic::Updates.compose(swarm, device, number, &self.filling, &mut self.packet);
        self.waiting[device] = Some((number, Instant::now()));
        swarm.send(device, &self.packet);
    }

    /// Each answer is followed by the next write, for so long.
    fn go_on(&mut self, swarm: &mut Swarm, time: Duration, progress: &mut Progress) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            swarm.turn(end)?;
            for happening in std::mem::take(&mut swarm.happened) {
                if self.answered(&happening)? {
                    self.write(swarm, happening.device);
                }
            }
            progress.show(|| format!("{} acked", self.acks.count()));
        }
        Ok(())
    }

    /// Waits for the last answers.
    fn drain(&mut self, swarm: &mut Swarm) -> anyhow::Result<()> {
        let end = Instant::now() + DRAIN_MAX;
        while self.waiting.iter().any(Option::is_some) && Instant::now() < end {
            swarm.turn(end)?;
            for happening in std::mem::take(&mut swarm.happened) {
                self.answered(&happening)?;
            }
        }
        Ok(())
    }

    /// Whether it is the answer that its device waits for.
    fn answered(&mut self, happening: &Happening) -> anyhow::Result<bool> {
        match &happening.what {
            What::Acked { id, ok } => {
                let answers = |(number, _): &mut (u64, Instant)| number == id;
                let Some((_, since)) = self.waiting[happening.device].take_if(answers) else {
                    return Ok(false);
                };
                if *ok {
                    self.acks.record(happening.at.saturating_duration_since(since));
                } else {
                    self.refused += 1;
                }
                Ok(true)
            }
            What::Closed { why, .. } => {
                ensure!(false, "a writer lost its connection: {why}");
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}
