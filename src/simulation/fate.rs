//! Everything that is left to chance, from one seed, and the trace of what came of it.
//!
//! Draws belong to lanes: one a user, one a node, one for the faults. What happens to one user is
//! drawn from that user's lane alone, so the order in which the hub walks over its users, which
//! differs from process to process, changes nothing. The trace is hashed by lane for the same reason.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::UserId;

/// Whose draws and whose part of the trace.
pub type Lane = u64;

/// The faults' own lane; nodes have those above it.
pub const FAULTS: Lane = 0;

/// Users' lanes begin here.
const USERS: Lane = 1_000;

/// Lines of a failing schedule's trace that are shown.
const SHOWN_MAX: usize = 400;

/// The user with that number.
pub fn user(number: u64) -> UserId {
    UserId(uuid::Uuid::from_u128(u128::from(USERS + number)))
}

/// The user's lane.
pub fn lane_of(user: UserId) -> Lane {
    user.0.as_u128() as Lane
}

/// See the module's comment.
pub struct Fate {
    seed: u64,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<Lane, Drawn>,
    /// The latest lines, for whoever has to understand a failure.
    lines: std::collections::VecDeque<String>,
    violations: Vec<String>,
}

struct Drawn {
    random: u64,
    trace: Fnv,
}

/// FNV-1a of whatever is written to it.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

impl Fate {
    /// What `seed` has in store.
    pub fn new(seed: u64) -> Self {
        Self { seed, began: Instant::now(), state: Mutex::default() }
    }

    /// A number from 0 up to but not including `end`.
    pub fn below(&self, lane: Lane, end: u64) -> u64 {
        self.state().lane(lane, self.seed).next() % end
    }

    /// True in `percent` of all cases.
    pub fn chance(&self, lane: Lane, percent: u64) -> bool {
        percent > 0 && self.below(lane, 100) < percent
    }

    /// Milliseconds between the two, both included.
    pub fn millis(&self, lane: Lane, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(lane, to - from + 1))
    }

    /// A line of the trace.
    pub fn note(&self, lane: Lane, line: fmt::Arguments<'_>) {
        let at = self.began.elapsed().as_millis();
        let mut state = self.state();
        let trace = &mut state.lane(lane, self.seed).trace;
        write!(trace, "{at} {line};").expect("a hash takes everything");
        if state.lines.len() == SHOWN_MAX {
            state.lines.pop_front();
        }
        state.lines.push_back(format!("{at:>6} [{lane}] {line}"));
    }

    /// A promise was broken.
    pub fn violation(&self, what: String) {
        self.note(FAULTS, format_args!("VIOLATION {what}"));
        self.state().violations.push(what);
    }

    /// What was broken.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// The same for the same seed, on any machine.
    pub fn trace_hash(&self) -> u64 {
        let state = self.state();
        state.lanes.iter().fold(0, |sum, (lane, drawn)| sum ^ drawn.trace.0.rotate_left(*lane as u32 % 64))
    }

    /// The latest lines of the trace.
    pub fn story(&self) -> String {
        self.state().lines.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lane(&mut self, lane: Lane, seed: u64) -> &mut Drawn {
        self.lanes.entry(lane).or_insert_with(|| {
            let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lane.wrapping_mul(0xd1b5_4a32_d192_ed03);
            Drawn { random, trace: Fnv(0xcbf2_9ce4_8422_2325) }
        })
    }
}

impl Drawn {
    /// splitmix64: every seed is a good one.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
