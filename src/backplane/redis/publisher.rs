//! Publishing off the ack path: a bounded queue, drained in order by one task.
//!
//! While replies are on their way what comes in gathers, so a busy node writes many publishes with
//! one system call and an idle one writes at once. A reply is only counted, so it wakes nobody: this
//! task looks at those that came when it next has something to publish. A publish is sent once or
//! not at all; one that waited too long for a connection is dropped, for the store has long told
//! the others.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::prelude::*;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use crate::backplane::observed::{Observed, count};

const WAITING_MAX: usize = 16 * 1024;
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Publishes written before their batch's replies are awaited.
const BATCH_MAX: usize = 256;
/// Batches whose replies are on their way; more would only fill the socket's buffer.
const BATCHES_MAX: usize = 4;
/// An older hint helps nobody: the regular ask has told the others by then.
const AGE_MAX: Duration = Duration::from_secs(2);
/// How often answers are counted when nothing else is published.
const COLLECT_EVERY: Duration = Duration::from_millis(100);
/// How long the last publishes may take when the node stops.
const LAST_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    bytes_waiting: Arc<AtomicUsize>,
    observed: Arc<Observed>,
}

struct Outgoing {
    channel: String,
    body: Bytes,
    queued_at: Instant,
}

pub(super) struct Queue {
    queue: mpsc::Receiver<Outgoing>,
    bytes_waiting: Arc<AtomicUsize>,
}

pub(super) fn queue(observed: Arc<Observed>) -> (Publisher, Queue) {
    let (tx, rx) = mpsc::channel(WAITING_MAX);
    let bytes_waiting = Arc::<AtomicUsize>::default();
    (
        Publisher { queue: tx, bytes_waiting: bytes_waiting.clone(), observed },
        Queue { queue: rx, bytes_waiting },
    )
}

impl Publisher {
    pub(super) fn offer(&self, channel: String, body: Bytes) {
        let size = body.len();
        let waiting = self.bytes_waiting.fetch_add(size, Relaxed);
        let outgoing = Outgoing { channel, body, queued_at: Instant::now() };
        if waiting + size > WAITING_BYTES_MAX || self.queue.try_send(outgoing).is_err() {
            self.bytes_waiting.fetch_sub(size, Relaxed);
            count(&self.observed.dropped);
        }
    }
}

/// Until `stop`, and then what waits, for as long as `LAST_WITHIN`.
pub(super) async fn run(
    clients: Clients,
    mut queue: Queue,
    observed: Arc<Observed>,
    stop: CancellationToken,
) {
    // Redis answers in order, so only the oldest batch is looked at. FuturesUnordered would wake this
    // task once more for every publish, and another thread of the runtime with it.
    let mut flying = VecDeque::with_capacity(BATCHES_MAX);
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut last_call = std::pin::pin!(last_call(&stop));
    let mut collect = std::pin::pin!(tokio::time::sleep(COLLECT_EVERY));
    let mut stopping = false;
    loop {
        let waits = stopping || flying.len() == BATCHES_MAX;
        tokio::select! {
            biased;
            () = &mut last_call => return,
            () = oldest(&mut flying), if waits && !flying.is_empty() => {
                flying.pop_front();
            }
            taken = queue.queue.recv_many(&mut batch, BATCH_MAX), if flying.len() < BATCHES_MAX => {
                if taken == 0 {
                    return;
                }
                wait_connected(&clients.publisher, &stop).await;
                forget_answered(&mut flying);
                let replies = send(&clients, &mut batch, &queue.bytes_waiting, &observed);
                flying.push_back(Box::pin(replies));
            }
            () = &mut collect, if !flying.is_empty() => {
                forget_answered(&mut flying);
                collect.as_mut().reset(tokio::time::Instant::now() + COLLECT_EVERY);
            }
            () = stop.cancelled(), if !stopping => stopping = true,
        }
        if stopping && flying.is_empty() && queue.queue.is_empty() {
            return;
        }
    }
}

/// Ends with the replies of the batch that was sent first.
async fn oldest<F: Future<Output = ()>>(flying: &mut VecDeque<Pin<Box<F>>>) {
    if let Some(replies) = flying.front_mut() {
        replies.await;
    }
}

/// Those that were answered meanwhile. Nobody is woken for an answer, which only ever is counted.
fn forget_answered<F: Future<Output = ()>>(flying: &mut VecDeque<Pin<Box<F>>>) {
    while flying.front_mut().is_some_and(|replies| replies.as_mut().now_or_never().is_some()) {
        flying.pop_front();
    }
}

async fn last_call(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_WITHIN).await;
}

/// A short break must not cost what waits; a long one will, by age.
async fn wait_connected(client: &Client, stop: &CancellationToken) {
    if client.is_connected() {
        return;
    }
    let connected = tokio::time::timeout(AGE_MAX, client.wait_for_connect());
    let _ = stop.run_until_cancelled(connected).await;
}

/// Hands the batch to fred in order; what it returns awaits the replies.
fn send(
    clients: &Clients,
    batch: &mut Vec<Outgoing>,
    bytes_waiting: &AtomicUsize,
    observed: &Arc<Observed>,
) -> impl Future<Output = ()> + use<> {
    let mut replies = Vec::with_capacity(batch.len());
    for outgoing in batch.drain(..) {
        bytes_waiting.fetch_sub(outgoing.body.len(), Relaxed);
        if outgoing.queued_at.elapsed() > AGE_MAX || !clients.publisher.is_connected() {
            count(&observed.dropped);
            continue;
        }
        let clients = clients.clone();
        let mut publish = Box::pin(async move { clients.publish(outgoing.channel, outgoing.body).await });
        // The first poll queues the command: this is what keeps the order.
        match publish.as_mut().now_or_never() {
            Some(reply) => record(observed, reply),
            None => replies.push(publish),
        }
    }
    let observed = observed.clone();
    async move {
        for reply in replies {
            record(&observed, reply.await);
        }
    }
}

fn record(observed: &Observed, reply: Result<(), Error>) {
    match reply {
        Ok(()) => count(&observed.published),
        Err(error) => {
            tracing::debug!(%error, "publish failed");
            count(&observed.dropped);
        }
    }
}
