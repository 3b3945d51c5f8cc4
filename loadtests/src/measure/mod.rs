//! What is read from the system and how it is summed up: processor time and memory of processes, Redis' own
//! counters, latency histograms, and the result that a run writes down.

pub mod figure;
pub mod latency;
pub mod machine;
pub mod process;
pub mod redis;
pub mod result;
pub mod spread;
pub mod watch;
