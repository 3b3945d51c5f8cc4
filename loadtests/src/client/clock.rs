//! Wakes the swarm at an instant. epoll's own timeout counts whole milliseconds, which at 1,000 events a second
//! would be the whole pause between two; a timer descriptor is good to some 10 microseconds.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

pub struct WakeUp {
    timer: OwnedFd,
    /// What the timer is set to, so that the same instant costs no second system call.
    armed_for: Option<Instant>,
}

impl WakeUp {
    pub fn register(registry: &Registry, token: Token) -> anyhow::Result<Self> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { timer, armed_for: None })
    }

    /// Makes the token readable at `at`. Never blocks; an instant that has passed fires at once.
    pub fn arm(&mut self, at: Instant) -> anyhow::Result<()> {
        if self.armed_for == Some(at) {
            return Ok(());
        }
        // Zero would disarm it.
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: i64::try_from(wait.as_secs())?, tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.armed_for = Some(at);
        Ok(())
    }

    /// Call it when the token fired. Setting the timer again also clears what it counted.
    pub fn fired(&mut self) {
        self.armed_for = None;
    }
}
