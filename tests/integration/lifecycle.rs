//! The life of the process: how it refuses to start, what it keeps, how it stops.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    Device, Env, Node, Process, RawTcp, Rest, eventually, free_port, listening_address, run_to_exit, within,
    within_secs,
};

#[tokio::test]
async fn every_mistake_in_the_configuration_is_told_at_once_by_name_and_never_by_value() {
    let mistakes = [
        ("PORT", "canary-1"),
        ("BCRYPT_COST", "canary-2"),
        ("JWT_SECRET", "canary-3"),
        ("DATABASE_URL", "canary-4://x"),
        ("REDIS_URL", "canary-5://x"),
        ("LOG_FORMAT", "canary-6"),
        ("TRUSTED_PROXIES", "canary-7"),
        ("ALLOWED_ORIGINS", "canary-8"),
        ("LIMIT_STATE_BYTES", "canary-9"),
    ];
    let env = mistakes.iter().fold(Env::new(), |env, (name, value)| env.set(name, value));

    let exit = run_to_exit(&env).await;

    assert_eq!(exit.code, Some(2), "{}", exit.output);
    for (name, _) in mistakes {
        assert!(exit.output.contains(name), "{name} is not named:\n{}", exit.output);
    }
    assert!(!exit.output.contains("canary"), "{}", exit.output);
}

#[tokio::test]
async fn a_short_or_well_known_secret_is_refused() {
    for secret in ["too short", "your-secret-key", "changeme"] {
        let exit = run_to_exit(&Env::new().set("JWT_SECRET", secret)).await;
        assert_eq!(exit.code, Some(2), "{}", exit.output);
        assert!(exit.output.contains("JWT_SECRET"), "{}", exit.output);
        assert!(!exit.output.contains(secret), "{}", exit.output);
    }
}

#[tokio::test]
async fn a_node_of_a_cluster_needs_a_secret() {
    let env = Env::new().unset("JWT_SECRET").set("REDIS_URL", "redis://127.0.0.1:1");
    let exit = run_to_exit(&env).await;
    assert_eq!(exit.code, Some(2), "{}", exit.output);
    assert!(exit.output.contains("JWT_SECRET"), "{}", exit.output);
}

#[tokio::test]
async fn a_node_alone_makes_its_secret_and_keeps_it_to_itself() {
    let mut node = Node::start(&Env::new().unset("JWT_SECRET")).await;
    let ann = node.register("ann").await;
    node.kill_9();
    node.restart().await;

    node.rest_of(&ann).get("/api/session").await.expect(200);
    let files = std::fs::read_dir(node.folder()).unwrap().map(|file| file.unwrap());
    let kept_private = files
        .filter(|file| !file.file_name().to_string_lossy().starts_with("tandem.db"))
        .filter(|file| file.metadata().unwrap().permissions().mode() & 0o777 == 0o600)
        .count();
    assert!(kept_private >= 1, "no file of mode 0600 beside the database");
    assert!(!node.log().contains(&ann.token));
}

#[tokio::test]
async fn with_no_configuration_but_a_port_the_server_starts() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::bare().set("PORT", 0).set("LOG_FORMAT", "json");
    let node = Node::start_in(folder.path(), &env.set("BCRYPT_COST", 4)).await;
    let ann = node.register("ann").await;
    Device::connect(&node, &ann).await.update("k", json!(1)).await;
}

#[tokio::test]
async fn a_flag_goes_before_the_environment() {
    let env = Env::new().set("PORT", "not a port").arg("--port").arg("0");
    Node::start(&env).await;
}

#[tokio::test]
async fn check_config_reports_mistakes_and_starts_nothing() {
    let good = run_to_exit(&Env::new().arg("check-config")).await;
    assert_eq!(good.code, Some(0), "{}", good.output);
    let bad = run_to_exit(&Env::new().set("PORT", "canary").arg("check-config")).await;
    assert_eq!(bad.code, Some(2), "{}", bad.output);
    assert!(bad.output.contains("PORT") && !bad.output.contains("canary"), "{}", bad.output);
}

#[tokio::test]
async fn gen_config_prints_the_example_which_fixes_no_setting() {
    let printed = run_to_exit(&Env::new().arg("gen-config")).await;
    assert_eq!(printed.code, Some(0), "{}", printed.output);
    assert_eq!(printed.output.trim_end(), include_str!("../../.env.example").trim_end());
    let fixed: Vec<_> =
        printed.output.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert!(fixed.is_empty(), "a copy as .env would hold these: {fixed:?}");
}

/// The program under limits of open files: what it starts with, and how far it may go itself.
fn limited(folder: &std::path::Path, soft: u32, hard: u32) -> Process {
    let env = Env::new().set("DATABASE_URL", format!("sqlite://{}", folder.join("tandem.db").display()));
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec {}", env.program())]);
    command.envs(env.vars()).current_dir(folder);
    Process::spawn("tandem", &mut command)
}

#[tokio::test]
async fn a_node_that_starts_with_a_low_limit_of_open_files_raises_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = limited(folder.path(), 64, 4_096);
    let address = within(node.line(listening_address)).await.unwrap_or_else(|error| panic!("{error}"));

    let mut open = Vec::new();
    for _ in 0..200 {
        let mut tcp = RawTcp::open_at(&address).await;
        tcp.write(b"GET /api/health/live HTTP/1.1\r\nHost: tandem\r\n\r\n").await.unwrap();
        let answer = tcp.read_until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{} are open: {answer}", open.len());
        open.push(tcp);
    }
}

