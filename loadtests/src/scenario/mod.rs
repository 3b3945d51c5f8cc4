//! The scenarios: what the devices do, and what is measured of it. Each takes a swarm of its own and ends within
//! a bounded time.

pub mod connect;
pub mod gather;
pub mod idle;
pub mod open_loop;
pub mod peak;
pub mod plan;
pub mod schedule;
pub mod storm;
pub mod traffic;
pub mod writers;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::client::account;
use crate::client::swarm::{Crowd, Swarm};
use crate::client::target::Target;
use crate::measure::result::Sample;
use crate::measure::watch::Watched;
use crate::progress::Progress;
use crate::wire::mark::Marks;
use plan::{Plan, Scenario};
use traffic::Traffic;

/// A server, and what may be read of it.
pub struct Server {
    pub target: Target,
    pub watched: Watched,
}

/// Runs one scenario once against one server.
///
/// # Errors
/// When the server cannot be reached, refuses the devices, or ends; when the run is told to stop. An overloaded
/// server is no error but a figure.
pub fn run(
    plan: &Plan,
    server: &Server,
    stop: &Arc<AtomicBool>,
    progress: &mut Progress,
) -> anyhow::Result<Sample> {
    plan.check()?;
    let marks = Arc::new(Marks::random());
    progress.show(|| format!("registering {} users", plan.users));
    let tokens = account::register(&server.target, marks.tag(), plan.users)?;
    if plan.state_bytes > 0 {
        progress.show(|| format!("filling {} sessions", plan.users));
        account::fill_sessions(&server.target, &tokens, plan.state_bytes)?;
    }
    let crowd = Crowd {
        target: server.target.clone(),
        tokens,
        devices_per_user: plan.devices_per_user,
        placement: plan.placement,
        marks,
    };
    let mut swarm = Swarm::new(crowd, Arc::clone(stop))?;
    let sample = Sample::new(plan.scenario.name(), server.target.nodes.len(), plan.sockets(), plan.rate());
    match plan.scenario {
        Scenario::Connect => connect::run(plan, sample, &mut swarm, &server.watched, progress),
        Scenario::Idle => idle::run(plan, sample, &mut swarm, &server.watched, progress),
        Scenario::Relay => {
            open_loop::run(plan, Traffic::Relay, sample, &mut swarm, &server.watched, progress)
        }
        Scenario::Updates => {
            open_loop::run(plan, Traffic::Updates, sample, &mut swarm, &server.watched, progress)
        }
        Scenario::Messages => {
            open_loop::run(plan, Traffic::Messages, sample, &mut swarm, &server.watched, progress)
        }
        Scenario::Peak => peak::run(plan, sample, &mut swarm, &server.watched, progress),
        Scenario::Writers => writers::run(plan, sample, &mut swarm, &server.watched, progress),
        Scenario::Storm => storm::run(plan, sample, &mut swarm, &server.watched, progress),
    }
}

/// Lets the devices be for a while: pings are answered, what else happens is forgotten. How many sockets ended.
pub(crate) fn rest(swarm: &mut Swarm, time: Duration, progress: &mut Progress) -> anyhow::Result<usize> {
    let end = Instant::now() + time;
    let mut lost = 0;
    while Instant::now() < end {
        swarm.turn(end)?;
        lost += swarm.happened.drain(..).filter(|happening| happening.is_loss()).count();
        progress
            .show(|| format!("at rest, {} s left", end.saturating_duration_since(Instant::now()).as_secs()));
    }
    Ok(lost)
}
