//! Sends events at a fixed rate whatever the server does, and times each from the instant it was due.

use std::time::{Duration, Instant};

use crate::client::swarm::{Happening, Swarm, What};
use crate::measure::latency::Latencies;
use crate::measure::result::Sample;
use crate::measure::watch::{Reading, Spent, Watched};
use crate::progress::Progress;

use super::gather::gather;
use super::plan::Plan;
use super::schedule::{Schedule, turn_order};
use super::traffic::Traffic;

/// From the decision to start until the first event: no event is late before it begins.
const LEAD: Duration = Duration::from_millis(20);
/// How long answers may come in after the last event was due.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// When nothing at all came for so long, nothing more will.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Set in an event's count of deliveries once it is acknowledged.
const ACKED: u8 = 0x80;

/// What to offer.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub traffic: Traffic,
    pub events_per_second: u32,
    pub warmup: Duration,
    pub measured: Duration,
    pub payload_bytes: usize,
    /// Stop sending once the server is this far behind: it will not catch up.
    pub behind_max: Option<Duration>,
}

/// What came of it. Latencies and `completed` are of the measured time, losses of the whole run.
pub struct Outcome {
    pub measured_events: u64,
    /// Events whose last answer came within the measured time.
    pub completed: u64,
    pub delivery: Latencies,
    pub ack: Latencies,
    pub send_lag: Latencies,
    pub deliveries_lost: u64,
    pub deliveries_extra: u64,
    pub acks_lost: u64,
    pub refused: u64,
    pub sockets_lost: u64,
    pub gave_up: bool,
    pub spent: Option<Spent>,
}

/// Connects everybody and offers what the plan says.
pub fn run(
    plan: &Plan,
    traffic: Traffic,
    mut sample: Sample,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    gather(swarm, plan.at_a_time, progress)?;
    let offer = Offer {
        traffic,
        events_per_second: plan.events_per_second,
        warmup: plan.warmup,
        measured: plan.measured,
        payload_bytes: plan.payload_bytes,
        behind_max: None,
    };
    let outcome = drive(offer, swarm, watched, progress)?;
    sample.set("sockets", plan.sockets() as f64);
    outcome.write_into(&mut sample, offer, !watched.nodes.is_empty());
    Ok(sample)
}

/// Offers events to devices that are connected already.
pub fn drive(
    offer: Offer,
    swarm: &mut Swarm,
    watched: &Watched,
    progress: &mut Progress,
) -> anyhow::Result<Outcome> {
    let schedule =
        Schedule::new(Instant::now() + LEAD, offer.events_per_second, offer.warmup, offer.measured);
    let first_number = swarm.take_numbers(schedule.events);
    let mut book = Book::open(offer.traffic, swarm.devices_per_user(), schedule, first_number);
    let sender_of = turn_order(swarm.devices.len() as u64);
    let filling = "f".repeat(offer.payload_bytes);
    let mut packet = Vec::new();
    let mut start: Option<Reading> = None;
    swarm.happened.clear();

    while book.sent < schedule.events {
        if book.sent == schedule.first_measured && start.is_none() {
            start = Some(watched.read()?);
        }
        while book.sent < schedule.events && schedule.due(book.sent) <= Instant::now() {
            if book.sent == schedule.first_measured && start.is_none() {
                break;
            }
            let sender = sender_of(book.sent) as usize;
            offer.traffic.compose(swarm, sender, first_number + book.sent, &filling, &mut packet);
            swarm.send(sender, &packet);
            book.sent_one(Instant::now());
        }
        swarm.turn(schedule.due(book.sent.min(schedule.events - 1)))?;
        book.take(&mut swarm.happened);
        if offer.behind_max.is_some_and(|behind_max| book.is_behind(offer.events_per_second, behind_max)) {
            book.outcome.gave_up = true;
            break;
        }
        progress.show(|| book.line(offer.events_per_second));
    }
    while !book.outcome.gave_up && Instant::now() < schedule.end() {
        swarm.turn(schedule.end())?;
        book.take(&mut swarm.happened);
    }
    book.outcome.spent = start.map(|start| watched.read().map(|end| start.until(&end))).transpose()?;
    let drained = Instant::now() + DRAIN_MAX;
    let mut heard_at = Instant::now();
    while !book.is_complete() && Instant::now() < drained && heard_at.elapsed() < QUIET_MAX {
        swarm.turn(drained)?;
        if !swarm.happened.is_empty() {
            heard_at = Instant::now();
        }
        book.take(&mut swarm.happened);
        progress.show(|| book.line(offer.events_per_second));
    }
    Ok(book.close())
}

/// Who has heard of which event.
struct Book {
    traffic: Traffic,
    schedule: Schedule,
    first_number: u64,
    deliveries_each: u8,
    sent: u64,
    acked: u64,
    delivered: u64,
    /// For each event how many deliveries came, and [`ACKED`].
    heard: Vec<u8>,
    outcome: Outcome,
}

