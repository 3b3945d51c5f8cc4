//! The cluster in one thread, on time that does not pass by itself: thousands of schedules a minute.
//!
//! Two to four nodes with their real hubs, writers, device services, presence and claims stand on a
//! store and a Redis in memory that delay, lose, repeat, reorder, fail, freeze and die as a seed says
//! (`weather`, `fate`). Clients connect, write, wander from node to node and hold what they hear
//! against what was promised (`client`, `checks`). What fails is played again by its seed:
//!
//! ```sh
//! TANDEM_SIM_SEED=4711 cargo test --lib simulation::every      # this schedule, with its story
//! TANDEM_SIM_RUNS=100000 cargo test --lib simulation::every    # more of them
//! ```
//!
//! Not here: transports, tokens, messages, SQL, fred. Real ones of those are in `tests/`.

mod checks;
mod client;
mod connection;
pub mod fate;
mod node;
mod store;
pub mod weather;
mod world;

use std::sync::Mutex;

use weather::Defect;
use world::play;

/// Schedules of an ordinary run.
const RUNS: u64 = 1_000;

/// Schedules that are played twice.
const SEEDS_TWICE: u64 = 30;

/// Schedules in which a defect has to show.
const RUNS_TO_NOTICE: u64 = 400;

#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Seeds of this run: the one that was asked for, or as many as fit.
fn seeds() -> std::ops::Range<u64> {
    match number("TANDEM_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("TANDEM_SIM_RUNS").unwrap_or(RUNS),
    }
}

fn hold(seed: u64) {
    let outcome = play(seed, Defect::Nothing);
    assert!(
        outcome.violations.is_empty(),
        "{}\nseed {seed}; again: TANDEM_SIM_SEED={seed} cargo test --lib simulation::every\n{:#?}",
        outcome.story,
        outcome.violations,
    );
}

#[test]
fn every_schedule_keeps_the_promises() {
    let next = Mutex::new(seeds());
    let play_on = || {
        while let Some(seed) = { next.lock().unwrap().next() } {
            hold(seed);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(play_on))));
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for seed in 1..=SEEDS_TWICE {
        let (one, other) = (play(seed, Defect::Nothing), play(seed, Defect::Nothing));
        let is_same = one.trace_hash == other.trace_hash;
        assert!(is_same, "seed {seed}\n{}\n────────\n{}", one.story, other.story);
    }
    assert_ne!(play(1, Defect::Nothing).trace_hash, play(2, Defect::Nothing).trace_hash);
}

/// The first seed that shows a defect.
fn noticed(defect: Defect) -> u64 {
    let mut seeds = 1..=RUNS_TO_NOTICE;
    let seed = seeds.find(|seed| !play(*seed, defect).violations.is_empty());
    seed.unwrap_or_else(|| panic!("{defect:?} was not noticed in {RUNS_TO_NOTICE} schedules"))
}

#[test]
fn broken_builds_are_noticed() {
    for defect in [
        Defect::NoRepair,
        Defect::NoAsk,
        Defect::NoFencing,
        Defect::SnapshotFirst,
        Defect::NoClaims,
        Defect::SilentClaims,
        Defect::NoFarewell,
        Defect::LateClaims,
        Defect::NoResubscription,
    ] {
        println!("{defect:?}: seed {}", noticed(defect));
    }
}
