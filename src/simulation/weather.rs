//! What may go wrong in one schedule, and how the machines stand at the moment.
//!
//! Each schedule draws which kinds of faults it knows at all: two of them that meet often show more
//! than all of them at once. When the calm begins, nothing goes wrong any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::fate::{FAULTS, Fate, Lane};

/// A build that is broken on purpose, to see that it is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// None: what is shipped.
    Nothing,
    /// What is missing is not read from the store.
    NoRepair,
    /// Nobody asks the store what moved.
    NoAsk,
    /// Of two rows of a device the later written one stands; nobody notes older connections.
    NoFencing,
    /// The snapshot is read before the hub holds anything back for the device.
    SnapshotFirst,
    /// Dead nodes are buried by everyone who sees it.
    NoClaims,
    /// A claimer removes rows and says nothing.
    SilentClaims,
    /// A node that drains forgets its sockets.
    NoFarewell,
    /// A device is given to whoever asked for it, however long ago.
    LateClaims,
    /// The subscription is not made anew after a lost connection.
    NoResubscription,
}

/// See the module's comment.
pub struct Weather {
    pub fate: Arc<Fate>,
    pub defect: Defect,
    calm: AtomicBool,
    pub kinds: Kinds,
}

/// Kinds of faults, each there or not.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// Publishes get lost, of a hundred.
    pub loss: u64,
    /// Publishes arrive twice, of a hundred.
    pub twice: u64,
    /// Publishes overtake each other.
    pub reorder: bool,
    /// Longest way to Redis and back.
    pub redis_ms_max: u64,
    /// Longest way to the store.
    pub store_ms_max: u64,
    /// Store calls that fail, of a hundred.
    pub store_fails: u64,
    /// Nodes lose the way to Redis, for a while or only their connection.
    pub cuts: bool,
    /// Redis forgets everything.
    pub wipes: bool,
    pub freezes: bool,
    pub kills: bool,
    pub drains: bool,
    /// Inbound queues hold next to nothing.
    pub narrow: bool,
}

impl Kinds {
    fn drawn(fate: &Fate) -> Self {
        let often = |percent, then| if fate.chance(FAULTS, percent) { then } else { 0 };
        Self {
            loss: often(40, 20),
            twice: often(30, 20),
            reorder: fate.chance(FAULTS, 30),
            redis_ms_max: 2 + often(40, 80),
            store_ms_max: 4 + often(40, 400),
            store_fails: often(30, 15),
            cuts: fate.chance(FAULTS, 40),
            wipes: fate.chance(FAULTS, 15),
            freezes: fate.chance(FAULTS, 40),
            kills: fate.chance(FAULTS, 40),
            drains: fate.chance(FAULTS, 30),
            narrow: fate.chance(FAULTS, 15),
        }
    }

    /// Whether what is published arrives, once and in order. Frozen nodes lose their link.
    pub fn is_clean(&self) -> bool {
        let arrives = self.loss == 0 && self.twice == 0 && !self.reorder && !self.narrow;
        arrives && !self.cuts && !self.wipes && !self.freezes
    }
}

impl Weather {
    /// The weather of a seed.
    pub fn new(seed: u64, defect: Defect) -> Self {
        let fate = Arc::new(Fate::new(seed));
        let kinds = Kinds::drawn(&fate);
        Self { fate, defect, calm: AtomicBool::new(false), kinds }
    }

    /// Nothing goes wrong any more.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Whether it is calm.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Whether something that goes wrong in `percent` of all cases does now.
    pub fn strikes(&self, lane: Lane, percent: u64) -> bool {
        !self.is_calm() && self.fate.chance(lane, percent)
    }

    /// One way to Redis, or back.
    pub fn redis_trip(&self, lane: Lane) -> Duration {
        self.fate.millis(lane, 0, if self.is_calm() { 2 } else { self.kinds.redis_ms_max })
    }

    /// One way to the store, or back.
    pub fn store_trip(&self, lane: Lane) -> Duration {
        self.fate.millis(lane, 0, if self.is_calm() { 4 } else { self.kinds.store_ms_max })
    }
}

/// The machine under a node: whether it runs, and its way to Redis.
pub struct Host {
    pub name: String,
    pub lane: Lane,
    state: Mutex<State>,
    /// Whoever waits is woken in the order of waiting, which a watch channel does not promise.
    changed: Notify,
}

#[derive(Clone, Copy)]
struct State {
    runs: Runs,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    Frozen,
    Dead,
}

/// The way to Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    pub is_cut: bool,
    /// Counts the connections; what travels on an older one is lost.
    pub connection: u64,
}

impl Host {
    /// The machine with that number.
    pub fn new(number: u64) -> Self {
        let way = Way { is_cut: false, connection: 1 };
        Self {
            name: format!("n{number}"),
            lane: FAULTS + 1 + number,
            state: Mutex::new(State { runs: Runs::Yes, way }),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    async fn until(&self, holds: impl Fn(State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let state = *self.state();
            if holds(state) {
                return;
            }
            changed.await;
        }
    }

    /// Waits while the machine is frozen; on a dead one nothing goes on, ever.
    pub async fn running(&self) {
        self.until(|state| state.runs == Runs::Yes).await;
    }

    /// Does `work`, which rests while the machine is frozen.
    pub async fn while_running<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.running().await;
            tokio::select! {
                biased;
                () = self.until(|state| state.runs != Runs::Yes) => {}
                done = &mut work => return done,
            }
        }
    }

    /// Resolves when the machine is dead.
    pub async fn died(&self) {
        self.until(|state| state.runs == Runs::Dead).await;
    }

    /// Resolves when the way is another than this.
    pub async fn way_changed(&self, from: Way) {
        self.until(|state| state.way != from).await;
    }

    pub fn freeze(&self) {
        self.change(|state| {
            if state.runs == Runs::Yes {
                state.runs = Runs::Frozen;
            }
        });
    }

    pub fn thaw(&self) {
        self.change(|state| {
            if state.runs == Runs::Frozen {
                state.runs = Runs::Yes;
            }
        });
    }

    pub fn kill(&self) {
        self.change(|state| state.runs = Runs::Dead);
    }

    pub fn is_running(&self) -> bool {
        self.state().runs == Runs::Yes
    }

    pub fn is_dead(&self) -> bool {
        self.state().runs == Runs::Dead
    }

    /// Nothing comes through until it is healed, by a new connection.
    pub fn cut(&self) {
        self.change(|state| state.way.is_cut = true);
    }

    /// A new connection in the old one's place.
    pub fn reconnect(&self) {
        self.change(|state| state.way = Way { is_cut: false, connection: state.way.connection + 1 });
    }

    pub fn heal(&self) {
        if self.way().is_cut {
            self.reconnect();
        }
    }

    pub fn way(&self) -> Way {
        self.state().way
    }
}
