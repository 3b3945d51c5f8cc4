//! How many acked writes a second each store takes, through the writer of a node, with 1 to 512 clients that each wait
//! for their ack: `cargo bench --bench store`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a measurement that cannot go on says so, and uses its own share of the tests' support"
)]

#[path = "../tests/store/bed.rs"]
mod bed;
#[path = "../tests/store/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tandem::drain::Tasks;
use tokio::task::JoinSet;

use bed::{Bed, write, writer};

/// How long each figure is measured.
const MEASURED_FOR: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() {
    for (name, bed) in [("SQLite", Bed::sqlite().await), ("PostgreSQL", Bed::postgres().await)] {
        for writers in [1, 8, 64, 512] {
            measure(name, &bed, writers).await;
        }
    }
}

async fn measure(name: &str, bed: &Bed, writers: usize) {
    let tasks = Tasks::default();
    let writer = writer(bed.store.clone(), &tasks);
    let mut users = Vec::new();
    for _ in 0..writers.div_ceil(4) {
        users.push(bed.user().await);
    }
    let started = Instant::now();
    let refused = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..writers {
        let (writer, refused, user) = (writer.clone(), refused.clone(), users[client / 4]);
        clients.spawn(async move {
            let mut waits = Vec::new();
            while started.elapsed() < MEASURED_FOR {
                let state = format!(r#"{{"cursor":{},"text":"{}"}}"#, waits.len(), "x".repeat(200));
                let sent = Instant::now();
                match writer.write(Arc::new(write(user, &format!("k{}", client % 4), &state))).await {
                    Ok(outcome) => {
                        outcome.unwrap();
                        waits.push(sent.elapsed());
                    }
                    Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                }
            }
            waits
        });
    }
    let mut waits = clients.join_all().await.concat();
    let elapsed = started.elapsed();
    tasks.end();
    waits.sort_unstable();
    eprintln!(
        "{name:10} {writers:3} writers: {:7.0} acked/s, p50 {:?}, p99 {:?}, refused {}",
        waits.len() as f64 / elapsed.as_secs_f64(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        refused.load(Ordering::Relaxed),
    );
}
