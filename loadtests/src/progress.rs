//! One line that says what is going on, on a terminal only: logs and pipes get results, not progress.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Often enough to look alive, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_millis(250);

pub struct Progress {
    on_terminal: bool,
    heading: String,
    shown: Option<Instant>,
}

impl Progress {
    pub fn new() -> Self {
        Self { on_terminal: std::io::stderr().is_terminal(), heading: String::new(), shown: None }
    }

    /// What every line from now on starts with.
    pub fn head(&mut self, heading: String) {
        self.heading = heading;
        self.shown = None;
        self.show(|| "starting".to_owned());
    }

    /// Shows what `line` says, if it is time for it.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        if self.on_terminal && self.shown.is_none_or(|shown| shown.elapsed() >= EVERY) {
            self.shown = Some(Instant::now());
            // Nothing depends on the line; a closed terminal is no reason to stop measuring.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}: {}", self.heading, line());
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.on_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
