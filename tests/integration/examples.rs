//! The examples of the README run as they stand.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{Env, Node, installed_driver, within};

#[tokio::test]
async fn the_quickstart_shows_a_change_travel() {
    let node = Node::start(&Env::new()).await;
    let root = env!("CARGO_MANIFEST_DIR");
    // The stock client that the test driver installed stands in for `npm install`.
    let output = Command::new("node")
        .arg(format!("{root}/examples/quickstart/index.js"))
        .arg(node.url())
        .env("NODE_PATH", installed_driver().join("node_modules"))
        .stdin(Stdio::null())
        .output();
    let output = within(output).await.unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("laptop wrote version 1"), "{text}");
    assert!(text.contains("phone sees editor { text: 'Hello World', cursor: 5 }"), "{text}");
}

#[tokio::test]
async fn the_python_example_shows_a_change_travel_too() {
    let node = Node::start(&Env::new()).await;
    let root = env!("CARGO_MANIFEST_DIR");
    // ./check puts the environment of tools/tests.txt on PATH.
    let output = Command::new("python")
        .arg(format!("{root}/examples/python/two_devices.py"))
        .arg(node.url())
        .stdin(Stdio::null())
        .output();
    let output = within(output).await.unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("phone sees {'text': 'Hello', 'likes': 0}"), "{text}");
    assert!(text.contains("likes: 2"), "{text}");
}
