//! Whether this node is linked to the others: one state, and everyone who wants to know.
//!
//! Up means that a probe came through Redis on the current subscriber connection after every wanted
//! channel was subscribed on it. Down is the loss of that connection or three missed probes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::backplane::Timing;
use crate::backplane::inbound::InboundSender;

/// Probes missed in a row that mean "down".
const PROBES_MISSED_MAX: u32 = 3;

pub(super) struct Link {
    up: AtomicBool,
    changed: watch::Sender<bool>,
    state: Mutex<State>,
    inbound: InboundSender,
    started: Instant,
    silence_max: Duration,
    /// Wakes the probe, which shortens the way back up.
    pub probe_now: Notify,
}

struct State {
    up: bool,
    /// All wanted channels stand on the current connection.
    subscribed: bool,
    heard_at: Instant,
    /// When the state last changed.
    since: Instant,
}

impl Link {
    pub(super) fn new(inbound: InboundSender, timing: Timing) -> Self {
        let now = Instant::now();
        Self {
            up: AtomicBool::new(false),
            changed: watch::Sender::new(false),
            state: Mutex::new(State { up: false, subscribed: false, heard_at: now, since: now }),
            inbound,
            started: now,
            silence_max: timing.probe_every * PROBES_MISSED_MAX,
            probe_now: Notify::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) async fn wait_up(&self) {
        // The sender lives as long as `self`.
        let _ = self.changed.subscribe().wait_for(|up| *up).await;
    }

    /// Hears of every change from now on.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.changed.subscribe()
    }

    /// How long the link has been up without a break, or nothing while it is down.
    pub(super) fn up_for(&self) -> Option<Duration> {
        let state = self.state();
        state.up.then(|| state.since.elapsed())
    }

    /// How long it has been down.
    pub(super) fn down_for(&self) -> Option<Duration> {
        let state = self.state();
        (!state.up).then(|| state.since.elapsed())
    }

    /// The time that a probe carries: microseconds since this link was made.
    pub(super) fn probe_stamp(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A probe came back; its round trip.
    pub(super) fn heard(&self, stamp: u64) -> Duration {
        let rtt = self.started.elapsed().saturating_sub(Duration::from_micros(stamp));
        // One that took this long is as good as missed: the link lags behind what users would bear.
        if rtt < self.silence_max {
            let mut state = self.state();
            state.heard_at = Instant::now();
            if state.subscribed {
                self.change(&mut state, true);
            }
        }
        rtt
    }

    /// The subscriber's connection is gone or new: nothing is subscribed on it.
    pub(super) fn unsubscribed(&self) {
        let mut state = self.state();
        state.subscribed = false;
        self.change(&mut state, false);
    }

    /// Every wanted channel stands; the next probe that is heard means "up".
    pub(super) fn subscribed(&self) {
        self.state().subscribed = true;
        self.probe_now.notify_one();
    }

    pub(super) fn check_silence(&self) {
        let mut state = self.state();
        if state.up && state.heard_at.elapsed() >= self.silence_max {
            self.change(&mut state, false);
        }
    }

    fn change(&self, state: &mut State, up: bool) {
        if state.up == up {
            return;
        }
        state.up = up;
        state.since = Instant::now();
        self.up.store(up, Ordering::Release);
        self.changed.send_replace(up);
        self.inbound.link(up);
        if up {
            tracing::info!("backplane up");
        } else {
            tracing::warn!("backplane down");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
