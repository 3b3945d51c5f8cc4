//! What one device has seen so far, in order, and a way to wait for more.

use std::sync::Mutex;

use serde_json::Value;
use tokio::sync::watch;

/// One thing a device saw: an event of the server, or the client's own news (`$connect`, `$disconnect`, ...).
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub name: String,
    pub args: Vec<Value>,
}

impl Received {
    /// The first argument, or null.
    pub fn payload(&self) -> Value {
        self.args.first().cloned().unwrap_or_default()
    }
}

#[derive(Default)]
pub struct Inbox {
    entries: Mutex<Vec<Entry>>,
    arrived: watch::Sender<u64>,
}

struct Entry {
    received: Received,
    read: bool,
}

impl Inbox {
    pub fn push(&self, received: Received) {
        self.entries.lock().unwrap().push(Entry { received, read: false });
        self.arrived.send_modify(|count| *count += 1);
    }

    /// The first unread entry that `wanted` likes, marked as read; waits for it if need be.
    pub async fn take(&self, wanted: impl Fn(&Received) -> bool) -> Received {
        let mut arrived = self.arrived.subscribe();
        loop {
            arrived.borrow_and_update();
            if let Some(received) = self.take_now(&wanted) {
                return received;
            }
            arrived.changed().await.expect("the sender is ours");
        }
    }

    /// Waits until `answer` has one for everything seen so far.
    pub async fn until<T>(&self, mut answer: impl FnMut(&[Received]) -> Option<T>) -> T {
        let mut arrived = self.arrived.subscribe();
        loop {
            arrived.borrow_and_update();
            if let Some(found) = answer(&self.all()) {
                return found;
            }
            arrived.changed().await.expect("the sender is ours");
        }
    }

    pub fn all(&self) -> Vec<Received> {
        self.entries.lock().unwrap().iter().map(|entry| entry.received.clone()).collect()
    }

    /// Unread entries that `wanted` likes, left unread.
    pub fn unread(&self, wanted: impl Fn(&Received) -> bool) -> Vec<Received> {
        let entries = self.entries.lock().unwrap();
        let unread = entries.iter().filter(|entry| !entry.read && wanted(&entry.received));
        unread.map(|entry| entry.received.clone()).collect()
    }

    fn take_now(&self, wanted: &impl Fn(&Received) -> bool) -> Option<Received> {
        let mut entries = self.entries.lock().unwrap();
        let entry = entries.iter_mut().find(|entry| !entry.read && wanted(&entry.received))?;
        entry.read = true;
        Some(entry.received.clone())
    }
}
