//! A socket's events in the order of their arrival.
//!
//! Nobody waits here while nothing is going on: a worker is started for the
//! first event that cannot be handled at once, and ends when the inbox is
//! empty. Above half of its bounds reading from the socket stops, so that a
//! full inbox is the exception; then events are refused with `rate_limited`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wire::AckId;

/// Events that may wait.
const EVENTS_MAX: usize = 512;

/// Bytes that may wait.
const BYTES_MAX: usize = 2 << 20;

/// An event that arrived, its JSON untouched.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The answer it asks for.
    pub id: Option<AckId>,
    /// `["name", payload, ...]`.
    pub json: Box<str>,
}

/// What to do with an arriving event.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is its turn now: handle it, then call [`Inbox::next`].
    Now,
    /// It waits. `crowded`: stop reading for a while.
    Waits {
        /// The inbox is over half full.
        crowded: bool,
    },
    /// There is no room.
    Full,
}

/// See the module's comment.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arrived>,
    bytes: usize,
    /// The restore was sent; before it events wait.
    open: bool,
    /// Somebody is handling an event or will take the next.
    busy: bool,
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a turn. Only an event that must wait is copied.
    pub fn arrive(&self, id: Option<AckId>, json: &str) -> Turn {
        let mut state = self.lock();
        if state.closed {
            return Turn::Full;
        }
        if state.open && !state.busy {
            state.busy = true;
            return Turn::Now;
        }
        if state.queue.len() >= EVENTS_MAX || state.bytes + json.len() > BYTES_MAX {
            return Turn::Full;
        }
        state.bytes += json.len();
        state.queue.push_back(Arrived { id, json: json.into() });
        Turn::Waits { crowded: state.is_crowded() }
    }

    /// The next event. Nothing: the caller is done and the inbox at rest.
    pub fn next(&self) -> Option<Arrived> {
        let mut state = self.lock();
        let next = state.take();
        state.busy = next.is_some();
        next
    }

    /// The next event if one waits; the turn stays with the caller either way.
    pub fn peek_next(&self) -> Option<Arrived> {
        self.lock().take()
    }

    /// Whether reading may go on.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.queue.len() <= EVENTS_MAX / 4 && state.bytes <= BYTES_MAX / 4
    }

    /// The restore was sent: events may be handled. True when some wait and the
    /// caller has the turn.
    pub fn open(&self) -> bool {
        let mut state = self.lock();
        state.open = true;
        let waiting = !state.queue.is_empty() && !state.closed && !state.busy;
        state.busy |= waiting;
        waiting
    }

    /// Takes no more events; those that wait are still handled.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether nothing waits and nothing is being handled.
    pub fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.queue.is_empty() && !state.busy
    }
}

impl State {
    fn take(&mut self) -> Option<Arrived> {
        let next = self.queue.pop_front()?;
        self.bytes -= next.json.len();
        if self.queue.is_empty() {
            // An idle socket keeps no buffer.
            self.queue = VecDeque::new();
        }
        Some(next)
    }

    fn is_crowded(&self) -> bool {
        self.queue.len() > EVENTS_MAX / 2 || self.bytes > BYTES_MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_wait_until_the_restore_and_then_keep_their_order() {
        let inbox = Inbox::default();
        assert_eq!(inbox.arrive(None, "1"), Turn::Waits { crowded: false });
        assert_eq!(inbox.arrive(None, "2"), Turn::Waits { crowded: false });
        assert!(inbox.open());
        assert_eq!(inbox.arrive(None, "3"), Turn::Waits { crowded: false });
        let order: Vec<_> = std::iter::from_fn(|| inbox.next()).map(|event| event.json).collect();
        assert_eq!(order, ["1", "2", "3"].map(Box::<str>::from));
        assert_eq!(inbox.arrive(None, "4"), Turn::Now);
        assert_eq!(inbox.arrive(None, "5"), Turn::Waits { crowded: false }, "4 is not done yet");
    }

    #[test]
    fn over_half_it_is_crowded_and_then_full() {
        let inbox = Inbox::default();
        let turns: Vec<_> = (0..EVENTS_MAX + 1).map(|_| inbox.arrive(None, "x")).collect();
        assert_eq!(turns[EVENTS_MAX / 2 - 1], Turn::Waits { crowded: false });
        assert_eq!(turns[EVENTS_MAX / 2], Turn::Waits { crowded: true });
        assert_eq!(turns[EVENTS_MAX], Turn::Full);
        assert!(!inbox.has_room());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let inbox = Inbox::default();
        let big = "x".repeat(BYTES_MAX / 2 + 1);
        assert_eq!(inbox.arrive(None, &big), Turn::Waits { crowded: true });
        assert_eq!(inbox.arrive(None, &big), Turn::Full);
    }
}
