//! What a run writes down, as JSON: the machine, and a sample for each scenario, contender and round.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::figure;
use super::latency::{Latencies, Quantile};
use super::machine::Machine;
use super::watch::Spent;

/// Raised when a field changes its meaning.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub schema: u32,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// The command line, so that the run can be repeated.
    pub command: String,
    pub machine: Machine,
    pub samples: Vec<Sample>,
    /// Measurements that could not be made, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What was measured: a scenario's name, or the row of a comparison it stands for.
    pub work: String,
    /// Who was measured.
    pub contender: String,
    /// From 1.
    pub round: usize,
    pub nodes: usize,
    pub sockets: usize,
    /// Events a second asked for; 0 where the scenario has no rate.
    pub rate: u32,
    pub figures: BTreeMap<String, f64>,
    /// Latency distributions by what was timed: `delivery`, `ack`, `connect`, `back`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub distributions: BTreeMap<String, Vec<Quantile>>,
    /// The rates that a search tried, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
}

/// One rate of a search.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Tried {
    pub events_per_second: u32,
    pub ack_p50_us: u64,
    pub ack_p99_us: u64,
    /// Whether the server kept the bound.
    pub held: bool,
}

impl RunResult {
    pub fn begin() -> Self {
        Self {
            schema: SCHEMA,
            started_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            machine: Machine::this(),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub fn load(path: &std::path::Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let result: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))?;
        ensure!(
            result.schema == SCHEMA,
            "{} has schema {}, this tool reads {SCHEMA}",
            path.display(),
            result.schema
        );
        Ok(result)
    }

    pub fn save(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Sample {
    pub fn new(work: &str, nodes: usize, sockets: usize, rate: u32) -> Self {
        Self {
            work: work.to_owned(),
            contender: String::new(),
            round: 1,
            nodes,
            sockets,
            rate,
            figures: BTreeMap::new(),
            distributions: BTreeMap::new(),
            tried: Vec::new(),
        }
    }

    pub fn set(&mut self, name: &str, value: f64) {
        debug_assert!(figure::meaning(name).is_some(), "{name} is missing in figure.rs");
        self.figures.insert(name.to_owned(), value);
    }

    /// `what`: `delivery`, `ack`, `connect` or `back`. Nothing is set when nothing was timed.
    pub fn set_latencies(&mut self, what: &str, latencies: &Latencies) {
        if latencies.count() == 0 {
            return;
        }
        for (tail, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)] {
            self.set(&format!("{what}_{tail}_us"), latencies.us_at(share) as f64);
        }
        self.set(&format!("{what}_max_us"), latencies.max_us() as f64);
        self.distributions.insert(what.to_owned(), latencies.distribution());
    }

    /// What so many events cost, and the cores kept busy; nothing of nodes that are not watched.
    pub fn set_costs(&mut self, spent: &Spent, events: u64, watched: bool) {
        self.set_cores(spent);
        let per_event = |total: f64| total / events.max(1) as f64;
        if watched {
            self.set("node_cpu_us_per_event", per_event(spent.nodes.as_secs_f64() * 1e6));
            self.set("cpu_us_per_event", per_event((spent.nodes + spent.redis).as_secs_f64() * 1e6));
        }
        if spent.redis_commands > 0 {
            self.set("redis_cpu_us_per_event", per_event(spent.redis.as_secs_f64() * 1e6));
            self.set("redis_in_bytes_per_event", per_event(spent.redis_input_bytes as f64));
            self.set("redis_out_bytes_per_event", per_event(spent.redis_output_bytes as f64));
            self.set("redis_commands_per_event", per_event(spent.redis_commands as f64));
        }
    }

    /// How many cores each part kept busy.
    pub fn set_cores(&mut self, spent: &Spent) {
        let cores = |time: std::time::Duration| time.as_secs_f64() / spent.elapsed.as_secs_f64();
        self.set("node_cores", cores(spent.nodes));
        if spent.redis_commands > 0 {
            self.set("redis_cores", cores(spent.redis));
        }
        self.set("generator_cores", cores(spent.generator));
        self.set("other_cores", cores(spent.others));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_survives_the_file() {
        let mut result = RunResult::begin();
        let mut sample = Sample::new("relay", 1, 200, 1_000);
        let mut latencies = Latencies::new();
        latencies.record(std::time::Duration::from_millis(2));
        sample.set_latencies("delivery", &latencies);
        sample.set_latencies("ack", &Latencies::new());
        result.samples.push(sample);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        result.save(&path).unwrap();
        let sample = &RunResult::load(&path).unwrap().samples[0];
        assert_eq!(sample.figures["delivery_p50_us"], 2_000.0);
        assert!(!sample.figures.contains_key("ack_p50_us"));
        assert!(!sample.distributions["delivery"].is_empty());
    }
}
