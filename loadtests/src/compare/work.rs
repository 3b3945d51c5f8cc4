//! The rows of the table in the plan of this project: what is measured, how much of it, of whom.

use std::time::Duration;

use super::contender::Contender;
use super::launch::Layout;
use crate::scenario::plan::{Placement, Plan, Scenario};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Relay at 5,000 events/s, one node.
    Relay,
    /// Relay at 1,000 events/s, one node: for its latency.
    Latency,
    /// Relay at 3,000 events/s over three nodes and Redis.
    ClusterRelay,
    /// Relay at 1,000 events/s over three nodes and Redis: for its latency.
    ClusterLatency,
    /// Durable session updates at 1,000 a second.
    Updates,
    /// The most durable session updates a second.
    Peak,
    /// Acknowledged writes a second of 1 to 512 writers, on either store.
    Writers,
    /// Device messages at 1,000 a second.
    Messages,
    /// 8,000 idle sockets.
    Idle,
    /// 2,000 devices connect, 64 at a time.
    Connect,
    /// 2,000 of 6,000 devices lose their connection.
    Storm,
    /// Relay at the same rate with 200 to 8,000 sockets.
    GrowthSockets,
    /// Relay at the same rate a node on 1 to 6 nodes, a user's devices on different ones.
    GrowthNodes,
    /// The same with each user's devices on one node.
    GrowthNodesTogether,
    /// Memory of 500 to 8,000 idle sockets.
    GrowthMemory,
    /// Relay at 500 to 10,000 events/s.
    Sweep,
}

/// What is measured without a word about it: about five minutes a round.
pub const QUICK: &[Work] = &[Work::Relay, Work::Latency, Work::Updates, Work::Connect, Work::Idle];

/// One point of a work.
pub struct Setting {
    pub layout: Layout,
    pub plan: Plan,
}

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Latency => "latency",
            Self::ClusterRelay => "cluster-relay",
            Self::ClusterLatency => "cluster-latency",
            Self::Updates => "updates",
            Self::Peak => "peak",
            Self::Writers => "writers",
            Self::Messages => "messages",
            Self::Idle => "idle",
            Self::Connect => "connect",
            Self::Storm => "storm",
            Self::GrowthSockets => "growth-sockets",
            Self::GrowthNodes => "growth-nodes",
            Self::GrowthNodesTogether => "growth-nodes-together",
            Self::GrowthMemory => "growth-memory",
            Self::Sweep => "sweep",
        }
    }

    /// The floor keeps nothing and knows no device, so it has no part in updates and messages.
    pub fn contenders(self) -> &'static [Contender] {
        use Contender::{Floor, NodeSeed, NodeSeedFull, NodeSeedSharded, Tandem, TandemPostgres};
        match self {
            Self::Updates | Self::Peak | Self::Messages | Self::Storm => &[Tandem, NodeSeed],
            Self::Writers => &[Tandem, TandemPostgres, NodeSeed, NodeSeedFull],
            Self::ClusterRelay | Self::ClusterLatency => &[Tandem, Floor, NodeSeed, NodeSeedSharded],
            _ => &[Tandem, Floor, NodeSeed],
        }
    }

    pub fn settings(self) -> Vec<Setting> {
        let relay = |events_per_second: u32| Plan { events_per_second, ..Plan::usual(Scenario::Relay) };
        let one_node = |plan: Plan| Setting { layout: Layout { nodes: 1, clustered: false }, plan };
        let cluster = |nodes: usize, plan: Plan| Setting { layout: Layout { nodes, clustered: true }, plan };
        match self {
            Self::Relay => vec![one_node(relay(5_000))],
            Self::Latency => vec![one_node(relay(1_000))],
            Self::ClusterRelay => vec![cluster(3, relay(3_000))],
            Self::ClusterLatency => vec![cluster(3, relay(1_000))],
            Self::Updates => vec![one_node(Plan::usual(Scenario::Updates))],
            Self::Peak => vec![one_node(Plan::usual(Scenario::Peak))],
            Self::Writers => [1, 8, 64, 512]
                .map(|writers: usize| {
                    let plan = Plan { devices_per_user: writers.min(4), ..Plan::usual(Scenario::Writers) };
                    one_node(plan.with_sockets(writers))
                })
                .into(),
            Self::Messages => vec![one_node(Plan::usual(Scenario::Messages))],
            Self::Idle => vec![one_node(Plan::usual(Scenario::Idle))],
            Self::Connect => vec![one_node(Plan::usual(Scenario::Connect))],
            Self::Storm => vec![one_node(Plan { users: 750, cut: 2_000, ..Plan::usual(Scenario::Storm) })],
            Self::GrowthSockets => {
                [200, 1_000, 4_000, 8_000].map(|sockets| one_node(relay(1_000).with_sockets(sockets))).into()
            }
            Self::GrowthNodes => growth_of_nodes(Placement::Spread),
            Self::GrowthNodesTogether => growth_of_nodes(Placement::Together),
            Self::GrowthMemory => [500, 1_000, 2_000, 4_000, 8_000]
                .map(|sockets| {
                    let plan = Plan { measured: Duration::from_secs(2), ..Plan::usual(Scenario::Idle) };
                    one_node(plan.with_sockets(sockets))
                })
                .into(),
            Self::Sweep => {
                [500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000].map(|rate| one_node(relay(rate))).into()
            }
        }
    }
}

/// The load grows with the nodes: 300 events/s and 200 sockets on each. One node has its Redis too, so that only
/// their number differs.
fn growth_of_nodes(placement: Placement) -> Vec<Setting> {
    [1, 2, 3, 6]
        .map(|nodes: u32| {
            let plan = Plan { placement, events_per_second: 300 * nodes, ..Plan::usual(Scenario::Relay) };
            Setting {
                layout: Layout { nodes: nodes as usize, clustered: true },
                plan: plan.with_sockets(200 * nodes as usize),
            }
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_work_is_within_bounds_and_named_as_on_the_command_line() {
        for work in Work::value_variants() {
            assert_eq!(work.to_possible_value().unwrap().get_name(), work.name());
            assert!(!work.contenders().is_empty());
            work.settings().iter().for_each(|setting| setting.plan.check().unwrap());
        }
    }
}
