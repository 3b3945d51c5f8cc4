//! Dashboards and alerts hold against real nodes: a real Prometheus scrapes three of them under load, every panel has
//! something to show, and alerts fire when the fault is made.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Cluster, Device, Env, Node, Process, connection, eventually, free_port, within};

/// Scrapes, rules and rates of the test; the shipped ones are minutes.
const EVERY: &str = "500ms";
const RATE: &str = "5s";

/// Panels of what these nodes do not have, or do not do.
const NOT_HERE: [&str; 1] = ["tandem_replica_sync_seconds"];

struct Prometheus {
    _process: Process,
    _folder: TempDir,
    url: String,
}

impl Prometheus {
    async fn start(targets: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, at) = (free_port(), folder.path());
        let rules = ["recording.yml", "alerts.yml"].map(|name| {
            let text = std::fs::read_to_string(format!("deploy/prometheus/{name}")).unwrap();
            let scaled = text.replace("[5m]", "[5s]").replace("[1m]", "[5s]");
            let scaled = ["for: 30s", "for: 1m", "for: 5m"]
                .iter()
                .fold(scaled, |text, wait| text.replace(wait, "for: 1s"));
            std::fs::write(at.join(name), scaled).unwrap();
            at.join(name)
        });
        let config = json!({
            "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY, "scrape_timeout": "400ms"},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "tandem", "static_configs": [{"targets": targets}]}],
        });
        // JSON is YAML.
        std::fs::write(at.join("prometheus.yml"), config.to_string()).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", at.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::spawn("prometheus", &mut command);
        let prometheus = Self { _process: process, _folder: folder, url: format!("http://127.0.0.1:{port}") };
        eventually("Prometheus is ready", || async {
            let answer = reqwest::get(format!("{}/-/ready", prometheus.url)).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        prometheus
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let request = reqwest::Client::new().get(format!("{}{path}", self.url)).query(query).send();
        within(request).await.unwrap().json().await.unwrap()
    }

    /// How many series an expression has now.
    async fn series(&self, expression: &str) -> usize {
        let answer = self.get("/api/v1/query", &[("query", expression)]).await;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().len()
    }

    async fn fires(&self, alert: &str) {
        eventually("the alert fires", || async {
            let alerts = self.get("/api/v1/alerts", &[]).await;
            let alerts = alerts["data"]["alerts"].as_array().unwrap().clone();
            let firing = |one: &Value| one["labels"]["alertname"] == alert && one["state"] == "firing";
            alerts.iter().any(firing).then_some(())
        })
        .await;
    }
}

/// Every expression of every dashboard, as Grafana would ask it.
fn expressions() -> Vec<String> {
    let listed = Command::new("python3").args(["deploy/grafana/dashboards.py", "--list"]).output().unwrap();
    assert!(listed.status.success());
    let text = String::from_utf8(listed.stdout).unwrap();
    let asked =
        |line: &str| line.replace("$__rate_interval", RATE).replace("$job", ".*").replace("$instance", ".*");
    text.lines().map(asked).collect()
}

#[tokio::test]
async fn every_panel_has_something_to_show_and_alerts_fire_on_their_faults() {
    let mut cluster = Cluster::start_with(3, &Env::new()).await;
    let targets: Vec<_> = cluster.nodes.iter().map(|node| node.address().to_owned()).collect();
    let prometheus = Prometheus::start(&targets).await;
    let ann = cluster.register("ann").await;
    let phone = cluster.named(0, &ann, "Phone").await;
    let laptop = cluster.named(1, &ann, "Laptop").await;

    let expressions = expressions();
    assert!(expressions.len() > 50, "{}", expressions.len());
    for expression in &expressions {
        if NOT_HERE.iter().any(|absent| expression.contains(absent)) {
            prometheus.series(expression).await;
            continue;
        }
        // Load goes on until there is something to see of it.
        eventually(expression, || async {
            phone.update("k", json!(1)).await;
            phone.emit_ack("device-message", json!({"targetDeviceId": laptop.id(), "message": 1})).await;
            (prometheus.series(expression).await > 0).then_some(())
        })
        .await;
    }
    let rules = prometheus.get("/api/v1/rules", &[]).await;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_ne!(rule["health"], "err", "{rule}");
        }
    }

    tokio::select! {
        () = hold_up(&cluster.nodes[0], &phone) => {}
        () = prometheus.fires("TandemStoreSlow") => {}
    }
    cluster.redis.stop();
    prometheus.fires("TandemBackplaneDown").await;
    cluster.redis.cont();
    cluster.nodes[2].kill_9();
    prometheus.fires("TandemNodeDown").await;
}

/// Another program holds the database for half a second at a time, again and again, while a device writes.
async fn hold_up(node: &Node, device: &Device) {
    let mut other = connection(node.folder()).await;
    loop {
        if sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.is_err() {
            continue;
        }
        let write = device.try_emit_ack("session-update", vec![json!({"sessionKey": "k", "state": 2})]);
        let held = async {
            let half_a_second = std::future::pending::<()>();
            drop(tokio::time::timeout(Duration::from_millis(500), half_a_second).await);
            sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        };
        drop(tokio::join!(write, held));
    }
}