#[tokio::test]
async fn a_node_that_may_not_open_files_for_all_its_connections_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let node = limited(folder.path(), 256, 256);
    let told = node.line(|line| (line.contains("LIMIT_CONNECTIONS") && line.contains("256")).then_some(()));
    within(told).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_node_that_waits_for_its_database_stops_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = format!("postgres://tandem@127.0.0.1:{}/tandem", free_port());
    let mut node =
        Process::spawn("tandem", &mut Env::new().set("DATABASE_URL", nowhere).command(folder.path()));
    eventually("it minds signals", || async {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        let caught = u64::from_str_radix(caught, 16).unwrap();
        (caught & 1 << (Signal::TERM.as_raw() - 1) != 0).then_some(())
    })
    .await;

    node.signal(Signal::TERM);

    let exit = within_secs(5, node.exit()).await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
}

#[tokio::test]
async fn a_terminated_node_answers_what_is_in_flight_lets_its_clients_go_and_exits_0() {
    let env = Env::new().set("DRAIN_SECONDS", 1).set("DRAIN_LAG_SECONDS", 0);
    let mut node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let mut devices = Vec::new();
    for _ in 0..10 {
        let device = Device::options(&node, &ann).without_reconnection().connect().await;
        devices.push(device);
    }

    let busy = devices.iter().map(|device| {
        let updates = (0..50).map(|n| json!({"sessionKey": "k", "state": n})).collect();
        device.emit_ack_all("session-update", updates)
    });
    let (acks, ()) = tokio::join!(futures_util::future::join_all(busy), async { node.terminate() });
    let exit = within_secs(20, node.wait_exit()).await;

    assert_eq!(exit.code, Some(0), "{}", exit.output);
    for device in &devices {
        let draining = device.next("server-draining").await;
        assert!(draining["reconnectInMs"].is_u64(), "{draining}");
        let reason = device.disconnected().await;
        assert_eq!(reason, "transport close", "a goodbye would keep stock clients away");
    }
    let acked = acks.iter().flatten().filter_map(|ack| ack.as_ref().ok());
    let acked = acked.filter(|ack| ack["ok"] == true).count();
    node.restart().await;
    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert!(session["seq"].as_u64().unwrap() >= acked as u64, "{acked} acked: {session}");
}

#[tokio::test]
async fn clients_of_a_terminated_node_come_back_by_themselves() {
    let env = Env::new().set("DRAIN_SECONDS", 1).set("DRAIN_LAG_SECONDS", 0);
    let mut node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let mut phone = Device::named(&node, &ann, "Phone").await;
    let id = phone.id().to_owned();
    phone.update("k", json!(1)).await;

    node.terminate();
    assert_eq!(within_secs(20, node.wait_exit()).await.code, Some(0));
    node.restart().await;

    phone.restored_again().await;
    assert_eq!(phone.id(), id);
    assert_eq!(phone.restored()["sessionData"], json!({"k": 1}));
}

#[tokio::test]
async fn a_terminated_node_is_not_ready_at_once_but_serves_for_a_while() {
    let env = Env::new().set("DRAIN_SECONDS", 0).set("DRAIN_LAG_SECONDS", 5);
    let node = Node::start(&env).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);

    node.terminate();
    eventually("it is not ready", || async {
        let ready = rest.request(reqwest::Method::GET, "/api/health/ready");
        (Rest::try_status(ready).await == Some(503)).then_some(())
    })
    .await;

    let health = rest.get("/api/health").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.body["status"], "draining");
    rest.get("/api/health/live").await.expect(200);
    Device::connect(&node, &ann).await.update("k", json!(1)).await;
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let env = Env::new().set("DRAIN_SECONDS", 300).set("DRAIN_LAG_SECONDS", 300);
    let mut node = Node::start(&env).await;
    let rest = node.rest();
    node.terminate();
    eventually("the first signal is noticed", || async {
        let ready = rest.request(reqwest::Method::GET, "/api/health/ready");
        (Rest::try_status(ready).await == Some(503)).then_some(())
    })
    .await;

    node.terminate();

    within(node.wait_exit()).await;
}

#[tokio::test]
async fn no_secret_gets_into_the_log() {
    let node = Node::start(&Env::new().set("LOG", "debug")).await;
    let ann = node.register("ann").await;
    let device = Device::named(&node, &ann, "Phone").await;
    device.update("k", json!("canary-state")).await;
    device.emit_ack("realtime-event", json!({"type": "t", "payload": "canary-payload"})).await;
    node.rest_of(&ann).get("/api/session").await.expect(200);
    let wrong = json!({"email": ann.email, "password": "canary-password"});
    node.rest().post("/api/auth/login", &wrong).await.expect(401);

    let log = node.log();
    let secrets = [&ann.token, &ann.refresh_token, &ann.password, &ann.email];
    let secrets = secrets.into_iter().map(String::as_str).chain([crate::support::JWT_SECRET]);
    for secret in secrets.filter(|secret| !secret.is_empty()) {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(!log.contains("canary"), "{log}");
}
