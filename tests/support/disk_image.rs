//! A small ext4 file system in an image file, to cut the power of.
//!
//! What is in the image file has been handed to the disk; what only the page cache of the mounted file system
//! knows is not in it. So a copy of the image, mounted, is the disk after a power cut, while a copy of the live
//! files would read the page cache and prove nothing. The commit interval is long: only what the server itself
//! syncs gets into the image during a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Big enough for a journal and a database of a few thousand writes.
const SIZE_MIB: u64 = 96;

/// Seconds until ext4 commits by itself; far longer than a test takes.
const COMMIT_SECONDS: u32 = 300;

pub struct DiskImage {
    folder: TempDir,
    mounted: bool,
}

impl DiskImage {
    /// A fresh, mounted file system; `Err` says why this machine has none (no root, no loop devices).
    pub fn mount() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a loop device needs root".to_owned());
        }
        let mut image = Self { folder: tempfile::tempdir().expect("a temporary folder"), mounted: false };
        let file = std::fs::File::create(image.file()).expect("an image file");
        file.set_len(SIZE_MIB << 20).expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.file()))?;
        image.attach()?;
        Ok(image)
    }

    /// The disk as it would be found after a power cut now. The caller has stopped whoever writes to it, so that
    /// the copy is of one moment.
    pub fn after_power_cut(&self) -> Self {
        let mut copy = Self { folder: tempfile::tempdir().expect("a temporary folder"), mounted: false };
        std::fs::copy(self.file(), copy.file()).expect("room for a second image");
        copy.attach().expect("ext4 replays its journal");
        copy
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn attach(&mut self) -> Result<(), String> {
        std::fs::create_dir(self.path()).expect("a mount point");
        let options = format!("loop,commit={COMMIT_SECONDS}");
        run(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(self.file()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for DiskImage {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = run(Command::new("umount").arg(self.path()))
        {
            eprintln!("a test left {} mounted: {error}", self.path().display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
