//! `tandem-load logins`: whether many logins at once hold up what is relayed meanwhile. Checking a password costs a
//! core a quarter of a second, on purpose; an event must not wait for it.
//!
//! One server, one swarm; runs without logins (the control) and with them alternate, and who is first changes with the
//! round. The promise is judged by the medians of both: p99 of the delivery of relayed events is at most 1.5 times the
//! control's and 5 ms more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use crate::client::account;
use crate::client::http::Connection;
use crate::client::swarm::{Crowd, Swarm};
use crate::client::target::Target;
use crate::compare::contender::{Contender, NodeSettings, Places};
use crate::compare::quiet;
use crate::launch::{self, Process};
use crate::measure::latency::Latencies;
use crate::measure::result::{RunResult, Sample};
use crate::measure::spread::Spread;
use crate::measure::watch::Watched;
use crate::progress::Progress;
use crate::run::Output;
use crate::scenario::gather::gather;
use crate::scenario::open_loop::{Offer, drive};
use crate::scenario::plan::Placement;
use crate::scenario::rest;
use crate::scenario::traffic::Traffic;
use crate::table;
use crate::wire::mark::Marks;

const DEVICES_PER_USER: usize = 4;
const READY_WITHIN: Duration = Duration::from_secs(20);
const WARMUP: Duration = Duration::from_secs(1);
const AT_A_TIME: usize = 64;
const PAYLOAD_BYTES: usize = 100;
/// Between runs pings are answered so often.
const AT_REST: Duration = Duration::from_millis(200);
/// All of them queue for one core of two: the last waits for all that were before it.
const LOGIN_WITHIN: Duration = Duration::from_secs(120);

const CONTROL: &str = "control";
const BESIDE: &str = "beside logins";

/// What RELIABILITY.md allows.
const TIMES_MAX: f64 = 1.5;
const ABOVE_US_MAX: f64 = 5_000.0;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds, each of a run with logins and one without.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Logins that arrive at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=200))]
    logins: u32,
    /// Relayed events a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Users, of 4 devices each.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    users: u32,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Cost of the password hashes: as in production.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=15))]
    bcrypt_cost: u32,
    /// Before each run wait for a quiet machine, at most so many seconds; no ping is answered meanwhile.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=15))]
    wait_quiet: u64,
    /// Tandem's binary [default: beside this one, or ../target/release/tandem].
    #[arg(long)]
    tandem: Option<PathBuf>,
    /// Where the database goes, on a real disk [default: the system's temporary folder].
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub fn execute(args: &Args, stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    progress.head("logins".to_owned());
    let places = Places::find(args.tandem.clone(), PathBuf::new(), args.data.clone())?;
    let folder = tempfile::Builder::new().prefix("tandem-load-").tempdir_in(&places.data)?;
    let port = launch::free_port()?;
    let settings = NodeSettings { port, folder: folder.path(), redis_port: None, postgres: None };
    let mut command = places.command(Contender::Tandem, &settings);
    command.env("BCRYPT_COST", args.bcrypt_cost.to_string());
    let mut node = Process::start(command, port, folder.path().join("tandem.log"))?;
    let ready = Contender::Tandem.ready_path();
    node.wait_until(READY_WITHIN, |address| launch::is_ready(address, ready))?;

    let target = Target { nodes: vec![node.address] };
    let marks = Arc::new(Marks::random());
    let tag = marks.tag().to_owned();
    progress.show(|| format!("registering {} users", args.users));
    let tokens = account::register(&target, &tag, args.users as usize)?;
    let crowd =
        Crowd { target, tokens, devices_per_user: DEVICES_PER_USER, placement: Placement::Together, marks };
    let mut swarm = Swarm::new(crowd, Arc::clone(stop))?;
    gather(&mut swarm, AT_A_TIME, &mut progress)?;
    let watched = Watched { nodes: vec![node.id()], redis: None };

    let mut result = RunResult::begin();
    for round in 1..=args.rounds as usize {
        let mut turns = [CONTROL, BESIDE];
        turns.rotate_left((round + 1) % 2);
        for contender in turns {
            progress.head(format!("round {round} of {}, {contender}", args.rounds));
            quiet::wait(Duration::from_secs(args.wait_quiet), stop, &mut progress);
            rest(&mut swarm, AT_REST, &mut progress)?;
            let logins =
                (contender == BESIDE).then(|| Logins::start(&node, &tag, args, Instant::now() + WARMUP));
            let mut sample = relay(args, round, &mut swarm, &watched, &mut progress)?;
            if let Some(logins) = logins {
                logins.finish(&mut sample, &mut swarm, &mut progress)?;
            }
            sample.contender = contender.to_owned();
            result.samples.push(sample);
        }
        // Written every time, so that a run that is stopped leaves what it had.
        args.output.write(&result)?;
    }
    progress.clear();
    table::print(&result.samples);
    let verdict = Verdict::of(&result.samples).context("nothing was delivered")?;
    println!("{verdict}");
    ensure!(verdict.is_kept(), "logins hold up what is relayed");
    Ok(())
}

