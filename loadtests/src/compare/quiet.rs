//! Waits for the machine to come to rest: figures taken beside somebody's build are the build's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::measure::machine;
use crate::progress::Progress;

/// Cores that others may keep busy in a machine that counts as quiet.
pub const CORES_MAX: f64 = 0.25;
/// Long enough for the 10 ms that processor time is counted in.
const LOOK: Duration = Duration::from_millis(500);

/// Returns when nothing much runs, after `at_most`, or when told to stop; whichever is first.
pub fn wait(at_most: Duration, stop: &AtomicBool, progress: &mut Progress) {
    let deadline = Instant::now() + at_most;
    while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        let busy = busy_cores();
        if busy <= CORES_MAX {
            return;
        }
        progress.show(|| format!("waiting for a quiet machine, {busy:.1} cores busy"));
    }
}

/// Cores busy over the next half second; nothing of ours runs meanwhile.
fn busy_cores() -> f64 {
    let (began, before) = (Instant::now(), machine::busy_time());
    std::thread::sleep(LOOK);
    (machine::busy_time().saturating_sub(before)).as_secs_f64() / began.elapsed().as_secs_f64()
}
