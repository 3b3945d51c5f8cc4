//! The paths that are counted: a device connects, an event is relayed, an update is committed and told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::Figures;
use super::callgrind::Counted;
use crate::client::account;
use crate::client::swarm::{Crowd, Swarm, What};
use crate::client::target::Target;
use crate::progress::Progress;
use crate::scenario::gather::gather;
use crate::scenario::plan::Placement;
use crate::scenario::traffic::Traffic;
use crate::wire::mark::Marks;

const USERS: usize = 5;
const DEVICES_PER_USER: usize = 4;
/// Before it is counted, so that what is made once is made.
const WARMUP_EVENTS: u64 = 100;
const RELAYS: u64 = 200;
const UPDATES: u64 = 50;
/// Each path is counted so often, and the least kept: what the node does by the clock can only add to it, and
/// falls into more of them the slower the machine is.
const ROUNDS: usize = 9;
const PAYLOAD_BYTES: usize = 100;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Counts them all on one node.
pub fn count(tandem: &Path, stop: &Arc<AtomicBool>, progress: &mut Progress) -> anyhow::Result<Figures> {
    let folder = tempfile::Builder::new().prefix("tandem-counted-").tempdir()?;
    progress.show(|| "starting a node under callgrind".to_owned());
    let mut counted = Counted::start(tandem, folder.path())?;
    let target = Target::parse(&[format!("http://{}", counted.node.address)])?;

    let mut first = swarm(&target, stop)?;
    gather(&mut first, 1, progress)?;
    let mut figures = Figures::new();
    for (name, traffic, events) in [("relay", Traffic::Relay, RELAYS), ("update", Traffic::Updates, UPDATES)]
    {
        one_by_one(&mut first, traffic, WARMUP_EVENTS, progress)?;
        let figure = least(&mut counted, events, || one_by_one(&mut first, traffic, events, progress))?;
        figures.insert(name.to_owned(), figure);
    }
    let devices = (USERS * DEVICES_PER_USER) as u64;
    let mut swarms = (0..ROUNDS).map(|_| swarm(&target, stop)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut next = swarms.iter_mut();
    let figure = least(&mut counted, devices, || {
        next.next().map_or(Ok(()), |swarm| gather(swarm, 1, progress).map(drop))
    })?;
    figures.insert("connect".to_owned(), figure);
    Ok(figures)
}

/// Instructions an event, when `round` makes so many.
fn least(
    counted: &mut Counted,
    events: u64,
    mut round: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..ROUNDS {
        counted.take()?;
        round()?;
        least = least.min(counted.take()? / events);
    }
    Ok(least)
}

fn swarm(target: &Target, stop: &Arc<AtomicBool>) -> anyhow::Result<Swarm> {
    let marks = Arc::new(Marks::random());
    let tokens = account::register(target, marks.tag(), USERS)?;
    let crowd = Crowd {
        target: target.clone(),
        tokens,
        devices_per_user: DEVICES_PER_USER,
        placement: Placement::Together,
        marks,
    };
    Swarm::new(crowd, Arc::clone(stop))
}

/// Each event is sent once the one before it has reached everybody.
fn one_by_one(
    swarm: &mut Swarm,
    traffic: Traffic,
    events: u64,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let filling = "f".repeat(PAYLOAD_BYTES);
    let mut packet = Vec::new();
    let mut answers = u32::from(traffic.deliveries(DEVICES_PER_USER));
    answers += u32::from(traffic.asks_ack());
    for nth in 0..events {
        let (number, sender) = (swarm.take_numbers(1), nth as usize % swarm.devices.len());
        traffic.compose(swarm, sender, number, &filling, &mut packet);
        swarm.send(sender, &packet);
        let (mut missing, deadline) = (answers, Instant::now() + ANSWER_WITHIN);
        while missing > 0 {
            ensure!(Instant::now() < deadline, "{missing} answers to an event did not come");
            swarm.turn(deadline)?;
            for happening in swarm.happened.drain(..) {
                match happening.what {
                    What::Delivered(heard) if heard == number => missing -= 1,
                    What::Acked { id, ok: true } if id == number => missing -= 1,
                    What::Refused(code) => bail!("refused: {code}"),
                    What::Closed { why, .. } => bail!("a device lost its connection: {why}"),
                    _ => {}
                }
            }
        }
        progress.show(|| format!("{traffic:?}: {nth} of {events}"));
    }
    Ok(())
}
