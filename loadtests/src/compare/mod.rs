//! `tandem-load compare`: starts each contender itself, fresh for every measurement, in an order that changes with
//! the round, so that no contender always meets the warm or the disturbed machine.

pub mod aim;
pub mod contender;
pub mod launch;
pub mod quiet;
pub mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum;

use crate::measure::result::{RunResult, Sample};
use crate::progress::Progress;
use crate::run::{Amount, Output};
use crate::scenario::plan::Plan;
use crate::{scenario, table};
use contender::{Contender, Places};
use launch::Layout;
use work::{Setting, Work};

#[derive(clap::Args)]
pub struct Args {
    /// The rows of the table to measure; without any the quick ones.
    works: Vec<Work>,
    /// Every row of the table.
    #[arg(long, conflicts_with = "works")]
    all: bool,
    /// Rounds of every measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Whom to measure, instead of all that the work knows; separated by commas.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Sockets, instead of the work's own number.
    #[arg(long)]
    sockets: Option<usize>,
    /// Events a second, instead of the work's own number.
    #[arg(long)]
    rate: Option<u32>,
    #[command(flatten)]
    amount: Amount,
    /// Before each measurement wait for a quiet machine, at most so many seconds.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    wait_quiet: u64,
    /// Tandem's binary [default: beside this one, or ../target/release/tandem].
    #[arg(long)]
    tandem: Option<PathBuf>,
    /// The folder of the peers' sources.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))]
    peers: PathBuf,
    /// Where the databases go, on a real disk [default: the system's temporary folder].
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub fn execute(args: &Args, stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let places = Places::find(args.tandem.clone(), args.peers.clone(), args.data.clone())?;
    let works = match (args.all, args.works.as_slice()) {
        (true, _) => Work::value_variants(),
        (false, []) => work::QUICK,
        (false, named) => named,
    };
    let measurements = in_order(args, works, &places)?;
    ensure!(!measurements.is_empty(), "nobody to measure");
    let mut result = RunResult::begin();
    let mut progress = Progress::new();
    for (done, measurement) in measurements.iter().enumerate() {
        progress.head(format!("{} of {}, {measurement}", done + 1, measurements.len()));
        quiet::wait(Duration::from_secs(args.wait_quiet), stop, &mut progress);
        match measurement.make(&places, stop, &mut progress) {
            Ok(sample) => result.samples.push(sample),
            Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
            // One contender's failure is a finding; the others are measured nevertheless.
            Err(error) => {
                progress.clear();
                eprintln!("{measurement}: {error:#}");
                result.failures.push(format!("{measurement}: {error:#}"));
            }
        }
        // Written every time, so that a run that is stopped leaves what it had.
        args.output.write(&result)?;
    }
    progress.clear();
    table::print(&result.samples);
    aim::print(&aim::judge(&result.samples));
    ensure!(result.failures.is_empty(), "{} of {} not measured", result.failures.len(), measurements.len());
    Ok(())
}

/// One contender, one point, one round.
struct Measurement {
    work: Work,
    contender: Contender,
    layout: Layout,
    plan: Plan,
    round: usize,
}

/// All of a comparison: the rounds of a point follow each other, and in each the contenders.
fn in_order(args: &Args, works: &[Work], places: &Places) -> anyhow::Result<Vec<Measurement>> {
    let mut measurements = Vec::new();
    for work in works {
        let contenders = present(args, *work, places)?;
        for setting in work.settings() {
            let plan = plan(args, &setting);
            plan.check()?;
            for round in 1..=args.rounds as usize {
                measurements.extend(in_turn(&contenders, round).map(|contender| Measurement {
                    work: *work,
                    contender,
                    layout: setting.layout,
                    plan: plan.clone(),
                    round,
                }));
            }
        }
    }
    Ok(measurements)
}

/// The contenders that can be started. One that is named and missing is an error; others are left out aloud.
fn present(args: &Args, work: Work, places: &Places) -> anyhow::Result<Vec<Contender>> {
    let mut present = Vec::new();
    for contender in work.contenders() {
        let named = args.contenders.contains(contender);
        if !args.contenders.is_empty() && !named {
            continue;
        }
        match places.missing(*contender) {
            None => present.push(*contender),
            Some(why) if named => bail!("{}: {why}", contender.name()),
            Some(why) => eprintln!("{}: without {}: {why}", work.name(), contender.name()),
        }
    }
    Ok(present)
}

fn plan(args: &Args, setting: &Setting) -> Plan {
    let mut plan = setting.plan.clone();
    if let Some(sockets) = args.sockets {
        plan = plan.with_sockets(sockets);
    }
    plan.events_per_second = args.rate.unwrap_or(plan.events_per_second);
    args.amount.apply(&mut plan);
    plan
}

/// Round 1 in order, round 2 with the second first, and so on.
fn in_turn(contenders: &[Contender], round: usize) -> impl Iterator<Item = Contender> {
    let count = contenders.len();
    (0..count).map(move |place| contenders[(place + round - 1) % count])
}

impl Measurement {
    fn make(
        &self,
        places: &Places,
        stop: &Arc<AtomicBool>,
        progress: &mut Progress,
    ) -> anyhow::Result<Sample> {
        let running = launch::start(self.contender, self.layout, places)?;
        let sample = scenario::run(&self.plan, &running.server()?, stop, progress).map_err(|error| {
            match running.last_words() {
                nothing if nothing.is_empty() => error,
                words => error.context(format!("the servers' last words: {words}")),
            }
        })?;
        Ok(Sample {
            work: self.work.name().to_owned(),
            contender: self.contender.name().to_owned(),
            round: self.round,
            ..sample
        })
    }
}

impl std::fmt::Display for Measurement {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} of {}, round {}", self.work.name(), self.contender.name(), self.round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_first_in_turn() {
        let contenders = [Contender::Tandem, Contender::Floor, Contender::NodeSeed];
        let firsts: Vec<_> = (1..=3).filter_map(|round| in_turn(&contenders, round).next()).collect();
        assert_eq!(firsts, contenders);
        assert_eq!(in_turn(&contenders, 5).count(), 3);
    }
}
