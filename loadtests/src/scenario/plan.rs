//! What to do, and how much of it at most.

use std::time::Duration;

use anyhow::ensure;

/// A load generator that can be asked for anything will be; these hold for every scenario.
const SOCKETS_MAX: usize = 16_000;
const DEVICES_PER_USER_MAX: usize = 100;
const RATE_MAX: u32 = 50_000;
const SECONDS_MAX: u64 = 600;
const PAYLOAD_BYTES_MAX: usize = 48 << 10;
const STATE_BYTES_MAX: usize = 200 << 10;
/// What the bookkeeping of one run may hold.
const EVENTS_MAX: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Devices connect, 64 at a time.
    Connect,
    /// Devices connect and do nothing.
    Idle,
    /// Realtime events from every device to its user's other devices.
    Relay,
    /// Durable session updates, acknowledged.
    Updates,
    /// Device messages, acknowledged.
    Messages,
    /// The most durable session updates a second.
    Peak,
    /// Every device writes durably, waits for its ack, and writes again.
    Writers,
    /// Many devices lose their connection at once and come back as stock clients do.
    Storm,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Idle => "idle",
            Self::Relay => "relay",
            Self::Updates => "updates",
            Self::Messages => "messages",
            Self::Peak => "peak",
            Self::Writers => "writers",
            Self::Storm => "storm",
        }
    }

    fn has_rate(self) -> bool {
        matches!(self, Self::Relay | Self::Updates | Self::Messages)
    }
}

/// Where the devices of one user connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// To different nodes: every event crosses the backplane.
    Spread,
    /// To one node, as behind a load balancer that hashes by user.
    Together,
}

impl Placement {
    /// The node of a user's `nth` device.
    pub fn node(self, user: usize, nth: usize, nodes: usize) -> usize {
        match self {
            Self::Spread => (user + nth) % nodes,
            Self::Together => user % nodes,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: Scenario,
    pub users: usize,
    pub devices_per_user: usize,
    pub placement: Placement,
    pub events_per_second: u32,
    /// Load before the measured time, so that caches, pools and compilers are warm.
    pub warmup: Duration,
    pub measured: Duration,
    /// Filling of each event, beside its mark and names.
    pub payload_bytes: usize,
    /// State of each user before the first device connects, for restores to carry.
    pub state_bytes: usize,
    /// Connections under way at once.
    pub at_a_time: usize,
    /// How many devices a storm cuts off.
    pub cut: usize,
    /// `peak`: the ack latency that 99 % must keep.
    pub p99_max: Duration,
}

impl Plan {
    /// The scenario as the project quotes it: 50 users of 4 devices, or 1,000 users of 8 where only their
    /// number matters.
    pub fn usual(scenario: Scenario) -> Self {
        let (users, devices_per_user) = match scenario {
            Scenario::Connect | Scenario::Storm => (250, 8),
            Scenario::Idle => (1_000, 8),
            _ => (50, 4),
        };
        Self {
            scenario,
            users,
            devices_per_user,
            placement: Placement::Spread,
            events_per_second: 1_000,
            warmup: Duration::from_secs(3),
            measured: Duration::from_secs(if scenario == Scenario::Idle { 30 } else { 10 }),
            payload_bytes: 100,
            state_bytes: 0,
            at_a_time: 64,
            cut: users * devices_per_user,
            p99_max: Duration::from_millis(250),
        }
    }

    /// Changes the number of sockets by the number of users.
    pub fn with_sockets(mut self, sockets: usize) -> Self {
        self.users = sockets.div_ceil(self.devices_per_user).max(1);
        self.cut = self.cut.min(self.sockets());
        self
    }

    pub fn sockets(&self) -> usize {
        self.users * self.devices_per_user
    }

    /// As a sample says it: 0 where the scenario has none.
    pub fn rate(&self) -> u32 {
        if self.scenario.has_rate() { self.events_per_second } else { 0 }
    }

    /// # Errors
    /// Names the bound that is not kept.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=SOCKETS_MAX).contains(&self.sockets()), "sockets: 1 to {SOCKETS_MAX}");
        ensure!(
            (1..=DEVICES_PER_USER_MAX).contains(&self.devices_per_user),
            "devices a user: 1 to {DEVICES_PER_USER_MAX}"
        );
        ensure!((1..=RATE_MAX).contains(&self.events_per_second), "events a second: 1 to {RATE_MAX}");
        let seconds = (self.warmup + self.measured).as_secs();
        ensure!((1..=SECONDS_MAX).contains(&seconds), "seconds, warm-up included: 1 to {SECONDS_MAX}");
        ensure!(!self.measured.is_zero(), "no time to measure");
        ensure!(u64::from(self.rate()) * seconds <= EVENTS_MAX, "at most {EVENTS_MAX} events a run");
        ensure!(self.payload_bytes <= PAYLOAD_BYTES_MAX, "payload: at most {PAYLOAD_BYTES_MAX} bytes");
        ensure!(self.state_bytes <= STATE_BYTES_MAX, "state: at most {STATE_BYTES_MAX} bytes a user");
        ensure!((1..=1_024).contains(&self.at_a_time), "connecting at a time: 1 to 1024");
        ensure!((1..=self.sockets()).contains(&self.cut), "cut: 1 to the number of sockets");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_usual_plan_is_within_bounds() {
        for scenario in Scenario::value_variants() {
            Plan::usual(*scenario).check().unwrap();
        }
    }

    #[test]
    fn too_much_is_refused() {
        let relay = || Plan::usual(Scenario::Relay);
        let broken = [
            relay().with_sockets(20_000),
            Plan { events_per_second: 60_000, ..relay() },
            Plan { events_per_second: 50_000, measured: Duration::from_secs(500), ..relay() },
            Plan { measured: Duration::from_secs(3_600), ..relay() },
            Plan { payload_bytes: 1 << 20, ..relay() },
            Plan { devices_per_user: 1_000, users: 1, ..relay() },
        ];
        assert!(broken.iter().all(|plan| plan.check().is_err()));
    }
}
