//! Which faults are made when, by the seed: one or two at a time, a breath between them, each undone after a while.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use super::StoreKind;
use super::devices::Devices;
use super::place::{NODES, Place};

/// Before the first fault, and between them.
const BREATH_MS: (u64, u64) = (700, 2_500);
/// How long a fault lasts.
const LASTS_MS: (u64, u64) = (300, 5_000);
/// How far a clock jumps.
const CLOCK_OFF_HOURS: i8 = 2;
/// Faults that last at the same time.
const AT_ONCE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillNode(usize),
    FreezeNode(usize),
    /// SIGTERM, and started again when it is gone: a rolling restart, one node at a time.
    RestartNode(usize),
    /// The clock of the last node goes so many hours ahead, or back.
    SetClock(i8),
    KillRedis,
    FreezeRedis,
    FlushRedis,
    /// Redis closes the connections that hear and those that speak.
    CutRedis,
    /// Every connection at once.
    RestartBalancer,
    StormOfClients,
    /// Another program holds SQLite's write lock.
    LockStore,
    /// An immediate shutdown, as a crash: sessions end, nothing is flushed, recovery follows.
    CrashPostgres,
    FreezePostgres,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::KillNode(_) => "node killed",
            Fault::FreezeNode(_) => "node frozen",
            Fault::RestartNode(_) => "node terminated",
            Fault::SetClock(_) => "clock jumped",
            Fault::KillRedis => "redis killed",
            Fault::FreezeRedis => "redis frozen",
            Fault::FlushRedis => "redis flushed",
            Fault::CutRedis => "redis connections cut",
            Fault::RestartBalancer => "balancer killed",
            Fault::StormOfClients => "storm of clients",
            Fault::LockStore => "store locked",
            Fault::CrashPostgres => "postgres crashed",
            Fault::FreezePostgres => "postgres frozen",
        }
    }

    /// What it is made to; two faults at once are not made to the same.
    fn victim(self) -> usize {
        match self {
            Fault::KillNode(node) | Fault::FreezeNode(node) | Fault::RestartNode(node) => node,
            Fault::KillRedis | Fault::FreezeRedis | Fault::FlushRedis | Fault::CutRedis => 10,
            Fault::RestartBalancer | Fault::StormOfClients => 11,
            Fault::LockStore | Fault::CrashPostgres | Fault::FreezePostgres => 12,
            Fault::SetClock(_) => 13,
        }
    }
}

/// A fault that was made, for the report; times from the start of the run.
#[derive(Clone, Copy, Debug)]
pub struct Happened {
    pub name: &'static str,
    pub from: Duration,
    pub to: Duration,
}

struct Lasting {
    fault: Fault,
    began: Duration,
    ends: Duration,
    /// A process that holds something for as long.
    holder: Option<Child>,
}

pub struct Schedule {
    random: Random,
    store: StoreKind,
    next: Duration,
    lasting: Vec<Lasting>,
    happened: Vec<Happened>,
}

impl Schedule {
    pub fn new(seed: u64, store: StoreKind) -> Self {
        let mut random = Random(seed);
        let next = random.between(BREATH_MS);
        Self { random, store, next, lasting: Vec::new(), happened: Vec::new() }
    }

