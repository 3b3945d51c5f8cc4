//! REST keeps to its own description, whatever is sent: schemathesis makes requests from `/api/openapi.json`, good
//! ones and bad ones, and holds every answer against it.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{Canary, Env, Node, short_or_long, within_secs};

/// The same requests every time; a failure names the one that it takes to repeat it.
const SEED: &str = "7";

/// A minute is its budget; a busy machine gets more before it is called stuck.
const SECONDS_MAX: u64 = 300;

#[tokio::test]
async fn what_is_sent_by_the_description_and_against_it_is_answered_by_the_description() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let canary = Canary::on(&node).await;
    let folder = tempfile::tempdir().unwrap();
    // ./check puts the environment of tools/tests.txt on PATH.
    let run = Command::new("schemathesis")
        .args(["--config-file", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/schemathesis.toml")])
        .args(["run", &format!("{}/api/openapi.json", node.url())])
        .args(["--seed", SEED, "--max-examples", short_or_long("12", "100")])
        .args(["--header", &format!("Authorization: Bearer {}", ann.token)])
        .current_dir(folder.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within_secs(SECONDS_MAX, run).await.expect("schemathesis is on PATH");

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let tried = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_ne!(tried["seq"], 0, "some of it was taken: {text}");
    canary.sings_after("all of it").await;
}
