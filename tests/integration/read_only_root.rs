//! In a container whose file system is read-only but for the data folder, and that has no `/tmp`.

use std::path::Path;
use std::process::Command;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Account, Env, Process, Rest, listening_address, within};

/// A node's command on a file system of its own, all of it read-only but for `data`, which is its `/mnt`. SQLite
/// looks for a place of its own in `/tmp`, `/var/tmp`, `/usr/tmp` and the current folder.
fn read_only_but_for(data: &Path) -> Command {
    const INSIDE: &str = "set -eu; program=$1 data=$2
        mount --bind \"$data\" /mnt
        mount --bind \"$(dirname \"$program\")\" /opt
        for folder in /tmp /var/tmp; do mount -t tmpfs -o ro tmpfs $folder; done
        mount -o remount,bind,ro /
        cd /
        exec \"/opt/$(basename \"$program\")\"";
    let env = Env::new().set("DATABASE_URL", "sqlite:///mnt/tandem.db");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", INSIDE, "bash"]);
    command.arg(env.program()).arg(data).envs(env.vars()).env_remove("TMPDIR").env_remove("SQLITE_TMPDIR");
    command
}

#[tokio::test]
async fn states_of_50_kb_are_taken_where_nothing_but_the_data_folder_can_be_written() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not tried: mounting needs root");
    }
    let data = tempfile::tempdir().unwrap();
    let node = Process::spawn("tandem", &mut read_only_but_for(data.path()));
    let address = within(node.line(listening_address)).await.unwrap_or_else(|error| panic!("{error}"));
    let rest = Rest::new(format!("http://{address}"));
    let ann = Account::register(&rest, "ann").await;
    let rest = rest.with_token(&ann.token);

    let state = json!("x".repeat(50_000));
    // Together, so that they share transactions; and again, over what is there.
    for _ in 0..3 {
        let puts = (0..8).map(|n| {
            let (rest, state) = (rest.clone(), state.clone());
            async move { rest.put(&format!("/api/session/k{n}"), &state).await }
        });
        for put in join_all(puts).await {
            put.expect(200);
        }
    }
}
