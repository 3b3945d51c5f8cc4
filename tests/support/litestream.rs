//! A real Litestream with the shipped configuration, its copy in a folder or on an S3 server.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::node::listening_address;
use super::port::free_port;
use super::{Env, Exit, Process, driver, integrity, within, within_secs};

/// How often a start tries another port when somebody was quicker.
const PORT_ATTEMPTS: u32 = 20;

/// Where a copy is kept, and what the two processes have to know of it.
pub struct Copy {
    url: String,
    /// Holds the control socket, and the copy if that is in a folder.
    folder: TempDir,
    /// Where an S3 server keeps it.
    objects: Option<PathBuf>,
}

impl Copy {
    pub fn in_a_folder() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("file://{}", folder.path().join("copy").display());
        Self { url, folder, objects: None }
    }

    /// Under `name` in the server's bucket.
    pub fn on(server: &S3Server, name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!(
            "s3://copies/{name}?endpoint=http://127.0.0.1:{}&region=us-east-1&forcePathStyle=true",
            server.port
        );
        Self { url, folder, objects: Some(server.folder.path().join("copies").join(name)) }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("litestream.sock")
    }

    /// Makes the copy unreachable, or reachable again; only for one in a folder.
    pub fn set_broken(&self, is_broken: bool) {
        let (copy, aside) = (self.folder.path().join("copy"), self.folder.path().join("aside"));
        if is_broken {
            std::fs::rename(&copy, &aside).expect("a copy to take away");
            std::fs::write(&copy, "no folder").expect("a file in its place");
        } else {
            std::fs::remove_file(&copy).expect("the file in its place");
            std::fs::rename(&aside, &copy).expect("a copy to bring back");
        }
    }

    /// `litestream` with the shipped configuration for the database in `folder`.
    fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/litestream.yml");
        let mut command = Command::new("litestream");
        command
            .arg(args[0])
            .arg("-config")
            .arg(config)
            .args(&args[1..])
            .current_dir(folder)
            .env("TANDEM_DATABASE", folder.join("tandem.db"))
            .env("LITESTREAM_SOCKET", self.socket())
            .env("LITESTREAM_URL", &self.url)
            .env("LITESTREAM_ACCESS_KEY_ID", "S3RVER")
            .env("LITESTREAM_SECRET_ACCESS_KEY", "S3RVER")
            .env_remove("AWS_CA_BUNDLE");
        command
    }

    /// Waits until the copy holds everything that is committed in `folder`.
    pub async fn sync(&self, folder: &Path) {
        let mut command = Command::new("litestream");
        command.args(["sync", "-wait", "-socket"]).arg(self.socket()).arg(folder.join("tandem.db"));
        let mut syncing = Process::spawn("litestream sync", &mut command);
        let exit = within_secs(30, syncing.exit()).await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
    }

    /// Brings the database back into `folder` from the copy alone, and sees that it is sound.
    pub async fn restore(&self, folder: &Path) {
        if let Some(objects) = &self.objects {
            remove_unfinished(objects);
        }
        let database = folder.join("tandem.db").display().to_string();
        let args = ["restore", "-if-db-not-exists", &database];
        let mut restoring = Process::spawn("litestream restore", &mut self.command(folder, &args));
        let exit = within_secs(60, restoring.exit()).await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        assert_eq!(integrity(folder).await, "ok");
    }
}

/// Removes objects whose upload broke off. S3 keeps none; s3rver keeps what it had, without the metadata that it
/// writes last.
fn remove_unfinished(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder of objects") {
        let path = entry.expect("an object").path();
        if path.is_dir() {
            remove_unfinished(&path);
        } else if let Some(key) = path.to_str().and_then(|path| path.strip_suffix("._S3rver_object"))
            && !Path::new(&format!("{key}._S3rver_metadata.json")).exists()
        {
            std::fs::remove_file(&path).expect("an object to remove");
        }
    }
}

pub struct Litestream {
    process: Process,
    /// It leads a group of its own, with the server that it started in it.
    leads_group: bool,
}

impl Litestream {
    /// Starts it beside the database in `folder` and waits until its control socket is there.
    pub async fn start(copy: &Copy, folder: &Path) -> Self {
        Self::spawn(&mut copy.command(folder, &["replicate"]), false).await
    }

    /// Starts it as the container does: it restores what is missing and runs the server itself, with `env`.
    pub async fn around(env: &Env, copy: &Copy, folder: &Path) -> Self {
        let server = env.program();
        let args = ["replicate", "-restore-if-db-not-exists", "-exec", &server];
        let mut command = copy.command(folder, &args);
        command.envs(env.vars()).process_group(0);
        Self::spawn(&mut command, true).await
    }

    async fn spawn(command: &mut Command, leads_group: bool) -> Self {
        let process = Process::spawn("litestream", command);
        let listening = |line: &str| line.contains("control socket listening").then_some(());
        within(process.line(listening)).await.unwrap_or_else(|error| panic!("{error}"));
        Self { process, leads_group }
    }

    /// Where the server that it started listens.
    pub async fn url(&self) -> String {
        let address = within(self.process.line(listening_address)).await;
        format!("http://{}", address.unwrap_or_else(|error| panic!("{error}")))
    }

    pub fn kill_9(&mut self) {
        self.process.kill();
    }

    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Freezes it: its socket is there and nothing is answered.
    pub fn stop(&self) {
        self.process.freeze();
    }

    pub fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    pub async fn wait_exit(&mut self) -> Exit {
        self.process.exit().await
    }
}

impl Drop for Litestream {
    fn drop(&mut self) {
        let group = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group.filter(|_| self.leads_group && !self.process.is_reaped()) {
            // All of it may have ended by itself just now.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

/// An S3 server with a bucket named `copies`.
pub struct S3Server {
    port: u16,
    _process: Process,
    folder: TempDir,
}

impl S3Server {
    pub async fn start() -> Self {
        let packages = driver::installed("tests/support/s3");
        let folder = tempfile::tempdir().expect("a temporary folder");
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            let mut command = Command::new("node");
            command
                .arg(packages.join("node_modules/s3rver/bin/s3rver.js"))
                .args(["--address", "127.0.0.1", "--port", &port.to_string(), "--configure-bucket", "copies"])
                .arg("--directory")
                .arg(folder.path());
            let process = Process::spawn("s3rver", &mut command);
            let listening = |line: &str| line.to_lowercase().contains("listening").then_some(());
            if within(process.line(listening)).await.is_ok() {
                return Self { port, _process: process, folder };
            }
        }
        panic!("s3rver found no port");
    }
}
