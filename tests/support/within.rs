//! Bounded waiting: a promise either comes true in time or the test fails where it waited.

use std::fmt::Display;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

/// Long enough for a busy two-core machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often `eventually` looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits for `future`, and fails the test at the caller's line after ten seconds.
#[track_caller]
pub fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    bounded(PATIENCE, future, Location::caller())
}

/// `within` for what is promised later than ten seconds.
#[track_caller]
pub fn within_secs<F: Future>(seconds: u64, future: F) -> impl Future<Output = F::Output> {
    bounded(Duration::from_secs(seconds), future, Location::caller())
}

/// Asks until the answer is `Some`: only for what no event announces, such as a row or a gauge.
#[track_caller]
pub fn eventually<T, F, A>(what: impl Display, mut ask: A) -> impl Future<Output = T>
where
    A: FnMut() -> F,
    F: Future<Output = Option<T>>,
{
    let caller = Location::caller();
    async move {
        let asking = async {
            let mut ticks = interval(LOOK_AGAIN);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Some(answer) = ask().await {
                    return answer;
                }
            }
        };
        match timeout(PATIENCE, asking).await {
            Ok(answer) => answer,
            Err(_) => panic!("{caller}: not within {PATIENCE:?}: {what}"),
        }
    }
}

async fn bounded<F: Future>(limit: Duration, future: F, caller: &'static Location<'static>) -> F::Output {
    match timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("{caller}: nothing came within {limit:?}"),
    }
}