impl Book {
    fn open(traffic: Traffic, devices_per_user: usize, schedule: Schedule, first_number: u64) -> Self {
        Self {
            traffic,
            schedule,
            first_number,
            deliveries_each: traffic.deliveries(devices_per_user),
            sent: 0,
            acked: 0,
            delivered: 0,
            heard: vec![0; usize::try_from(schedule.events).unwrap_or(usize::MAX)],
            outcome: Outcome {
                measured_events: 0,
                completed: 0,
                delivery: Latencies::new(),
                ack: Latencies::new(),
                send_lag: Latencies::new(),
                deliveries_lost: 0,
                deliveries_extra: 0,
                acks_lost: 0,
                refused: 0,
                sockets_lost: 0,
                gave_up: false,
                spent: None,
            },
        }
    }

    fn sent_one(&mut self, at: Instant) {
        if self.sent >= self.schedule.first_measured {
            self.outcome.measured_events += 1;
            self.outcome.send_lag.record(at - self.schedule.due(self.sent));
        }
        self.sent += 1;
    }

    fn take(&mut self, happened: &mut Vec<Happening>) {
        for happening in happened.drain(..) {
            match happening.what {
                What::Delivered(number) => self.delivered(number, happening.at),
                What::Acked { id, ok: true } => self.acked(id, happening.at),
                // Counted by the refusal that comes with it.
                What::Acked { ok: false, .. } | What::Restored => {}
                What::Refused(_) => self.outcome.refused += 1,
                What::Closed { .. } => self.outcome.sockets_lost += 1,
            }
        }
    }

    fn delivered(&mut self, number: u64, at: Instant) {
        let Some(nth) = self.nth(number) else { return };
        let heard = &mut self.heard[nth as usize];
        if *heard & !ACKED >= self.deliveries_each {
            self.outcome.deliveries_extra += 1;
            return;
        }
        *heard += 1;
        let is_last = *heard & !ACKED == self.deliveries_each;
        self.delivered += 1;
        if nth >= self.schedule.first_measured {
            self.outcome.delivery.record(at.saturating_duration_since(self.schedule.due(nth)));
        }
        if is_last && !self.traffic.asks_ack() {
            self.completed(at);
        }
    }

    fn acked(&mut self, number: u64, at: Instant) {
        let Some(nth) = self.nth(number) else { return };
        let heard = &mut self.heard[nth as usize];
        if *heard & ACKED != 0 {
            return;
        }
        *heard |= ACKED;
        self.acked += 1;
        if nth >= self.schedule.first_measured {
            self.outcome.ack.record(at.saturating_duration_since(self.schedule.due(nth)));
        }
        self.completed(at);
    }

    fn completed(&mut self, at: Instant) {
        if (self.schedule.due(self.schedule.first_measured)..self.schedule.end()).contains(&at) {
            self.outcome.completed += 1;
        }
    }

    /// The place in this schedule; `None` for a late answer to an earlier one.
    fn nth(&self, number: u64) -> Option<u64> {
        number.checked_sub(self.first_number).filter(|nth| *nth < self.sent)
    }

    fn is_behind(&self, events_per_second: u32, behind_max: Duration) -> bool {
        let missing = if self.traffic.asks_ack() {
            self.sent - self.acked
        } else {
            self.sent - self.delivered / u64::from(self.deliveries_each.max(1))
        };
        missing as f64 > f64::from(events_per_second) * behind_max.as_secs_f64()
    }

    fn is_complete(&self) -> bool {
        let acks = !self.traffic.asks_ack() || self.acked + self.outcome.refused >= self.sent;
        acks && self.delivered >= self.sent * u64::from(self.deliveries_each)
    }

    fn line(&self, events_per_second: u32) -> String {
        let (sent, events) = (self.sent, self.schedule.events);
        format!(
            "{events_per_second} events/s, {sent} of {events} sent, {} acked, {} delivered",
            self.acked, self.delivered
        )
    }

    fn close(mut self) -> Outcome {
        self.outcome.deliveries_lost =
            (self.sent * u64::from(self.deliveries_each)).saturating_sub(self.delivered);
        self.outcome.acks_lost = if self.traffic.asks_ack() { self.sent - self.acked } else { 0 };
        self.outcome
    }
}

impl Outcome {
    pub fn write_into(&self, sample: &mut Sample, offer: Offer, watched: bool) {
        sample.set("offered_per_second", f64::from(offer.events_per_second));
        sample.set("achieved_per_second", self.completed as f64 / offer.measured.as_secs_f64());
        sample.set("events", self.measured_events as f64);
        sample.set("deliveries_lost", self.deliveries_lost as f64);
        sample.set("deliveries_extra", self.deliveries_extra as f64);
        sample.set("acks_lost", self.acks_lost as f64);
        sample.set("refused", self.refused as f64);
        sample.set("sockets_lost", self.sockets_lost as f64);
        sample.set("send_lag_p99_us", self.send_lag.us_at(0.99) as f64);
        sample.set_latencies("delivery", &self.delivery);
        sample.set_latencies("ack", &self.ack);
        let Some(spent) = &self.spent else { return };
        sample.set_costs(spent, self.measured_events, watched);
    }
}
