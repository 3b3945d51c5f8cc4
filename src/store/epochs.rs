//! The epoch as this process last saw it, whichever connection told of it.
//!
//! Answers may overtake each other: one that was read before a new epoch began
//! may come after it is known. An epoch that was left never comes back, so such
//! an answer is known by its name.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use crate::model::Epoch;

/// See the module's comment.
pub struct Epochs(RwLock<Known>);

struct Known {
    present: Epoch,
    /// Those before it. They are few: each sent every client to load everything.
    left: HashSet<Epoch>,
}

/// What an epoch that was read is to this process.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// The one it is in.
    Present,
    /// A new one, which it is in from now on.
    New,
    /// One that it has left.
    Left,
}

impl Epochs {
    /// In `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self(RwLock::new(Known { present: epoch, left: HashSet::new() }))
    }

    /// The present one.
    pub fn present(&self) -> Epoch {
        self.0.read().unwrap_or_else(PoisonError::into_inner).present.clone()
    }

    /// Whether the process has left `epoch`.
    pub fn is_left(&self, epoch: &Epoch) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).left.contains(epoch)
    }

    /// Takes what was read.
    pub fn saw(&self, epoch: &Epoch) -> Seen {
        // Nearly always it is the present one, and readers do not wait for each other.
        if self.0.read().unwrap_or_else(PoisonError::into_inner).present == *epoch {
            return Seen::Present;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.present == *epoch {
            return Seen::Present;
        }
        if known.left.contains(epoch) {
            return Seen::Left;
        }
        let before = std::mem::replace(&mut known.present, epoch.clone());
        known.left.insert(before);
        Seen::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_answer_that_comes_late_changes_nothing() {
        let [first, second] = ["first", "second"].map(|name| Epoch(name.into()));
        let epochs = Epochs::new(first.clone());
        assert_eq!(epochs.saw(&first), Seen::Present);
        assert_eq!(epochs.saw(&second), Seen::New);
        assert_eq!(epochs.saw(&first), Seen::Left);
        assert_eq!(epochs.present(), second);
        assert!(epochs.is_left(&first) && !epochs.is_left(&second));
    }
}
