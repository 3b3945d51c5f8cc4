//! The examples of the README run as they stand.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{Env, Node, installed_driver, within};

/// What `program examples/FILE URL` prints; it has to succeed.
async fn shown_by(program: &str, file: &str) -> String {
    let node = Node::start(&Env::new()).await;
    let output = Command::new(program)
        .arg(format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR")))
        .arg(node.url())
        // The stock client that the test driver installed stands in for `npm install`.
        .env("NODE_PATH", installed_driver().join("node_modules"))
        .stdin(Stdio::null())
        .output();
    let output = within(output).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn the_quickstart_shows_a_change_travel() {
    let text = shown_by("node", "quickstart/index.js").await;

    assert!(text.contains("laptop wrote version 1"), "{text}");
    assert!(text.contains("phone sees editor { text: 'Hello World', cursor: 5 }"), "{text}");
}

#[tokio::test]
async fn the_python_example_shows_a_change_travel_too() {
    // ./check puts the environment of tools/tests.txt on PATH.
    let text = shown_by("python", "python/two_devices.py").await;

    assert!(text.contains("phone sees {'text': 'Hello', 'likes': 0}"), "{text}");
    assert!(text.contains("likes: 2"), "{text}");
}
