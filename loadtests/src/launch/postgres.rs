//! A PostgreSQL of a run: made, started, and ended with it.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Process, free_port};

/// Whom it runs as where we are root.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// Its URL and its process; its data and log are in `folder`, which becomes its own.
///
/// # Errors
/// When its programs are missing or it is not up in time.
pub fn start(folder: &Path, within: Duration) -> anyhow::Result<(String, Process)> {
    let (port, data) = (free_port()?, folder.join("postgres"));
    std::fs::create_dir(&data)?;
    let other = other_user()?;
    if let Some((user, group)) = other {
        chown(folder, Some(user), Some(group)).context("cannot give the folder to PostgreSQL's user")?;
        chown(&data, Some(user), Some(group))?;
    }
    let as_other = |mut command: Command| {
        if let Some((user, group)) = other {
            command.uid(user).gid(group);
        }
        command.current_dir(folder);
        command
    };
    let made = as_other(Command::new(postgres_program("initdb")))
        .args(["--username=tandem", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&data)
        .output()
        .context("cannot run initdb")?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut command = as_other(Command::new(postgres_program("postgres")));
    command.arg("-D").arg(&data).arg("-k").arg(folder).args(["-p", &port.to_string()]);
    command.args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]);
    let log = folder.join("postgres.log");
    let mut server = Process::start(command, port, log.clone())?;
    server.wait_until(within, |_| {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"))
    })?;
    Ok((format!("postgres://tandem@127.0.0.1:{port}/postgres"), server))
}

/// The user and group to run PostgreSQL as; none where we are nobody special ourselves.
fn other_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let entry = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    USERS.iter().find_map(|name| entry(name)).map(Some).context("PostgreSQL needs a user that is not root")
}

/// Debian keeps the server's programs off the PATH.
fn postgres_program(name: &str) -> PathBuf {
    let found = std::fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let found = found.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.unwrap_or_else(|| PathBuf::from(name))
}