/// Relays for the measured time; nothing may get lost.
fn relay(
    args: &Args,
    round: usize,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    let offer = Offer {
        traffic: Traffic::Relay,
        events_per_second: args.rate,
        warmup: WARMUP,
        measured: Duration::from_secs(args.seconds),
        payload_bytes: PAYLOAD_BYTES,
        behind_max: None,
    };
    let outcome = drive(offer, swarm, watched, progress)?;
    ensure!(
        outcome.deliveries_lost == 0 && outcome.sockets_lost == 0,
        "{} deliveries and {} sockets lost",
        outcome.deliveries_lost,
        outcome.sockets_lost
    );
    let mut sample = Sample::new("logins", 1, swarm.devices.len(), args.rate);
    sample.round = round;
    outcome.write_into(&mut sample, offer, true);
    Ok(sample)
}

/// Logins under way, each on a connection and a thread of its own.
struct Logins {
    began: Instant,
    threads: Vec<JoinHandle<anyhow::Result<Duration>>>,
}

impl Logins {
    /// Connects all, and lets them go together at `at`.
    fn start(node: &Process, tag: &str, args: &Args, at: Instant) -> Self {
        let threads = (0..args.logins).map(|nth| {
            let (address, tag, user) = (node.address, tag.to_owned(), (nth % args.users) as usize);
            std::thread::spawn(move || {
                let mut connection = Connection::patient(address, LOGIN_WITHIN)?;
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                account::log_in(&mut connection, &tag, user)?;
                Ok(at.elapsed())
            })
        });
        Self { began: at, threads: threads.collect() }
    }

    fn under_way(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }

    /// Waits until all are answered, so that the next run is not beside them too.
    fn finish(self, sample: &mut Sample, swarm: &mut Swarm, progress: &mut Progress) -> anyhow::Result<()> {
        let under_way = self.under_way();
        while self.under_way() > 0 {
            rest(swarm, AT_REST, progress)?;
        }
        let mut times = Latencies::new();
        for thread in self.threads {
            times.record(thread.join().map_err(|_| anyhow!("a login panicked"))??);
        }
        sample.set("logins_left", under_way as f64);
        sample.set("logins_seconds", self.began.elapsed().as_secs_f64());
        sample.set_latencies("login", &times);
        Ok(())
    }
}

/// Where the promise stands.
struct Verdict {
    control: Spread,
    beside: Spread,
}

impl Verdict {
    fn of(samples: &[Sample]) -> Option<Self> {
        let p99 = |contender: &str| {
            let of_contender = samples.iter().filter(|sample| sample.contender == contender);
            Spread::of(of_contender.filter_map(|sample| sample.figures.get("delivery_p99_us").copied()))
        };
        Some(Self { control: p99(CONTROL)?, beside: p99(BESIDE)? })
    }

    fn allowed_us(&self) -> f64 {
        self.control.median.mul_add(TIMES_MAX, ABOVE_US_MAX)
    }

    fn is_kept(&self) -> bool {
        self.beside.median <= self.allowed_us()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: f64| us / 1e3;
        let of = |spread: &Spread| {
            format!("{:.2} ms ({:.2} to {:.2})", ms(spread.median), ms(spread.least), ms(spread.most))
        };
        let word = if self.is_kept() { "kept" } else { "MISSED" };
        write!(
            out,
            "delivery p99 {} beside logins, {} without, at most {:.2} ms allowed: {word}",
            of(&self.beside),
            of(&self.control),
            ms(self.allowed_us())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(control: &[f64], beside: &[f64]) -> Option<Verdict> {
        let sample = |contender: &str, p99: &f64| {
            let mut sample = Sample::new("logins", 1, 4, 1);
            sample.contender = contender.to_owned();
            sample.set("delivery_p99_us", *p99);
            sample
        };
        let control = control.iter().map(|p99| sample(CONTROL, p99));
        let samples: Vec<_> = control.chain(beside.iter().map(|p99| sample(BESIDE, p99))).collect();
        Verdict::of(&samples)
    }

    #[test]
    fn medians_are_judged_by_half_as_much_again_and_5_ms() {
        let kept = |control: &[f64], beside: &[f64]| verdict(control, beside).unwrap().is_kept();
        assert!(kept(&[1_000.0], &[6_500.0]));
        assert!(!kept(&[1_000.0], &[6_501.0]));
        assert!(kept(&[900.0, 1_000.0, 90_000.0], &[1_000.0, 6_000.0, 500_000.0]));
        assert!(verdict(&[], &[1.0]).is_none() && verdict(&[1.0], &[]).is_none());
    }
}
