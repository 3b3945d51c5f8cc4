//! `tandem-load chaos`: three nodes, Redis, a load balancer and stock clients, while everything breaks, one or two
//! things at a time; then everything heals, and the checker judges what clients saw and what the store holds.
//!
//! The faults and the clients' choices follow from the seed; the machine's timing does not, so a failure repeats as far
//! as processes allow.

mod clock;
mod devices;
mod faults;
mod place;
mod report;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::check::history::History;
use crate::check::rules;
use crate::progress::Progress;
use devices::Devices;
use faults::{Happened, Schedule};
use place::Place;

/// How long a run may last.
const MINUTES_MAX: f64 = 120.0;
/// How often the conductor looks at the clock.
const TICK: Duration = Duration::from_millis(20);
/// Violations that are printed.
const SHOWN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    Sqlite,
    Postgres,
}

#[derive(clap::Args)]
pub struct Args {
    /// What the three nodes share.
    #[arg(long, value_enum, default_value = "sqlite")]
    store: StoreKind,
    /// How long faults are made; setting up and settling come on top.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Decides the faults and what clients do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Users; each has `--devices` devices.
    #[arg(long, default_value_t = 5)]
    users: u32,
    /// Devices a user.
    #[arg(long, default_value_t = 3)]
    devices: u32,
    /// Tandem's binary [default: beside this one, or ../target/release/tandem]
    #[arg(long)]
    tandem: Option<PathBuf>,
    /// The folder of devices.js and its packages.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/chaos"))]
    clients: PathBuf,
    /// Keep the history here instead of only judging it.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Write a page with faults, latency and convergence over time.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// One run. The last line on standard output is its summary as JSON.
///
/// # Errors
/// When something could not be set up, clients did not converge, or a rule is broken.
pub fn execute(args: &Args, stop: &AtomicBool) -> anyhow::Result<()> {
    ensure!(
        args.minutes > 0.0 && args.minutes <= MINUTES_MAX,
        "--minutes is more than 0 and at most {MINUTES_MAX}"
    );
    ensure!(
        (1..=50).contains(&args.users) && (2..=20).contains(&args.devices),
        "1 to 50 users of 2 to 20 devices"
    );
    let mut progress = Progress::new();
    progress.head(format!("chaos on {:?}, seed {}", args.store, args.seed));
    let mut place = Place::start(args.store, &tandem(args))?;
    let history_file = args.history.clone().unwrap_or_else(|| place.folder().join("history.jsonl"));
    let seconds = args.minutes * 60.0;
    let mut devices = Devices::start(
        &args.clients,
        &place.url(),
        seconds,
        args.seed,
        (args.users, args.devices),
        &history_file,
    )?;
    devices.ready()?;

    let began = Instant::now();
    let mut schedule = Schedule::new(args.seed, args.store);
    while began.elapsed().as_secs_f64() < seconds && !stop.load(Ordering::Relaxed) {
        schedule.advance(began.elapsed(), &mut place, &mut devices)?;
        devices.look()?;
        progress.show(|| {
            let (acks, online) = devices.latest();
            format!(
                "{:.0} of {seconds:.0} s, {acks} acks/s, {online} online, {}",
                began.elapsed().as_secs_f64(),
                schedule.now()
            )
        });
        std::thread::sleep(TICK);
    }
    ensure!(!stop.load(Ordering::Relaxed), "stopped");
    progress.show(|| "healing".to_owned());
    schedule.heal(began.elapsed(), &mut place)?;
    place.all_ready()?;
    let settled = devices.settle()?;
    progress.clear();

    let text = std::fs::read_to_string(&history_file).context("the devices left no history")?;
    let history = History::parse(&text)?;
    let violations = rules::judge(&history);
    for violation in violations.iter().take(SHOWN) {
        println!("{violation}");
    }
    for trouble in devices.troubles() {
        println!("{trouble}");
    }
    let acked = history
        .writes
        .iter()
        .filter(|write| matches!(write.outcome, crate::check::history::Outcome::Acked { .. }))
        .count();
    if let Some(file) = &args.report {
        std::fs::write(
            file,
            report::page(
                args.seed,
                args.store,
                devices.samples(),
                schedule.happened(),
                &settled,
                &violations,
            ),
        )?;
    }
    let is_good = violations.is_empty() && settled.converged && devices.troubles().is_empty() && acked > 0;
    let summary = json!({
        "ok": is_good, "store": format!("{:?}", args.store).to_lowercase(), "seed": args.seed, "minutes": args.minutes,
        "writes": history.writes.len(), "acked": acked, "deliveries": history.seen.len(),
        "messages": history.messages.len(), "restores": history.restores.len(),
        "faults": counts(schedule.happened()), "convergedMs": settled.ms, "converged": settled.converged,
        "ackP50Ms": devices.median(|sample| sample.p50), "ackP99Ms": devices.median(|sample| sample.p99),
        "violations": violations.len(), "troubles": devices.troubles().len(),
    });
    if !is_good {
        for device in &settled.differs {
            println!("not as the store in the end: {device}");
        }
        println!("{}", place.last_words());
        println!(
            "again: tandem-load chaos --store {} --minutes {} --seed {} --users {} --devices {}",
            format!("{:?}", args.store).to_lowercase(),
            args.minutes,
            args.seed,
            args.users,
            args.devices
        );
    }
    println!("{summary}");
    if is_good { Ok(()) } else { bail!("{} violations", violations.len()) }
}

/// Tandem's binary, by a path that holds from anywhere.
fn tandem(args: &Args) -> PathBuf {
    let beside =
        std::env::current_exe().map(|own| own.with_file_name("tandem")).ok().filter(|path| path.exists());
    let chosen = args.tandem.clone().or(beside).unwrap_or_else(|| PathBuf::from("../target/release/tandem"));
    std::path::absolute(&chosen).unwrap_or(chosen)
}

fn counts(happened: &[Happened]) -> serde_json::Map<String, serde_json::Value> {
    let mut counts = serde_json::Map::new();
    for fault in happened {
        let count = counts.entry(fault.name).or_insert(json!(0));
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    counts
}
