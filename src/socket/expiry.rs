//! The ends of tokens, enforced on live sockets.
//!
//! One look a second at what is due, for all sockets of the node, instead of a
//! timer for each: an idle socket costs one entry of a map. Tokens end by the
//! wall clock, so a clock that jumps is noticed at the next look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::Services;
use super::session::Session;
use crate::model::{Clock, ConnectionId, Timestamp};

/// How long before the end of its token a client is told.
const WARNING_MS: i64 = 60_000;

/// How often somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module's comment. Each session is in it once, at the time of its
/// warning or, after that, of its end.
#[derive(Default)]
pub struct Expiry(Mutex<Due>);

type Due = BTreeMap<(Timestamp, ConnectionId), Weak<Session>>;

/// What is due for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its token ends soon.
    Warning,
    /// Its token has ended.
    End,
}

impl Expiry {
    fn lock(&self) -> MutexGuard<'_, Due> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches over a connection whose token ends at `ends`.
    pub fn watch(&self, connection: ConnectionId, session: Weak<Session>, ends: Timestamp) {
        self.lock().insert((warning(ends), connection), session);
    }

    /// Forgets a connection whose token ends, or ended, at `ends`.
    pub fn forget(&self, connection: ConnectionId, ends: Timestamp) {
        let mut due = self.lock();
        due.remove(&(warning(ends), connection));
        due.remove(&(ends, connection));
    }

    /// What is due at `now`. Who is warned is due again at the end.
    fn take_due(&self, now: Timestamp) -> Vec<(Stage, Arc<Session>)> {
        let mut due = self.lock();
        let mut taken = Vec::new();
        while let Some(first) = due.first_entry()
            && first.key().0 <= now
        {
            let ((_, connection), session) = first.remove_entry();
            let Some(session) = session.upgrade() else { continue };
            let ends = session.token_ends();
            let stage = if ends <= now { Stage::End } else { Stage::Warning };
            if stage == Stage::Warning {
                due.insert((ends, connection), Arc::downgrade(&session));
            }
            taken.push((stage, session));
        }
        taken
    }
}

fn warning(ends: Timestamp) -> Timestamp {
    ends.plus_ms(-WARNING_MS)
}

/// Warns and ends sockets as their tokens end, until the node does.
pub async fn enforce(services: Arc<Services>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = services.tasks.ending() => return,
        }
        for (stage, session) in services.expiry.take_due(Clock::now()) {
            session.token_due(stage);
        }
    }
}