    /// Makes and undoes what is due.
    ///
    /// # Errors
    /// When something cannot be started again.
    pub fn advance(&mut self, now: Duration, place: &mut Place, devices: &mut Devices) -> anyhow::Result<()> {
        self.undo(now, place, |lasting| lasting.ends <= now)?;
        if now < self.next {
            return Ok(());
        }
        self.next = now + self.random.between(BREATH_MS);
        let fault = self.draw();
        let is_free = self.lasting.iter().all(|lasting| lasting.fault.victim() != fault.victim());
        let nodes_hit = self.lasting.iter().filter(|lasting| lasting.fault.victim() < NODES).count();
        // One node stays, so that there is somebody to serve.
        if self.lasting.len() >= AT_ONCE || !is_free || (fault.victim() < NODES && nodes_hit >= NODES - 1) {
            return Ok(());
        }
        let ends = now + self.random.between(LASTS_MS);
        let holder = make(fault, ends - now, place, devices)?;
        self.lasting.push(Lasting { fault, began: now, ends, holder });
        Ok(())
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// When something cannot be started again.
    pub fn heal(&mut self, now: Duration, place: &mut Place) -> anyhow::Result<()> {
        self.undo(now, place, |_| true)
    }

    fn undo(
        &mut self,
        now: Duration,
        place: &mut Place,
        is_over: impl Fn(&Lasting) -> bool,
    ) -> anyhow::Result<()> {
        for mut lasting in std::mem::take(&mut self.lasting) {
            if !is_over(&lasting) {
                self.lasting.push(lasting);
                continue;
            }
            if let Some(holder) = &mut lasting.holder {
                // Both fail only when it has ended already.
                let _ = holder.kill();
                let _ = holder.wait();
            }
            match lasting.fault {
                Fault::KillNode(node) => place.nodes[node].launch()?,
                Fault::FreezeNode(node) => place.nodes[node].thaw(),
                Fault::RestartNode(node) => {
                    place.nodes[node].kill();
                    place.nodes[node].launch()?;
                }
                Fault::KillRedis => place.redis.launch()?,
                Fault::FreezeRedis => place.redis.thaw(),
                Fault::RestartBalancer => place.balancer.launch()?,
                Fault::CrashPostgres | Fault::FreezePostgres => {
                    if let Some(postgres) = &mut place.postgres {
                        postgres.thaw();
                        postgres.launch()?;
                    }
                }
                Fault::SetClock(_) => place.clock.is_off_by_hours(0)?,
                Fault::FlushRedis | Fault::CutRedis | Fault::StormOfClients | Fault::LockStore => {}
            }
            self.happened.push(Happened { name: lasting.fault.name(), from: lasting.began, to: now });
        }
        Ok(())
    }

    pub fn happened(&self) -> &[Happened] {
        &self.happened
    }

    /// What lasts now, in words.
    pub fn now(&self) -> String {
        let names: Vec<_> = self.lasting.iter().map(|lasting| lasting.fault.name()).collect();
        if names.is_empty() { "no fault".to_owned() } else { names.join(" and ") }
    }

    fn draw(&mut self) -> Fault {
        let node = self.random.below(NODES as u64) as usize;
        match self.random.below(16) {
            0 | 1 => Fault::KillNode(node),
            2 | 3 => Fault::FreezeNode(node),
            4 => Fault::RestartNode(node),
            5 => Fault::KillRedis,
            6 | 7 => Fault::FreezeRedis,
            8 => Fault::FlushRedis,
            9 => Fault::CutRedis,
            10 => Fault::RestartBalancer,
            11 => Fault::StormOfClients,
            12 if self.store == StoreKind::Sqlite => Fault::LockStore,
            12 => Fault::FreezePostgres,
            13 if self.store == StoreKind::Sqlite => Fault::KillNode(node),
            13 => Fault::CrashPostgres,
            14 => Fault::SetClock(CLOCK_OFF_HOURS),
            _ => Fault::SetClock(-CLOCK_OFF_HOURS),
        }
    }
}

fn make(
    fault: Fault,
    lasts: Duration,
    place: &mut Place,
    devices: &mut Devices,
) -> anyhow::Result<Option<Child>> {
    match fault {
        Fault::KillNode(node) => place.nodes[node].kill(),
        Fault::FreezeNode(node) => place.nodes[node].freeze(),
        Fault::RestartNode(node) => place.nodes[node].signal(Signal::TERM),
        Fault::SetClock(hours) => place.clock.is_off_by_hours(hours)?,
        Fault::KillRedis => place.redis.kill(),
        Fault::FreezeRedis => place.redis.freeze(),
        Fault::FlushRedis => tell_redis(place, "FLUSHALL\r\n"),
        Fault::CutRedis => tell_redis(place, "CLIENT KILL TYPE pubsub\r\nCLIENT KILL TYPE normal\r\n"),
        Fault::RestartBalancer => place.balancer.kill(),
        Fault::StormOfClients => devices.storm()?,
        Fault::LockStore => return lock_sqlite(place, lasts).map(Some),
        Fault::CrashPostgres => {
            if let Some(postgres) = &mut place.postgres {
                postgres.signal(Signal::QUIT);
            }
        }
        Fault::FreezePostgres => {
            if let Some(postgres) = &mut place.postgres {
                postgres.freeze();
            }
        }
    }
    Ok(None)
}

fn tell_redis(place: &Place, commands: &str) {
    // A Redis that is away cannot be told, which is a fault already.
    if let Ok(mut stream) = TcpStream::connect_timeout(&place.redis.address, Duration::from_millis(200)) {
        let _ = stream.write_all(commands.as_bytes());
    }
}

/// Python brings SQLite along wherever it is.
fn lock_sqlite(place: &Place, lasts: Duration) -> anyhow::Result<Child> {
    let script = "import sqlite3, sys, time\n\
                  held = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)\n\
                  held.execute('BEGIN IMMEDIATE')\n\
                  time.sleep(float(sys.argv[2]))\n\
                  held.execute('ROLLBACK')\n";
    Command::new("python3")
        .args(["-c", script])
        .arg(place.folder().join("tandem.db"))
        .arg(lasts.as_secs_f64().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("python3 is needed to lock the store")
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_the_faults() {
        let drawn = |seed| {
            let mut schedule = Schedule::new(seed, StoreKind::Sqlite);
            (0..100).map(|_| schedule.draw()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert!(drawn(7).contains(&Fault::LockStore));
        assert!(drawn(7).iter().all(|fault| !matches!(fault, Fault::CrashPostgres | Fault::FreezePostgres)));
    }
}
